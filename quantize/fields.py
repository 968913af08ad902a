"""Metadata values of a GGUF file with their types, and how they are written. Source: the GGUF specification of ggml."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from pyllm import errors

# Value types in the order of their ids; "array" wraps one of the others.
KINDS = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64")
# as struct and numpy name them
_CODES = dict(zip(KINDS, ("B", "b", "H", "h", "I", "i", "f", "?", None, None, "Q", "q", "d"), strict=True))


@dataclass(frozen=True)
class Field:
    """A value. kind: one of KINDS but array, for arrays that of the items; value: a number, bool or str, for arrays a list or a numpy array
    of them. Text may hold bytes that are not UTF-8, as surrogate escapes."""

    kind: str
    value: Any
    is_array: bool = False

    @staticmethod
    def of(value: Any) -> Field:
        """The usual type of a Python value: bool; int as u32 (i32 if negative, u64 or i64 if it is large); float as f32; str; numpy arrays
        by their type; lists of one of these (int: i32, float: f32)."""
        if isinstance(value, np.ndarray):
            return Field(next(kind for kind, code in _CODES.items() if code and np.dtype(code) == value.dtype), value, True)
        if isinstance(value, list | tuple):
            first = value[0] if value else ""
            kinds = {bool: "bool", int: "i32", float: "f32", str: "string"}
            return Field(kinds[type(first)], value, True)
        if isinstance(value, bool):
            return Field("bool", value)
        if isinstance(value, int):
            return Field("u32" if 0 <= value < 1 << 32 else "u64" if value >= 0 else "i32" if value >= -1 << 31 else "i64", value)
        if isinstance(value, float):
            return Field("f32", value)
        if isinstance(value, str):
            return Field("string", value)
        raise errors.ArgumentError(f"a value of type {type(value).__name__} cannot stand in the metadata of a GGUF file")

    def encode(self) -> bytes:
        """Type and value as they stand behind the key."""
        if not self.is_array:
            return struct.pack("<I", KINDS.index(self.kind)) + self._items([self.value])
        head = struct.pack("<IIQ", KINDS.index("array"), KINDS.index(self.kind), len(self.value))
        return head + self._items(self.value)

    def _items(self, values: Any) -> bytes:
        if self.kind == "string":
            return b"".join(map(encode_string, values))
        code = _CODES[self.kind]
        if isinstance(values, np.ndarray):
            return values.astype(np.dtype(code).newbyteorder("<"), copy=False).tobytes()
        return struct.pack(f"<{len(values)}{code}", *values)


def encode_string(text: str) -> bytes:
    """Length and bytes, as keys, names and values have them."""
    data = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(data)) + data
