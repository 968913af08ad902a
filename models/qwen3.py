"""Qwen3 dense models (arXiv:2505.09388): no biases; every head of q and k is normalised before rope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Arch
from .llama import Llama

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Qwen3(Arch):
    names = ("qwen3", "Qwen3ForCausalLM")
    tensors = Llama.tensors | {
        "model.layers.{i}.self_attn.q_norm": "blk.{i}.attn_q_norm",
        "model.layers.{i}.self_attn.k_norm": "blk.{i}.attn_k_norm",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k, norm=("attn_q_norm", "attn_k_norm"))
            x = g.linear(g.attention(q, k, v), "attn_output", add=x)
            h = g.norm(x, "ffn_norm")
            x = g.linear(g.gated(h, "ffn_gate", "ffn_up", act="silu"), "ffn_down", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
