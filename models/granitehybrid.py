"""Granite 4 hybrids (IBM): Granite with Mamba 2 in place of attention in most layers, with a choice of experts or without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .granitemoe import GraniteMoe
from .mamba import minus_exp
from .mamba2 import mamba2, scan_hparams, scan_shape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class GraniteHybrid(GraniteMoe):
    names: ClassVar[tuple[str, ...]] = ("granitehybrid", "GraniteMoeHybridForCausalLM")
    hybrid = True
    hf_keys = GraniteMoe.hf_keys | {"n_ff": "shared_intermediate_size"}
    tensors: ClassVar[dict[str, Any]] = GraniteMoe.tensors | {
        "model.layers.{i}.mamba.in_proj": "blk.{i}.ssm_in",
        "model.layers.{i}.mamba.conv1d": "blk.{i}.ssm_conv1d",
        "model.layers.{i}.mamba.dt_bias": "blk.{i}.ssm_dt.bias",
        "model.layers.{i}.mamba.A_log": "blk.{i}.ssm_a",
        "model.layers.{i}.mamba.D": "blk.{i}.ssm_d",
        "model.layers.{i}.mamba.norm": "blk.{i}.ssm_norm",
        "model.layers.{i}.mamba.out_proj": "blk.{i}.ssm_out",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd", scale=c.embedding_scale)
        for layer in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            h = self.attention(g, c, h) if c.attends(layer) else g.linear(mamba2(g, c, h), "ssm_out")
            x = g.add(g.scale(h, c.residual_scale), x)
            h = g.norm(x, "ffn_norm")
            kind = "_shexp" if g.has("ffn_gate_shexp") else ""
            shared = g.linear(g.gated(h, f"ffn_gate{kind}", f"ffn_up{kind}", act="silu"), f"ffn_down{kind}")
            x = g.add(g.scale(g.moe(h, add=shared) if c.n_experts else shared, c.residual_scale), x)
        y = g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
        return g.scale(y, 1 / c.logit_scale)

    def attention(self, g: Builder, c: Config, h: Value) -> Value:
        q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
        if c.rope_used:
            q, k = g.rope(q, k)
        return g.linear(g.attention(q, k, v, scale=c.attn_scale), "attn_output")

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        kinds = config.get("layer_types") or config.get("layers_block_type")
        kv = int(config.get("num_key_value_heads") or config["num_attention_heads"])
        few = {} if config.get("num_local_experts") else {"expert_count": 0, "expert_used_count": 0}
        return {**super().hf_hparams(config), **few, "expert_shared_feed_forward_length": int(config["shared_intermediate_size"]),
                "rope.scaling.finetuned": config.get("position_embedding_type") == "rope",
                "attention.head_count_kv": [kv if kind in ("attention", "full_attention") else 0 for kind in kinds or ()],
                **scan_hparams(config, config["mamba_n_heads"], config["mamba_expand"], config["mamba_d_state"], config["mamba_d_conv"],
                               config["mamba_n_groups"])}

    def shape(self, name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> tuple[int, ...]:
        return scan_shape(name, shape, config["mamba_n_groups"])

    def change(self, name: str) -> Callable[[NDArray[np.float32]], NDArray[np.float32]] | None:
        return minus_exp if name.endswith(".ssm_a") else None
