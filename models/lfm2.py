"""LFM2 (Liquid AI, arXiv:2511.23404): gated short convolutions in most layers, attention with normalised heads in the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from . import Arch

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Lfm2(Arch):
    names = ("lfm2", "Lfm2ForCausalLM")
    hybrid = True
    hf_keys = {"rms_norm_eps": "norm_eps"}
    tensors: ClassVar[dict[str, Any]] = {
        "model.embed_tokens": "token_embd",
        "model.embedding_norm": "token_embd_norm",
        "model.layers.{i}.operator_norm": "blk.{i}.attn_norm",
        "model.layers.{i}.ffn_norm": "blk.{i}.ffn_norm",
        "model.layers.{i}.conv.conv": "blk.{i}.shortconv.conv",
        "model.layers.{i}.conv.in_proj": "blk.{i}.shortconv.in_proj",
        "model.layers.{i}.conv.out_proj": "blk.{i}.shortconv.out_proj",
        "model.layers.{i}.self_attn.q_proj": "blk.{i}.attn_q",
        "model.layers.{i}.self_attn.k_proj": "blk.{i}.attn_k",
        "model.layers.{i}.self_attn.v_proj": "blk.{i}.attn_v",
        "model.layers.{i}.self_attn.out_proj": "blk.{i}.attn_output",
        "model.layers.{i}.self_attn.q_layernorm": "blk.{i}.attn_q_norm",
        "model.layers.{i}.self_attn.k_layernorm": "blk.{i}.attn_k_norm",
        "model.layers.{i}.feed_forward.w1": "blk.{i}.ffn_gate",
        "model.layers.{i}.feed_forward.w2": "blk.{i}.ffn_down",
        "model.layers.{i}.feed_forward.w3": "blk.{i}.ffn_up",
        "lm_head": "output",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for layer in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            if c.attends(layer):
                q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
                q, k = g.rope(q, k, norm=("attn_q_norm", "attn_k_norm"))
                x = g.linear(g.attention(q, k, v), "attn_output", add=x)
            else:
                n = c.n_embd
                before, after, y = g.linear(h, *(f"shortconv.in_proj[{i * n}:{(i + 1) * n}]" for i in range(3)))
                y = g.mul(after, g.conv(g.mul(before, y), "shortconv.conv"))
                x = g.linear(y, "shortconv.out_proj", add=x)
            h = g.norm(x, "ffn_norm")
            x = g.linear(g.gated(h, "ffn_gate", "ffn_up", act="silu"), "ffn_down", add=x)
        norm = "output_norm" if g.has("output_norm") else "token_embd_norm"         # most files call it so
        return g.linear(g.norm(g.rows(x), norm), "output", tied="token_embd")

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        n_ff = config.get("block_ff_dim") or config["intermediate_size"]
        if config.get("block_auto_adjust_ff_dim", True):
            wanted, multiple = int((config.get("block_ffn_dim_multiplier") or 1) * int(2 * n_ff / 3)), config.get("block_multiple_of", 256)
            n_ff = -(-wanted // multiple) * multiple
        kinds = config.get("layer_types") or ["full_attention" if i in (config.get("full_attn_idxs") or ()) else "conv"
                                              for i in range(config["num_hidden_layers"])]
        return {"feed_forward_length": n_ff, "shortconv.l_cache": int(config["conv_L_cache"]),
                "attention.head_count_kv": [int(config["num_key_value_heads"]) * (kind == "full_attention") for kind in kinds]}
