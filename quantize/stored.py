"""A tensor where it lies in a checkpoint's file: rows or columns are read with pread when they are wanted, never the whole."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm import errors

# Element types by their names in safetensors files: what numpy calls the stored bits, and the GGUF type that has the same (-1: none).
DTYPES: dict[str, tuple[str, int]] = {
    "F64": ("<f8", 28), "F32": ("<f4", 0), "F16": ("<f2", 1), "BF16": ("<u2", 30), "F8_E4M3": ("u1", -1), "F8_E5M2": ("u1", -1),
    "I64": ("<i8", -1), "I32": ("<i4", -1), "I16": ("<i2", -1), "I8": ("i1", -1), "U8": ("u1", -1), "BOOL": ("u1", -1),
    "U16": ("<u2", -1), "U32": ("<u4", -1), "U64": ("<u8", -1),
}
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
PAGE = 1 << 24      # bytes that columns are read from at a time


class WeightFile:
    """A file of tensors, open for reading. Raises FileError.

    Most of it passes by in order when a checkpoint is converted, so its SHA-256 is computed on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hash, self._hashed = hashlib.sha256(), 0      # of the bytes [0, _hashed)
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._fd).st_size
        except OSError as e:
            raise errors.FileError(f"{path}: {e.strerror}\nhint: check the path and its permissions") from e

    def read(self, offset: int, size: int) -> bytearray:
        """Bytes [offset, offset + size). FileError if the file has become shorter."""
        data = bytearray(size)
        view, done = memoryview(data), 0
        try:
            while done < size:
                n = os.preadv(self._fd, [view[done:]], offset + done)
                if not n:
                    raise errors.FileError(f"{self.path} ends at byte {offset + done}; it was longer before\n"
                                           "hint: something is writing to it; try again when that is done")
                done += n
        except OSError as e:
            if isinstance(e, errors.Error):
                raise
            raise errors.FileError(f"{self.path}: {e.strerror}") from e
        if offset == self._hashed:
            self._hash.update(data)
            self._hashed += size
        return data

    def checksum(self) -> str:
        """SHA-256 of the file in hexadecimal, as sha256sum prints it."""
        while self._hashed < self.size:
            self.read(self._hashed, min(PAGE, self.size - self._hashed))
        return self._hash.hexdigest()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@dataclass(frozen=True)
class Stored:
    """A row-major tensor in a file. shape: numpy's order, the contiguous dimension last; offset: of its first byte in the file."""

    file: WeightFile
    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def width(self) -> int:
        """Elements of a row; a tensor of no dimensions is one row of one."""
        return self.shape[-1] if self.shape else 1

    @property
    def n_rows(self) -> int:
        return prod(self.shape[:-1])

    @property
    def item_size(self) -> int:
        return np.dtype(DTYPES[self.dtype][0]).itemsize

    @property
    def n_bytes(self) -> int:
        return prod(self.shape) * self.item_size

    def rows(self, begin: int, end: int) -> NDArray[Any]:
        """Bits [end - begin, width] of rows [begin, end), in the numpy type of DTYPES."""
        row = self.width * self.item_size
        data = self.file.read(self.offset + begin * row, (end - begin) * row)
        return np.frombuffer(data, DTYPES[self.dtype][0]).reshape(end - begin, self.width)

    def columns(self, begin: int, end: int) -> NDArray[Any]:
        """Bits [n_rows, end - begin] of columns [begin, end)."""
        out = np.empty((self.n_rows, end - begin), DTYPES[self.dtype][0])
        if 4 * (end - begin) > self.width:      # most of every row: whole rows are read faster
            step = max(1, PAGE // max(self.width * self.item_size, 1))
            for i in range(0, self.n_rows, step):
                out[i:i + step] = self.rows(i, min(i + step, self.n_rows))[:, begin:end]
            return out
        for i in range(self.n_rows):
            at = self.offset + (i * self.width + begin) * self.item_size
            out[i] = np.frombuffer(self.file.read(at, (end - begin) * self.item_size), out.dtype)
        return out

    def whole(self) -> NDArray[Any]:
        return self.rows(0, self.n_rows).reshape(self.shape)


def _float8(mantissa_bits: int) -> NDArray[np.float32]:
    """Values of all 256 codes of e4m3 (3 mantissa bits, no infinities) or e5m2 (2). Source: Micikevicius et al., arXiv:2209.05433."""
    codes = np.arange(256)
    exponent, fraction = codes >> mantissa_bits & (0x7f >> mantissa_bits), codes & (1 << mantissa_bits) - 1
    bias = (1 << 6 - mantissa_bits) - 1
    size = np.where(exponent == 0, np.ldexp(fraction, 1 - bias - mantissa_bits),
                    np.ldexp(fraction + (1 << mantissa_bits), exponent - bias - mantissa_bits))
    if mantissa_bits == 3:
        size[codes & 0x7f == 0x7f] = np.nan
    else:
        size[exponent == 31] = np.where(fraction[exponent == 31] == 0, np.inf, np.nan)
    return np.array(np.where(codes & 128, -size, size), np.float32)


_FLOAT8 = {"F8_E4M3": _float8(3), "F8_E5M2": _float8(2)}


def widen(bits: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Values as float32: exact, but for F64, which is rounded."""
    if dtype == "BF16":
        wide = np.zeros(bits.shape, "<u4")
        wide.view("<u2")[..., 1::2] = bits      # the upper half; little-endian
        return wide.view(np.float32)
    if dtype in _FLOAT8:
        return np.take(_FLOAT8[dtype], bits)
    return bits.astype(np.float32)
