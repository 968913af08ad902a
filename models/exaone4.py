"""EXAONE 4 (arXiv:2507.11407): norms after each block only, norms of q's and k's heads. In models with windows every fourth layer sees all
positions, without rope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Arch
from .olmo2 import Olmo2

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Exaone4(Arch):
    names = ("exaone4", "Exaone4ForCausalLM")
    defaults = {"window_pattern": 4}
    tensors = Olmo2.tensors

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for layer in g.layers(c.n_layers):
            q, k, v = g.linear(x, "attn_q", "attn_k", "attn_v")
            if c.window and not c.is_local(layer):
                q, k = g.norm(q, "attn_q_norm", groups=c.n_heads), g.norm(k, "attn_k_norm", groups=c.n_kv_heads)
            else:
                q, k = g.rope(q, k, norm=("attn_q_norm", "attn_k_norm"))
            h = g.linear(g.attention(q, k, v, window=c.window_of(layer)), "attn_output")
            x = g.norm(h, "post_attention_norm", add=x)
            h = g.linear(g.gated(x, "ffn_gate", "ffn_up", act="silu"), "ffn_down")
            x = g.norm(h, "post_ffw_norm", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
