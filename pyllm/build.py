"""Writes the tape (docs/tape.md): a family's forward pass in models/ runs once with a Builder, which checks names and notes steps."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from math import sqrt  # correctly rounded everywhere (IEEE 754), so fit for a tape
from typing import TYPE_CHECKING, Protocol, overload

from . import errors, hparams, rope
from ._core import steady_floats
from .gguf import Adapter
from .hparams import Config
from .models import Arch, families

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class File(Protocol):
    """What the builder needs of a GGUF file; pyllm.gguf.GGUF has it."""

    path: str

    @property
    def kv(self) -> hparams.Values: ...
    @property
    def tensors(self) -> hparams.Values: ...
    @property
    def adapters(self) -> Sequence[Adapter]: ...
    def read(self, name: str) -> NDArray[np.float32]: ...


class Value:
    """One f32 [T, width] value of the tape; its name is what the tape calls it."""

    def __init__(self, name: str) -> None:
        self.name = name


def tape_text(gguf: File, ctx: int | None = None) -> str:
    """The tape of a file, for contexts up to ctx tokens (None: the trained length)."""
    return build(gguf, ctx)[0]


@steady_floats()
def build(gguf: File, ctx: int | None = None) -> tuple[str, Config]:
    """The tape and the checked hyperparameters. Raises UnsupportedModel or FormatError, naming the file."""
    arch = find_family(gguf)
    config = hparams.read(gguf.kv, arch, gguf.path, n_vocab=_rows_of(gguf, "token_embd.weight"), n_ctx=ctx)
    builder = Builder(gguf, arch, config)
    return builder.text(arch.forward(builder, config)), config


def find_family(gguf: File) -> Arch:
    name = gguf.kv.get("general.architecture")
    if not isinstance(name, str):
        raise errors.FormatError(f"{gguf.path}: the metadata has no general.architecture\nhint: this file is not a language model")
    family = families().get(name)
    if family is None or family.name != name:
        from .supported import advice

        raise errors.UnsupportedModel(f"{gguf.path}: models of architecture {name!r} are not supported{advice(name, gguf.kv)}")
    return family


def _rows_of(gguf: File, name: str) -> int:
    if name not in gguf.tensors:
        raise errors.FormatError(f"{gguf.path}: there is no tensor {name}\nhint: a vocabulary-only file cannot run; load the whole model")
    shape = gguf.tensors[name].shape
    return int(shape[1]) if len(shape) > 1 else 0


class Builder:
    """The words of a forward pass. Each writes one step. Tensor names are without .weight; inside layers() they belong to the layer.

    A bias is used wherever the file has one next to the weight. "name[a:b]" is rows a to b - 1 of a fused matrix."""

    def __init__(self, gguf: File, arch: Arch, config: Config) -> None:
        self.gguf, self.arch, self.c = gguf, arch, config
        self._layer: int | None = None
        self._states = 0
        self._stored: dict[tuple[str, str], int] = {}       # layer of the KV cache by keys and values
        self._names: set[str] = set()
        self._tables: list[str] = []
        self._ignored: list[str] = []
        self._steps: list[tuple[str, tuple[Value, ...], list[tuple[str, object]]]] = []
        self._angles: dict[bool, Value] = {}

    # ---- steps ----

    def layers(self, n: int) -> Iterator[int]:
        """Counts layers 0..n-1; meanwhile tensor names get the prefix blk.<layer>."""
        for self._layer in range(n):
            yield self._layer
        self._layer = None

    def leave_out(self, layer: int) -> None:
        """The file's tensors of layers from this one on are not used."""
        layers = (f"blk.{i}." for i in range(layer, self.c.n_layers))
        self._ignored += [name for begin in layers for name in self.gguf.tensors if name.startswith(begin)]

    def embed(self, name: str, scale: float = 1.0) -> Value:
        """Rows of the embedding matrix by token, times scale."""
        return self._step("embed", ["x"], [("w", self._weight(name)), ("scale", scale)])[0]

    def positions(self, x: Value, name: str, row: int | None = None) -> Value:
        """x plus the row of each position in a matrix of learned positions; row: this one for all."""
        params = [("in", x), ("w", self._weight(name)), *([] if row is None else [("row", row)])]
        return self._step("positions", ["x"], params)[0]

    def norm(self, x: Value, name: str, *, groups: int = 1, add: Value | None = None, eps: float | None = None) -> Value:
        """The family's norm, RMS or layer norm. groups: so many parts of each row are normalised alone, with one weight or each with its
        own; add: a residual that is added to the result; eps: where it is not the file's. Without a name there is no weight."""
        eps = self.c.eps if eps is None else eps
        parts: list[tuple[str, object]] = [("groups", groups)] if groups > 1 else []
        if not self.arch.layer_norm:
            weight = self._weight(name) if name else "-"
            return self._step("norm", [name or "norm"], [("in", x), ("w", weight), ("eps", eps), *parts, *_optional(add)])[0]
        params = [("in", x), ("w", self._weight(name)), ("bias", self._bias(name)), ("eps", eps), *parts]
        y = self._step("layernorm", [name], params)[0]
        return y if add is None else self.add(y, add)

    @overload
    def linear(self, x: Value, name: str, /, *, act: str = "", bias: str = "", add: Value | None = None, tied: str = "") -> Value: ...
    @overload
    def linear(self, x: Value, name: str, /, *names: str) -> tuple[Value, ...]: ...
    def linear(self, x: Value, *names: str, act: str = "", bias: str = "", add: Value | None = None,
               tied: str = "") -> Value | tuple[Value, ...]:
        """Matrices times x, up to three at once. act: silu, gelu (its tanh form), gelu_erf, relu, relu2 (its square), sigmoid, tanh or
        softplus of the product; bias: a vector of another name that is added before that; add: a residual; tied: the matrix to use if the
        file has no such tensor."""
        if act and any(map(self._is_adapted, names)):
            y = self.linear(x, names[0], bias=bias)
            return self._step("act", ["act"], [("in", y), ("act", act)])[0]
        used = tuple(tied if tied and not self.has(n) else n for n in names)
        labels = [n.partition("[")[0].rpartition("_")[2] for n in names]
        biases = self._vector(bias) if bias else ",".join(map(self._bias, used))
        params = [("in", x), ("w", ",".join(map(self._weight, used))), ("bias", biases), *([("act", act)] if act else []), *_optional(add)]
        out = self._step("linear", labels, params)
        out = tuple(self._adapted(x, name, y) for name, y in zip(used, out, strict=True))
        return out[0] if len(names) == 1 else out

    def rope(self, q: Value, k: Value, *, norm: tuple[str, str] | None = None, local: bool = False, kv_heads: int | None = None,
             dim: int | None = None) -> tuple[Value, Value]:
        """Turns q and k by their positions. norm: RMS norms of each head of q and of k, applied before; local: the rope of
        windowed layers, which no scaling stretches; kv_heads, dim: heads of k and size of a head, where they are not the file's."""
        heads = f"{self.c.n_heads},{kv_heads or self.c.n_kv_heads}"
        out = self._rope(f"{q.name},{k.name}", heads, norm or (), local, dim or self.c.head_dim)
        return out[0], out[1]

    def rope_alone(self, q: Value, *, norm: str, local: bool = False) -> Value:
        """The same of q where the keys are those of another layer."""
        return self._rope(q.name, str(self.c.n_heads), (norm,), local, self.c.head_dim)[0]

    def _rope(self, inputs: str, heads: str, norms: tuple[str, ...], local: bool, dim: int) -> tuple[Value, ...]:
        params = [("in", inputs), ("angles", self._angles_of(local)), ("heads", heads), ("dim", dim), ("rot", self.c.n_rot),
                  ("neox", int(self.arch.neox)), ("norm", ",".join(map(self._weight, norms)) if norms else "-,-"),
                  ("eps", self.c.eps if norms else 0.0)]
        return self._step("rope", ["q_rope", "k_rope"][:len(inputs.split(","))], params)

    def temperature(self, q: Value) -> Value:
        """q times 1 + s ln(1 + floor(position / n)): attention that sharpens in long contexts; without s in the file no step."""
        c = self.c
        if not c.attn_temperature:
            return q
        return self._step("temperature", ["q_scaled"], [("in", q), ("scale", c.attn_temperature), ("length", c.temperature_length)])[0]

    def attention(self, q: Value, k: Value, v: Value, *, scale: float | None = None, window: int = 0, softcap: float = 0.0,
                  sinks: str = "", causal: bool = True, kv_heads: int | None = None, dim: int | None = None,
                  values: int | None = None) -> Value:
        """Attention over the sequence so far, or without causal over all of it. scale: factor on q.k, by default 1/sqrt(head size); window:
        how many positions a row sees, 0 = all; sinks: a score for each head that counts as one more position without value; kv_heads, dim,
        values: heads of k and v, size of a head of q and k, of v, where they are not the file's. v the same value as k: the first `values`
        of each key are the values, and only keys are stored. k and v of an earlier call: that layer's cache serves this one, too."""
        c = self.c
        dim, values = dim or c.head_dim, values or c.value_dim
        layer = self._stored.setdefault((k.name, v.name), len(self._stored))
        params = [("in", f"{q.name},{k.name},{v.name}"), ("layer", layer), ("heads", c.n_heads), ("kv_heads", kv_heads or c.n_kv_heads),
                  ("dim", dim), ("scale", 1 / sqrt(dim) if scale is None else scale), ("window", window),
                  ("softcap", softcap), *([("sinks", self._weight(sinks))] if sinks else []),
                  *([] if causal else [("causal", 0)]), *([("values", values)] if values != dim else [])]
        return self._step("attn", ["attn"], params)[0]

    def take(self, x: Value, heads: int, begin: int, end: int) -> Value:
        """Values [begin, end) of each of x's heads, side by side."""
        return self._step("take", ["part"], [("in", x), ("heads", heads), ("from", begin), ("to", end)])[0]

    def join(self, x: Value, y: Value, heads: int, y_heads: int) -> Value:
        """Each head of x with that of y behind it; y of one head goes to all."""
        return self._step("join", ["joined"], [("in", f"{x.name},{y.name}"), ("heads", f"{heads},{y_heads}")])[0]

    def headwise(self, x: Value, name: str) -> Value:
        """Each head of x times its own matrix of a stack."""
        return self._step("headwise", [name.rpartition("_")[2]], [("in", x), ("w", self._weight(name))])[0]

    def shift(self, x: Value) -> Value:
        """The row of the token before; zeros where the sequence begins."""
        return self._step("shift", ["shift"], [("in", x), self._state()])[0]

    def conv(self, x: Value, name: str, *, act: str = "") -> Value:
        """Each value with its own last ones, as many as the vector has for each; act: as in linear."""
        return self._step("conv", ["conv"], [("in", x), self._state(), ("w", self._weight(name)), ("bias", self._bias(name)),
                                             *([("act", act)] if act else [])])[0]

    def wkv(self, r: Value, k: Value, v: Value, heads: int, first: str, decay: str, by: Value | None = None) -> Value:
        """The recurrence of RWKV 5 and 6. first: what the current token counts for; decay, by: vector and value whose sum w makes the state
        decay by exp(-exp(w))."""
        params = [("in", f"{r.name},{k.name},{v.name}"), self._state(), ("heads", heads), ("u", self._vector(first)),
                  ("w", self._vector(decay)), *([("by", by)] if by else [])]
        return self._step("wkv", ["wkv"], params)[0]

    def wkv7(self, inputs: Sequence[Value], heads: int, names: Sequence[str]) -> tuple[Value, Value]:
        """The recurrence of RWKV 7 and its bonus. inputs: r, w, k, v, a; names: of the vectors k_k, k_a, r_k."""
        vectors = zip(("k_k", "k_a", "r_k"), map(self._vector, names), strict=True)
        params = [("in", ",".join(v.name for v in inputs)), self._state(), ("heads", heads), *vectors]
        y, bonus = self._step("wkv7", ["wkv", "bonus"], params)
        return y, bonus

    def ssm(self, x: Value, dt: Value, b: Value, c: Value, states: int) -> Value:
        """Mamba's scan, with ssm_a and ssm_d."""
        params = [("in", ",".join(v.name for v in (x, dt, b, c))), self._state(), ("states", states), ("a", self._vector("ssm_a")),
                  ("d", self._vector("ssm_d"))]
        return self._step("ssm", ["ssm"], params)[0]

    def ssd(self, xbc: Value, dt: Value, heads: int, groups: int, states: int) -> Value:
        """Mamba 2's scan, with ssm_a and ssm_d. xbc: the values, then b and c of each group."""
        params = [("in", f"{xbc.name},{dt.name}"), self._state(), ("heads", heads), ("groups", groups), ("states", states),
                  ("a", self._vector("ssm_a")), ("d", self._vector("ssm_d"))]
        return self._step("ssd", ["ssd"], params)[0]

    def delta(self, inputs: Sequence[Value], heads: int, groups: int) -> Value:
        """A gated delta net's recurrence, with ssm_a and ssm_dt.bias. inputs: q, k, v, and of each head a and b."""
        params = [("in", ",".join(v.name for v in inputs)), self._state(), ("heads", heads), ("groups", groups),
                  ("a", self._vector("ssm_a")), ("bias", self._vector("ssm_dt.bias"))]
        return self._step("delta", ["delta"], params)[0]

    def _state(self) -> tuple[str, int]:
        self._states += 1
        return "state", self._states - 1

    def mix(self, x: Value, z: Value, name: str = "", by: Value | None = None) -> Value:
        """x + (z - x) * w; w: a vector, or a value, or their sum."""
        params = [("in", f"{x.name},{z.name}"), ("w", self._vector(name) if name else "-"), *([("by", by)] if by else [])]
        return self._step("mix", ["mix"], params)[0]

    def mul(self, x: Value, y: Value) -> Value:
        return self._step("mul", ["product"], [("in", f"{x.name},{y.name}")])[0]

    def gated(self, x: Value, gate: str, up: str, *, act: str) -> Value:
        """act(gate x) * (up x); act: as in linear."""
        if any(self._is_adapted(name) or self._bias(name) != "-" for name in (gate, up)):
            g, u = self.linear(x, gate, up)
            return self._step("glu", ["ffn"], [("in", f"{g.name},{u.name}"), ("act", act)])[0]
        return self._step("gated", ["ffn"], [("in", x), ("w", f"{self._weight(gate)},{self._weight(up)}"), ("act", act)])[0]

    def glu(self, gate: Value, up: Value, *, act: str) -> Value:
        """act(gate) * up; a gate of one value counts for all of up."""
        return self._step("glu", ["glu"], [("in", f"{gate.name},{up.name}"), ("act", act)])[0]

    def moe(self, x: Value, *, act: str = "silu", add: Value | None = None) -> Value:
        """A mixture of experts (GGUF's ffn_gate_inp and ffn_*_exps), as the file's hyperparameters say. act: as in gated, or swiglu_oai;
        add: a residual."""
        c = self.c
        scores = self.linear(x, "ffn_gate_inp")
        best = 2 if c.expert_gating == 2 else 1         # of a group's scores make its own
        groups = [("groups", f"{c.n_expert_groups},{c.n_expert_groups_used},{best}")] if c.n_expert_groups > 1 else []
        chosen = self._step("route", ["route"], [("in", scores), ("k", c.n_experts_used), ("gate", c.expert_gating - 1),
                                                 ("renorm", int(c.expert_norm)), ("scale", c.expert_scale or 1.0),
                                                 ("bias", self._bias("exp_probs_b")), *groups])[0]
        names = ("ffn_gate_exps", "ffn_up_exps")
        params = [("in", f"{x.name},{chosen.name}"), ("w", ",".join(map(self._weight, names))), ("bias", ",".join(map(self._bias, names)))]
        h = self._step("moe_gated", ["experts"], [*params, ("act", act)])[0]
        params = [("in", f"{h.name},{chosen.name}"), ("w", self._weight("ffn_down_exps")), ("bias", self._bias("ffn_down_exps"))]
        return self._step("moe_down", ["moe"], [*params, *_optional(add)])[0]

    def _is_adapted(self, name: str) -> bool:
        return any(f"{self._full(name)[0]}.weight" in adapter.scales for adapter in self.gguf.adapters)

    def _adapted(self, x: Value, name: str, y: Value) -> Value:
        """y plus what adapters add to the product of x with a matrix: B (A x) times their scale (LoRA, Hu et al., arXiv:2106.09685)."""
        stem, rows = self._full(name)
        for adapter in self.gguf.adapters:
            scale = adapter.scales.get(f"{stem}.weight")
            if scale is None:
                continue
            a, b = (f"{adapter.prefix}{stem}.weight.lora_{half}" for half in "ab")
            h = self._step("linear", ["lora"], [("in", x), ("w", a), ("bias", "-")])[0]
            h = self._step("scale", ["lora"], [("in", h), ("by", scale)])[0]
            y = self._step("linear", ["adapted"], [("in", h), ("w", b + rows), ("bias", "-"), ("add", y)])[0]
        return y

    def rows(self, x: Value) -> Value:
        """Only the rows whose logits are wanted: what follows runs on those alone."""
        return self._step("rows", ["rows"], [("in", x)])[0]

    def pool(self, x: Value) -> Value:
        """One row for a whole text, as the file says: the mean of its rows, the first or the last."""
        kind = 1 if self.c.pooling is None else self.c.pooling
        if kind > 3:
            raise errors.UnsupportedModel(f"{self.c.path}: this model ranks texts (pooling_type {kind}), which is not supported\n"
                                          "hint: models that embed texts are")
        return self._step("pool", ["pooled"], [("in", x), ("kind", kind)])[0] if kind in (1, 2) else self.rows(x)

    def scale(self, x: Value, by: float, name: str = "") -> Value:
        """x times a number and, if one is named, a vector; 1 alone changes nothing and writes no step."""
        if by == 1 and not name:
            return x
        return self._step("scale", ["scaled"], [("in", x), ("by", float(by)), *([("w", self._vector(name))] if name else [])])[0]

    def blend(self, x: Value, z: Value, parts: int, *, plus: float = 0.0, by: Value | None = None, start: int = 0) -> Value:
        """Each of x's parts plus all of z's, which are as wide, each times its own (plus + by); by: [parts of x * parts of z]. Parts before
        start stay as they are."""
        params = [("in", f"{x.name},{z.name}"), ("parts", parts), ("plus", float(plus)), *([("from", start)] if start else []),
                  *([("by", by)] if by else [])]
        return self._step("blend", ["blend"], params)[0]

    def match(self, z: Value, x: Value, least: float) -> Value:
        """z, or each of its parts that are as wide as x, scaled to x's root mean square; least: of a part's mean square."""
        return self._step("match", ["matched"], [("in", f"{z.name},{x.name}"), ("floor", least)])[0]

    def cutoff(self, x: Value, by: float) -> Value:
        """What of each value lies above the row's mean plus `by` standard deviations; 0 for the others."""
        return self._step("cutoff", ["cut"], [("in", x), ("by", by)])[0]

    def add(self, x: Value, y: Value) -> Value:
        return self._step("add", ["sum"], [("in", f"{x.name},{y.name}")])[0]

    def softcap(self, x: Value, cap: float) -> Value:
        """cap * tanh(x / cap); cap 0 changes nothing and writes no step."""
        return self._step("softcap", ["softcap"], [("in", x), ("cap", cap)])[0] if cap else x

    # ---- text ----

    def text(self, result: Value) -> str:
        """The whole tape; result: the value of the last step."""
        self._names.discard(result.name)
        result.name = "embedding" if self.arch.encoder else "logits"
        head = ["pyllm-tape 1", f"hparam n_vocab {self.c.n_vocab}", f"hparam n_ctx_train {self.c.n_ctx_train}"]
        head += self._tables + [f"ignore {name}" for name in self._ignored]
        return "\n".join([*head, *map(_line, self._steps)]) + "\n"

    def _step(self, op: str, labels: list[str], params: list[tuple[str, object]]) -> tuple[Value, ...]:
        out = tuple(self._new(label) for label in labels)
        self._steps.append((op, out, params))
        return out

    def _new(self, label: str) -> Value:
        name = base = label if self._layer is None else f"{label}{self._layer}"
        n = 1
        while name in self._names:
            n += 1
            name = f"{base}.{n}"
        self._names.add(name)
        return Value(name)

    # ---- tensors ----

    def _full(self, name: str) -> tuple[str, str]:
        stem, bracket, rest = name.partition("[")
        return (stem if self._layer is None else f"blk.{self._layer}.{stem}"), bracket + rest

    def has(self, name: str) -> bool:
        """Whether the file has a weight of this name."""
        return self._full(name)[0] + ".weight" in self.gguf.tensors

    def ignore(self, *names: str) -> None:
        """Weights that files may have and nobody needs."""
        self._ignored += [f"{self._full(name)[0]}.weight" for name in names if self.has(name)]

    def rows_of(self, name: str) -> int:
        """Rows of a matrix."""
        return _rows_of(self.gguf, f"{self._full(name)[0]}.weight")

    def _weight(self, name: str) -> str:
        stem, rows = self._full(name)
        if not self.has(name):
            raise errors.FormatError(f"{self.c.path}: tensor {stem}.weight is missing\n"
                                     f"hint: the file is incomplete, or a variant that models/{self.arch.name}.py does not describe")
        return f"{stem}.weight{rows}"

    def _vector(self, name: str) -> str:
        """A tensor whose name may lack the usual ending."""
        stem, rows = self._full(name)
        return f"{stem}{rows}" if stem in self.gguf.tensors else self._weight(name)

    def _bias(self, name: str) -> str:
        stem, rows = self._full(name)
        return f"{stem}.bias{rows}" if f"{stem}.bias" in self.gguf.tensors else "-"

    # ---- rope ----

    def _angles_of(self, local: bool) -> Value:
        """The angles of all positions for one kind of layer: a table and a step, written at the first use."""
        if local not in self._angles:
            table = f"rope{len(self._angles)}"
            if local:
                freqs, mscale = rope.base_frequencies(self.c.rope_base_local, self.c.n_rot), 1.0
            else:
                freqs, mscale = rope.frequencies(self.c, self._rope_factors(), self.arch)
            self._tables.append(" ".join(["table", table, *map(f32_hex, freqs)]))
            layer, self._layer = self._layer, None
            self._angles[local] = self._step("angles", ["angles"], [("table", table), ("mscale", mscale)])[0]
            self._layer = layer
        return self._angles[local]

    def _rope_factors(self) -> list[float] | None:
        """LongRoPE's long factors serve contexts beyond the length that was trained first, the short ones the rest. The choice
        is by the context that is asked for, not by each prompt's length: cached keys never have to be turned again."""
        longrope = "long" if self.c.n_ctx > self.c.rope_n_ctx else "short"
        factors = None
        for name in ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"):
            if name in self.gguf.tensors:
                self._ignored.append(name)
                if name != f"rope_factors_{'short' if longrope == 'long' else 'long'}.weight":
                    factors = [float(x) for x in self.gguf.read(name).ravel()]
        return factors


def _optional(add: Value | None) -> list[tuple[str, object]]:
    return [] if add is None else [("add", add)]


def _line(step: tuple[str, tuple[Value, ...], list[tuple[str, object]]]) -> str:
    op, out, params = step
    return " ".join([op, ",".join(v.name for v in out), *(f"{key}={_param(value)}" for key, value in params)])


def _param(value: object) -> str:
    return value.name if isinstance(value, Value) else f32_hex(value) if isinstance(value, float) else str(value)


def f32_hex(x: float) -> str:
    """x rounded to f32 as a C99 hexadecimal float without trailing zeros."""
    try:
        mantissa, exponent = struct.unpack("<f", struct.pack("<f", x))[0].hex().split("p")
    except (OverflowError, ValueError):
        raise errors.FormatError(f"{x} does not fit a 32-bit float\nhint: a hyperparameter is out of any sensible range") from None
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}p{exponent}"
