"""Reads importance matrices: for every weight matrix the mean of the squares of each of its inputs, collected over a calibration text.

Two formats of llama.cpp's tool:
GGUF: general.type "imatrix"; imatrix.datasets [string], imatrix.chunk_count, imatrix.chunk_size; for every weight NAME the tensors
NAME.in_sum2 f32 [width, matrices], the sums of squares, and NAME.counts f32 [1, matrices], how many inputs were summed.
dat: i32 number of entries; each i32 length, name, i32 calls, i32 number of values, f32 values (sums that are divided by calls); then, in
newer files, i32 chunks, i32 length, name of the text.
"""

from __future__ import annotations

import hashlib
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm import errors
from pyllm.gguf import GGUF, file_path

from .source import TensorSource, n_rows, reading

SUMS, COUNTS = ".in_sum2", ".counts"
_MAX_ENTRIES, _MAX_NAME = 1 << 17, 1 << 12


class _Entries(Protocol):
    """name -> number of values; values() reads them: sums [matrices, width] and counts [matrices]."""

    sizes: dict[str, int]

    def values(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Imatrix:
    """An open file; values are read when they are asked for. datasets: names of the texts; chunks: pieces of text that were summed, 0: not
    told; checksum: "sha256:" and digits, of the file. Use it as a context manager or call close()."""

    path: Path
    datasets: list[str]
    chunks: int
    checksum: str
    entries: _Entries

    @property
    def name(self) -> str:
        return self.path.name

    def __contains__(self, tensor: str) -> bool:
        return tensor in self.entries.sizes

    def __len__(self) -> int:
        return len(self.entries.sizes)

    def weights(self, tensor: str, dims: tuple[int, ...]) -> NDArray[np.float32] | None:
        """Mean squares of the inputs, f32 [matrices, dims[0]]; 1 where a matrix saw no input; None for a tensor without entry."""
        if tensor not in self:
            return None
        self._check(tensor, dims)
        sums, counts = self.entries.values(tensor)
        sums = sums.reshape(-1, dims[0])
        counts = np.broadcast_to(counts, len(sums))
        if not (np.isfinite(sums).all() and np.isfinite(counts).all() and (sums >= 0).all() and (counts >= 0).all()):
            raise errors.FormatError(f"{self.path}: the values of {tensor} are not all finite and positive\nhint: collect the matrix again")
        seen = counts > 0
        means = np.ones((len(counts), dims[0]), np.float32)
        means[seen] = sums[seen] / counts[seen, None]
        return means

    def check(self, tensors: list[TensorSource]) -> None:
        """Raises FormatError if an entry does not fit the tensor of its name, ArgumentError if no entry belongs to a tensor."""
        for tensor in tensors:
            if tensor.name in self:
                self._check(tensor.name, tensor.dims)
        if not any(t.name in self for t in tensors):
            raise errors.ArgumentError(f"{self.path} has no entry for any tensor of the model\nhint: it was collected on another model")

    def _check(self, tensor: str, dims: tuple[int, ...]) -> None:
        wanted = dims[0] * prod(dims[2:])
        if self.entries.sizes[tensor] != wanted:
            raise errors.FormatError(f"{self.path}: {tensor} has {self.entries.sizes[tensor]} values, the model's needs {wanted}\n"
                                     "hint: it was collected on another model")

    def close(self) -> None:
        self.entries.close()

    def __enter__(self) -> Imatrix:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read(path: str | os.PathLike[str]) -> Imatrix:
    """Opens a file of either format. Raises FileError or FormatError."""
    file = Path(file_path(path))
    digest = hashlib.sha256()
    with reading(file), open(file, "rb") as f:
        magic = f.read(4)
        f.seek(0)
        while piece := f.read(1 << 20):
            digest.update(piece)
    opened = _open_gguf(file) if magic == b"GGUF" else _open_dat(file)
    entries, datasets, chunks = opened
    return Imatrix(file, datasets, chunks, f"sha256:{digest.hexdigest()}", entries)


class _GGUFEntries:
    def __init__(self, gguf: GGUF) -> None:
        self._gguf, self.sizes = gguf, dict[str, int]()
        for sums in (n for n in gguf.tensors if n.endswith(SUMS)):
            name = sums.removesuffix(SUMS)
            info, counts = gguf.tensors[sums], gguf.tensors.get(name + COUNTS)
            if counts is None or info.type != "f32" or counts.type != "f32" or n_rows(info.shape) != prod(counts.shape):
                raise errors.FormatError(f"{gguf.path}: {sums} has no counts that fit it\nhint: collect the matrix again")
            self.sizes[name] = prod(info.shape)

    def values(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self._gguf.read(name + SUMS), self._gguf.read(name + COUNTS).ravel()

    def close(self) -> None:
        self._gguf.close()


def _open_gguf(path: Path) -> tuple[_Entries, list[str], int]:
    gguf = GGUF(path)
    try:
        kind, datasets, chunks = (gguf.kv.get(k) for k in ("general.type", "imatrix.datasets", "imatrix.chunk_count"))
        if kind != "imatrix":
            raise errors.FormatError(f"{path} is a GGUF file, but not an importance matrix (general.type is {kind!r})\n"
                                     "hint: `pyllm imatrix` makes one")
        entries = _GGUFEntries(gguf)
    except BaseException:
        gguf.close()
        raise
    return entries, list(datasets) if isinstance(datasets, list) else [], chunks if isinstance(chunks, int) else 0


class _DatEntries:
    def __init__(self, path: Path) -> None:
        self._path, self.sizes, self._places = path, dict[str, int](), dict[str, tuple[int, int]]()
        self._file = open(path, "rb")       # noqa: SIM115  # closed by close()
        self._size = os.fstat(self._file.fileno()).st_size

    def scan(self) -> tuple[list[str], int]:
        """Finds the entries; returns datasets and chunks."""
        (n,) = self._ints(1)
        if not 1 <= n <= _MAX_ENTRIES:
            raise self._bad()
        for _ in range(n):
            name = self._text()
            calls, count = self._ints(2)
            at = self._file.tell()
            if count < 1 or calls < 0 or count > (self._size - at) // 4 or name in self.sizes:
                raise self._bad()
            self.sizes[name], self._places[name] = count, (at, calls)
            self._file.seek(at + 4 * count)
        if self._file.tell() == self._size:
            return [], 0                    # an older file ends here
        (chunks,) = self._ints(1)
        return [self._text()], max(chunks, 0)

    def values(self, name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        at, calls = self._places[name]
        with reading(self._path):
            self._file.seek(at)
            data = self._file.read(4 * self.sizes[name])
        if len(data) != 4 * self.sizes[name]:
            raise self._bad()
        return np.frombuffer(data, "<f4"), np.full(1, calls, np.float32)

    def close(self) -> None:
        self._file.close()

    def _ints(self, n: int) -> Any:
        data = self._file.read(4 * n)
        if len(data) != 4 * n:
            raise self._bad()
        return struct.unpack(f"<{n}i", data)

    def _text(self) -> str:
        (length,) = self._ints(1)
        data = self._file.read(length) if 0 < length <= _MAX_NAME else b""
        if len(data) != length:
            raise self._bad()
        return data.decode("utf-8", "surrogateescape")

    def _bad(self) -> errors.FormatError:
        return errors.FormatError(f"{self._path} is not an importance matrix, or a damaged one\nhint: `pyllm imatrix` makes one")


def _open_dat(path: Path) -> tuple[_Entries, list[str], int]:
    entries = _DatEntries(path)
    try:
        with reading(path):
            return entries, *entries.scan()
    except BaseException:
        entries.close()
        raise
