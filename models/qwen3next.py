"""Qwen3-Next (Qwen, 2025): gated delta nets (arXiv:2412.06464) in three of four layers, gated attention in the others, small experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import sqrt  # correctly rounded everywhere (IEEE 754), so fit for a tape
from typing import TYPE_CHECKING, Any, ClassVar

from pyllm import errors

from .mamba import minus_exp
from .qwen2moe import Qwen2Moe

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Qwen3Next(Qwen2Moe):
    names = ("qwen3next", "Qwen3NextForCausalLM")
    hybrid = True
    defaults: ClassVar[dict[str, Any]] = {}
    hf_defaults: ClassVar[dict[str, Any]] = {}
    tensors: ClassVar[dict[str, Any]] = Qwen2Moe.tensors | {
        "model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm",
        "model.layers.{i}.self_attn.q_norm": "blk.{i}.attn_q_norm",
        "model.layers.{i}.self_attn.k_norm": "blk.{i}.attn_k_norm",
        "model.layers.{i}.linear_attn.in_proj_qkvz": ("blk.{i}.attn_qkv", "blk.{i}.attn_gate"),
        "model.layers.{i}.linear_attn.in_proj_ba": "blk.{i}.ssm_ba",
        "model.layers.{i}.linear_attn.conv1d": "blk.{i}.ssm_conv1d",
        "model.layers.{i}.linear_attn.dt_bias": "blk.{i}.ssm_dt.bias",
        "model.layers.{i}.linear_attn.A_log": "blk.{i}.ssm_a",
        "model.layers.{i}.linear_attn.norm": "blk.{i}.ssm_norm",
        "model.layers.{i}.linear_attn.out_proj": "blk.{i}.ssm_out",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for layer in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            x = self.attention(g, c, h, x) if c.attends(layer) else self.delta_net(g, c, h, x)
            x = self.feed_forward(g, g.norm(x, "post_attention_norm"), x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")

    def attention(self, g: Builder, c: Config, h: Value, x: Value) -> Value:
        both, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
        q, gate = (g.take(both, c.n_heads, i * c.head_dim, (i + 1) * c.head_dim) for i in range(2))
        q, k = g.rope(q, k, norm=("attn_q_norm", "attn_k_norm"))
        return g.linear(g.glu(gate, g.attention(q, k, v), act="sigmoid"), "attn_output", add=x)

    def delta_net(self, g: Builder, c: Config, h: Value, x: Value) -> Value:
        heads, groups, dim, share = c.ssm_rank, c.ssm_groups, c.ssm_states, c.ssm_rank // c.ssm_groups
        keys = groups * dim
        qkv = g.conv(g.linear(h, "attn_qkv"), "ssm_conv1d", act="silu")
        q, k, v = (g.take(qkv, 1, begin, end) for begin, end in ((0, keys), (keys, 2 * keys), (2 * keys, 2 * keys + c.ssm_inner)))
        q, k = (g.norm(y, "", groups=groups, eps=1e-6 / dim) for y in (q, k))   # of length sqrt(dim); it shall be 1/sqrt(dim) and 1
        both = g.linear(h, "ssm_ba")
        b, a = (g.take(both, groups, i * share, (i + 1) * share) for i in range(2))
        y = g.delta((g.scale(q, 1 / dim), g.scale(k, 1 / sqrt(dim)), v, a, b), heads, groups)
        return g.linear(g.glu(g.linear(h, "attn_gate"), g.norm(y, "ssm_norm", groups=heads), act="silu"), "ssm_out", add=x)

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        kinds = config.get("layer_types") or []
        every = int(config.get("full_attention_interval") or (kinds.index("full_attention") + 1 if "full_attention" in kinds else 4))
        if any((kind == "full_attention") != ((i + 1) % every == 0) for i, kind in enumerate(kinds)):
            raise errors.UnsupportedModel("layer_types do not repeat as full_attention_interval says\n"
                                          "hint: the checkpoint is a variant that needs its own description")
        return {**super().hf_hparams(config), "full_attention_interval": every, "ssm.conv_kernel": int(config["linear_conv_kernel_dim"]),
                "ssm.state_size": int(config["linear_key_head_dim"]), "ssm.group_count": int(config["linear_num_key_heads"]),
                "ssm.time_step_rank": int(config["linear_num_value_heads"]),
                "expert_shared_feed_forward_length": int(config["shared_expert_intermediate_size"]),
                "ssm.inner_size": int(config["linear_value_head_dim"] * config["linear_num_value_heads"])}

    def row_order(self, name: str, n: int, config: Mapping[str, Any]) -> NDArray[np.intp] | None:
        """Checkpoints have q, k, v and z of one key head after the other."""
        import numpy as np

        if ".attn_qkv." not in name and ".attn_gate." not in name:
            return super().row_order(name, n, config)
        groups, dim = config["linear_num_key_heads"], config["linear_key_head_dim"]
        rows = np.arange(n).reshape(groups, -1)
        q, k, v, z = np.split(rows, [dim, 2 * dim, 2 * dim + (rows.shape[1] - 2 * dim) // 2], axis=1)
        return np.concatenate([q.ravel(), k.ravel(), v.ravel()]) if ".attn_qkv." in name else z.ravel()

    def offset(self, name: str) -> float:
        return 1.0 if name.endswith("_norm.weight") and ".ssm_norm." not in name else 0.0

    def change(self, name: str) -> Callable[[NDArray[np.float32]], NDArray[np.float32]] | None:
        return minus_exp if name.endswith(".ssm_a") else None
