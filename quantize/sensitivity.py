"""How much each tensor's quantization costs: the divergence that it causes on a calibration text, by type.

For small changes of the weights the divergence of a model from itself is quadratic in them and nearly additive over tensors. So each
tensor is quantized by itself, once, to a coarse type, and the divergence is measured by running the model. For the other types it is
scaled by the ratio of the quantization errors, which need no run: sums of squares, weighted by the importance of the columns, over a
sample of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyllm import _core, errors
from pyllm.gguf import dequantize
from pyllm.llm import LLM

from .measurements import Measurements
from .source import Source, TensorSource, n_rows
from .types import block, type_id

Floats = NDArray[np.float32]
Importance = Callable[[str], NDArray[np.float32] | None]        # of the columns of a tensor: [matrices, width]
Progress = Callable[[int, int], None]

# What a tensor may become, if its rows are whole blocks: the types with an encoder that are worth their bits.
TYPES = ("q2_k", "q3_k", "iq3_s", "iq4_xs", "iq4_nl", "q4_0", "q4_k", "q4_1", "q5_0", "q5_k", "q5_1", "q6_k", "q8_0", "f16")
_PROBES = ("q3_k", "q4_0")      # what tensors are measured at: the first whose blocks fit
_HEAD = 4096                    # likeliest tokens of a position that the divergence tells apart
_SAMPLE = 1 << 18               # weights that stand for a tensor when types are compared
_SLAB = 1 << 21                 # weights that are encoded at a time


@dataclass(frozen=True)
class Sensitivity:
    """Of one tensor. kld: measured at type `probe`; errors: weighted squared error of each type."""

    probe: str
    kld: float
    errors: Mapping[str, float]

    def cost(self, kind: str) -> float:
        """The divergence that the type is expected to cause, in nats."""
        at = self.errors[self.probe]
        return self.kld * self.errors[kind] / at if at else 0.0


def fitting_types(width: int) -> list[str]:
    return [kind for kind in TYPES if width % block(type_id(kind))[0] == 0]


def probe_type(width: int) -> str:
    return next((kind for kind in _PROBES if width % block(type_id(kind))[0] == 0), "f16")


# ---- errors ----

def type_errors(tensor: TensorSource, importance: NDArray[np.float32] | None, n_threads: int) -> dict[str, float]:
    """Sum of w (x - y)^2 for every type that fits, over sampled rows scaled to the whole tensor."""
    width, rows = tensor.dims[0], n_rows(tensor.dims)
    some = np.unique(np.linspace(0, rows - 1, min(rows, max(_SAMPLE // width, 16))).astype(np.int64))
    x = np.concatenate([tensor.read(int(r), int(r) + 1) for r in some])
    matrix = some // n_rows(tensor.dims[:2])        # that each row is of
    found = dict.fromkeys(fitting_types(width), 0.0)
    for m in np.unique(matrix):
        part, w = x[matrix == m], None if importance is None else importance[m]
        for kind in found:
            difference = (part - quantized(part, kind, w, n_threads)).astype(np.float64) ** 2
            found[kind] += rows / len(some) * float((difference if w is None else difference * w).sum())
    return found


def quantized(x: Floats, kind: str, weights: Floats | None, n_threads: int) -> Floats:
    """The values that a type keeps of rows."""
    return dequantize(type_id(kind), _core.quantize(type_id(kind), x, weights, n_threads), x.shape)


# ---- running the model ----

class Probe:
    """A loaded model, whose matrices can be replaced, and what it says as it is on chunks of a text."""

    def __init__(self, llm: LLM, source: Source, chunks: Sequence[Sequence[int]], importance: Importance) -> None:
        """llm: of the source's file."""
        self._llm, self._importance, self._chunks = llm, importance, chunks
        self._tensors = {t.name: t for t in source.tensors}
        self._reference = [_Head(row) for row in self._logits()]

    def _logits(self) -> Iterator[Floats]:
        """Of every position but the first few, which know nothing of the text yet."""
        for chunk in self._chunks:
            for rows in self._llm.logit_blocks(chunk, start=len(chunk) // 16):
                yield from rows

    def kld(self) -> float:
        """Mean divergence from what the model said when it was loaded: over the likeliest tokens of each position and all others together,
        which is at most the divergence over the vocabulary, and close to it."""
        return float(np.mean([head.divergence(row) for head, row in zip(self._reference, self._logits(), strict=True)]))

    def kld_of(self, types: Mapping[str, str]) -> float:
        """The divergence with all these matrices quantized."""
        for name, kind in types.items():
            self.quantize(name, kind)
        found = self.kld()
        for name in types:
            self.restore(name)
        return found

    def quantize(self, name: str, kind: str) -> None:
        """The matrix becomes, in memory, what the type keeps of it."""
        tensor, importance = self._tensors[name], self._importance(name)
        for matrix, begin, end in _slabs(tensor):
            y = quantized(tensor.read(begin, end), kind, None if importance is None else importance[matrix], self._llm.threads)
            self._write(name, begin, _core.quantize(tensor.type_id, y, None, self._llm.threads))

    def restore(self, name: str) -> None:
        tensor = self._tensors[name]
        for _, begin, end in _slabs(tensor):
            self._write(name, begin, tensor.raw(begin, end))

    def _write(self, name: str, begin: int, rows: NDArray[np.uint8]) -> None:
        self._llm.on_engine(lambda e: e.write(name, begin, rows))


def _slabs(tensor: TensorSource) -> Iterator[tuple[int, int, int]]:
    """(matrix of the stack, first row, last row + 1)."""
    rows, step = n_rows(tensor.dims[:2]), max(_SLAB // tensor.dims[0] // 16 * 16, 16)
    for matrix in range(n_rows(tensor.dims) // rows):
        for at in range(0, rows, step):
            yield matrix, matrix * rows + at, matrix * rows + min(at + step, rows)


class _Head:
    """A distribution as its likeliest tokens and the share of all others."""

    def __init__(self, logits: Floats) -> None:
        k = min(_HEAD, len(logits))
        self.ids = np.sort(np.argpartition(logits, len(logits) - k)[len(logits) - k:])
        self.log_p = logits[self.ids].astype(np.float64) - _log_sum(logits)
        self.p = np.exp(self.log_p)
        self.rest = max(1.0 - float(self.p.sum()), 0.0)

    def divergence(self, logits: Floats) -> float:
        log_q = logits[self.ids].astype(np.float64) - _log_sum(logits)
        found = float(self.p @ (self.log_p - log_q))
        rest = 1.0 - float(np.exp(log_q).sum())
        if self.rest > 1e-6 and rest > 1e-6:        # what is smaller is rounding
            found += self.rest * float(np.log(self.rest / rest))
        return max(found, 0.0)


def _log_sum(logits: Floats) -> float:
    top = logits.max()
    return float(top) + float(np.log(np.exp(logits - top).sum(dtype=np.float64)))


def measure(make_probe: Callable[[], Probe], tensors: Sequence[TensorSource], importance: Importance, known: Measurements, n_threads: int,
            progress: Progress | None = None) -> dict[str, Sensitivity]:
    """Of every tensor; those that are known are not measured again, and if all are, no probe is made. progress(done, all): tensors that
    are measured now."""
    missing = [t for t in tensors if known.get(t.name) is None]
    for i, tensor in enumerate(missing):
        probe = make_probe()
        if progress:
            progress(i, len(missing))
        kind = probe_type(tensor.dims[0])
        errors_by_type = type_errors(tensor, importance(tensor.name), n_threads)
        probe.quantize(tensor.name, kind)
        known.put(tensor.name, {"probe": kind, "kld": probe.kld(), "errors": errors_by_type})
        probe.restore(tensor.name)
    if progress and missing:
        progress(len(missing), len(missing))
    found = {t.name: Sensitivity(**known.get(t.name)) for t in tensors}
    if not any(s.kld for s in found.values()):
        raise errors.ArgumentError("no quantization changes what the model says on the calibration text\nhint: a longer text")
    return found
