"""DeepSeek V2, V3 and R1 (arXiv:2405.04434, arXiv:2412.19437), Moonlight and Kimi K2: keys and values of all heads come from one latent
vector a token (MLA), which is what is stored; a choice of experts in groups beside some that every token takes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import sqrt  # correctly rounded everywhere, so fit for a tape
from typing import TYPE_CHECKING, Any, ClassVar

from pyllm.rope import growth

from . import Arch, neighbours
from .llama import Llama
from .qwen3moe import Qwen3Moe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyllm.build import Builder, Value
    from pyllm.hparams import Config

# Experts that every token takes, and what is added to the scores for the choice.
SHARED: dict[str, Any] = {
    "model.layers.{i}.mlp.gate.e_score_correction_bias": "blk.{i}.exp_probs_b.bias",
    "model.layers.{i}.mlp.shared_experts.gate_proj": "blk.{i}.ffn_gate_shexp",
    "model.layers.{i}.mlp.shared_experts.up_proj": "blk.{i}.ffn_up_shexp",
    "model.layers.{i}.mlp.shared_experts.down_proj": "blk.{i}.ffn_down_shexp",
}
LATENT_EPS = 1e-6       # of the norms of latent vectors, whatever config.json has for the others


class Deepseek2(Arch):
    names: ClassVar[tuple[str, ...]] = ("deepseek2", "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM")
    neox = False
    yarn_scales_scores = True
    defaults: ClassVar[dict[str, Any]] = {"expert_norm": False}
    hf_keys: ClassVar[dict[str, str]] = {"num_experts": "n_routed_experts"}
    latent: ClassVar[dict[str, Any]] = {
        "model.layers.{i}.self_attn.q_a_proj": "blk.{i}.attn_q_a",
        "model.layers.{i}.self_attn.q_a_layernorm": "blk.{i}.attn_q_a_norm",
        "model.layers.{i}.self_attn.q_b_proj": "blk.{i}.attn_q_b",
        "model.layers.{i}.self_attn.kv_a_proj_with_mqa": "blk.{i}.attn_kv_a_mqa",
        "model.layers.{i}.self_attn.kv_a_layernorm": "blk.{i}.attn_kv_a_norm",
        "model.layers.{i}.self_attn.kv_b_proj": ("blk.{i}.attn_k_b", "blk.{i}.attn_v_b"),
    }
    tensors: ClassVar[dict[str, Any]] = Llama.dense | Qwen3Moe.tensors | latent | SHARED

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            x = g.linear(attention(g, c, g.norm(x, "attn_norm")), "attn_output", add=x)
            x = feed_forward(g, g.norm(x, "ffn_norm"), x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")

    def heads(self, name: str, config: Mapping[str, Any]) -> tuple[int, int, int] | None:
        n, keys = config["num_attention_heads"], config["qk_nope_head_dim"]
        if ".attn_k_b." in name:
            return n, 0, keys
        return (n, keys, keys + config["v_head_dim"]) if ".attn_v_b." in name else None

    def row_order(self, name: str, n: int, config: Mapping[str, Any]) -> NDArray[np.intp] | None:
        """Of checkpoints whose pairs are halves (rope_interleave is false): the last rows of each head of q, and of the keys."""
        import numpy as np

        heads = 1 if ".attn_kv_a_mqa." in name else config["num_attention_heads"] if re.search(r"\.attn_q(_b)?\.", name) else 0
        if not heads or config.get("rope_interleave", True):
            return None
        turning, rows = config["qk_rope_head_dim"], np.arange(n).reshape(heads, -1)
        rows[:, -turning:] = rows[:, -turning:][:, neighbours(turning, 1)]
        return rows.ravel()

    def transposed(self, name: str) -> bool:
        return ".attn_k_b." in name

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        v3 = config.get("scoring_func") == "sigmoid" or config["architectures"] == ["DeepseekV3ForCausalLM"]
        found = latent_hparams(config) | {
            "leading_dense_block_count": config.get("first_k_dense_replace") or 0,
            "expert_shared_count": config.get("n_shared_experts") or 0, "expert_gating_func": 2 if v3 else 1,
        }
        if config.get("topk_method") == "greedy" or not config.get("n_group"):      # all experts are one group
            found |= {"expert_group_count": 1, "expert_group_used_count": 1}
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if rope.get("mscale_all_dim"):
            found["rope.scaling.yarn_log_multiplier"] = 0.1 * rope["mscale_all_dim"]
        return found


def latent_hparams(config: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of compressed attention, as files have them in which the matrices of keys are turned over."""
    latent, turning = config["kv_lora_rank"], config["qk_rope_head_dim"]
    found = {"attention.head_count_kv": 1, "attention.key_length": latent + turning, "attention.value_length": latent,
             "attention.key_length_mla": config["qk_nope_head_dim"] + turning, "attention.value_length_mla": config["v_head_dim"],
             "rope.dimension_count": turning}
    return found | ({"attention.q_lora_rank": config["q_lora_rank"]} if config.get("q_lora_rank") else {})


def feed_forward(g: Builder, h: Value, x: Value) -> Value:
    """x plus a dense network of h, as in the first layers, or plus experts: those that every token takes, and a choice."""
    if not g.has("ffn_gate_inp"):
        return g.linear(g.gated(h, "ffn_gate", "ffn_up", act="silu"), "ffn_down", add=x)
    if g.has("ffn_gate_shexp"):
        x = g.linear(g.gated(h, "ffn_gate_shexp", "ffn_up_shexp", act="silu"), "ffn_down_shexp", add=x)
    return g.moe(h, add=x)


def attention(g: Builder, c: Config, h: Value) -> Value:
    """Attention over latent vectors. Keys are W latent: q W is as good, so latent vectors are the keys, and their mean the values (files
    with attn_k_b). Older files have attn_kv_b alone: keys and values of every head are made of the latent vector and stored."""
    turning, plain = c.n_rot, c.latent_head_dim - c.n_rot
    if g.has("attn_q_a"):
        q = g.linear(g.norm(g.linear(h, "attn_q_a"), "attn_q_a_norm", eps=LATENT_EPS), "attn_q_b")
    else:
        q = g.linear(h, "attn_q")
    latent, k_turned = g.linear(h, f"attn_kv_a_mqa[0:{c.latent}]", f"attn_kv_a_mqa[{c.latent}:{c.latent + turning}]")
    latent = g.norm(latent, "attn_kv_a_norm", eps=LATENT_EPS)
    q_plain, q_turned = g.take(q, c.n_heads, 0, plain), g.take(q, c.n_heads, plain, c.latent_head_dim)
    q_turned, k_turned = g.rope(q_turned, k_turned, kv_heads=1, dim=turning)
    grow = growth(c.rope_factor, 10 * c.yarn_log_mul) if c.rope_scaling == "yarn" else 1.0
    scale = grow * grow / sqrt(c.latent_head_dim)
    if g.has("attn_k_b"):
        q = g.join(g.headwise(q_plain, "attn_k_b"), q_turned, c.n_heads, c.n_heads)
        k = g.join(latent, k_turned, 1, 1)
        o = g.attention(q, k, k, kv_heads=1, dim=c.latent + turning, values=c.latent, scale=scale)
        return g.headwise(o, "attn_v_b")
    kv = g.linear(latent, "attn_kv_b")
    k = g.join(g.take(kv, c.n_heads, 0, plain), k_turned, c.n_heads, 1)
    v = g.take(kv, c.n_heads, plain, plain + c.latent_value_dim)
    q = g.join(q_plain, q_turned, c.n_heads, c.n_heads)
    return g.attention(q, k, v, kv_heads=c.n_heads, dim=c.latent_head_dim, values=c.latent_value_dim, scale=scale)
