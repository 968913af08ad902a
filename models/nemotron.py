"""Nemotron 3 and 4 (arXiv:2402.16819) and Minitron: layer norms whose weights lack their 1, half of each head turns, squared relu."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Arch
from .llama import Llama

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Nemotron(Arch):
    names = ("nemotron", "NemotronForCausalLM")
    layer_norm = True
    hf_defaults = {"partial_rotary_factor": 0.5, "norm_eps": 1e-5}
    hf_keys = {"rms_norm_eps": "norm_eps"}
    tensors = Llama.tensors

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k)
            x = g.linear(g.attention(q, k, v), "attn_output", add=x)
            h = g.linear(g.norm(x, "ffn_norm"), "ffn_up", act="relu2")
            x = g.linear(h, "ffn_down", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")

    def offset(self, name: str) -> float:
        return 1.0 if name.endswith("norm.weight") else 0.0
