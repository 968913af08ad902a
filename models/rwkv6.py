"""RWKV 6, "Finch" (Peng et al., arXiv:2404.05892): what is mixed and how fast a state decays depends on the token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .rwkv5 import Rwkv5

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Rwkv6(Rwkv5):
    names = ("rwkv6",)
    tensors = Rwkv5.tensors | {
        **{f"blocks.{{i}}.att.time_maa_{x}": f"blk.{{i}}.time_mix_lerp_{x}.weight" for x in "xwkvrg"},
        **{f"blocks.{{i}}.ffn.time_maa_{x}": f"blk.{{i}}.channel_mix_lerp_{x}.weight" for x in "kr"},
        **{f"blocks.{{i}}.att.time_maa_w{i}": f"blk.{{i}}.time_mix_w{i}.weight" for i in (1, 2)},
        **{f"blocks.{{i}}.att.time_decay_w{i}": f"blk.{{i}}.time_mix_decay_w{i}.weight" for i in (1, 2)},
    }

    def time_mix(self, g: Builder, c: Config, h: Value, x: Value) -> Value:
        before, n, rank = g.shift(h), c.n_embd, g.rows_of("time_mix_w1") // 5
        mixed = g.mix(h, before, "time_mix_lerp_x")
        inputs = []
        for i, name in enumerate("wkvrg"):
            low = g.linear(mixed, f"time_mix_w1[{i * rank}:{(i + 1) * rank}]", act="tanh")
            by = g.linear(low, f"time_mix_w2[{i * n}:{(i + 1) * n}]")
            fused = g.has("time_mix_lerp_fused")
            inputs.append(g.mix(h, before, f"time_mix_lerp_fused[{i * n}:{(i + 1) * n}]" if fused else f"time_mix_lerp_{name}", by))
        w, k, v, r, gate = inputs
        k, v, r, gate = (g.linear(y, f"time_mix_{name}") for y, name in ((k, "key"), (v, "value"), (r, "receptance"), (gate, "gate")))
        w = g.linear(g.linear(w, "time_mix_decay_w1", act="tanh"), "time_mix_decay_w2")
        y = g.wkv(r, k, v, n // c.wkv_head, "time_mix_first", "time_mix_decay", by=w)
        return self.output(g, c, y, gate, x)

    def channel_mix(self, g: Builder, h: Value, before: Value, x: Value) -> Value:
        k = g.linear(g.mix(h, before, "channel_mix_lerp_k"), "channel_mix_key", act="relu2")
        r = g.linear(g.mix(h, before, "channel_mix_lerp_r"), "channel_mix_receptance")
        return g.add(g.glu(r, g.linear(k, "channel_mix_value"), act="sigmoid"), x)
