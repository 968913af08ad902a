"""Falcon 7B, 40B, 180B and 11B (arXiv:2311.16867): layer norms, q, k and v in one matrix, both blocks add to one input, in the 40B
and 180B models with a norm each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import Arch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Falcon(Arch):
    names = ("falcon", "FalconForCausalLM")
    layer_norm = True
    hf_defaults = {"tie_word_embeddings": True, "layer_norm_epsilon": 1e-5, "max_position_embeddings": 2048}
    hf_keys = {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "num_key_value_heads": "n_head_kv",
               "rms_norm_eps": "layer_norm_epsilon"}
    tensors = {
        "transformer.word_embeddings": "token_embd",
        "transformer.h.{i}.input_layernorm": "blk.{i}.attn_norm",
        "transformer.h.{i}.ln_mlp": "blk.{i}.attn_norm",
        "transformer.h.{i}.ln_attn": "blk.{i}.attn_norm_2",
        "transformer.h.{i}.self_attention.query_key_value": "blk.{i}.attn_qkv",
        "transformer.h.{i}.self_attention.dense": "blk.{i}.attn_output",
        "transformer.h.{i}.mlp.dense_h_to_4h": "blk.{i}.ffn_up",
        "transformer.h.{i}.mlp.dense_4h_to_h": "blk.{i}.ffn_down",
        "transformer.ln_f": "output_norm",
        "lm_head": "output",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        k0 = c.n_heads * c.head_dim             # rows of q, then of k, then of v
        v0 = k0 + c.n_kv_heads * c.head_dim
        end = v0 + c.n_kv_heads * c.head_dim
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            f = g.norm(x, "attn_norm")
            h = g.norm(x, "attn_norm_2") if g.has("attn_norm_2") else f
            q, k, v = g.linear(h, f"attn_qkv[0:{k0}]", f"attn_qkv[{k0}:{v0}]", f"attn_qkv[{v0}:{end}]")
            q, k = g.rope(q, k)
            x = g.linear(g.attention(q, k, v), "attn_output", add=x)
            x = g.linear(g.linear(f, "ffn_up", act="gelu_erf"), "ffn_down", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")

    def row_order(self, name: str, n: int, config: Mapping[str, Any]) -> NDArray[np.intp] | None:
        import numpy as np

        if ".attn_qkv." not in name:
            return None
        heads, groups = config["num_attention_heads"], kv_heads(config)     # a group: its queries, its key, its value
        rows = np.arange(n).reshape(groups, heads // groups + 2, -1)
        return np.concatenate([rows[:, :-2].ravel(), rows[:, -2].ravel(), rows[:, -1].ravel()])

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        n_ff = config.get("ffn_hidden_size") or 4 * config["hidden_size"]
        return {"attention.head_count_kv": kv_heads(config), "feed_forward_length": n_ff}


def kv_heads(config: Mapping[str, Any]) -> int:
    if config.get("new_decoder_architecture"):
        return int(config.get("num_kv_heads") or config.get("num_key_value_heads") or config["num_attention_heads"])
    return 1 if config.get("multi_query", True) else int(config["num_attention_heads"])
