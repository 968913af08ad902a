"""StarCoder2 (arXiv:2402.19173): layer norms, biases everywhere, a plain feed-forward network with gelu."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import Arch
from .llama import Llama

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Starcoder2(Arch):
    names = ("starcoder2", "Starcoder2ForCausalLM")
    layer_norm = True
    hf_defaults = {"tie_word_embeddings": True, "norm_epsilon": 1e-5}
    hf_keys = {"rms_norm_eps": "norm_epsilon"}
    tensors = Llama.tensors | {
        "model.layers.{i}.mlp.c_fc": "blk.{i}.ffn_up",
        "model.layers.{i}.mlp.c_proj": "blk.{i}.ffn_down",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k)
            x = g.linear(g.attention(q, k, v, window=c.window), "attn_output", add=x)
            h = g.linear(g.norm(x, "ffn_norm"), "ffn_up", act="gelu")
            x = g.linear(h, "ffn_down", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")
