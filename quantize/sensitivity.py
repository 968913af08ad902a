"""How much each tensor's quantization costs: the divergence that it causes on a calibration text, by type.

For small changes of the weights the divergence of a model from itself is quadratic in them and nearly additive over tensors. So each
tensor is
quantized by itself, once, to a coarse type, and the divergence is measured by running the model. For the other types it is scaled by the
ratio of the quantization errors, which need no run: sums of squares, weighted by the importance of the columns, over a sample of rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm import _core, errors
from pyllm.gguf import dequantize
from pyllm.llm import LLM
from pyllm.perplexity import split

from .source import Source, TensorSource, n_rows
from .types import block, type_id
from .writer import writing

Floats = NDArray[np.float32]
Importance = Callable[[str], NDArray[np.float32] | None]        # of the columns of a tensor: [matrices, width]
Progress = Callable[[int, int], None]

# What a tensor may become, if its rows are whole blocks: every type with an encoder and a fast matrix product.
TYPES = ("q2_k", "q3_k", "iq4_xs", "iq4_nl", "q4_0", "q4_k", "q4_1", "q5_0", "q5_k", "q5_1", "q6_k", "q8_0", "f16")
_PROBES = ("q3_k", "q4_0")      # what tensors are measured at: the first whose blocks fit
_HEAD = 4096                    # likeliest tokens of a position that the divergence tells apart
_SAMPLE = 1 << 18               # weights that stand for a tensor when types are compared
_SLAB = 1 << 21                 # weights that are encoded at a time
_VERSION = 1                    # of the measurement: what an older one left is not used


@dataclass(frozen=True)
class Calibration:
    """text: cut into chunks of ctx tokens, `chunks` at most, the second half of which is scored."""

    text: bytes
    ctx: int = 256
    chunks: int = 4


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
    w = None if importance is None else importance[0]
    scale = rows / len(some)
    found = {}
    for kind in fitting_types(width):
        difference = (x - quantized(x, kind, w, n_threads)).astype(np.float64) ** 2
        found[kind] = scale * float((difference if w is None else difference * w).sum())
    return found


def quantized(x: Floats, kind: str, weights: Floats | None, n_threads: int) -> Floats:
    """The values that a type keeps of rows."""
    return dequantize(type_id(kind), _core.quantize(type_id(kind), x, weights, n_threads), x.shape)


# ---- running the model ----

class Probe:
    """A loaded model, whose matrices can be replaced, and what it said before on a calibration text."""

    def __init__(self, llm: LLM, source: Source, calibration: Calibration, importance: Importance | None) -> None:
        """llm: of the source's file."""
        self._llm, self._importance = llm, importance
        self._tensors = {t.name: t for t in source.tensors}
        self._chunks = split(llm, calibration.text, calibration.ctx)[:calibration.chunks]
        self._reference = [_Head(row) for block in self._logits() for row in block]

    def _logits(self) -> Any:
        for chunk in self._chunks:
            yield from self._llm.logit_blocks(chunk[:-1], start=len(chunk) // 2)

    def kld(self) -> float:
        """Mean divergence from what the model said when it was loaded: over the likeliest tokens of each position and all others together,
        which is at most the divergence over the vocabulary, and close to it."""
        rows = (row for block in self._logits() for row in block)
        return float(np.mean([head.divergence(row) for head, row in zip(self._reference, rows, strict=True)]))

    def quantize(self, name: str, kind: str) -> None:
        """The matrix becomes, in memory, what the type keeps of it."""
        tensor, importance = self._tensors[name], self._importance(name) if self._importance else None
        for begin, end in self._slabs(tensor):
            y = quantized(tensor.read(begin, end), kind, None if importance is None else importance[0], self._llm.threads)
            self._write(name, begin, _core.quantize(tensor.type_id, y, None, self._llm.threads))

    def restore(self, name: str) -> None:
        tensor = self._tensors[name]
        for begin, end in self._slabs(tensor):
            self._write(name, begin, tensor.raw(begin, end))

    def _write(self, name: str, begin: int, rows: NDArray[np.uint8]) -> None:
        self._llm.on_engine(lambda e: e.write(name, begin, rows))

    @staticmethod
    def _slabs(tensor: TensorSource) -> list[tuple[int, int]]:
        rows, step = n_rows(tensor.dims), max(_SLAB // tensor.dims[0] // 16 * 16, 16)
        return [(at, min(at + step, rows)) for at in range(0, rows, step)]


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


# ---- what was measured before ----

class State:
    """Measurements as lines of JSON in a file, so that a killed run goes on where it was. key: what they depend on; a file of another key
    is begun anew. A line that was cut off is dropped."""

    def __init__(self, path: str | os.PathLike[str], key: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._found: dict[str, Any] = {}
        key = {"version": _VERSION, **key}
        lines = self._lines()
        if lines and lines[0] == {"key": key}:
            self._found = {k: v for line in lines[1:] for k, v in line.items()}
        with writing(self.path, 0):
            temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
            temporary.write_text("".join(json.dumps(line) + "\n" for line in ({"key": key}, *({k: v} for k, v in self._found.items()))))
            os.replace(temporary, self.path)
            self._file = open(self.path, "a")       # noqa: SIM115  # closed by close()

    def _lines(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        try:
            for line in self.path.read_text().splitlines():
                value = json.loads(line)
                if not isinstance(value, dict):
                    break
                found.append(value)
        except (OSError, ValueError):
            pass
        return found

    def get(self, name: str) -> Any:
        return self._found.get(name)

    def put(self, name: str, value: Any) -> None:
        self._found[name] = value
        with writing(self.path, 0):
            self._file.write(json.dumps({name: value}) + "\n")
            self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> State:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def state_key(source: Source, calibration: Calibration, importance: str | None) -> dict[str, Any]:
    """What measurements depend on. importance: checksum of the importance matrix."""
    return {"source": source.checksum(), "text": hashlib.sha256(calibration.text).hexdigest(), "ctx": calibration.ctx,
            "chunks": calibration.chunks, "imatrix": importance}


def measure(probe: Probe, tensors: Sequence[TensorSource], importance: Importance | None, state: State, n_threads: int,
            progress: Progress | None = None) -> dict[str, Sensitivity]:
    """Of every tensor, those in the state as they are there. progress(done, all): tensors."""
    found = {}
    for i, tensor in enumerate(tensors):
        if progress:
            progress(i, len(tensors))
        kept = state.get(tensor.name)
        if kept is None:
            kind = probe_type(tensor.dims[0])
            errors_by_type = type_errors(tensor, importance(tensor.name) if importance else None, n_threads)
            probe.quantize(tensor.name, kind)
            kept = {"probe": kind, "kld": probe.kld(), "errors": errors_by_type}
            probe.restore(tensor.name)
            state.put(tensor.name, kept)
        found[tensor.name] = Sensitivity(kept["probe"], kept["kld"], kept["errors"])
    if progress:
        progress(len(tensors), len(tensors))
    if not any(s.kld for s in found.values()):
        raise errors.ArgumentError("no quantization changes what the model says on the calibration text\nhint: a longer text")
    return found
