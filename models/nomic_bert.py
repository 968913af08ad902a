"""Nomic Embed (arXiv:2402.01613): BERT with rope in place of learned positions, and gated feed-forward networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import Arch

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class NomicBert(Arch):
    names = ("nomic-bert", "NomicBertModel")
    encoder = layer_norm = True
    hf_keys = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "intermediate_size": "n_inner",
               "max_position_embeddings": "n_positions", "rope_theta": "rotary_emb_base"}
    tensors = {
        "embeddings.word_embeddings": "token_embd",
        "embeddings.token_type_embeddings": "token_types",
        "emb_ln": "token_embd_norm",
        "encoder.layers.{i}.attn.Wqkv": "blk.{i}.attn_qkv",
        "encoder.layers.{i}.attn.out_proj": "blk.{i}.attn_output",
        "encoder.layers.{i}.norm1": "blk.{i}.attn_output_norm",
        "encoder.layers.{i}.mlp.fc11": "blk.{i}.ffn_up",
        "encoder.layers.{i}.mlp.fc12": "blk.{i}.ffn_gate",
        "encoder.layers.{i}.mlp.fc2": "blk.{i}.ffn_down",
        "encoder.layers.{i}.norm2": "blk.{i}.layer_output_norm",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        n = c.n_embd
        x = g.norm(g.positions(g.embed("token_embd"), "token_types", row=0), "token_embd_norm")
        for _ in g.layers(c.n_layers):
            q, k, v = g.linear(x, f"attn_qkv[0:{n}]", f"attn_qkv[{n}:{2 * n}]", f"attn_qkv[{2 * n}:{3 * n}]")
            q, k = g.rope(q, k)
            x = g.norm(g.linear(g.attention(q, k, v, causal=False), "attn_output", add=x), "attn_output_norm")
            x = g.norm(g.linear(g.gated(x, "ffn_gate", "ffn_up", act="silu"), "ffn_down", add=x), "layer_output_norm")
        return g.pool(x)

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        act = config.get("activation_function") or config.get("hidden_act", "silu")
        if act not in ("swiglu", "silu") or config.get("prenorm") or config.get("rotary_emb_interleaved"):
            raise ValueError(f"activation {act}, prenorm {config.get('prenorm')}: another network than Nomic Embed's")
        eps = config.get("layer_norm_epsilon", config.get("layer_norm_eps", 1e-12))
        return {"attention.causal": False, "attention.layer_norm_epsilon": float(eps)}
