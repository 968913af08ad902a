"""Gemma 3 text models (arXiv:2503.19786): five windowed layers, then a global one, each kind with its own rope; q and k norms."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt  # correctly rounded everywhere, so fit for a tape
from typing import TYPE_CHECKING, Any, ClassVar

from . import gemma2, qwen3

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Gemma3(gemma2.Gemma2):
    names: ClassVar[tuple[str, ...]] = ("gemma3", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")
    defaults = {"window": 1024, "window_pattern": 6, "rope_base": 1000000.0, "rope_base_local": 10000.0}
    hf_defaults = {                         # the published files with images leave out what is as in the 4B model
        "vocab_size": 262208, "max_position_embeddings": 131072, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "query_pre_attn_scalar": 256, "sliding_window": 4096, "tie_word_embeddings": True,
    }
    tensors = qwen3.Qwen3.tensors | gemma2.Gemma2.tensors

    def forward(self, g: Builder, c: Config) -> Value:
        y = g.linear(g.norm(g.rows(self.body(g, c)), "output_norm"), "output", tied="token_embd")
        return g.softcap(y, c.final_softcap)

    def body(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd", scale=sqrt(c.n_embd))
        for layer in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k, norm=("attn_q_norm", "attn_k_norm"), local=c.is_local(layer))
            a = g.attention(q, k, v, scale=gemma2.query_scale(c, n_layers_27b=62), softcap=c.attn_softcap,
                            window=c.window_of(layer), causal=not self.encoder)
            x = g.norm(g.linear(a, "attn_output"), "post_attention_norm", add=x)
            h = g.norm(x, "ffn_norm")
            h = g.linear(g.gated(h, "ffn_gate", "ffn_up", act="gelu"), "ffn_down")
            x = g.norm(h, "post_ffw_norm", add=x)
        return x

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        kinds = config.get("layer_types") or []
        found = super().hf_hparams(config)
        if "full_attention" in kinds:
            found["attention.sliding_window_pattern"] = kinds.index("full_attention") + 1
        rope = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
        found["rope.freq_base_swa"] = float(rope.get("rope_theta") or config.get("rope_local_base_freq") or 10000.0)
        return found
