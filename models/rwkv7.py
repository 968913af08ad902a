"""RWKV 7, "Goose" (Peng et al., arXiv:2503.14456): states that are corrected along a direction of each token (a delta rule)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .rwkv5 import Rwkv5

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Rwkv7(Rwkv5):
    names = ("rwkv7",)
    tensors = Rwkv5.tensors | {
        "blocks.{i}.att.x_rwkvag": "blk.{i}.time_mix_lerp_fused.weight",
        "blocks.{i}.ffn.x_k": "blk.{i}.channel_mix_lerp_k.weight",
        **{f"blocks.{{i}}.att.{x}": f"blk.{{i}}.time_mix_{x}.weight" for x in ("k_k", "k_a", "r_k")},
        **{f"blocks.{{i}}.att.{x}{i}": f"blk.{{i}}.time_mix_{x}{i}.weight" for x in "wavg" for i in range(3)},
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.norm(g.embed("token_embd"), "token_embd_norm")
        n, heads = c.n_embd, c.n_embd // c.wkv_head
        first: Value | None = None              # the values of the first layer, which later ones mix in
        for _ in g.layers(c.n_layers):
            h = g.norm(x, "attn_norm")
            before = g.shift(h)
            xr, xw, xk, xv, xa, xg = (g.mix(h, before, f"time_mix_lerp_fused[{i * n}:{(i + 1) * n}]") for i in range(6))
            w = g.linear(g.linear(xw, "time_mix_w1", act="tanh"), "time_mix_w2", bias="time_mix_w0")
            r, k, v = (g.linear(y, f"time_mix_{name}") for y, name in ((xr, "receptance"), (xk, "key"), (xv, "value")))
            if first is None:
                first = v
                g.ignore("time_mix_v0", "time_mix_v1", "time_mix_v2")       # files have them in the first layer, too
            else:
                v = g.mix(v, first, by=g.linear(g.linear(xv, "time_mix_v1"), "time_mix_v2", bias="time_mix_v0", act="sigmoid"))
            a = g.linear(g.linear(xa, "time_mix_a1"), "time_mix_a2", bias="time_mix_a0", act="sigmoid")
            gate = g.linear(g.linear(xg, "time_mix_g1", act="sigmoid"), "time_mix_g2")
            y, bonus = g.wkv7((r, w, k, v, a), heads, ("time_mix_k_k", "time_mix_k_a", "time_mix_r_k"))
            y = g.add(g.norm(y, "time_mix_ln", groups=heads, eps=c.group_eps), bonus)
            x = g.linear(g.mul(y, gate), "time_mix_output", add=x)
            h = g.norm(x, "attn_norm_2")
            k = g.linear(g.mix(h, g.shift(h), "channel_mix_lerp_k"), "channel_mix_key", act="relu2")
            x = g.linear(k, "channel_mix_value", add=x)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output")
