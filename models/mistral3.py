"""Ministral 3 and Mistral Small 3 (Mistral AI), the text part: Llama with YaRN and queries that grow with the position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .llama import Llama

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Mistral3(Llama):
    names = ("mistral3", "Ministral3ForCausalLM", "Mistral3ForConditionalGeneration")

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k)
            x = g.linear(g.attention(g.temperature(q), k, v, window=c.window), "attn_output", add=x)
            h = g.norm(x, "ffn_norm")
            x = g.linear(g.gated(h, "ffn_gate", "ffn_up", act="silu"), "ffn_down", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        rope = config.get("rope_parameters") or {}
        beta = rope.get("llama_4_scaling_beta") or 0.0
        if not beta:
            return {}
        return {"attention.temperature_scale": float(beta), "attention.temperature_length": int(rope["original_max_position_embeddings"])}
