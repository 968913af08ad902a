"""Llama 1 to 3.x (Touvron et al., arXiv:2302.13971; Grattafiori et al., arXiv:2407.21783), SmolLM2, Mistral 7B, Mixtral
(arXiv:2401.04088) and relatives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from . import Arch, neighbours

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Llama(Arch):
    names: ClassVar[tuple[str, ...]] = ("llama", "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")
    neox = False
    hf_keys: ClassVar[dict[str, str]] = {"num_experts": "num_local_experts"}
    dense: ClassVar[dict[str, Any]] = {
        "model.embed_tokens": "token_embd",
        "model.layers.{i}.input_layernorm": "blk.{i}.attn_norm",
        "model.layers.{i}.self_attn.q_proj": "blk.{i}.attn_q",
        "model.layers.{i}.self_attn.k_proj": "blk.{i}.attn_k",
        "model.layers.{i}.self_attn.v_proj": "blk.{i}.attn_v",
        "model.layers.{i}.self_attn.o_proj": "blk.{i}.attn_output",
        "model.layers.{i}.post_attention_layernorm": "blk.{i}.ffn_norm",
        "model.layers.{i}.mlp.gate_proj": "blk.{i}.ffn_gate",
        "model.layers.{i}.mlp.up_proj": "blk.{i}.ffn_up",
        "model.layers.{i}.mlp.down_proj": "blk.{i}.ffn_down",
        "model.norm": "output_norm",
        "lm_head": "output",
    }
    tensors = dense | {
        "model.layers.{i}.block_sparse_moe.gate": "blk.{i}.ffn_gate_inp",
        "model.layers.{i}.block_sparse_moe.experts.{e}.w1": "blk.{i}.ffn_gate_exps",
        "model.layers.{i}.block_sparse_moe.experts.{e}.w2": "blk.{i}.ffn_down_exps",
        "model.layers.{i}.block_sparse_moe.experts.{e}.w3": "blk.{i}.ffn_up_exps",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd")
        for layer in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            if self.has_rope(layer):
                q, k = g.rope(q, k)
            x = g.linear(g.attention(q, k, v, window=c.window), "attn_output", add=x)
            h = g.norm(x, "ffn_norm")
            if g.has("ffn_gate_inp"):
                x = g.moe(h, add=x)
            else:
                x = g.linear(g.gated(h, "ffn_gate", "ffn_up", act="silu"), "ffn_down", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")

    def has_rope(self, layer: int) -> bool:
        return True

    def row_order(self, name: str, n: int, config: Mapping[str, Any]) -> NDArray[np.intp] | None:
        heads = config["num_attention_heads"]
        if ".attn_q." in name:
            return neighbours(n, heads)
        if ".attn_k." in name:
            return neighbours(n, config.get("num_key_value_heads") or heads)
        return None
