"""MiniCPM3 (OpenBMB): Llama with the attention of DeepSeek V2, whose embedding, residuals and logits are scaled."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt  # correctly rounded everywhere, so fit for a tape
from typing import TYPE_CHECKING, Any

from . import deepseek2
from .llama import Llama

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class MiniCpm3(deepseek2.Deepseek2):
    names = ("minicpm3", "MiniCPM3ForCausalLM")
    neox = True
    yarn_scales_scores = False
    defaults = {"embedding_scale": 12.0, "residual_scale": lambda v: 1.4 / sqrt(v["n_layers"]), "logit_scale": lambda v: v["n_embd"] / 256}
    hf_keys = {"embedding_multiplier": "scale_emb"}
    tensors = Llama.dense | deepseek2.Deepseek2.latent | {"model.layers.{i}.self_attn.kv_b_proj": "blk.{i}.attn_kv_b"}

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.embed("token_embd", scale=c.embedding_scale)
        for _ in g.layers(c.n_layers):
            h = g.linear(deepseek2.attention(g, c, g.norm(x, "attn_norm")), "attn_output")
            x = g.add(g.scale(h, c.residual_scale), x)
            h = g.norm(x, "ffn_norm")
            h = g.linear(g.gated(h, "ffn_gate", "ffn_up", act="silu"), "ffn_down")
            x = g.add(g.scale(h, c.residual_scale), x)
        x = g.scale(g.norm(g.rows(x), "output_norm"), 1 / c.logit_scale)
        return g.linear(x, "output", tied="token_embd")

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        n, turning = config["num_attention_heads"], config["qk_rope_head_dim"]
        found = {"attention.head_count_kv": n, "attention.key_length": config["qk_nope_head_dim"] + turning,
                 "attention.value_length": config.get("v_head_dim") or config["hidden_size"] // n, "rope.dimension_count": turning,
                 "residual_scale": config["scale_depth"] / sqrt(config["num_hidden_layers"]),
                 "logit_scale": config["hidden_size"] / config["dim_model_base"]}
        return found | ({"attention.q_lora_rank": config["q_lora_rank"]} if config.get("q_lora_rank") else {})
