"""Granite 3 and 4 dense models (IBM): Llama whose embedding, residuals, scores and logits are scaled by the file's numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .llama import Llama

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Granite(Llama):
    names: ClassVar[tuple[str, ...]] = ("granite", "GraniteForCausalLM")
    hf_keys = {"logit_scale": "logits_scaling"}

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd", scale=c.embedding_scale)
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k)
            h = g.linear(g.attention(q, k, v, scale=c.attn_scale), "attn_output")
            x = g.add(g.scale(h, c.residual_scale), x)
            h = g.norm(x, "ffn_norm")
            h = g.linear(g.gated(h, "ffn_gate", "ffn_up", act="silu"), "ffn_down")
            x = g.add(g.scale(h, c.residual_scale), x)
        y = g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
        return g.scale(y, 1 / c.logit_scale)

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"attention.scale": float(config["attention_multiplier"])}
