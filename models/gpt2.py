"""GPT-2 (Radford et al., 2019): learned positions, layer norms, one matrix for q, k and v; checkpoints have their matrices transposed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import Arch

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Gpt2(Arch):
    names = ("gpt2", "GPT2LMHeadModel")
    layer_norm = True
    hf_defaults = {"tie_word_embeddings": True, "layer_norm_epsilon": 1e-5}
    hf_keys = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "intermediate_size": "n_inner",
               "max_position_embeddings": "n_positions", "rms_norm_eps": "layer_norm_epsilon"}
    hf_ignored = ("h.{i}.attn.bias", "h.{i}.attn.masked_bias", "transformer.h.{i}.attn.bias", "transformer.h.{i}.attn.masked_bias")
    tensors = {
        "wte": "token_embd",
        "wpe": "position_embd",
        "h.{i}.ln_1": "blk.{i}.attn_norm",
        "h.{i}.attn.c_attn": "blk.{i}.attn_qkv",
        "h.{i}.attn.c_proj": "blk.{i}.attn_output",
        "h.{i}.ln_2": "blk.{i}.ffn_norm",
        "h.{i}.mlp.c_fc": "blk.{i}.ffn_up",
        "h.{i}.mlp.c_proj": "blk.{i}.ffn_down",
        "ln_f": "output_norm",
        "lm_head": "output",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        n = c.n_embd
        x = g.positions(g.embed("token_embd"), "position_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, f"attn_qkv[0:{n}]", f"attn_qkv[{n}:{2 * n}]", f"attn_qkv[{2 * n}:{3 * n}]")
            x = g.linear(g.attention(q, k, v), "attn_output", add=x)
            h = g.linear(g.norm(x, "ffn_norm"), "ffn_up", act="gelu")
            x = g.linear(h, "ffn_down", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")

    def gguf_names(self, hf_name: str) -> tuple[str, ...]:
        return super().gguf_names(hf_name.removeprefix("transformer."))      # the published checkpoints do without

    def transposed(self, name: str) -> bool:
        return name.startswith("blk.") and "norm" not in name and name.endswith(".weight")

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"feed_forward_length": config.get("intermediate_size") or 4 * config["hidden_size"]}
