"""AFM-4.5B (Arcee): Llama with a plain feed-forward network and squared relu."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .llama import Llama

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Arcee(Llama):
    names = ("arcee", "ArceeForCausalLM")

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k)
            x = g.linear(g.attention(q, k, v), "attn_output", add=x)
            h = g.linear(g.norm(x, "ffn_norm"), "ffn_up", act="relu2")
            x = g.linear(h, "ffn_down", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
