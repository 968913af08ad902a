"""Gemma 3n text models: four versions of the hidden state of which layers see one (AltUp, arXiv:2301.13310), low-rank side branches
(LAuReL, arXiv:2411.07501), embeddings in each layer, gates that are mostly cut off, and last layers that share keys and values."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, sqrt  # correctly rounded everywhere, so fit for a tape
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, ClassVar

from pyllm import errors

from .gemma3 import Gemma3

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyllm.build import Builder, Value
    from pyllm.hparams import Config

KV = dict[bool, tuple["Value", "Value"]]        # of the last layer of each kind, windowed or global, that has keys of its own


class Gemma3n(Gemma3):
    names = ("gemma3n", "Gemma3nForCausalLM", "Gemma3nForConditionalGeneration")
    defaults: ClassVar[dict[str, Any]] = {
        "window": 512, "window_pattern": 5, "rope_base": 1000000.0, "rope_base_local": 10000.0, "final_softcap": 30.0, "altup_inputs": 4,
        "layer_embd": 256, "kv_reusers": lambda v: max(0, v["n_layers"] - 20),
        "cutoffs": lambda v: [1.6448533535003662 if i < 10 else -inf for i in range(v["n_layers"])],     # the published models'
    }
    hf_defaults: ClassVar[dict[str, Any]] = {
        "vocab_size": 262400, "vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": 256, "max_position_embeddings": 32768,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
        "sliding_window": 512, "final_logit_softcapping": 30.0, "altup_num_inputs": 4, "num_kv_shared_layers": 15,
        "tie_word_embeddings": True,
    }
    tensors: ClassVar[dict[str, Any]] = Gemma3.tensors | {
        "model.embed_tokens_per_layer": "per_layer_token_embd",
        "model.per_layer_model_projection": "per_layer_model_proj",
        "model.per_layer_projection_norm": "per_layer_proj_norm",
        "model.altup_projections.{e}": "altup_proj",
        "model.altup_unembed_projections.{e}": "altup_unembd_proj",
        "model.layers.{i}.altup.prediction_coefs": "blk.{i}.altup_predict_coef",
        "model.layers.{i}.altup.correction_coefs": "blk.{i}.altup_correct_coef",
        "model.layers.{i}.altup.correct_output_scale": "blk.{i}.altup_correct_scale.weight",
        "model.layers.{i}.altup.modality_router": "blk.{i}.altup_router",
        "model.layers.{i}.altup.router_norm": "blk.{i}.altup_router_norm",
        "model.layers.{i}.laurel.linear_left": "blk.{i}.laurel_l",
        "model.layers.{i}.laurel.linear_right": "blk.{i}.laurel_r",
        "model.layers.{i}.laurel.post_laurel_norm": "blk.{i}.laurel_post_norm",
        "model.layers.{i}.per_layer_input_gate": "blk.{i}.inp_gate",
        "model.layers.{i}.per_layer_projection": "blk.{i}.proj",
        "model.layers.{i}.post_per_layer_input_norm": "blk.{i}.post_norm",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        n, width = c.altup_inputs, c.n_embd
        token = g.embed("token_embd", scale=sqrt(width))
        inputs = g.scale(self.layer_inputs(g, c, token), 1 / sqrt(2))
        x = g.join(token, g.match(g.linear(token, f"altup_proj[0:{(n - 1) * width}]"), token, 1e-5), 1, 1)
        kv: KV = {}
        for layer in g.layers(c.n_layers):
            part = g.take(inputs, 1, layer * c.layer_embd, (layer + 1) * c.layer_embd)
            x = self.layer(g, c, layer, x, part, kv)
        x = g.rows(x)
        total = first = g.take(x, 1, 0, width)
        for i in range(1, n):
            y = g.linear(g.take(x, 1, i * width, (i + 1) * width), f"altup_unembd_proj[{(i - 1) * width}:{i * width}]")
            total = g.add(total, g.match(y, first, 1e-5))
        y = g.linear(g.norm(g.scale(total, 1 / n), "output_norm"), "output", tied="token_embd")
        return g.softcap(y, c.final_softcap)

    def layer_inputs(self, g: Builder, c: Config, token: Value) -> Value:
        """[T, layers * layer_embd], still times sqrt(2). What is normalised is the projection / sqrt(n_embd): as with n_embd times eps."""
        own = g.embed("per_layer_token_embd", scale=sqrt(c.layer_embd))
        return g.norm(g.linear(token, "per_layer_model_proj"), "per_layer_proj_norm", groups=c.n_layers, eps=c.eps * c.n_embd, add=own)

    def layer(self, g: Builder, c: Config, layer: int, x: Value, part: Value, kv: KV) -> Value:
        n, at = c.altup_inputs, (c.altup_active * c.n_embd, (c.altup_active + 1) * c.n_embd)
        predicted = g.blend(x, x, n, by=self.factors(g, c, g.take(x, 1, *at), "altup_predict_coef"))
        active = g.take(predicted, 1, *at)
        h = g.norm(active, "attn_norm")
        side = g.norm(g.linear(g.linear(h, "laurel_l"), "laurel_r"), "laurel_post_norm", add=h)
        y = g.norm(g.linear(self.attention(g, c, layer, h, kv), "attn_output"), "post_attention_norm", add=active)
        y = g.scale(g.add(y, side), 1 / sqrt(2))
        y = g.norm(g.linear(self.gates(g, c, layer, g.norm(y, "ffn_norm")), "ffn_down"), "post_ffw_norm", add=y)
        error = g.add(y, g.scale(active, -1.0))
        x = g.blend(predicted, error, n, plus=1.0, by=self.factors(g, c, y, "altup_correct_coef"))
        gate = g.linear(g.scale(g.take(x, 1, *at), 1.0, "altup_correct_scale"), "inp_gate")
        y = g.norm(g.linear(g.glu(gate, part, act="gelu"), "proj"), "post_norm")
        return g.blend(x, y, n, plus=1.0, start=1)

    def factors(self, g: Builder, c: Config, x: Value, name: str) -> Value:
        """What each version of the hidden state takes of others, by one of them."""
        router = g.scale(g.norm(x, "altup_router_norm"), 1 / c.n_embd)
        return g.linear(g.linear(router, "altup_router", act="tanh"), name)

    def attention(self, g: Builder, c: Config, layer: int, h: Value, kv: KV) -> Value:
        local = c.is_local(layer)
        if layer < c.n_layers - c.kv_reusers:
            q, k, v = g.linear(h, "attn_q", "attn_k", "attn_v")
            q, k = g.rope(q, k, norm=("attn_q_norm", "attn_k_norm"), local=local)
            kv[local] = k, g.norm(v, "", groups=c.n_kv_heads)
        elif local in kv:
            g.ignore("attn_k", "attn_v", "attn_k_norm")
            q = g.rope_alone(g.linear(h, "attn_q"), norm="attn_q_norm", local=local)
        else:
            raise errors.FormatError(f"{c.path}: layer {layer} shares keys and values, but no layer of its kind has any\n"
                                     "hint: the file is damaged; download or convert it again")
        return g.attention(q, *kv[local], scale=1.0, window=c.window_of(layer))

    def gates(self, g: Builder, c: Config, layer: int, h: Value) -> Value:
        cutoff = c.cutoff_of(layer)
        if cutoff == -inf:
            return g.gated(h, "ffn_gate", "ffn_up", act="gelu")
        gate, up = g.linear(h, "ffn_gate", "ffn_up")
        return g.glu(g.cutoff(gate, cutoff), up, act="gelu")

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        if not config.get("altup_correct_scale", True) or config.get("hidden_activation", "gelu_pytorch_tanh") != "gelu_pytorch_tanh":
            raise errors.UnsupportedModel("altup_correct_scale is false, or hidden_activation is not gelu_pytorch_tanh\n"
                                          "hint: the checkpoint is a variant that needs its own description")
        rope = (config.get("rope_parameters") or {}).get("sliding_attention") or {}
        n, shares = int(config["num_hidden_layers"]), config.get("activation_sparsity_pattern")
        shares = shares if isinstance(shares, list) else [0.95 if i < 10 < n else 0.0 for i in range(n)]
        return {"rope.freq_base_swa": float(rope.get("rope_theta") or config.get("rope_local_base_freq") or 10000.0),
                "activation_sparsity_scale": [NormalDist().inv_cdf(share) if share > 0 else -inf for share in shares]}

    def row_order(self, name: str, n: int, config: Mapping[str, Any]) -> NDArray[np.intp] | None:
        """Rows of the embedding beyond the text's vocabulary are those of images and sound."""
        import numpy as np

        return np.arange(min(n, int(config["vocab_size_per_layer_input"]))) if name == "token_embd.weight" else None

    def offset(self, name: str) -> float:
        return 0.0
