"""What every step of a tape has to do, and how long the machine's limits make it take.

A step cannot be faster than its bytes through the memory or its multiply-adds through the vector units. Bytes are those of the GGUF's
tensors and of the KV cache: activations stay in the caches. A float multiply-add counts as four 8-bit ones: vectors hold a quarter as many.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from .gguf import GGUF

_KV_BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 1.0625, "q4_0": 0.5625}
_FLOATS = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Limits:
    """Bytes a second read from memory, and 8-bit multiply-adds a second."""

    bytes_per_s: float
    macs_per_s: float


@dataclass(frozen=True)
class Cost:
    """Of one step of the tape, `name` its first output: bytes read, multiply-adds (8-bit equivalents)."""

    op: str
    name: str
    bytes: int
    macs: int

    def seconds(self, limits: Limits) -> float:
        """The least time that the limits allow."""
        return max(self.bytes / limits.bytes_per_s, self.macs / limits.macs_per_s)


def costs(gguf: GGUF, tape: str, rows: int = 1, depth: int = 0, kv: str = "f16", logits: int = 1) -> list[Cost]:
    """Of every step, in order: a batch of `rows` tokens of one sequence with `depth` tokens before them, the last `logits` of
    which want logits."""
    return list(_steps(gguf, tape, rows, depth, kv, logits))


def bytes_per_token(gguf: GGUF, tape: str) -> int:
    """Bytes of the GGUF tensors that computing one token reads whole: those of every step but the embedding's look-up."""
    return sum(c.bytes for c in costs(gguf, tape) if c.op not in ("embed", "attn"))


def run_costs(gguf: GGUF, tape: str, n: int, size: int, depth: int, kv: str) -> list[Cost]:
    """Of every step in a whole run: n tokens in batches of up to `size`. With size 1 every token wants logits, else the last one does."""
    runs = [costs(gguf, tape, min(size, n - at), depth + at, kv, int(size == 1 or at + size >= n)) for at in range(0, n, size)]
    return [Cost(same[0].op, same[0].name, sum(c.bytes for c in same), sum(c.macs for c in same)) for same in zip(*runs, strict=True)]


def _steps(gguf: GGUF, tape: str, rows: int, depth: int, kv: str, logits: int) -> Iterator[Cost]:
    n = rows
    chosen = 0                  # experts a row
    for line in tape.splitlines():
        op, name, *words = line.split(" ")
        if op in ("hparam", "ignore", "table", "pyllm-tape") or op.startswith("#"):
            continue
        params = dict(word.split("=", 1) for word in words)
        n = logits if op == "rows" else n
        chosen = int(params["k"]) if op == "route" else chosen
        if op.startswith("moe_"):
            yield Cost(op, name, *_mixture(gguf, params, n, chosen))
        else:
            yield Cost(op, name.split(",")[0], *_work(gguf, op, params, n, depth, kv))


def _mixture(gguf: GGUF, params: dict[str, str], n: int, chosen: int) -> tuple[int, int]:
    """(bytes, multiply-adds) of n rows that choose so many experts each: the matrices of an expert are read if any row chose it. How many
    that are is taken as if choices were even."""
    size = macs = 0.0
    for name in params["w"].split(","):
        tensor = gguf.tensors[name]
        share = chosen / tensor.shape[2]
        size += tensor.n_bytes * (1 - (1 - share) ** n)
        macs += n * prod(tensor.shape) * share * (4 if tensor.type in _FLOATS else 1)
    return round(size), round(macs)


def _rows(shape: tuple[int, ...]) -> int:
    """Of a matrix or a stack; of a vector, its elements."""
    return prod(shape[1:]) if len(shape) > 1 else shape[0]


def _work(gguf: GGUF, op: str, params: dict[str, str], n: int, depth: int, kv: str) -> tuple[int, int]:
    """(bytes, multiply-adds) of n rows."""
    if not n:
        return 0, 0
    if op == "embed":
        tensor = gguf.tensors[params["w"]]
        return n * tensor.n_bytes // _rows(tensor.shape), 0
    if op == "attn":
        heads, kv_heads, dim, window = (int(params[key]) for key in ("heads", "kv_heads", "dim", "window"))
        values = int(params.get("values", dim))
        _, k, v = params["in"].split(",")
        first, last = depth + 1, depth + n          # positions that the first and the last row see
        if window:
            first, last = min(first, window), min(last, window)
        products = n * (first + last) // 2 * heads * (dim + values)
        return round(last * kv_heads * (dim + (values if v != k else 0)) * _KV_BYTES[kv]), products * (1 if kv in ("q8_0", "q4_0") else 4)
    size = macs = 0
    for key in ("w", "bias", "norm"):
        for word in params.get(key, "-").split(","):
            if word == "-":
                continue
            stem, _, span = word.partition("[")
            tensor = gguf.tensors[stem]
            begin, _, end = span.rstrip("]").partition(":")
            share = (int(end) - int(begin)) / _rows(tensor.shape) if span else 1.0
            size += round(tensor.n_bytes * share)
            if len(tensor.shape) > 1 and op in ("linear", "gated", "headwise"):
                macs += round(n * prod(tensor.shape) * share) * (4 if tensor.type in _FLOATS else 1)
    return size, macs
