"""ERNIE 4.5 mixtures of experts (Baidu): ERNIE 4.5 with experts chosen by corrected probabilities beside some that every token takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import deepseek2
from .ernie4_5 import Ernie45
from .qwen3moe import Qwen3Moe

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Ernie45Moe(Ernie45):
    names = ("ernie4_5-moe", "Ernie4_5_MoeForCausalLM")
    hf_keys = {"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"}
    tensors = Qwen3Moe.tensors | deepseek2.SHARED | {
        "model.layers.{i}.mlp.moe_statics.e_score_correction_bias": "blk.{i}.exp_probs_b.bias",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k)
            x = g.linear(g.attention(q, k, v), "attn_output", add=x)
            x = deepseek2.feed_forward(g, g.norm(x, "ffn_norm"), x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"leading_dense_block_count": config.get("moe_layer_start_index") or 0, "expert_gating_func": 1,
                "interleave_moe_layer_step": config.get("moe_layer_interval") or 1,
                "expert_shared_count": config.get("moe_num_shared_experts") or 0}
