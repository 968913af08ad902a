"""Command R and R+, Aya 23 (Cohere): one layer norm without bias for both blocks, scaled logits; R+ normalises the heads of q and k."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Arch
from .llama import Llama

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class CommandR(Arch):
    names = ("command-r", "CohereForCausalLM")
    neox = False
    layer_norm = True
    hf_defaults = {"tie_word_embeddings": True, "layer_norm_eps": 1e-5, "logit_scale": 0.0625}
    hf_keys = {"rms_norm_eps": "layer_norm_eps"}
    tensors = Llama.tensors | {
        "model.layers.{i}.self_attn.q_norm": "blk.{i}.attn_q_norm",
        "model.layers.{i}.self_attn.k_norm": "blk.{i}.attn_k_norm",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for layer in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            if g.has("attn_q_norm"):
                q, k = g.norm(q, "attn_q_norm", groups=c.n_heads), g.norm(k, "attn_k_norm", groups=c.n_kv_heads)
            if self.has_rope(c, layer):
                q, k = g.rope(q, k)
            x = g.linear(g.attention(q, k, v, window=c.window_of(layer)), "attn_output", add=x)
            x = g.linear(g.gated(h, "ffn_gate", "ffn_up", act="silu"), "ffn_down", add=x)
        y = g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
        return g.scale(y, c.logit_scale)

    def has_rope(self, c: Config, layer: int) -> bool:
        return True
