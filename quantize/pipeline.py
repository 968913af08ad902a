"""From a source of tensors to a GGUF file, in slabs of rows: while one slab is encoded by all threads, the next ones are read and the last
ones are written. What is in memory at once does not depend on the size of the tensors."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm import _core, errors
from pyllm.gguf import GGUF

from .fields import Field
from .source import Source, TensorSource, n_rows
from .types import type_name
from .worker import Job, Worker
from .writer import TensorSpec, Writer

Progress = Callable[[int, int], None]
Weights = Callable[[str], NDArray[np.float32] | None]
Finish = Callable[[Writer], None]

SLAB = 1 << 21                  # elements of a slab, unless a single row has more
MAX_ROW = 1 << 23               # elements of a row; three of them fit into the memory that is promised
_AHEAD = 2                      # slabs that are read ahead, and that wait to be written


class Slab(NamedTuple):
    """Rows [begin, end) of a tensor, all of one matrix; matrix: its index in the stack."""

    tensor: TensorSource
    spec: TensorSpec
    begin: int
    end: int
    matrix: int

    @property
    def is_copy(self) -> bool:
        return self.spec.type_id == self.tensor.type_id


def write(source: Source, out: str | os.PathLike[str], types: Mapping[str, int], metadata: Mapping[str, Field], *, n_threads: int,
          weights: Weights | None = None, progress: Progress | None = None, verify: bool = False, finish: Finish | None = None) -> Writer:
    """Writes every tensor of the source as types says (by id), and returns the writer, which knows sizes and what it removed.

    A tensor whose type is the source's own is copied. weights(name): importance of the columns [matrices, dims[0]] or None. progress(done,
    all) is called with the sources' cost in bytes, from this thread. finish is called with the writer when all tensors are written: it may
    patch the metadata, and whatever it raises leaves no file. verify: then the file is read back and compared. Only after that it gets its
    name, as Writer says: it is complete under it, or not there.
    """
    specs = [TensorSpec(t.name, t.dims, types[t.name]) for t in source.tensors]
    check(source.tensors, specs)
    with Writer(out, metadata, specs, source.files) as writer:
        digests = _stream(source, specs, writer, weights, n_threads, progress, verify)
        if finish:
            finish(writer)
        if verify:
            writer.sync()
            _verify(writer, metadata, specs, digests)
        writer.commit()
    return writer


def check(tensors: list[TensorSource], specs: list[TensorSpec]) -> None:
    """Refuses at once what would fail on the way: rows that do not fit, types without encoder."""
    for tensor, spec in zip(tensors, specs, strict=True):
        width = spec.dims[0]
        if width > MAX_ROW:
            raise errors.UnsupportedModel(f"tensor {spec.name} has rows of {width} values, more than {MAX_ROW}")
        if spec.type_id != tensor.type_id:
            try:
                _core.quantize(spec.type_id, np.empty((0, width), np.float32))
            except errors.Error as e:
                raise type(e)(f"tensor {spec.name}: {e}") from None


def slabs(tensors: list[TensorSource], specs: list[TensorSpec]) -> Iterator[Slab]:
    for tensor, spec in zip(tensors, specs, strict=True):
        rows, step = n_rows(spec.dims[:2]), max(SLAB // max(spec.dims[0], 1), 1)
        for matrix in range(n_rows(spec.dims) // rows if rows else 0):
            first = matrix * rows
            for begin in range(first, first + rows, step):
                yield Slab(tensor, spec, begin, min(begin + step, first + rows), matrix)


def _stream(source: Source, specs: list[TensorSpec], writer: Writer, weights: Weights | None, n_threads: int, progress: Progress | None,
            verify: bool) -> dict[str, str]:
    """Reads, encodes and writes; returns the digests of what was written by tensor, if verify asks for them."""
    digests = {s.name: hashlib.sha256() for s in specs} if verify else {}
    done, total = 0, sum(t.cost for t in source.tensors)
    importance: tuple[str, NDArray[np.float32] | None] = ("", None)

    def put(slab: Slab, data: NDArray[np.uint8]) -> None:
        if verify:
            digests[slab.spec.name].update(data.data)
        writer.write(data)

    with Worker() as reading, Worker() as writing:
        coming = slabs(source.tensors, specs)
        reads = deque((s, reading.submit(partial(_read, s))) for s in islice(coming, _AHEAD))
        writes: deque[Job[None]] = deque()
        while reads:
            slab, read = reads.popleft()
            data = read.result()
            if (following := next(coming, None)) is not None:
                reads.append((following, reading.submit(partial(_read, following))))
            if slab.tensor.name != importance[0]:
                importance = slab.tensor.name, weights(slab.tensor.name) if weights and not slab.is_copy else None
            writes.append(writing.submit(partial(put, slab, _encode(slab, data, importance[1], n_threads))))
            del data, read          # so that no more is in memory than the queues hold
            if len(writes) > _AHEAD:
                writes.popleft().result()
            if progress:
                rows = n_rows(slab.spec.dims)
                done += slab.tensor.cost * slab.end // rows - slab.tensor.cost * slab.begin // rows
                progress(done, total)
        for write in writes:
            write.result()
    return {name: d.hexdigest() for name, d in digests.items()}


def _read(slab: Slab) -> NDArray[Any]:
    return slab.tensor.raw(slab.begin, slab.end) if slab.is_copy else slab.tensor.read(slab.begin, slab.end)


def _encode(slab: Slab, data: NDArray[Any], weights: NDArray[np.float32] | None, n_threads: int) -> NDArray[np.uint8]:
    if slab.is_copy:
        return data
    try:
        return _core.quantize(slab.spec.type_id, data, None if weights is None else weights[slab.matrix], n_threads)
    except errors.Error as e:
        where = f", rows from {slab.begin} on" if slab.begin else ""
        raise type(e)(f"tensor {slab.spec.name}{where}: {e}") from e


def _verify(writer: Writer, metadata: Mapping[str, Field], specs: list[TensorSpec], digests: Mapping[str, str]) -> None:
    """Reads the temporary file back from the disk, through the reader that runs models."""
    assert writer.temporary is not None
    with GGUF(writer.temporary) as back:
        same = list(back.kv) == list(metadata) and [(n, t.shape, t.type) for n, t in back.tensors.items()] == \
            [(s.name, s.dims, type_name(s.type_id)) for s in specs]
        wrong = None if same else "the header"
        for spec in specs:
            digest, step = hashlib.sha256(), 1 << 22
            for at in range(0, spec.n_bytes, step):
                digest.update(back.read_bytes(spec.name, at, min(step, spec.n_bytes - at)).data)
            if digest.hexdigest() != digests[spec.name]:
                wrong = wrong or f"tensor {spec.name}"
    if wrong:
        raise errors.FileError(f"{writer.path}: {wrong} reads back differently from what was written; the file was removed\n"
                               "hint: the disk or the memory is failing; write to another disk")
