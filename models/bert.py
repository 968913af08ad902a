"""BERT (Devlin et al., arXiv:1810.04805) and RoBERTa (arXiv:1907.11692) encoders: learned positions, norms behind the blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import Arch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Bert(Arch):
    names = ("bert", "BertModel", "BertForMaskedLM", "RobertaModel", "XLMRobertaModel", "XLMRobertaForMaskedLM")
    encoder = layer_norm = True
    hf_keys = {"rms_norm_eps": "layer_norm_eps"}
    hf_defaults = {"layer_norm_eps": 1e-12}
    parts = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias", "cls.", "lm_head.")    # of no use here
    tensors = {
        "embeddings.word_embeddings": "token_embd",
        "embeddings.position_embeddings": "position_embd",
        "embeddings.token_type_embeddings": "token_types",
        "embeddings.LayerNorm": "token_embd_norm",
        "encoder.layer.{i}.attention.self.query": "blk.{i}.attn_q",
        "encoder.layer.{i}.attention.self.key": "blk.{i}.attn_k",
        "encoder.layer.{i}.attention.self.value": "blk.{i}.attn_v",
        "encoder.layer.{i}.attention.output.dense": "blk.{i}.attn_output",
        "encoder.layer.{i}.attention.output.LayerNorm": "blk.{i}.attn_output_norm",
        "encoder.layer.{i}.intermediate.dense": "blk.{i}.ffn_up",
        "encoder.layer.{i}.output.dense": "blk.{i}.ffn_down",
        "encoder.layer.{i}.output.LayerNorm": "blk.{i}.layer_output_norm",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.positions(g.embed("token_embd"), "position_embd")
        x = g.norm(g.positions(x, "token_types", row=0), "token_embd_norm")
        for _ in g.layers(c.n_layers):
            q, k, v = g.linear(x, "attn_q", "attn_k", "attn_v")
            x = g.norm(g.linear(g.attention(q, k, v, causal=False), "attn_output", add=x), "attn_output_norm")
            x = g.norm(g.linear(g.linear(x, "ffn_up", act="gelu_erf"), "ffn_down", add=x), "layer_output_norm")
        return g.pool(x)

    def gguf_names(self, hf_name: str) -> tuple[str, ...]:
        return super().gguf_names(_bare(hf_name))

    def ignores(self, hf_name: str) -> bool:
        return _bare(hf_name).startswith(self.parts)

    def row_order(self, name: str, n: int, config: Mapping[str, Any]) -> NDArray[np.intp] | None:
        """RoBERTa counts positions from the one behind its padding token's id on."""
        import numpy as np

        first = _first_position(config)
        return np.arange(first, n) if first and name == "position_embd.weight" else None

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        if config.get("hidden_act", "gelu") != "gelu":
            raise ValueError(f"hidden_act {config['hidden_act']} is not gelu")
        return {"attention.causal": False, "context_length": config["max_position_embeddings"] - _first_position(config)}


def _bare(hf_name: str) -> str:
    return hf_name.removeprefix("bert.").removeprefix("roberta.")


def _first_position(config: Mapping[str, Any]) -> int:
    return int(config["pad_token_id"]) + 1 if "roberta" in str(config.get("model_type")) else 0
