"""OLMoE (arXiv:2409.02060): a choice of experts, norms before each block, q and k normalised over their whole width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Arch
from .qwen3moe import Qwen3Moe

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Olmoe(Arch):
    names = ("olmoe", "OlmoeForCausalLM")
    defaults = {"expert_norm": False}
    hf_defaults = {"norm_topk_prob": False}
    tensors = Qwen3Moe.tensors

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(g.norm(q, "attn_q_norm"), g.norm(k, "attn_k_norm"))
            x = g.linear(g.attention(q, k, v), "attn_output", add=x)
            x = g.moe(g.norm(x, "ffn_norm"), add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
