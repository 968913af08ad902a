"""Granite 3 mixtures of experts (IBM): Granite with a choice of experts, in some models beside a network that every token takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from .granite import Granite

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class GraniteMoe(Granite):
    names: ClassVar[tuple[str, ...]] = ("granitemoe", "GraniteMoeForCausalLM", "GraniteMoeSharedForCausalLM")
    hf_keys = {"logit_scale": "logits_scaling", "num_experts": "num_local_experts"}
    tensors = Granite.tensors | {
        "model.layers.{i}.block_sparse_moe.router.layer": "blk.{i}.ffn_gate_inp",
        "model.layers.{i}.block_sparse_moe.input_linear": ("blk.{i}.ffn_gate_exps", "blk.{i}.ffn_up_exps"),
        "model.layers.{i}.block_sparse_moe.output_linear": "blk.{i}.ffn_down_exps",
        "model.layers.{i}.shared_mlp.input_linear": ("blk.{i}.ffn_gate_shexp", "blk.{i}.ffn_up_shexp"),
        "model.layers.{i}.shared_mlp.output_linear": "blk.{i}.ffn_down_shexp",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd", scale=c.embedding_scale)
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k)
            h = g.linear(g.attention(q, k, v, scale=c.attn_scale), "attn_output")
            x = g.add(g.scale(h, c.residual_scale), x)
            h = g.norm(x, "ffn_norm")
            shared = None
            if g.has("ffn_gate_shexp"):
                shared = g.linear(g.gated(h, "ffn_gate_shexp", "ffn_up_shexp", act="silu"), "ffn_down_shexp")
            x = g.add(g.scale(g.moe(h, add=shared), c.residual_scale), x)
        y = g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
        return g.scale(y, 1 / c.logit_scale)

    def row_order(self, name: str, n: int, config: Mapping[str, Any]) -> NDArray[np.intp] | None:
        import numpy as np

        if ".ffn_gate_exps." in name or ".ffn_gate_shexp." in name:     # gate above up in one matrix
            return np.arange(n // 2)
        if ".ffn_up_exps." in name or ".ffn_up_shexp." in name:
            return np.arange(n // 2, n)
        return super().row_order(name, n, config)
