"""Phi-3, Phi-3.5 and Phi-4 (Abdin et al., arXiv:2404.14219): q, k, v in one matrix, gate and up in another; LongRoPE.

A file with a window uses it, as transformers does. Phi-4-mini turns only part of each head (rope.dimension_count).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Arch
from .llama import Llama

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Phi3(Arch):
    names = ("phi3", "Phi3ForCausalLM")
    tensors = Llama.tensors | {
        "model.layers.{i}.self_attn.qkv_proj": "blk.{i}.attn_qkv",
        "model.layers.{i}.mlp.gate_up_proj": "blk.{i}.ffn_up",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        k0 = c.n_heads * c.head_dim             # rows of q, then of k, then of v
        v0 = k0 + c.n_kv_heads * c.head_dim
        end = v0 + c.n_kv_heads * c.head_dim
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, f"attn_qkv[0:{k0}]", f"attn_qkv[{k0}:{v0}]", f"attn_qkv[{v0}:{end}]")
            q, k = g.rope(q, k)
            x = g.linear(g.attention(q, k, v, window=c.window), "attn_output", add=x)
            h = g.norm(x, "ffn_norm")
            h = g.gated(h, f"ffn_up[0:{c.n_ff}]", f"ffn_up[{c.n_ff}:{2 * c.n_ff}]", act="silu")
            x = g.linear(h, "ffn_down", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
