"""Qwen3 mixtures of experts (arXiv:2505.09388): Qwen3 with a choice of experts in every layer, or in some."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Arch
from .qwen3 import Qwen3

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Qwen3Moe(Arch):
    names = ("qwen3moe", "Qwen3MoeForCausalLM")
    hf_defaults = {"norm_topk_prob": True}
    tensors = Qwen3.tensors | {
        "model.layers.{i}.mlp.gate": "blk.{i}.ffn_gate_inp",
        "model.layers.{i}.mlp.experts.{e}.gate_proj": "blk.{i}.ffn_gate_exps",
        "model.layers.{i}.mlp.experts.{e}.up_proj": "blk.{i}.ffn_up_exps",
        "model.layers.{i}.mlp.experts.{e}.down_proj": "blk.{i}.ffn_down_exps",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k, norm=("attn_q_norm", "attn_k_norm"))
            x = g.linear(g.attention(q, k, v), "attn_output", add=x)
            h = g.norm(x, "ffn_norm")
            if g.has("ffn_gate_inp"):
                x = g.moe(h, add=x)
            else:
                x = g.linear(g.gated(h, "ffn_gate", "ffn_up", act="silu"), "ffn_down", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
