"""Qwen2 and Qwen2.5 (arXiv:2407.10671): Llama's shape with biases on q, k and v and rope in half-split pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Arch
from .llama import Llama

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Qwen2(Arch):
    names = ("qwen2", "Qwen2ForCausalLM")
    tensors = Llama.tensors

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k)
            x = g.linear(g.attention(q, k, v), "attn_output", add=x)
            h = g.norm(x, "ffn_norm")
            x = g.linear(g.gated(h, "ffn_gate", "ffn_up", act="silu"), "ffn_down", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
