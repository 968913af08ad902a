"""The tape in numpy float64: slow and obvious, the yardstick for the C engine and for tapes themselves.

Every value can be looked at by name. Nothing here is quantized, chunked or fused, so it differs from the engine by the engine's
rounding only (and by its activation quantization where weights are quantized).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Weights = Callable[[str], NDArray[Any]]
Product = Callable[[Array, str, Array], Array]


def exact(x: Array, name: str, w: Array) -> Array:
    """x [T, in] times the matrix w [out, in] called `name`: [T, out]."""
    y: Array = x @ w.T
    return y


def run(tape: str, weights: Weights, tokens: Sequence[int], product: Product = exact) -> Array:
    """The tape's last value, logits [len(tokens), n_vocab] or embeddings, at every position of one sequence. weights: tensor name to
    values, [out, in] or [n]; product: how matrices multiply, for studies of what quantized activations do."""
    *_, last = values(tape, weights, tokens, product).values()
    return last


def values(tape: str, weights: Weights, tokens: Sequence[int], product: Product = exact) -> dict[str, Array]:
    """Every value of the tape by name, each [len(tokens), width]."""
    run = _Run(weights, tokens, product)
    lines = [line for line in tape.split("\n") if line and not line.startswith("#")]
    if lines[0] != "pyllm-tape 1":
        raise ValueError(f"not a tape: {lines[0]!r}")
    for line in lines[1:]:
        op, name, *rest = line.split(" ")
        if op == "table":
            run.tables[name] = np.array([float.fromhex(x) for x in rest])
        elif op not in ("hparam", "ignore"):
            params = dict(pair.split("=", 1) for pair in rest)
            inputs = [run.values[v] for v in params.pop("in", "").split(",") if v]
            outs = getattr(run, op)(*inputs, **params)
            for out, value in zip(name.split(","), outs if isinstance(outs, tuple) else (outs,), strict=True):
                assert np.ndim(value) == 2 and out not in run.values, f"{line}: bad output {out}"
                run.values[out] = value
    return run.values


class _Run:
    """One method an op: inputs as arrays, parameters as the tape's text."""

    def __init__(self, weights: Weights, tokens: Sequence[int], product: Product) -> None:
        self.weights, self.tokens, self.product = weights, np.asarray(tokens), product
        self.values: dict[str, Array] = {}
        self.tables: dict[str, Array] = {}

    def weight(self, name: str) -> Array:
        stem, _, span = name.partition("[")
        whole = np.asarray(self.weights(stem), np.float64)
        if not span:
            return whole
        a, b = map(int, span[:-1].split(":"))
        return whole.reshape(-1, whole.shape[-1])[a:b] if whole.ndim > 2 else whole[a:b]

    def vector(self, name: str) -> Array:
        """A vector, also where the file has it with more dimensions."""
        stem, _, span = name.partition("[")
        whole = np.asarray(self.weights(stem), np.float64).ravel()
        a, b = map(int, span[:-1].split(":")) if span else (0, len(whole))
        return whole[a:b]

    def times(self, x: Array, name: str) -> Array:
        return self.product(x, name.partition("[")[0], self.weight(name))

    def plus(self, y: Array, add: str | None) -> Array:
        return y if add is None else y + self.values[add]

    def embed(self, w: str, scale: str) -> Array:
        return np.asarray(self.weights(w)[self.tokens], np.float64) * float.fromhex(scale)

    def positions(self, x: Array, w: str, row: str = "") -> Array:
        return x + np.asarray(self.weights(w)[int(row) if row else slice(len(x))], np.float64)

    def angles(self, table: str, mscale: str) -> Array:
        turn = np.arange(len(self.tokens))[:, None] * self.tables[table]
        return np.concatenate([np.cos(turn), np.sin(turn)], axis=1) * float.fromhex(mscale)

    def norm(self, x: Array, w: str, eps: str, groups: str = "1", add: str | None = None) -> Array:
        parts = x.reshape(len(x), int(groups), -1)
        return self.plus(_rms(parts, self._part(w, parts), float.fromhex(eps)).reshape(x.shape), add)

    def layernorm(self, x: Array, w: str, bias: str, eps: str, groups: str = "1") -> Array:
        parts = x.reshape(len(x), int(groups), -1)
        d = parts - parts.mean(axis=-1, keepdims=True)
        y: Array = _rms(d, self._part(w, parts), float.fromhex(eps))
        return (y if bias == "-" else y + self._part(bias, parts)).reshape(x.shape)

    def _part(self, name: str, parts: Array) -> Array:
        """A vector of each group's width or of all groups together, as [1 or groups, width]."""
        return np.ones((1, 1)) if name == "-" else self.vector(name).reshape(-1, parts.shape[-1])

    def linear(self, x: Array, w: str, bias: str, act: str = "", add: str | None = None) -> tuple[Array, ...]:
        products = (self.times(x, m) + (0 if b == "-" else self.vector(b)) for m, b in zip(w.split(","), bias.split(","), strict=True))
        return tuple(self.plus(_act(act, y) if act else y, add) for y in products)

    def rope(self, *inputs: Array, angles: str, heads: str, dim: str, rot: str, neox: str, norm: str, eps: str) -> tuple[Array, ...]:
        n = int(rot) // 2
        cos, sin = np.split(self.values[angles][:, None, :], 2, axis=2)
        first, second = (slice(0, n), slice(n, 2 * n)) if neox == "1" else (slice(0, 2 * n, 2), slice(1, 2 * n, 2))
        out = []
        for x, count, weight in zip(inputs, heads.split(","), norm.split(","), strict=True):
            x = x.reshape(len(x), int(count), int(dim))
            x = x.copy() if weight == "-" else _rms(x, self.weight(weight), float.fromhex(eps))
            a, b = x[..., first].copy(), x[..., second].copy()
            x[..., first], x[..., second] = a * cos - b * sin, b * cos + a * sin
            out.append(x.reshape(len(x), -1))
        return tuple(out)

    def temperature(self, q: Array, scale: str, length: str) -> Array:
        steps = np.arange(len(q))[:, None] // int(length)
        return q * (1 + float.fromhex(scale) * np.log1p(steps))

    def attn(self, q: Array, k: Array, v: Array, layer: str, heads: str, kv_heads: str, dim: str, scale: str, window: str,
             softcap: str, sinks: str = "", causal: str = "1", values: str = "") -> Array:
        t, cap, w = len(q), float.fromhex(softcap), int(window)
        group, n_values = int(heads) // int(kv_heads), int(values or dim)
        if v is k:
            v = self.take(k, kv_heads, str(n_values), **{"from": "0"})
        q, k = (x.reshape(t, -1, int(dim)).swapaxes(0, 1) for x in (q, k))              # [heads, T, dim]
        v = v.reshape(t, -1, n_values).swapaxes(0, 1)
        k, v = np.repeat(k, group, axis=0), np.repeat(v, group, axis=0)
        scores = q @ k.swapaxes(1, 2) * float.fromhex(scale)
        if cap:
            scores = cap * np.tanh(scores / cap)
        back = np.arange(t)[:, None] - np.arange(t)
        if causal == "1":
            scores[:, (back < 0) | (back >= w if w else False)] = -np.inf
        elif w:
            scores[:, abs(back) > w // 2] = -np.inf
        most = scores.max(axis=2, keepdims=True)
        p = np.exp(scores - most)
        extra = np.exp(self.weight(sinks)[:, None, None] - most) if sinks else 0
        o = (p / (p.sum(axis=2, keepdims=True) + extra)) @ v
        return np.ascontiguousarray(o.swapaxes(0, 1)).reshape(t, -1)

    def take(self, x: Array, heads: str, to: str = "", **span: str) -> Array:
        return np.ascontiguousarray(x.reshape(len(x), int(heads), -1)[:, :, int(span["from"]):int(to)]).reshape(len(x), -1)

    def join(self, x: Array, z: Array, heads: str) -> Array:
        n, own = map(int, heads.split(","))
        x, z = x.reshape(len(x), n, -1), np.repeat(z.reshape(len(z), own, -1), n // own, axis=1)
        return np.concatenate([x, z], axis=2).reshape(len(x), -1)

    def headwise(self, x: Array, w: str) -> Array:
        stack = self.weight(w)
        heads = x.reshape(len(x), len(stack), -1)
        return np.stack([self.product(heads[:, h], w, m) for h, m in enumerate(stack)], axis=1).reshape(len(x), -1)

    def shift(self, x: Array, state: str) -> Array:
        return np.concatenate([np.zeros_like(x[:1]), x[:-1]])

    def conv(self, x: Array, state: str, w: str, bias: str, act: str = "") -> Array:
        kernel = self.vector(w).reshape(x.shape[1], -1)
        k = kernel.shape[1]
        padded = np.concatenate([np.zeros((k - 1, x.shape[1])), x])
        y = np.zeros_like(x) + (0 if bias == "-" else self.vector(bias))
        for i in range(k):
            y = y + padded[i:i + len(x)] * kernel[:, i]
        return _act(act, y) if act else y

    def wkv(self, r: Array, k: Array, v: Array, state: str, heads: str, u: str, w: str, by: str | None = None) -> Array:
        decay = np.exp(-np.exp(self.vector(w) + (np.zeros_like(r) if by is None else self.values[by])))
        first = self.vector(u).reshape(int(heads), -1)
        r, k, v, decay = (x.reshape(len(x), int(heads), -1) for x in (r, k, v, decay))
        s, out = np.zeros((*k.shape[1:], v.shape[2])), np.zeros_like(r)
        for t in range(len(r)):
            kv = k[t, :, :, None] * v[t, :, None, :]
            out[t] = np.einsum("hi,hij->hj", r[t], s + first[:, :, None] * kv)
            s = decay[t, :, :, None] * s + kv
        return out.reshape(len(r), -1)

    def wkv7(self, r: Array, w: Array, k: Array, v: Array, a: Array, state: str, heads: str, k_k: str, k_a: str,
             r_k: str) -> tuple[Array, Array]:
        e = (k * self.vector(k_k)).reshape(len(k), int(heads), -1)
        e = e / np.maximum(np.linalg.norm(e, axis=2, keepdims=True), 1e-12)
        k = k * (1 + (a - 1) * self.vector(k_a))
        decay = np.exp(-0.606531 / (1 + np.exp(-w)))
        r, k, v, a, decay = (x.reshape(e.shape) for x in (r, k, v, a, decay))
        bonus = (r * k * self.vector(r_k).reshape(e.shape[1:])).sum(axis=2, keepdims=True) * v
        s, out = np.zeros((*k.shape[1:], v.shape[2])), np.zeros_like(r)
        for t in range(len(r)):
            seen = np.einsum("hi,hij->hj", e[t], s)
            s = decay[t, :, :, None] * s - (e[t] * a[t])[:, :, None] * seen[:, None, :] + k[t, :, :, None] * v[t, :, None, :]
            out[t] = np.einsum("hi,hij->hj", r[t], s)
        return out.reshape(len(r), -1), bonus.reshape(len(r), -1)

    def ssm(self, x: Array, dt: Array, b: Array, c: Array, state: str, states: str, a: str, d: str) -> Array:
        rates = self.vector(a).reshape(x.shape[1], int(states))
        s, out = np.zeros_like(rates), np.zeros_like(x)
        for t in range(len(x)):
            s = np.exp(dt[t][:, None] * rates) * s + (dt[t] * x[t])[:, None] * b[t]
            out[t] = s @ c[t]
        return out + self.vector(d) * x

    def ssd(self, xbc: Array, dt: Array, state: str, heads: str, groups: str, states: str, a: str, d: str) -> Array:
        h, g, n = int(heads), int(groups), int(states)
        x, b, c = np.split(xbc, [xbc.shape[1] - 2 * g * n, xbc.shape[1] - g * n], axis=1)
        x = x.reshape(len(x), h, -1)
        b, c = (np.repeat(m.reshape(len(m), g, n), h // g, axis=1) for m in (b, c))
        decay = np.exp(dt * self.vector(a))
        s, out = np.zeros((h, n, x.shape[2])), np.zeros_like(x)
        for t in range(len(x)):
            s = decay[t][:, None, None] * s + b[t][:, :, None] * (dt[t][:, None] * x[t])[:, None, :]
            out[t] = np.einsum("hn,hnp->hp", c[t], s)
        return (out + self.vector(d)[:, None] * x).reshape(len(x), -1)

    def delta(self, q: Array, k: Array, v: Array, alpha: Array, beta: Array, /, state: str, heads: str, groups: str, a: str,
              bias: str) -> Array:
        h, n = int(heads), int(groups)
        q, k = (np.repeat(x.reshape(len(x), n, -1), h // n, axis=1) for x in (q, k))
        v = v.reshape(len(v), h, -1)
        decay = np.exp(self.vector(a) * np.logaddexp(0, alpha + self.vector(bias)))
        beta = 1 / (1 + np.exp(-beta))
        s, out = np.zeros((h, k.shape[2], v.shape[2])), np.zeros_like(v)
        for t in range(len(v)):
            s = s * decay[t][:, None, None]
            off = beta[t][:, None] * (v[t] - np.einsum("hn,hnp->hp", k[t], s))
            s = s + k[t][:, :, None] * off[:, None, :]
            out[t] = np.einsum("hn,hnp->hp", q[t], s)
        return out.reshape(len(v), -1)

    def mul(self, x: Array, z: Array) -> Array:
        return x * z

    def mix(self, x: Array, z: Array, w: str, by: str | None = None) -> Array:
        return x + (z - x) * ((0 if w == "-" else self.vector(w)) + (0 if by is None else self.values[by]))

    def gated(self, x: Array, w: str, act: str) -> Array:
        gate, up = (self.times(x, m) for m in w.split(","))
        return self.glu(gate, up, act)

    def glu(self, gate: Array, up: Array, act: str) -> Array:
        if act == "swiglu_oai":
            gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
            return np.asarray(gate / (1 + np.exp(-1.702 * gate)) * (up + 1))
        return _act(act, gate) * up

    def act(self, x: Array, act: str) -> Array:
        return _act(act, x)

    def route(self, x: Array, k: str, gate: str, renorm: str, scale: str, bias: str, groups: str = "") -> Array:
        scores = (_softmax(x), 1 / (1 + np.exp(-x)), x)[int(gate)]
        rank = scores if bias == "-" else scores + self.weight(bias)
        if groups:
            n, used, best = map(int, groups.split(","))
            parts = rank.reshape(len(x), n, -1)
            own = np.sort(parts, axis=2)[:, :, -best:].sum(axis=2)
            allowed = np.argsort(-own, axis=1, kind="stable")[:, :used]
            barred = np.ones((len(x), n), bool)
            np.put_along_axis(barred, allowed, False, axis=1)
            rank = np.where(barred[:, :, None], -np.inf, parts).reshape(rank.shape)
        chosen = np.sort(np.argsort(-rank, axis=1, kind="stable")[:, : int(k)], axis=1)
        weights = np.take_along_axis(scores, chosen, axis=1)
        if gate == "2":
            weights = _softmax(weights)
        if renorm == "1":
            weights = weights / weights.sum(axis=1, keepdims=True)
        return np.concatenate([chosen, weights * float.fromhex(scale)], axis=1)

    def _by_expert(self, x: Array, chosen: Array, w: str, bias: str) -> Array:
        """Products [rows, choices, out] of x [rows, 1 or choices, in] with the matrices of its choices."""
        stack, k = self.weight(w), chosen.shape[1] // 2
        out = np.zeros((len(x), k, stack.shape[1]))
        for e in np.unique(chosen[:, :k]).astype(int):
            row, choice = np.nonzero(chosen[:, :k] == e)
            y = self.product(x[row, choice if x.shape[1] > 1 else 0], w, stack[e])
            out[row, choice] = y if bias == "-" else y + self.weight(bias)[e]
        return out

    def moe_gated(self, x: Array, chosen: Array, w: str, bias: str, act: str) -> Array:
        gate, up = (self._by_expert(x[:, None], chosen, m, b) for m, b in zip(w.split(","), bias.split(","), strict=True))
        return self.glu(gate, up, act).reshape(len(x), -1)

    def moe_down(self, h: Array, chosen: Array, w: str, bias: str, add: str | None = None) -> Array:
        k = chosen.shape[1] // 2
        y = self._by_expert(h.reshape(len(h), k, -1), chosen, w, bias)
        return self.plus(np.asarray((y * chosen[:, k:, None]).sum(axis=1)), add)

    def rows(self, x: Array) -> Array:
        return x        # every position's logits are wanted here

    def pool(self, x: Array, kind: str) -> Array:
        first = np.broadcast_to(x[0], x.shape)
        return x.cumsum(axis=0) / np.arange(1, len(x) + 1)[:, None] if kind == "1" else first

    def softcap(self, x: Array, cap: str) -> Array:
        y: Array = float.fromhex(cap) * np.tanh(x / float.fromhex(cap))
        return y

    def scale(self, x: Array, by: str, w: str = "") -> Array:
        return x * float.fromhex(by) * (self.vector(w) if w else 1)

    def blend(self, x: Array, z: Array, parts: str, plus: str, by: str = "", **start: str) -> Array:
        n = int(parts)
        own = x.reshape(len(x), n, -1)
        others = z.reshape(len(z), -1, own.shape[2])
        factors = np.full((len(x), n, others.shape[1]), float.fromhex(plus))
        if by:
            factors = factors + self.values[by].reshape(factors.shape)
        factors[:, :int(start.get("from", "0"))] = 0
        return np.asarray(own + factors @ others).reshape(x.shape)

    def match(self, z: Array, x: Array, floor: str) -> Array:
        parts = z.reshape(len(z), -1, x.shape[1])
        want, have = (np.sqrt(np.maximum((v * v).mean(axis=-1), least)) for v, least in ((x, 0), (parts, float.fromhex(floor))))
        return np.asarray(parts * (want[:, None] / have)[:, :, None]).reshape(z.shape)

    def cutoff(self, x: Array, by: str) -> Array:
        return np.asarray(np.maximum(x - (x.mean(axis=1) + float.fromhex(by) * x.std(axis=1))[:, None], 0))

    def add(self, x: Array, z: Array) -> Array:
        return x + z


def _erf(x: Array) -> Array:
    return np.array([math.erf(v) for v in x.ravel()]).reshape(x.shape)


def _act(name: str, x: Array) -> Array:
    y: Array = 1 / (1 + np.exp(-x))
    if name == "silu":
        y = x * y
    elif name == "gelu":
        y = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    elif name == "gelu_erf":
        y = 0.5 * x * (1 + _erf(x * np.sqrt(0.5)))
    elif name == "tanh":
        y = np.tanh(x)
    elif name == "softplus":
        y = np.logaddexp(0, x)
    elif name in ("relu", "relu2"):
        y = np.maximum(x, 0) ** (2 if name == "relu2" else 1)
    else:
        assert name == "sigmoid", name
    return y


def _softmax(x: Array) -> Array:
    p = np.exp(x - x.max(axis=-1, keepdims=True))
    y: Array = p / p.sum(axis=-1, keepdims=True)
    return y


def _rms(x: Array, w: Array, eps: float) -> Array:
    y: Array = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * w
    return y
