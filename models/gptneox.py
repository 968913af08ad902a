"""GPT-NeoX and Pythia (arXiv:2204.06745): layer norms, q, k, v in one matrix, a part of each head turns, both blocks add to one input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import Arch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class GptNeoX(Arch):
    names = ("gptneox", "GPTNeoXForCausalLM")
    layer_norm = True
    defaults = {"parallel": True}
    hf_defaults = {"rotary_pct": 0.25, "layer_norm_eps": 1e-5, "use_parallel_residual": True}
    hf_keys = {"rms_norm_eps": "layer_norm_eps", "partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"}
    hf_ignored = ("gpt_neox.layers.{i}.attention.bias", "gpt_neox.layers.{i}.attention.masked_bias",
                  "gpt_neox.layers.{i}.attention.rotary_emb.inv_freq")
    tensors = {
        "gpt_neox.embed_in": "token_embd",
        "gpt_neox.layers.{i}.input_layernorm": "blk.{i}.attn_norm",
        "gpt_neox.layers.{i}.attention.query_key_value": "blk.{i}.attn_qkv",
        "gpt_neox.layers.{i}.attention.dense": "blk.{i}.attn_output",
        "gpt_neox.layers.{i}.post_attention_layernorm": "blk.{i}.ffn_norm",
        "gpt_neox.layers.{i}.mlp.dense_h_to_4h": "blk.{i}.ffn_up",
        "gpt_neox.layers.{i}.mlp.dense_4h_to_h": "blk.{i}.ffn_down",
        "gpt_neox.final_layer_norm": "output_norm",
        "embed_out": "output",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        n = c.n_embd
        x = g.embed("token_embd")
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            q, k, v = g.linear(h, f"attn_qkv[0:{n}]", f"attn_qkv[{n}:{2 * n}]", f"attn_qkv[{2 * n}:{3 * n}]")
            q, k = g.rope(q, k)
            y = g.linear(g.attention(q, k, v), "attn_output", add=x)
            h = g.linear(g.norm(x if c.parallel else y, "ffn_norm"), "ffn_up", act="gelu_erf")
            x = g.linear(h, "ffn_down", add=y)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output", tied="token_embd")

    def row_order(self, name: str, n: int, config: Mapping[str, Any]) -> NDArray[np.intp] | None:
        import numpy as np

        if ".attn_qkv." not in name:
            return None
        rows = np.arange(n).reshape(config["num_attention_heads"], 3, -1)       # q, k and v of each head
        return np.array(rows.swapaxes(0, 1).ravel())
