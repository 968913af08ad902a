"""RWKV 5.2, "Eagle" (Peng et al., arXiv:2404.05892): a matrix for each head that decays at a learned rate, instead of attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from . import Arch

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Rwkv5(Arch):
    names: ClassVar[tuple[str, ...]] = ("rwkv5",)
    attends = False
    layer_norm = True
    oracle = "the rwkv package"
    tensors: ClassVar[dict[str, Any]] = {
        "emb": "token_embd",
        "blocks.{i}.ln0": "token_embd_norm",
        "blocks.{i}.ln1": "blk.{i}.attn_norm",
        "blocks.{i}.ln2": "blk.{i}.attn_norm_2",
        **{f"blocks.{{i}}.att.{name}": f"blk.{{i}}.time_mix_{name}" for name in ("key", "value", "receptance", "gate", "output")},
        **{f"blocks.{{i}}.ffn.{name}": f"blk.{{i}}.channel_mix_{name}" for name in ("key", "value", "receptance")},
        **{f"blocks.{{i}}.att.time_mix_{x}": f"blk.{{i}}.time_mix_lerp_{x}.weight" for x in "kvrg"},
        **{f"blocks.{{i}}.ffn.time_mix_{x}": f"blk.{{i}}.channel_mix_lerp_{x}.weight" for x in "kr"},
        "blocks.{i}.att.time_decay": "blk.{i}.time_mix_decay.weight",
        "blocks.{i}.att.time_faaaa": "blk.{i}.time_mix_first.weight",
        "blocks.{i}.att.ln_x": "blk.{i}.time_mix_ln",
        "ln_out": "output_norm",
        "head": "output",
    }

    def forward(self, g: Builder, c: Config) -> Value:
        x = g.norm(g.embed("token_embd"), "token_embd_norm")
        for layer in g.layers(c.n_layers):
            x = self.time_mix(g, c, g.norm(x, "attn_norm"), x)
            h = g.norm(x, "attn_norm_2")
            x = self.channel_mix(g, h, g.shift(h), x)
            if c.rescale_every and (layer + 1) % c.rescale_every == 0:
                x = g.scale(x, 0.5)
        return g.linear(g.norm(g.rows(x), "output_norm"), "output")

    def time_mix(self, g: Builder, c: Config, h: Value, x: Value) -> Value:
        before = g.shift(h)
        r, k, v, gate = (g.linear(g.mix(before, h, f"time_mix_lerp_{name[0]}"), f"time_mix_{name}")
                         for name in ("receptance", "key", "value", "gate"))
        y = g.wkv(r, k, v, c.n_embd // c.wkv_head, "time_mix_first", "time_mix_decay")
        return self.output(g, c, y, gate, x)

    def output(self, g: Builder, c: Config, y: Value, gate: Value, x: Value) -> Value:
        y = g.norm(y, "time_mix_ln", groups=c.n_embd // c.wkv_head, eps=c.group_eps)
        return g.linear(g.glu(gate, y, act="silu"), "time_mix_output", add=x)

    def channel_mix(self, g: Builder, h: Value, before: Value, x: Value) -> Value:
        k = g.linear(g.mix(before, h, "channel_mix_lerp_k"), "channel_mix_key", act="relu2")
        r = g.linear(g.mix(before, h, "channel_mix_lerp_r"), "channel_mix_receptance")
        return g.add(g.glu(r, g.linear(k, "channel_mix_value"), act="sigmoid"), x)
