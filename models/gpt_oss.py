"""gpt-oss (OpenAI, arXiv:2508.10925): experts with biases and a limited gate, windows in every other layer, a sink for each head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import Arch
from .llama import Llama

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class GptOss(Arch):
    names = ("gpt-oss", "GptOssForCausalLM")
    yarn_truncates = False
    defaults = {"window": 128, "window_pattern": 2, "expert_gating": 3, "expert_norm": False}
    hf_keys = {"num_experts": "num_local_experts", "moe_intermediate_size": "intermediate_size"}
    tensors = Llama.tensors | {
        "model.layers.{i}.self_attn.sinks": "blk.{i}.attn_sinks.weight",
        "model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm",
        "model.layers.{i}.mlp.router": "blk.{i}.ffn_gate_inp",
        "model.layers.{i}.mlp.experts.gate_up_proj": ("blk.{i}.ffn_gate_exps.weight", "blk.{i}.ffn_up_exps.weight"),
        "model.layers.{i}.mlp.experts.gate_up_proj_bias": ("blk.{i}.ffn_gate_exps.bias", "blk.{i}.ffn_up_exps.bias"),
        "model.layers.{i}.mlp.experts.down_proj": "blk.{i}.ffn_down_exps.weight",
        "model.layers.{i}.mlp.experts.down_proj_bias": "blk.{i}.ffn_down_exps.bias",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for layer in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k)
            x = g.linear(g.attention(q, k, v, window=c.window_of(layer), sinks="attn_sinks"), "attn_output", add=x)
            x = g.moe(g.norm(x, "post_attention_norm"), act="swiglu_oai", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")

    def transposed(self, name: str) -> bool:
        return "_exps.weight" in name

    def row_order(self, name: str, n: int, config: Mapping[str, Any]) -> NDArray[np.intp] | None:
        import numpy as np

        if ".ffn_gate_exps." in name:           # rows of gate and up take turns
            return np.arange(0, n, 2)
        if ".ffn_up_exps." in name:
            return np.arange(1, n, 2)
        return None
