"""Files as PyTorch saves tensors, written without it."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np


class Assembler:
    """A pickle, instruction by instruction, as PyTorch writes one: protocol 2, tensors by _rebuild_tensor_v2 from storages outside."""

    def __init__(self) -> None:
        self.code = b"\x80\x02}("

    def text(self, text: str) -> bytes:
        data = text.encode()
        return b"X" + struct.pack("<I", len(data)) + data

    def number(self, n: int) -> bytes:
        if 0 <= n < 1 << 31:
            return b"J" + struct.pack("<i", n)
        data = pickle.encode_long(n)
        return b"\x8a" + bytes([len(data)]) + data

    def numbers(self, values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(self.number, values)) + b"t"

    def tensor(self, name: str, storage: str, key: str, shape: tuple[int, ...], first: int = 0,
               strides: tuple[int, ...] | None = None) -> None:
        if strides is None:
            strides = tuple(int(np.prod(shape[i + 1:])) for i in range(len(shape)))
        self.code += self.text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n("
        self.code += b"(" + self.text("storage") + f"ctorch\n{storage}\n".encode() + self.text(key) + self.text("cpu")
        self.code += self.number(4) + b"tQ"
        self.code += self.number(first) + self.numbers(shape) + self.numbers(strides) + b"\x89ccollections\nOrderedDict\n)RtR"

    def done(self) -> bytes:
        return self.code + b"u."


def archive(path: Path, pickled: bytes, data: dict[str, bytes], compression: int = zipfile.ZIP_STORED, stem: str = "archive") -> Path:
    with zipfile.ZipFile(path, "w", compression) as z:
        z.writestr(f"{stem}/data.pkl", pickled)
        for key, content in data.items():
            z.writestr(f"{stem}/data/{key}", content)
        z.writestr(f"{stem}/version", "3\n")
    return path
