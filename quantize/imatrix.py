"""Importance matrices: how strongly the columns of each matrix are used, as sums of squares of what is multiplied with them.

A quantizer that weights its errors by them spends its codes on the columns that matter. The file is GGUF, laid out as llama.cpp's imatrix
tool writes it (imatrix_file.py has the layout, and reads it).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyllm import errors
from pyllm.engine import MAX_LOGITS, MAX_ROWS, Engine
from pyllm.gguf import GGUF
from pyllm.llm import LLM
from pyllm.perplexity import split

from .fields import Field
from .imatrix_file import COUNTS, SUMS
from .writer import TensorSpec, Writer


@dataclass(frozen=True)
class Imatrix:
    """sums: of squares, by tensor, float32 [matrices, width]; counts: rows that they are sums of, float32 [matrices]. datasets: names of
    the texts, which were cut into chunk_count chunks of chunk_size tokens."""

    sums: Mapping[str, NDArray[np.float32]]
    counts: Mapping[str, NDArray[np.float32]]
    datasets: Sequence[str]
    chunk_count: int
    chunk_size: int

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the GGUF file, replacing one that is there. The same content gives the same bytes."""
        metadata = {"general.type": Field.of("imatrix"), "imatrix.datasets": Field.of(list(self.datasets)),
                    "imatrix.chunk_count": Field.of(self.chunk_count), "imatrix.chunk_size": Field.of(self.chunk_size)}
        specs, data = [], []
        for name in sorted(self.sums):
            for suffix, array in ((SUMS, self.sums[name]), (COUNTS, self.counts[name][:, None])):
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
    for i, (op, _, *words) in enumerate(tape_steps(tape)):
        if op == "rows" and not output:
            break
        if op in ("linear", "gated", "moe_gated", "moe_down", "headwise"):
            names = dict(word.split("=", 1) for word in words)["w"].split(",")
            found[i] = list(dict.fromkeys(name.partition("[")[0] for name in names))     # slices of one tensor see one input
    return found


def tape_steps(tape: str) -> Iterator[list[str]]:
    """The words of every step: its operation, its outputs, its parameters."""
    other = ("#", "pyllm-tape", "hparam", "ignore", "table")
    return (line.split(" ") for line in tape.splitlines() if line and not line.startswith(other))


def compute(llm: LLM, text: str | bytes, dataset: str, ctx: int = 512, chunks: int | None = None, *, output: bool = False) -> Imatrix:
    """Over the whole text, or its first `chunks` chunks of ctx tokens, each of which the model sees alone. dataset: what the file calls the
    text. output: also for the matrix that makes the logits, which costs time. Raises ArgumentError for a text shorter than a chunk."""
    return list(estimates(llm, text, dataset, ctx, chunks, output=output))[-1]


def estimates(llm: LLM, text: str | bytes, dataset: str, ctx: int = 512, chunks: int | None = None, *,
              output: bool = False) -> Iterator[Imatrix]:
    """As compute, the sums so far after every chunk."""
    steps = products(llm.on_engine(lambda e: e.tape), output)
    with GGUF(llm.path) as gguf:
        shapes = {i: gguf.tensors[names[0]].shape for i, names in steps.items()}
    stacks = {i: shape[2] for i, shape in shapes.items() if len(shape) > 2}
    widths = {i: stacks[i] * (shape[0] + 1) if i in stacks else shape[0] for i, shape in shapes.items()}
    total = {i: np.zeros(width) for i, width in widths.items()}
    for n, chunk in enumerate(split(llm, text, ctx)[:chunks], 1):
        for i, sums in llm.on_engine(lambda e, chunk=chunk: _observe(e, chunk, widths, output)).items():     # type: ignore[misc]
            total[i] += sums
        yield _summary(steps, stacks, total, [dataset], n, ctx)


def _observe(engine: Engine, chunk: Sequence[int], widths: Mapping[int, int], output: bool) -> dict[int, NDArray[np.float64]]:
    """The sums of one chunk."""
    size = MAX_LOGITS if output else MAX_ROWS
    engine.cancel(False)
    seq = open_seq(engine)
    try:
        with engine.observe(widths) as sums:
            for at in range(0, len(chunk), size):
                part = chunk[at:at + size]
                engine.step([(seq, part, len(part) if output else 0)])
        return sums
    finally:
        engine.close_seq(seq)


def open_seq(engine: Engine) -> int:
    """A new sequence; CacheFull if there can be none."""
    seq = engine.open_seq()
    if seq is None:
        raise errors.CacheFull("all sequences are in use\nhint: wait for running requests, or close sessions")
    return seq


def _summary(steps: Mapping[int, list[str]], stacks: Mapping[int, int], total: Mapping[int, NDArray[np.float64]], datasets: list[str],
             n: int, ctx: int) -> Imatrix:
    """stacks: matrices of the steps whose rows go to some of them each; their sums [matrices][width + 1] end with the rows' number."""
    sums: dict[str, NDArray[np.float64]] = {}
    counts: dict[str, NDArray[np.float64]] = {}
    for i, names in steps.items():
        table = total[i].reshape(stacks[i], -1) if i in stacks else np.append(total[i], n * ctx)[None]
        for name in names:
            sums[name] = sums[name] + table[:, :-1] if name in sums else table[:, :-1]
            counts[name] = counts[name] + table[:, -1] if name in counts else table[:, -1]
    return Imatrix({name: s.astype(np.float32) for name, s in sums.items()},
                   {name: c.astype(np.float32) for name, c in counts.items()}, datasets, n, ctx)
