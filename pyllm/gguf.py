"""A GGUF file as Python sees it: metadata by key and tensors by name. The reader itself is C (csrc/formats/gguf.c)."""

from __future__ import annotations

import os
import reprlib
import struct
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from . import errors
from ._core import check, ffi, lib, new_error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# GGUF value types in the order of their ids; None: bool, string and array, which are decoded apart.
_CODES = ("B", "b", "H", "h", "I", "i", "f", None, None, None, "Q", "q", "d")
_BOOL, _STRING, _ARRAY = 7, 8, 9


class TensorInfo(NamedTuple):
    """type: name of the tensor type ("q4_k"); shape: elements per dimension as in the file, the contiguous one first."""

    type: str
    shape: tuple[int, ...]
    id: int
    n_bytes: int


class Adapter(NamedTuple):
    """A low-rank adapter that was added to a model. prefix: of its tensors' names; scales: factor on the adapter's product, by the weight
    that it goes with."""

    prefix: str
    scales: dict[str, float]


class Metadata(Mapping[str, Any]):
    """Key-value pairs, decoded when asked for: vocabularies are long. Numbers, str, bool, numpy arrays, lists of str."""

    def __init__(self, gguf: GGUF) -> None:
        self._gguf = gguf
        self._index: dict[str, int] = {}
        self._cache: dict[str, Any] = {}
        item = ffi.new("pyllm_kv *")
        for i in range(lib.pyllm_gguf_n_kv(gguf.handle)):
            lib.pyllm_gguf_kv(gguf.handle, i, item)
            self._index[_text(ffi.string(item.key))] = i

    def __getitem__(self, key: str) -> Any:
        if key not in self._cache:
            self._cache[key] = self._decode(self._index[key])
        return self._cache[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def kind(self, key: str) -> tuple[int, bool]:
        """The GGUF value type's id, of an array that of its items, and whether it is an array."""
        item = ffi.new("pyllm_kv *")
        lib.pyllm_gguf_kv(self._gguf.handle, self._index[key], item)
        return item.item_type, item.type == _ARRAY

    def _decode(self, i: int) -> Any:
        item = ffi.new("pyllm_kv *")
        lib.pyllm_gguf_kv(self._gguf.handle, i, item)
        if item.item_type == _STRING:
            texts = [self._string(i, j) for j in range(item.count)]
            return texts if item.type == _ARRAY else texts[0]
        code = "?" if item.item_type == _BOOL else _CODES[item.item_type]
        if code is None:
            raise errors.FormatError(f"{self._gguf.path}: an array of arrays in the metadata cannot be read\n"
                                     "hint: convert the model again with a current converter")
        data = bytes(ffi.buffer(item.data, item.count * struct.calcsize("<" + code))) if item.count else b""
        if item.type == _ARRAY:
            import numpy as np  # not at the top: the first token of a program does without

            return np.frombuffer(data, np.dtype(code).newbyteorder("<"))
        return struct.unpack("<" + code, data)[0]

    def _string(self, i: int, j: int) -> str:
        length = ffi.new("uint64_t *")
        text = lib.pyllm_gguf_string(self._gguf.handle, i, j, length)
        return _text(bytes(ffi.buffer(text, length[0]))) if length[0] else ""


class GGUF:
    """An open GGUF file, or all files of a split set when path is its first. Use it as a context manager or call close()."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = file_path(path)
        out, err = ffi.new("pyllm_gguf **"), new_error()
        check(lib.pyllm_gguf_open(os.fsencode(self.path), out, err), err)
        self._handle: Any = ffi.gc(out[0], lib.pyllm_gguf_close)
        self.kv = Metadata(self)
        self.adapters: list[Adapter] = []
        self._read_tensors()

    def _read_tensors(self) -> None:
        self.tensors: dict[str, TensorInfo] = {}
        item = ffi.new("pyllm_tensor *")
        for i in range(lib.pyllm_gguf_n_tensors(self._handle)):
            lib.pyllm_gguf_tensor(self._handle, i, item)
            name, kind = _text(ffi.string(item.name)), lib.pyllm_type_name(item.type)
            self.tensors[name] = TensorInfo(f"type {item.type}" if kind == ffi.NULL else _text(ffi.string(kind)),
                                            tuple(item.ne[d] for d in range(item.n_dims)), i, item.bytes)

    def add(self, path: str | os.PathLike[str], adapter: Adapter) -> None:
        """Adds an adapter's tensors, under names with its prefix; what it holds is checked before (pyllm/lora.py)."""
        err = new_error()
        try:
            check(lib.pyllm_gguf_add(self.handle, os.fsencode(file_path(path)), adapter.prefix.encode(), err), err)
        except errors.Error:
            self.close()            # half of a file may have been added
            raise
        self._read_tensors()
        self.adapters.append(adapter)

    @property
    def handle(self) -> Any:
        """The pyllm_gguf pointer, for the functions of the library."""
        if self._handle is None:
            raise errors.Closed(f"{self.path} is closed\nhint: open the file again")
        return self._handle

    @property
    def architecture(self) -> str:
        """general.architecture; empty if the file has none."""
        name = self.kv.get("general.architecture", "")
        return name if isinstance(name, str) else ""

    def read(self, name: str) -> NDArray[np.float32]:
        """A tensor's values as float32, numpy order: the contiguous dimension last. Raises UnsupportedModel for unknown tensor types."""
        if name not in self.tensors:
            raise errors.ArgumentError(f"{self.path}: there is no tensor {name!r}")
        info = self.tensors[name]
        if info.type.startswith("type "):
            raise errors.UnsupportedModel(f"{self.path}: tensor {name} has {info.type}, which this build does not know\n"
                                          "hint: a newer version may read it, or requantize the model")
        return dequantize(self.place(name)[0], self.read_bytes(name, 0, info.n_bytes), tuple(reversed(info.shape)))

    def place(self, name: str) -> tuple[int, int, int]:
        """Of a tensor: type id, index of the split file that holds it, offset of its data there."""
        raw = ffi.new("pyllm_tensor *")
        lib.pyllm_gguf_tensor(self.handle, self.tensors[name].id, raw)
        return raw.type, raw.file, raw.offset

    def read_bytes(self, name: str, begin: int, n: int) -> NDArray[np.uint8]:
        """Bytes [begin, begin + n) of a tensor's data."""
        import numpy as np

        data, err = np.empty(n, np.uint8), new_error()
        check(lib.pyllm_gguf_read(self.handle, self.tensors[name].id, begin, n, ffi.from_buffer(data), err), err)
        return data

    def close(self) -> None:
        if self._handle is not None:
            ffi.release(self._handle)
            self._handle = None

    def __enter__(self) -> GGUF:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def dequantize(type_id: int, data: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Blocks of a type, contiguous, as the floats that they stand for."""
    import numpy as np

    out, err = np.empty(shape, np.float32), new_error()
    check(lib.pyllm_dequantize(type_id, ffi.from_buffer(data), out.size, ffi.from_buffer("float *", out), err), err)
    return out


def file_path(path: Any) -> str:
    """A path as text; ArgumentError for what can't be one."""
    try:
        text = os.fsdecode(path)
        if text and b"\0" not in os.fsencode(text):
            return text
    except (TypeError, UnicodeError):
        pass
    raise errors.ArgumentError(f"{reprlib.repr(path)} is not a path")


def _text(data: bytes) -> str:
    # Vocabularies hold byte strings that are not UTF-8; surrogateescape keeps them apart and can be undone.
    return data.decode("utf-8", "surrogateescape")
