"""OLMo 2 and 3 (arXiv:2501.00656): norms after each block only; q and k are normalised over their whole width. OLMo 3 has windows in
three of four layers, which no rope scaling stretches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Arch
from .llama import Llama

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config

OMITTED = ("model.layers.{i}.input_layernorm",)


class Olmo2(Arch):
    names = ("olmo2", "Olmo2ForCausalLM", "Olmo3ForCausalLM")
    defaults = {"window_pattern": 4}
    tensors = {name: ours for name, ours in Llama.tensors.items() if name not in OMITTED} | {
        "model.layers.{i}.self_attn.q_norm": "blk.{i}.attn_q_norm",
        "model.layers.{i}.self_attn.k_norm": "blk.{i}.attn_k_norm",
        "model.layers.{i}.post_attention_layernorm": "blk.{i}.post_attention_norm",
        "model.layers.{i}.post_feedforward_layernorm": "blk.{i}.post_ffw_norm",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for layer in g.layers(c.n_layers):
            q, k, v = g.linear(x, "attn_q", "attn_k", "attn_v")
            q, k = g.norm(q, "attn_q_norm"), g.norm(k, "attn_k_norm")
            q, k = g.rope(q, k, local=bool(c.window) and c.is_local(layer))
            h = g.linear(g.attention(q, k, v, window=c.window_of(layer)), "attn_output")
            x = g.norm(h, "post_attention_norm", add=x)
            h = g.linear(g.gated(x, "ffn_gate", "ffn_up", act="silu"), "ffn_down")
            x = g.norm(h, "post_ffw_norm", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
