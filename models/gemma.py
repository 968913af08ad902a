"""Gemma 1 (arXiv:2403.08295): Llama with wide heads, gelu, a scaled embedding and norms whose weights lack their 1."""

from __future__ import annotations

from math import sqrt  # correctly rounded everywhere, so fit for a tape
from typing import TYPE_CHECKING

from . import Arch
from .llama import Llama

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Gemma(Arch):
    names = ("gemma", "GemmaForCausalLM")
    hf_defaults = {"tie_word_embeddings": True}
    tensors = Llama.tensors

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd", scale=sqrt(c.n_embd))
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k)
            x = g.linear(g.attention(q, k, v), "attn_output", add=x)
            h = g.norm(x, "ffn_norm")
            x = g.linear(g.gated(h, "ffn_gate", "ffn_up", act="gelu"), "ffn_down", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")

    def offset(self, name: str) -> float:
        return 1.0 if "norm" in name else 0.0       # checkpoints store a norm's weight minus one
