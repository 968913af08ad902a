"""How much each tensor's quantization costs: the divergence that it causes on a calibration text, by type.

For small changes of the weights the divergence of a model from itself is quadratic in them and nearly additive over tensors. So each
tensor is quantized by itself, once, to a coarse type, and the divergence is measured by running the model. For the other types it is
scaled by the ratio of the quantization errors, which need no run: sums of squares, weighted by the importance of the columns, over a
sample of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from pyllm import _core, errors
from pyllm.engine import MAX_LOGITS, Engine
from pyllm.gguf import dequantize
from pyllm.llm import LLM

from .imatrix import open_seq, tape_steps
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
    """A loaded model, whose matrices can be replaced, and what it says as it is on chunks of a text.

    A run with some matrices replaced begins at the first step that reads one of them: what is computed before is kept. So matrices are best
    tried in the order of `place`."""

    def __init__(self, llm: LLM, source: Source, chunks: Sequence[Sequence[int]], importance: Importance) -> None:
        """llm: of the source's file."""
        self._llm, self._importance, self._chunks = llm, importance, chunks
        self._tensors = {t.name: t for t in source.tensors}
        self._places = _places(llm.on_engine(lambda e: e.tape))
        self._start, self._saved = 0, self._empty()
        self._reference = [_Head(row) for row in self._logits()]

    def place(self, name: str) -> int:
        """The first step of the tape that reads a tensor."""
        return self._places[name]

    def kld(self, types: Mapping[str, str]) -> float:
        """Mean divergence, with these matrices quantized, from what the model says as it is: over the likeliest tokens of each position and
        all others together, which is at most the divergence over the vocabulary, and close to it."""
        self._skip_to(min(map(self.place, types)))
        for name, kind in types.items():
            self._quantize(name, kind)
        found = [head.divergence(row) for head, row in zip(self._reference, self._logits(), strict=True)]
        for name in types:
            self._restore(name)
        return float(np.mean(found))

    def _quantize(self, name: str, kind: str) -> None:
        tensor, importance = self._tensors[name], self._importance(name)
        for matrix, begin, end in _slabs(tensor):
            y = quantized(tensor.read(begin, end), kind, None if importance is None else importance[matrix], self._llm.threads)
            self._write(name, begin, _core.quantize(tensor.type_id, y, None, self._llm.threads))

    def _restore(self, name: str) -> None:
        tensor = self._tensors[name]
        for _, begin, end in _slabs(tensor):
            self._write(name, begin, tensor.raw(begin, end))

    def _write(self, name: str, begin: int, rows: NDArray[np.uint8]) -> None:
        self._llm.on_engine(lambda e: e.write(name, begin, rows))

    def _empty(self) -> list[list[Floats | None]]:
        """What is kept of a run up to step 0, by chunk and batch: nothing."""
        return [[None for _ in range(0, len(chunk), MAX_LOGITS)] for chunk in self._chunks]

    def _skip_to(self, step: int) -> None:
        """Runs will begin with this step."""
        if step < self._start:
            self._start, self._saved = 0, self._empty()
        if step > self._start:
            width = self._llm.on_engine(lambda e: e.live(step))
            saved: list[list[Floats | None]] = [[np.empty(width * MAX_LOGITS, np.float32) for _ in old] for old in self._saved]
            for _ in self._run(step, saved):
                pass
            self._start, self._saved = step, saved

    def _logits(self) -> Iterator[Floats]:
        """Of every position but the first few of a chunk, which know nothing of the text yet."""
        n = self._llm.on_engine(lambda e: e.n_steps)
        for at, length, rows in self._run(n, self._empty()):
            yield from rows[max(length // 16 - at, 0):]

    def _run(self, end: int, saved: list[list[Floats | None]]) -> Iterator[tuple[int, int, Floats]]:
        """Runs all chunks, in batches, up to step `end`; what is needed later goes to `saved`. Yields (place in the chunk, its length,
        logits, which are there at the end of the tape)."""
        for chunk, before, after in zip(self._chunks, self._saved, saved, strict=True):
            seq = self._llm.on_engine(open_seq)
            try:
                for i, (b, a) in enumerate(zip(before, after, strict=True)):
                    at = i * MAX_LOGITS
                    step = partial(_run_part, seq, chunk[at:at + MAX_LOGITS], self._start, end, b, a)
                    yield at, len(chunk), self._llm.on_engine(step)
            finally:
                self._llm.on_engine(lambda e, seq=seq: e.close_seq(seq))       # type: ignore[misc]


def _run_part(seq: int, tokens: Sequence[int], first: int, last: int, before: Floats | None, after: Floats | None,
              engine: Engine) -> Floats:
    engine.cancel(False)
    with engine.part(first, last, before, after):
        n = engine.step([(seq, tokens, len(tokens))])
    logits: Floats = engine.logits[:n].copy()
    return logits


def _places(tape: str) -> dict[str, int]:
    """The first step that reads each tensor."""
    found: dict[str, int] = {}
    for i, words in enumerate(tape_steps(tape)):
        for value in (word.partition("=")[2] for word in words):
            for name in value.split(","):
                found.setdefault(name.partition("[")[0], i)
    return found


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
    if missing:
        probe = make_probe()
        for i, tensor in enumerate(sorted(missing, key=lambda t: probe.place(t.name))):
            if progress:
                progress(i, len(missing))
            kind = probe_type(tensor.dims[0])
            kld = probe.kld({tensor.name: kind})
            known.put(tensor.name, {"probe": kind, "kld": kld, "errors": type_errors(tensor, importance(tensor.name), n_threads)})
        if progress:
            progress(len(missing), len(missing))
    found = {t.name: Sensitivity(**known.get(t.name)) for t in tensors}
    if not any(s.kld for s in found.values()):
        raise errors.ArgumentError("no quantization changes what the model says on the calibration text\nhint: a longer text")
    return found
