"""Qwen1.5-MoE and Qwen2-57B-A14B (arXiv:2407.10671): Qwen2 with a choice of experts and one that every token takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Arch
from .qwen3moe import Qwen3Moe

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Qwen2Moe(Arch):
    names = ("qwen2moe", "Qwen2MoeForCausalLM")
    defaults = {"expert_norm": False}
    hf_defaults = {"norm_topk_prob": False}
    tensors = Qwen3Moe.tensors | {
        "model.layers.{i}.mlp.shared_expert_gate": "blk.{i}.ffn_gate_inp_shexp",
        "model.layers.{i}.mlp.shared_expert.gate_proj": "blk.{i}.ffn_gate_shexp",
        "model.layers.{i}.mlp.shared_expert.up_proj": "blk.{i}.ffn_up_shexp",
        "model.layers.{i}.mlp.shared_expert.down_proj": "blk.{i}.ffn_down_shexp",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k)
            x = g.linear(g.attention(q, k, v), "attn_output", add=x)
            x = self.feed_forward(g, g.norm(x, "ffn_norm"), x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")

    def feed_forward(self, g: Builder, h: Value, x: Value) -> Value:
        if not g.has("ffn_gate_inp"):
            return g.linear(g.gated(h, "ffn_gate", "ffn_up", act="silu"), "ffn_down", add=x)
        shared = g.linear(g.gated(h, "ffn_gate_shexp", "ffn_up_shexp", act="silu"), "ffn_down_shexp")
        shared = g.glu(g.linear(h, "ffn_gate_inp_shexp"), shared, act="sigmoid")
        return g.moe(h, add=g.add(shared, x))
