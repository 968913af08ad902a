"""GLM-4.5, 4.6 and 4.7 (arXiv:2508.06471): grouped heads of which half turns, and the experts of DeepSeek V3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from . import Arch, deepseek2
from .qwen3moe import Qwen3Moe

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Glm4Moe(Arch):
    names: ClassVar[tuple[str, ...]] = ("glm4moe", "Glm4MoeForCausalLM")
    feed_forward_norm: ClassVar[str] = "post_attention_norm"
    defaults = {"expert_gating": 2}
    hf_keys = {"num_experts": "n_routed_experts"}
    hf_defaults: ClassVar[dict[str, Any]] = {"partial_rotary_factor": 0.5}
    tensors: ClassVar[dict[str, Any]] = Qwen3Moe.tensors | deepseek2.SHARED | {
        "model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for layer in g.layers(c.n_layers - c.n_guessing):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k, norm=("attn_q_norm", "attn_k_norm") if g.has("attn_q_norm") else None)
            x = g.linear(g.attention(q, k, v, window=c.window_of(layer)), "attn_output", add=x)
            x = deepseek2.feed_forward(g, g.norm(x, self.feed_forward_norm), x)
        g.leave_out(c.n_layers - c.n_guessing)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return {"leading_dense_block_count": config.get("first_k_dense_replace") or 0, "expert_gating_func": 2,
                "expert_shared_count": config.get("n_shared_experts") or 0}
