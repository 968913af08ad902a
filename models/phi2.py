"""Phi-1, Phi-1.5 and Phi-2 (arXiv:2309.05463): one layer norm for both blocks, biases everywhere, 0.4 or 0.5 of each head turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Arch
from .llama import Llama

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Phi2(Arch):
    names = ("phi2", "PhiForCausalLM")
    layer_norm = True
    hf_defaults = {"partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5}
    hf_keys = {"rms_norm_eps": "layer_norm_eps"}
    tensors = Llama.tensors | {
        "model.layers.{i}.self_attn.dense": "blk.{i}.attn_output",
        "model.layers.{i}.mlp.fc1": "blk.{i}.ffn_up",
        "model.layers.{i}.mlp.fc2": "blk.{i}.ffn_down",
        "model.final_layernorm": "output_norm",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        k0 = c.n_heads * c.head_dim             # rows of q, then of k, then of v in files with one matrix
        v0 = k0 + c.n_kv_heads * c.head_dim
        end = v0 + c.n_kv_heads * c.head_dim
        fused = (f"attn_qkv[0:{k0}]", f"attn_qkv[{k0}:{v0}]", f"attn_qkv[{v0}:{end}]")
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, *(fused if g.has("attn_qkv") else ("attn_q", "attn_k", "attn_v")))
            q, k = g.rope(q, k)
            x = g.linear(g.attention(q, k, v), "attn_output", add=x)
            x = g.linear(g.linear(h, "ffn_up", act="gelu"), "ffn_down", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
