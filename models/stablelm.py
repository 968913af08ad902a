"""StableLM 3B and StableLM 2 (arXiv:2402.17834): layer norms, a part of each head turns. The 12B model normalises the heads of q and k and
computes both blocks from one norm."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Arch
from .llama import Llama

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class StableLm(Arch):
    names = ("stablelm", "StableLmForCausalLM")
    layer_norm = True
    hf_defaults = {"partial_rotary_factor": 0.25, "layer_norm_eps": 1e-5}
    hf_keys = {"rms_norm_eps": "layer_norm_eps"}
    tensors = Llama.tensors | {
        "model.layers.{i}.self_attn.q_layernorm.norms.{e}": "blk.{i}.attn_q_norm",
        "model.layers.{i}.self_attn.k_layernorm.norms.{e}": "blk.{i}.attn_k_norm",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            if g.has("attn_q_norm"):
                q, k = g.norm(q, "attn_q_norm", groups=c.n_heads), g.norm(k, "attn_k_norm", groups=c.n_kv_heads)
            q, k = g.rope(q, k)
            x = g.linear(g.attention(q, k, v), "attn_output", add=x)
            if g.has("ffn_norm"):
                h = g.norm(x, "ffn_norm")
            x = g.linear(g.gated(h, "ffn_gate", "ffn_up", act="silu"), "ffn_down", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
