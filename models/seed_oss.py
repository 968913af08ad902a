"""Seed-OSS (ByteDance): Qwen2's shape; the norm before the feed-forward network has another name in GGUF."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Arch
from .llama import Llama

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class SeedOss(Arch):
    names = ("seed_oss", "SeedOssForCausalLM")
    tensors = Llama.tensors | {"model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm"}

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k)
            x = g.linear(g.attention(q, k, v), "attn_output", add=x)
            h = g.norm(x, "post_attention_norm")
            x = g.linear(g.gated(h, "ffn_gate", "ffn_up", act="silu"), "ffn_down", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
