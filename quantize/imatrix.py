"""Importance matrices: how strongly the columns of each matrix are used, as sums of squares of what is multiplied with them.

A quantizer that weights its errors by them spends its codes on the columns that matter. The file is GGUF, laid out as llama.cpp's imatrix
tool
writes it: for each matrix NAME a tensor NAME.in_sum2, f32 [width] (stacks of matrices: [width, matrices]), and NAME.counts, f32 [1] ([1,
matrices]): rows that went in. Its older format, recognised by the missing magic number, can be read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyllm import errors
from pyllm.engine import MAX_LOGITS, MAX_ROWS, Engine
from pyllm.gguf import GGUF, file_path
from pyllm.llm import LLM
from pyllm.perplexity import split

from .fields import Field
from .source import reading
from .writer import TensorSpec, Writer

_SUMS, _COUNTS = ".in_sum2", ".counts"
_MAX_NAME = 1 << 16             # bytes of a name in the older format: more means that it is something else


@dataclass(frozen=True)
class Imatrix:
    """sums: of squares, by tensor, float32 [matrices, width]; counts: rows that they are sums of, float32 [matrices]. datasets: names of
    the texts, which were cut into chunk_count chunks of chunk_size tokens."""

    sums: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, NDArray[np.float32]]
    datasets: Sequence[str]
    chunk_count: int
    chunk_size: int

    def weights(self, name: str, width: int) -> NDArray[np.float32] | None:
        """Importance of the columns of a tensor: mean squares, float32 [matrices, width]; a matrix that was never used has ones. None: the
        tensor is not in here. Raises ArgumentError where the widths differ: the file belongs to another model."""
        if name not in self.sums:
            return None
        sums, counts = self.sums[name], self.counts[name]
        if sums.shape[1] != width:
            raise errors.ArgumentError(f"the importance matrix has {sums.shape[1]} columns for tensor {name}, which has {width}\n"
                                       "hint: it was made with another model")
        means = np.ones_like(sums)
        used = counts > 0
        means[used] = sums[used] / counts[used, None]
        return means

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the GGUF file, replacing one that is there. The same content gives the same bytes."""
        metadata = {"general.type": Field.of("imatrix"), "imatrix.datasets": Field.of(list(self.datasets)),
                    "imatrix.chunk_count": Field.of(self.chunk_count), "imatrix.chunk_size": Field.of(self.chunk_size)}
        specs, data = [], []
        for name in sorted(self.sums):
            for suffix, array in ((_SUMS, self.sums[name]), (_COUNTS, self.counts[name][:, None])):
                matrices, width = array.shape
                specs.append(TensorSpec(name + suffix, (width,) if matrices == 1 else (width, matrices), 0))
                data.append(np.ascontiguousarray(array, "<f4"))
        with Writer(path, metadata, specs) as out:
            for array in data:
                out.write(array)
            out.commit()


# ---- measuring ----

def products(tape: str, output: bool = False) -> dict[int, list[str]]:
    """The matrices that each step of a tape multiplies its input with: index of the step -> names of tensors. Without output those behind
    `rows` are left out: the matrix that makes the logits."""
    found: dict[int, list[str]] = {}
    other = ("#", "pyllm-tape", "hparam", "ignore", "table")
    steps = (line.split(" ") for line in tape.splitlines() if line and not line.startswith(other))
    for i, (op, _, *words) in enumerate(steps):
        if op == "rows" and not output:
            break
        if op in ("linear", "gated"):
            names = dict(word.split("=", 1) for word in words)["w"].split(",")
            found[i] = list(dict.fromkeys(name.partition("[")[0] for name in names))     # slices of one tensor see one input
    return found


def compute(llm: LLM, text: str | bytes, dataset: str, ctx: int = 512, chunks: int | None = None, *, output: bool = False) -> Imatrix:
    """Over the whole text, or its first `chunks` chunks of ctx tokens, each of which the model sees alone. dataset: what the file calls the
    text. output: also for the matrix that makes the logits, which costs time. Raises ArgumentError for a text shorter than a chunk."""
    return list(estimates(llm, text, dataset, ctx, chunks, output=output))[-1]


def estimates(llm: LLM, text: str | bytes, dataset: str, ctx: int = 512, chunks: int | None = None, *,
              output: bool = False) -> Iterator[Imatrix]:
    """As compute, the sums so far after every chunk."""
    steps = products(llm.on_engine(lambda e: e.tape), output)
    with GGUF(llm.path) as gguf:
        widths = {i: gguf.tensors[names[0]].shape[0] for i, names in steps.items()}
    total = {i: np.zeros(width) for i, width in widths.items()}
    for n, chunk in enumerate(split(llm, text, ctx)[:chunks], 1):
        for i, sums in llm.on_engine(lambda e, chunk=chunk: _observe(e, chunk, widths, output)).items():     # type: ignore[misc]
            total[i] += sums
        yield _summary(steps, total, [dataset], n, ctx)


def _observe(engine: Engine, chunk: Sequence[int], widths: Mapping[int, int], output: bool) -> dict[int, NDArray[np.float64]]:
    """The sums of one chunk."""
    size = MAX_LOGITS if output else MAX_ROWS
    engine.cancel(False)
    seq = engine.open_seq()
    if seq is None:
        raise errors.CacheFull("all sequences are in use\nhint: wait for running requests, or close sessions")
    try:
        with engine.observe(widths) as sums:
            for at in range(0, len(chunk), size):
                part = chunk[at:at + size]
                engine.step([(seq, part, len(part) if output else 0)])
        return sums
    finally:
        engine.close_seq(seq)


def _summary(steps: Mapping[int, list[str]], total: Mapping[int, NDArray[np.float64]], datasets: list[str], n: int, ctx: int) -> Imatrix:
    sums: dict[str, NDArray[np.float64]] = {}
    uses: dict[str, int] = {}
    for i, names in steps.items():
        for name in names:
            sums[name] = sums[name] + total[i] if name in sums else total[i]
            uses[name] = uses.get(name, 0) + 1
    return Imatrix({name: s.astype(np.float32)[None] for name, s in sums.items()},
                   {name: np.array([n * ctx * uses[name]], np.float32) for name in sums}, datasets, n, ctx)


# ---- reading ----

def load(path: str | os.PathLike[str]) -> Imatrix:
    """Reads a GGUF importance matrix, or one of the older format. Raises FileError, FormatError."""
    name = file_path(path)
    with reading(Path(name)), open(name, "rb") as f:
        is_gguf = f.read(4) == b"GGUF"
    return _load_gguf(name) if is_gguf else _load_old(name)


def _load_gguf(path: str) -> Imatrix:
    with GGUF(path) as gguf:
        if gguf.kv.get("general.type") != "imatrix":
            raise errors.FormatError(f"{path} is not an importance matrix\nhint: make one with `pyllm imatrix`")
        sums, counts = {}, {}
        for key in gguf.tensors:
            if not key.endswith(_SUMS):
                continue
            name = key.removesuffix(_SUMS)
            if name + _COUNTS not in gguf.tensors:
                raise errors.FormatError(f"{path}: {key} has no {name + _COUNTS}\nhint: make it again with `pyllm imatrix`")
            sums[name] = _matrix(gguf.read(key))
            counts[name] = gguf.read(name + _COUNTS).reshape(-1)
            if len(counts[name]) != len(sums[name]):
                raise errors.FormatError(f"{path}: {key} and its counts do not fit together\nhint: make it again with `pyllm imatrix`")
        _check_values(path, sums, counts)
        kv = gguf.kv
        datasets = kv.get("imatrix.datasets", [])
        return Imatrix(sums, counts, datasets if isinstance(datasets, list) else [str(datasets)], _count(kv.get("imatrix.chunk_count")),
                       _count(kv.get("imatrix.chunk_size")))



def _load_old(path: str) -> Imatrix:
    """i32 entries; each: i32 length, name, i32 calls, i32 values, f32 values (means times calls). Then, if at all, i32 chunks and the
    text's name."""
    with reading(Path(path)):
        data = Path(path).read_bytes()
    at = 0

    def take(n: int) -> bytes:
        nonlocal at
        if n < 0 or n > len(data) - at:
            raise errors.FormatError(f"{path} is not an importance matrix, or it is cut off\nhint: make one with `pyllm imatrix`")
        at += n
        return data[at - n:at]

    def number() -> int:
        return int(struct.unpack("<i", take(4))[0])

    sums, counts = {}, {}
    for _ in range(number()):
        length = number()
        name = take(length if length <= _MAX_NAME else -1).decode("utf-8", "surrogateescape")
        calls, n = number(), number()
        sums[name] = np.frombuffer(take(4 * n), "<f4")[None].astype(np.float32)
        counts[name] = np.array([max(calls, 1)], np.float32)
    _check_values(path, sums, counts)
    chunks = number() if at < len(data) else 0
    datasets = [take(number()).decode("utf-8", "surrogateescape")] if at < len(data) else []
    return Imatrix(sums, counts, datasets, chunks, 0)


def _matrix(values: NDArray[np.float32]) -> NDArray[np.float32]:
    return values.reshape(-1, values.shape[-1])


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _check_values(path: str, *groups: Mapping[str, NDArray[np.float32]]) -> None:
    for name, values in ((name, values) for group in groups for name, values in group.items()):
        if not values.size or not np.isfinite(values).all() or (values < 0).any():
            raise errors.FormatError(f"{path}: the sums or counts of tensor {name} are not finite numbers from 0 on\n"
                                     "hint: make it again with `pyllm imatrix`")
    if not groups[0]:
        raise errors.FormatError(f"{path} holds no sums\nhint: make one with `pyllm imatrix`")
