"""What quantization reads: tensors as slabs of float rows, whatever file they lie in."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm import errors, stores
from pyllm.gguf import GGUF, TensorInfo, dequantize

from .fields import KINDS, Field

_PIECE = 1 << 22                # bytes read at a time for a checksum


class TensorSource(Protocol):
    """A tensor seen as rows [n_rows, dims[0]]: rows of all matrices of a stack follow one another.

    name: as in GGUF. dims: ne[0] first, as in GGUF. type_id: the tensor type whose blocks raw() returns; -1: there is no such type, and
    raw() is never called. cost: bytes that reading all of it moves, for progress and estimates.
    """

    @property
    def name(self) -> str: ...
    @property
    def dims(self) -> tuple[int, ...]: ...
    @property
    def type_id(self) -> int: ...
    @property
    def cost(self) -> int: ...

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        """Rows [begin, end) as a new array [end - begin, dims[0]], C order. One thread at a time in a source."""
        ...

    def raw(self, begin: int, end: int) -> NDArray[np.uint8]:
        """The blocks of the same rows as type_id has them, a new array [end - begin, bytes of a row]."""
        ...


class Source(Protocol):
    """A model: metadata in order, and tensors in the order in which they are read and written. name: what a receipt calls it, without
    folders. files: everything that it reads, none of which may be written to."""

    name: str
    files: list[Path]
    metadata: Mapping[str, Field]
    tensors: list[TensorSource]

    def checksum(self) -> str:
        """"sha256:" and hexadecimal digits. Called when all tensors have been read; GGUFSource: SHA-256 of the file."""
        ...

    def close(self) -> None: ...


def n_rows(dims: tuple[int, ...]) -> int:
    return prod(dims[1:])


class GGUFSource:
    """A GGUF file, or all files of a split set when path is its first. Use it as a context manager or call close()."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._gguf = GGUF(path)
        self.files = stores.part_paths(Path(self._gguf.path))
        self.name = self.files[0].name
        self.metadata: Mapping[str, Field] = {key: self._field(key) for key in self._gguf.kv if not key.startswith("split.")}
        self._digests: list[_Digest] = []
        try:
            self._digests += map(_Digest, self.files)
        except BaseException:
            self.close()
            raise
        self.tensors: list[TensorSource] = [GGUFTensor(self._gguf, name, info, self._digests) for name, info in self._gguf.tensors.items()]

    def _field(self, key: str) -> Field:
        kind, is_array = self._gguf.kv.kind(key)
        return Field(KINDS[kind], self._gguf.kv[key], is_array)

    def checksum(self) -> str:
        """SHA-256 of the file, as sha256sum prints it; of a split set, of the digests of its files in order (in hexadecimal)."""
        digests = [d.finish() for d in self._digests]
        return "sha256:" + (digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest())

    def close(self) -> None:
        self._gguf.close()
        for d in self._digests:
            d.close()

    def __enter__(self) -> GGUFSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class GGUFTensor:
    """A tensor of an open file."""

    def __init__(self, gguf: GGUF, name: str, info: TensorInfo, digests: list[_Digest]) -> None:
        if info.type.startswith("type "):
            raise errors.UnsupportedModel(f"{gguf.path}: tensor {name} has {info.type}, which this build does not know\n"
                                          "hint: a newer version may read it")
        self._gguf, self._digests = gguf, digests
        self.name, self.dims, self.cost = name, info.shape, info.n_bytes
        self.type_id, self._file, self._offset = gguf.place(name)
        self._row = info.n_bytes // max(n_rows(info.shape), 1)

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        return dequantize(self.type_id, self.raw(begin, end), (end - begin, self.dims[0]))

    def raw(self, begin: int, end: int) -> NDArray[np.uint8]:
        data = self._gguf.read_bytes(self.name, begin * self._row, (end - begin) * self._row)
        self._digests[self._file].feed(self._offset + begin * self._row, data)
        return data.reshape(end - begin, self._row)


class _Digest:
    """SHA-256 of a file, most of which passes by in order anyway: only what does not is read for it."""

    def __init__(self, path: Path) -> None:
        self._path, self._at, self._hash = path, 0, hashlib.sha256()
        with reading(path):
            self._file = open(path, "rb", buffering=0)      # noqa: SIM115  # closed by close()

    def feed(self, offset: int, data: NDArray[np.uint8]) -> None:
        """Bytes of the file from offset on; a gap before them (header, padding) is read if it is short."""
        if self._at < offset <= self._at + _PIECE * 16:
            self._read(offset)
        if offset == self._at:
            self._hash.update(data.data)
            self._at += data.nbytes

    def finish(self) -> str:
        self._read(None)
        return self._hash.hexdigest()

    def close(self) -> None:
        self._file.close()

    def _read(self, end: int | None) -> None:
        with reading(self._path):
            self._file.seek(self._at)
            while piece := self._file.read(_PIECE if end is None else min(_PIECE, end - self._at)):
                self._hash.update(piece)
                self._at += len(piece)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What the system refuses becomes a FileError that names the file."""
    try:
        yield
    except OSError as e:
        if isinstance(e, errors.Error):
            raise
        raise errors.FileError(f"{path}: {e.strerror or e}\nhint: check the path and its permissions") from e
