"""Every Metal kernel over random inputs, against float64, within the error that its own arithmetic allows.

u = 2^-24 is the error of one rounding, g(n) = nu / (1 - nu) that of n of them on one path. A bound adds up, in the order of the kernel's
steps, what each rounding can do to the result; elementary functions count with the errors that docs/numerics.md states for them, sin and
cos with the 4 ulp of Metal's precise ones. simd_sum and the products of matrices count with the longest path that any order of additions
has, as Metal does not say which order it takes. Where a result is exact (rows of a matrix, what is stored in the cache) the bound is 0.
"""

from __future__ import annotations

import math
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import format_oracle as formats
import numpy as np
from metal_emulator import Emulator

Floats = np.ndarray[Any, Any]

TYPES = ("f32", "f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k", "iq4_nl")
KV = ("f32", "f16", "q8_0")
HEADS = (64, 128, 256)
ACTS = ("silu", "gelu", "gelu_erf", "relu", "relu2", "sigmoid", "swiglu_oai")
SCHEDULES = (0, 1, 20, 21)
U, TINY, PAGE = 2.0 ** -24, 1e-36, 16


def g(n: float) -> float:
    return n * U / (1 - n * U)


@dataclass
class Case:
    """A launch: the last of `buffers` is written; what it should hold, and how far from that it may be, element by element."""

    kernel: str
    args: bytes
    buffers: list[Any]
    grid: tuple[int, int, int]
    threads: int
    want: Floats
    bound: Floats | float

    def run(self, emulator: Emulator, schedule: int) -> float:
        """The largest share of the bound that an error takes: the kernel is right if it is not over 1."""
        buffers = [b.copy() for b in self.buffers]
        emulator.launch(self.kernel, self.args, buffers, self.grid, self.threads, schedule)
        got = buffers[-1].astype(np.float64)
        assert got.shape == self.want.shape
        error = np.abs(got - self.want)
        bound = np.broadcast_to(np.asarray(self.bound), error.shape)
        if np.isnan(error).any():
            return math.inf
        return float(np.where(error == 0, 0.0, error / np.where(bound > 0, bound, TINY)).max())


def empty(*shape: int) -> Floats:
    return np.full(shape, np.nan, np.float32)


def normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.normal(0, 1, shape).astype(np.float32)


# ---- activations: value and error bound of f(x (1 +- nothing)) ----

def _erf(x: Floats) -> Floats:
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def act(name: str, x: Floats) -> tuple[Floats, Floats, float]:
    """(value, error of the kernel's f at x, how much an error of x grows at most) in float64. e^x: 1 ulp = 2u; tanh 4 ulp; erf 3 ulp."""
    a = np.abs(x)
    if name == "silu":                      # e: 2u, 1 + e: u, quotient: u
        y = x / (1 + np.exp(-x))
        return y, 4 * U * np.abs(y) + TINY * a, 1.1
    if name == "sigmoid":
        y = 1 / (1 + np.exp(-x))
        return y, 4 * U * y + TINY, 0.25
    if name == "gelu":                      # the argument: 3 roundings and 2 of its constants; |t| (1 - tanh^2 t) <= 0.45; 1 + tanh: u
        y = 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))
        return y, 0.5 * a * (8 + 5 * 0.45 + 2) * U + 2 * U * np.abs(y), 1.13
    if name == "gelu_erf":                  # the argument: one rounding and its constant; |z| 2/sqrt(pi) e^(-z z) <= 0.49
        y = 0.5 * x * (1 + _erf(x / math.sqrt(2)))
        return y, 0.5 * a * (6 + 2 * 0.49 + 2) * U + 2 * U * np.abs(y), 1.13
    y = np.maximum(x, 0)
    if name == "relu":
        return y, 0 * a, 1
    return y * y, U * y * y, math.inf


def gated(name: str, gate: Floats, up: Floats) -> tuple[Floats, Floats]:
    if name != "swiglu_oai":
        y, error, _ = act(name, gate)
        return y * up, np.abs(up) * error * (1 + U) + U * np.abs(y * up) + TINY
    alpha, z = 1.702, np.minimum(gate, 7)   # the argument: one rounding and the constant
    y = z / (1 + np.exp(-alpha * z)) * (np.clip(up, -7, 7) + 1)
    return y, np.abs(y) * (2 * U * np.abs(alpha * z) + 7 * U) + TINY


# ---- matrices ----

def matrix(name: str, n: int, k: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Its bytes, and its values as the format says them in float32: decoding adds no error (docs/numerics.md: products are exact)."""
    raw = formats.random_matrix(name, n, k, rng)
    size = formats.lib.pyllm_type_bytes(formats.TYPES[name])
    return raw, formats.decode(name, raw.reshape(-1, size)).reshape(n, k).astype(np.float64)


def products(name: str, rng: np.random.Generator) -> Iterator[Case]:
    for kernel, rows in (("matvec", 1), ("matvec", 3), ("matmul", 9), ("matmul", 37)):
        for n, k, extras in ((70, 512, (True, None, True)), (5, 256 if "k" in name else 96, (False, "silu", False))):
            k = 83 if name in TYPES[:3] and n == 5 else k
            raw, w = matrix(name, n, k, rng)
            x, bias, add = normal(rng, rows, k), normal(rng, n), normal(rng, rows, n)
            path = 16 * math.ceil(k / 512) + 31 if kernel == "matvec" else 2 * k + 2
            dot = x.astype(np.float64) @ w.T
            error = g(path) * (np.abs(x.astype(np.float64)) @ np.abs(w).T)
            has_bias, act_name, has_add = extras
            if has_bias:
                dot = dot + bias
                error = error * (1 + U) + U * np.abs(dot)
            if act_name:
                dot, own, slope = act(act_name, dot)
                error = slope * error + own
            if has_add:
                dot = dot + add
                error = error * (1 + U) + U * np.abs(dot)
            grid = (-(-n // 16), rows, 1) if kernel == "matvec" else (-(-n // 64), -(-rows // 32), 1)
            args = struct.pack("7i", n, k, rows, raw.nbytes // n, has_bias, has_add, ACTS.index(act_name) if act_name else -1)
            yield Case(f"{kernel}_{name}", args, [raw, x, bias, add, empty(rows, n)], grid, 128, dot, error + TINY)


def embeds(name: str, rng: np.random.Generator) -> Iterator[Case]:
    for k, scale in ((512, 1.0), (83 if name in TYPES[:3] else 256, 0.3)):
        raw, w = matrix(name, 11, k, rng)
        ids = np.array([3, 10, 0], np.int32)
        scale = float(np.float32(scale))
        want = scale * w[ids]
        yield Case(f"embed_{name}", struct.pack("iif", k, raw.nbytes // 11, scale), [raw, ids, empty(3, k)], (-(-k // 512), 3, 1), 32, want,
                   0.0 if scale == 1 else U * np.abs(want) + TINY)


# ---- vectors ----

def norms(rng: np.random.Generator) -> Iterator[Case]:
    eps = float(np.float32(1e-5))
    for n, parts, rows, shared, extra in ((576, 1, 2, 1, 1), (64, 3, 2, 0, 0), (100, 2, 1, 1, 1), (7, 1, 1, 1, 0)):
        x, w, z = normal(rng, rows, parts * n), normal(rng, n if shared else parts * n), normal(rng, rows, parts * n)
        path = math.ceil(n / 128) + 31 + 4
        v, wide = x.astype(np.float64).reshape(rows, parts, n), np.tile(w, parts) if shared else w
        args = struct.pack("5if", n, parts, shared, 0, extra, eps)
        want = (v / np.sqrt((v * v).mean(-1, keepdims=True) + eps)).reshape(rows, -1) * wide
        # The sum, its n-th part and eps, of which the root leaves half; then the root, the quotient and two products.
        error = np.abs(want) * (g(path + 2) / 2 + 4 * U)
        if extra:
            want = want + z
            error = error * (1 + U) + U * np.abs(want)
        yield Case("norm", args, [x, w, z, empty(*x.shape)], (parts, rows, 1), 128, want, error + TINY)

        bias = normal(rng, w.size)
        args = struct.pack("5if", n, parts, shared, extra, 0, eps)
        mean = v.mean(-1, keepdims=True)
        d = v - mean
        var = (d * d).mean(-1, keepdims=True)
        off = g(path) * np.abs(v).mean(-1, keepdims=True) + U * np.abs(mean)    # of the mean; deviations from the true one add up to 0
        rel = 0.5 * (off * off + g(path + 4) * (var + off * off) + U * eps) / (var + eps) + 2 * U
        r = 1 / np.sqrt(var + eps)
        want = d * r
        error = (r * (off + U * np.abs(d)) + np.abs(want) * (rel + 2 * U)).reshape(rows, -1) * np.abs(wide) * (1 + 8 * U)
        want = want.reshape(rows, -1) * wide
        if extra:
            want = want + (np.tile(bias, parts) if shared else bias)
            error = error * (1 + U) + U * np.abs(want)
        yield Case("layernorm", args, [x, w, bias, empty(*x.shape)], (parts, rows, 1), 128, want, error + TINY)


def turns(rng: np.random.Generator) -> Iterator[Case]:
    pos = np.array([0, 1, 17, 4095, 131071, 1 << 20], np.int32)
    freq = (10000.0 ** (-np.arange(0, 80, 2) / 80)).astype(np.float32)
    scale = float(np.float32(1.25))
    a = pos[:, None].astype(np.float64) * freq.astype(np.float64)
    want = scale * np.concatenate([np.cos(a), np.sin(a)], 1)
    # Four roundings of values up to 3.3 (each at most 2u there), the pieces of 2 pi to 2^-70 of 2^18 turns; sin, cos: 4 ulp; the product.
    bound = scale * (4 * 2 * U + 4 * U + U) + 2.0 ** -50
    yield Case("angles", struct.pack("if", 40, scale), [freq, pos, empty(6, 80)], (2, 6, 1), 32, want, bound)

    eps = float(np.float32(1e-6))
    for heads, dim, rot, neox, has_norm in ((3, 64, 64, 0, 0), (2, 96, 64, 1, 1), (1, 256, 256, 1, 1), (2, 20, 10, 0, 1)):
        rows = 2
        x, w, t = normal(rng, rows, heads, dim), normal(rng, dim), rng.uniform(-3, 3, (rows, rot // 2))
        angles = np.concatenate([np.cos(t), np.sin(t)], 1).astype(np.float32)
        v, rel = x.astype(np.float64), 0.0
        if has_norm:
            v = v / np.sqrt((v * v).mean(-1, keepdims=True) + eps) * w
            rel = g(math.ceil(dim / 32) + 31 + 2) / 2 + 4 * U
        c, s = (angles[:, None, i * rot // 2:(i + 1) * rot // 2].astype(np.float64) for i in (0, 1))
        i = np.arange(rot // 2)
        a, b = (i, i + rot // 2) if neox else (2 * i, 2 * i + 1)
        want, error = v.copy(), np.abs(v) * rel
        want[..., a], want[..., b] = v[..., a] * c - v[..., b] * s, v[..., a] * s + v[..., b] * c
        error[..., a] = (np.abs(v[..., a] * c) + np.abs(v[..., b] * s)) * (rel + 2 * U)
        error[..., b] = (np.abs(v[..., a] * s) + np.abs(v[..., b] * c)) * (rel + 2 * U)
        yield Case("rope", struct.pack("5if", heads, dim, rot, neox, has_norm, eps), [x, angles, w, empty(*x.shape)], (heads, rows, 1), 32,
                   want, error)


def maps(rng: np.random.Generator) -> Iterator[Case]:
    n = 300
    x, z = normal(rng, n) * 4, normal(rng, n) * 4
    v, u = x.astype(np.float64), z.astype(np.float64)
    grid, by = (2, 1, 1), float(np.float32(30.3))

    def args(act: int = 0, width: int = n, gate: int = n, by: float = 0) -> bytes:
        return struct.pack("4if", n, act, width, gate, by)

    yield Case("add", args(), [x, z, empty(n)], grid, 256, v + u, U * np.abs(v + u))
    yield Case("scale", args(by=by), [x, empty(n)], grid, 256, v * by, U * np.abs(v * by))
    capped = by * np.tanh(v / by)           # the quotient: u, |t| (1 - tanh^2 t) <= 0.45; tanh: 4 ulp
    yield Case("softcap", args(by=by), [x, empty(n)], grid, 256, capped, 9 * U * np.abs(capped) + U * np.abs(v) + TINY)
    for i, name in enumerate(ACTS[:6]):
        y, error, _ = act(name, v)
        yield Case("act", args(i), [x, empty(n)], grid, 256, y, error + TINY)
    for i, name in enumerate(ACTS):
        y, error = gated(name, v, u)
        yield Case("glu", args(i), [x, z, empty(n)], grid, 256, y, error)
    one = normal(rng, 3)
    y, error = gated("sigmoid", np.repeat(one.astype(np.float64), 100), u)
    yield Case("glu", args(5, 100, 1), [one, z, empty(n)], grid, 256, y, error)
    ids = np.array([4, 0, 4], np.int32)
    source = normal(rng, 5, 100)
    yield Case("rows", args(width=100), [source, ids, empty(n)], grid, 256, source[ids].reshape(-1).astype(np.float64), 0.0)


# ---- attention ----

class Cache:
    """Pages of one layer of a group of two, for sequences whose page tables are shuffled; unwritten memory is NaN."""

    def __init__(self, kind: str, kv_heads: int, dim: int, lengths: list[int], window: int, rng: np.random.Generator) -> None:
        self.kind, self.kv_heads, self.dim, self.window = kind, kv_heads, dim, window
        self.k_bytes = PAGE * dim * {"f32": 4, "f16": 2}.get(kind, 0) or PAGE * (dim + dim // 16)
        self.offset = 64
        self.page_bytes = self.offset + 2 * self.k_bytes * kv_heads
        self.max_pages = max(-(-n // PAGE) for n in lengths) + 1
        self.table = np.full((len(lengths), 2, self.max_pages), -1, np.int32)
        pages = rng.permutation(sum(-(-n // PAGE) for n in lengths) + 2)
        self.pool = np.full((len(pages), self.page_bytes), 0xff, np.uint8)
        for s, n in enumerate(lengths):
            count = -(-n // PAGE)
            self.table[s, 1, :count], pages = pages[:count], pages[count:]
        self.k = [normal(rng, n, kv_heads, dim) for n in lengths]
        self.v = [normal(rng, n, kv_heads, dim) for n in lengths]

    def args(self, heads: int, splits: int = 1, scale: float = 0.0, softcap: float = 0.0) -> bytes:
        return struct.pack("11i2f", heads, self.kv_heads, self.dim, self.page_bytes, self.offset, self.k_bytes, self.max_pages, 2, 1,
                           self.window, splits, scale, softcap)

    def put(self, pool: Floats, s: int, p: int, k: Floats, v: Floats) -> None:
        """Stores one position as csrc/kernels/kernels.h says."""
        page, t, dim = pool[self.table[s, 1, p // PAGE]], p % PAGE, self.dim
        for h in range(self.kv_heads):
            a = self.offset + 2 * h * self.k_bytes
            keys, values = page[a:a + self.k_bytes], page[a + self.k_bytes:a + 2 * self.k_bytes]
            if self.kind != "q8_0":
                kind = "<f4" if self.kind == "f32" else "<f2"
                keys.view(kind).reshape(dim, PAGE)[:, t] = k[h]
                values.view(kind).reshape(PAGE, dim)[t] = v[h]
                continue
            kd, kq = quantized(k[h])
            vd, vq = quantized(v[h])
            blocks = keys.reshape(dim // 32, 34 * PAGE)
            blocks[:, :2 * PAGE].view("<f2")[:, t] = kd
            blocks[:, 2 * PAGE:].reshape(-1, 8, PAGE, 4)[:, :, t] = kq.reshape(-1, 8, 4).view(np.uint8)
            values[:2 * PAGE * (dim // 32)].view("<f2").reshape(PAGE, -1)[t] = vd
            values[2 * PAGE * (dim // 32):].reshape(PAGE, dim)[t] = vq.reshape(-1).view(np.uint8)

    def fill(self) -> None:
        for s, k in enumerate(self.k):
            for p in range(len(k)):
                self.put(self.pool, s, p, k[p], self.v[s][p])
        self.k, self.v = ([self.stored(x) for x in both] for both in (self.k, self.v))

    def stored(self, x: Floats) -> Floats:
        """What comes back out of the cache."""
        if self.kind != "q8_0":
            return x.astype("<f4" if self.kind == "f32" else "<f2").astype(np.float64)
        d, q = zip(*(quantized(row) for row in x.reshape(-1, self.dim)), strict=True)
        return (np.array(d, np.float64)[..., None] * np.array(q, np.float64)).reshape(x.shape)


def quantized(x: Floats) -> tuple[Floats, Floats]:
    """f16 scales [n/32] and codes int8 [n/32, 32] of n floats."""
    blocks = x.reshape(-1, 32)
    amax = np.abs(blocks).max(1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        q = np.where(amax < 1e-30, 0, np.rint(blocks * (np.float32(127) / amax)))
    return (amax / np.float32(127)).astype("<f2")[:, 0], q.astype(np.int8)


def stores(kind: str, rng: np.random.Generator) -> Iterator[Case]:
    cache = Cache(kind, 2, 96, [20, 5], 0, rng)
    seq, pos = np.array([0, 0, 1], np.int32), np.array([15, 16, 3], np.int32)
    k, v = normal(rng, 3, 2, 96), normal(rng, 3, 2, 96)
    k[1, 0, :32] = 0                        # a block without values has scale 0
    want = cache.pool.copy()
    for r in range(3):
        cache.put(want, int(seq[r]), int(pos[r]), k[r], v[r])
    yield Case(f"kv_store_{kind}", cache.args(2), [k, v, pos, seq, cache.table, cache.pool], (2, 3, 1), 32, want.astype(np.float64), 0.0)


def attended(cache: Cache, q: Floats, seq: Floats, pos: Floats, scale: float, softcap: float) -> tuple[Floats, Floats]:
    """Attention of q [rows, heads, dim], and its error bound.

    Score: dim products on one path, two more additions, the scale; the cap: tanh's 4 ulp, quotient and product. Weight e^(s - m): the error
    of s, the difference's rounding of at most the scores' range R, 1 ulp; each of the N pages may rescale all before it: a product, e^x,
    and a difference out of R. Sums over the positions; the last merges and the quotient: 16."""
    heads, group = q.shape[1], q.shape[1] // cache.kv_heads
    want, error = np.zeros(q.shape), np.zeros(q.shape)
    for r in range(len(q)):
        first = max(0, int(pos[r]) - cache.window + 1) if cache.window else 0
        k, v = (x[int(seq[r])][first:int(pos[r]) + 1] for x in (cache.k, cache.v))
        pages = int(pos[r]) // PAGE - first // PAGE + 1
        for h in range(heads):
            query, keys, values = q[r, h].astype(np.float64), k[:, h // group], v[:, h // group]
            s = keys @ query * scale
            e = abs(scale) * g(2 * cache.dim + 4) * (np.abs(keys) @ np.abs(query)) + U * np.abs(s)
            if softcap:
                e = e * (1 + U) + U * np.abs(s) + 9 * U * softcap
                s = softcap * np.tanh(s / softcap)
            p = np.exp(s - s.max())
            spread = s.max() - s.min()
            rel = math.exp(e.max() + 2 * U * spread) * (1 + g(len(s) + 4 * pages + 16)) - 1
            want[r, h] = p @ values / p.sum()
            error[r, h] = rel * (p @ np.abs(values)) / p.sum() + (rel + U) * np.abs(want[r, h])
    return want, error + TINY


def attention(kind: str, head: int, rng: np.random.Generator) -> Iterator[Case]:
    for dim, window, softcap, kv_heads, heads in ((head, 0, 0.0, 1, 3), (head - 32, 21, 30.0, 2, 2)):
        cache = Cache(kind, kv_heads, dim, [70, 9, 40], window, rng)
        cache.fill()
        scale = float(np.float32(dim ** -0.5))
        # decode: the newest position of each sequence
        seq, pos = np.array([0, 1, 2], np.int32), np.array([69, 8, 39], np.int32)
        q = normal(rng, 3, heads, dim)
        want, error = attended(cache, q, seq, pos, scale, softcap)
        yield Case(f"attn_decode_{kind}_{head}", cache.args(heads, 1, scale, softcap),
                   [q, pos, seq, cache.table, cache.pool, empty(*q.shape)], (heads, 3, 1), 128, want, error)
        yield from _split(cache, kind, head, q, seq, pos, scale, softcap, want, error)
        # prefill: 11 rows in two tiles of one sequence, a tile of 3 of another
        pos = np.array([*range(59, 70), 0, 1, 2], np.int32)
        seq, tiles = np.array([0] * 11 + [2] * 3, np.int32), np.array([0, 8, 8, 3, 11, 3], np.int32)
        q = normal(rng, 14, heads, dim)
        want, error = attended(cache, q, seq, pos, scale, softcap)
        yield Case(f"attn_prefill_{kind}_{head}", cache.args(heads, 1, scale, softcap),
                   [q, pos, seq, tiles, cache.table, cache.pool, empty(*q.shape)], (heads, 3, 1), 128, want, error)


def _split(cache: Cache, kind: str, head: int, q: Floats, seq: Floats, pos: Floats, scale: float, softcap: float, want: Floats,
           error: Floats) -> Iterator[Case]:
    """The kernel that merges, over the states of 4 parts; Merged runs the one that makes them before."""
    heads, splits = q.shape[1], 4
    args = cache.args(heads, splits, scale, softcap)
    first = [q, pos, seq, cache.table, cache.pool]
    states = empty(3, heads, splits, cache.dim + 2)
    yield Merged("attn_merge", args, [states, empty(*q.shape)], (heads, 3, 1), 32, want, error, f"attn_decode_{kind}_{head}", first, splits)


@dataclass
class Merged(Case):
    """A case whose first buffer is what another kernel writes."""

    before: str
    first: list[Any]
    splits: int

    def run(self, emulator: Emulator, schedule: int) -> float:
        self.buffers[0] = self.buffers[0].copy()
        emulator.launch(self.before, self.args, [*self.first, self.buffers[0]], (*self.grid[:2], self.splits), 128, schedule)
        return super().run(emulator, schedule)


def cases() -> Iterator[Case]:
    """All, from one seed each so that a part of them is the same as in the whole."""
    for i, name in enumerate(TYPES):
        yield from products(name, np.random.default_rng(i))
        yield from embeds(name, np.random.default_rng(100 + i))
    for make in (norms, turns, maps):
        yield from make(np.random.default_rng(7))
    for i, kind in enumerate(KV):
        yield from stores(kind, np.random.default_rng(200 + i))
        for head in HEADS:
            yield from attention(kind, head, np.random.default_rng(300 + i + head))


def main() -> None:
    """In a child process under a sanitizer: library, schedule, how kernels begin, how many cases of one. Prints what is over its bound."""
    emulator, done = Emulator(sys.argv[1]), Counter[str]()
    for case in cases():
        if case.kernel.startswith(sys.argv[3]) and done[case.kernel] < int(sys.argv[4]):
            done[case.kernel] += 1
            share = case.run(emulator, int(sys.argv[2]))
            if not share <= 1:
                print(f"{case.kernel}: {share:.3g} of its bound")


if __name__ == "__main__":
    main()
