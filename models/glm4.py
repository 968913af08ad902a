"""GLM-4-0414 (Zhipu): norms before and after each block, biases on q, k and v, half of each head turns in neighbouring pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Arch
from .llama import Llama

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Glm4(Arch):
    names = ("glm4", "Glm4ForCausalLM")
    neox = False
    hf_defaults = {"partial_rotary_factor": 0.5}
    tensors = Llama.tensors | {
        "model.layers.{i}.post_self_attn_layernorm": "blk.{i}.post_attention_norm",
        "model.layers.{i}.mlp.gate_up_proj": "blk.{i}.ffn_up",
        "model.layers.{i}.post_mlp_layernorm": "blk.{i}.post_ffw_norm",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k)
            x = g.norm(g.linear(g.attention(q, k, v), "attn_output"), "post_attention_norm", add=x)
            h = g.norm(x, "ffn_norm")
            h = g.gated(h, f"ffn_up[0:{c.n_ff}]", f"ffn_up[{c.n_ff}:{2 * c.n_ff}]", act="silu")
            x = g.norm(g.linear(h, "ffn_down"), "post_ffw_norm", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
