"""Gemma 2 (arXiv:2408.00118): norms before and after each block, alternating windows, softcapped scores and logits."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt  # correctly rounded everywhere, so fit for a tape
from typing import TYPE_CHECKING, Any, ClassVar

from . import Arch
from .llama import Llama

if TYPE_CHECKING:

    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Gemma2(Arch):
    names: ClassVar[tuple[str, ...]] = ("gemma2", "Gemma2ForCausalLM")
    hf_defaults = {"tie_word_embeddings": True}
    defaults = {"window": 4096, "window_pattern": 2, "attn_softcap": 50.0, "final_softcap": 30.0}
    tensors = Llama.tensors | {
        "model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm",
        "model.layers.{i}.pre_feedforward_layernorm": "blk.{i}.ffn_norm",
        "model.layers.{i}.post_feedforward_layernorm": "blk.{i}.post_ffw_norm",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd", scale=sqrt(c.n_embd))
        for layer in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k)
            a = g.attention(q, k, v, scale=query_scale(c, n_layers_27b=46), softcap=c.attn_softcap,
                            window=c.window_of(layer))
            x = g.norm(g.linear(a, "attn_output"), "post_attention_norm", add=x)
            h = g.norm(x, "ffn_norm")
            h = g.linear(g.gated(h, "ffn_gate", "ffn_up", act="gelu"), "ffn_down")
            x = g.norm(h, "post_ffw_norm", add=x)
        y = g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
        return g.softcap(y, c.final_softcap)

    def offset(self, name: str) -> float:
        return 1.0 if "norm" in name else 0.0       # checkpoints store a norm's weight minus one

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"attention.scale": 1 / sqrt(config["query_pre_attn_scalar"])}


def query_scale(c: Config, n_layers_27b: int) -> float:
    """Factor on q.k. Files of other converters don't tell it: it is 1/sqrt(head_dim) except in the 27B models, which divide the
    width by the heads instead and are known by their number of layers."""
    if c.attn_scale is not None:
        return c.attn_scale
    return 1 / sqrt(c.n_embd / c.n_heads if c.n_layers == n_layers_27b else c.head_dim)
