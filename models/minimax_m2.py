"""MiniMax M2: q and k normalised over their whole width, half of each head turns, experts chosen by sigmoids with a correction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import Arch
from .llama import Llama
from .qwen3 import Qwen3

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class MiniMaxM2(Arch):
    names = ("minimax-m2", "MiniMaxM2ForCausalLM")
    defaults = {"expert_gating": 2}
    hf_keys = {"num_experts": "num_local_experts", "moe_intermediate_size": "intermediate_size"}
    tensors = Llama.tensors | Qwen3.tensors | {
        "model.layers.{i}.block_sparse_moe.e_score_correction_bias": "blk.{i}.exp_probs_b.bias",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(g.norm(q, "attn_q_norm"), g.norm(k, "attn_k_norm"))
            x = g.linear(g.attention(q, k, v), "attn_output", add=x)
            x = g.moe(g.norm(x, "ffn_norm"), add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        turning = {"rope.dimension_count": config["rotary_dim"]} if config.get("rotary_dim") else {}
        return {"expert_gating_func": 2} | turning
