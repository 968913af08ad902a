"""Reads the tensors of PyTorch's .bin files without running anything in them.

Such a file is a zip archive: data.pkl, a pickle of a dictionary from names to tensors, and the tensors' bytes as members data/KEY. A pickle
is a program that may call any function of Python. Here a few of its instructions are carried out, and three calls are known by their names;
whatever else it asks for ends the reading with FormatError.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pyllm import errors

from .stored import DTYPES, Stored, WeightFile

MAX_PICKLE = 64 << 20       # bytes of data.pkl
STORAGES = {"DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "LongStorage": "I64",
            "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL"}
UNTYPED = "torch.storage UntypedStorage"        # of types without a storage class of their own: the tensor names its type
NAMED = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "uint16": "U16", "uint32": "U32", "uint64": "U64"}
CALLS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3",
         "torch._utils _rebuild_parameter"}


def read_header(file: WeightFile) -> dict[str, Stored]:
    """The tensors of a .bin file by name, in the order of their data. Raises FormatError, UnsupportedModel or FileError."""
    path = file.path
    try:
        with zipfile.ZipFile(path) as archive:
            members = {m.filename: m for m in archive.infolist()}
            pickles = [m for name, m in members.items() if name == "data.pkl" or name.endswith("/data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE or pickles[0].compress_type != zipfile.ZIP_STORED:
                _fail(path, "has no readable data.pkl")
            data = archive.read(pickles[0])
            folder = pickles[0].filename.removesuffix("data.pkl")
            order = members.get(f"{folder}byteorder")
            if order is not None and archive.read(order) != b"little":
                raise errors.UnsupportedModel(f"{path} was written on a big-endian machine\nhint: save it again as safetensors")
    except zipfile.BadZipFile:
        raise errors.UnsupportedModel(f"{path} is not a zip archive, as PyTorch writes them since version 1.6\n"
                                      "hint: load and save the checkpoint with a current PyTorch, or take one in safetensors") from None
    except (OSError, EOFError, ValueError, NotImplementedError, RuntimeError, struct.error) as e:
        if isinstance(e, errors.Error):
            raise
        _fail(path, f"cannot be read: {e}")
    found = {name: _stored(file, name, t, members.get(f"{folder}data/{t.key}")) for name, t in _Machine(path).run(data).items()}
    return dict(sorted(found.items(), key=lambda item: item[1].offset))


def _fail(path: Path, what: str) -> NoReturn:
    raise errors.FormatError(f"{path} {what}\nhint: the file is damaged or no checkpoint; prefer one in safetensors")


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    """dtype: "" where the tensors say it."""

    dtype: str
    key: str


@dataclass(frozen=True)
class _Tensor:
    """first: element of the storage at which the tensor begins."""

    dtype: str
    key: str
    first: int
    shape: tuple[int, ...]


def _stored(file: WeightFile, name: str, t: _Tensor, member: zipfile.ZipInfo | None) -> Stored:
    """A tensor with the place of its bytes, which must lie inside of its archive member."""
    if member is None or member.compress_type != zipfile.ZIP_STORED:
        _fail(file.path, f"has no data for tensor {name!r}, or compressed data")
    at = member.header_offset
    if at < 0 or at + 30 > file.size:
        _fail(file.path, f"puts the data of tensor {name!r} outside of the file")
    head = file.read(at, 30)
    if head[:4] != b"PK\3\4":
        _fail(file.path, f"has no member where the data of tensor {name!r} is due")
    begin = at + 30 + sum(struct.unpack_from("<HH", head, 26))
    size = np.dtype(DTYPES[t.dtype][0]).itemsize
    if (t.first + prod(t.shape)) * size > member.file_size or begin + member.file_size > file.size:
        _fail(file.path, f"gives tensor {name!r} more than its data holds")
    return Stored(file, name, t.dtype, t.shape, begin + t.first * size)


_MARK = object()


def _text(value: Any) -> str:
    """Keys and names are nothing else: what is nested deeply could end the process when it is hashed or printed."""
    if not isinstance(value, str):
        raise TypeError
    return value


class _Machine:
    """The pickle machine: a stack, a memo, and the instructions that dictionaries of tensors are written with."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, data: bytes) -> dict[str, _Tensor]:
        try:
            for opcode, argument, _ in pickletools.genops(data):
                if opcode.name == "STOP":
                    break
                step = getattr(self, "op_" + opcode.name, None)
                if step is None:
                    _fail(self.path, f"asks its reader for {opcode.name}, which no table of tensors needs: nothing of it was run")
                step(argument)
            result = self.stack.pop()
        except (IndexError, KeyError, ValueError, TypeError, UnicodeError) as e:
            _fail(self.path, f"has a damaged pickle ({type(e).__name__})")
        if not isinstance(result, dict):
            _fail(self.path, "does not hold a dictionary of tensors")
        return {k: v for k, v in result.items() if isinstance(v, _Tensor)}

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _pop_mark(self) -> list[Any]:
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]

    def _nothing(self, _: Any) -> None:
        pass

    op_PROTO = op_FRAME = _nothing
    op_BININT = op_BININT1 = op_BININT2 = op_LONG1 = op_BINUNICODE = op_SHORT_BINUNICODE = op_BINUNICODE8 = _push

    def op_MARK(self, _: None) -> None:
        self._push(_MARK)

    def op_NONE(self, _: None) -> None:
        self._push(None)

    def op_NEWTRUE(self, _: None) -> None:
        self._push(True)

    def op_NEWFALSE(self, _: None) -> None:
        self._push(False)

    def op_EMPTY_TUPLE(self, _: None) -> None:
        self._push(())

    def op_EMPTY_DICT(self, _: None) -> None:
        self._push({})

    def op_TUPLE(self, _: None) -> None:
        self._push(tuple(self._pop_mark()))

    def _last(self, n: int) -> tuple[Any, ...]:
        if len(self.stack) < n:
            raise IndexError
        items = tuple(self.stack[-n:])
        del self.stack[-n:]
        return items

    def op_TUPLE1(self, _: None) -> None:
        self._push(self._last(1))

    def op_TUPLE2(self, _: None) -> None:
        self._push(self._last(2))

    def op_TUPLE3(self, _: None) -> None:
        self._push(self._last(3))

    def op_BINPUT(self, at: int) -> None:
        self.memo[at] = self.stack[-1]

    op_LONG_BINPUT = op_BINPUT

    def op_MEMOIZE(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def op_BINGET(self, at: int) -> None:
        self._push(self.memo[at])

    op_LONG_BINGET = op_BINGET

    def op_SETITEM(self, _: None) -> None:
        key, value = self._last(2)
        self._table()[_text(key)] = value

    def op_SETITEMS(self, _: None) -> None:
        items = self._pop_mark()
        self._table().update(zip(map(_text, items[::2]), items[1::2], strict=True))

    def _table(self) -> dict[Any, Any]:
        if not isinstance(self.stack[-1], dict):
            raise TypeError
        return self.stack[-1]

    def op_BUILD(self, _: None) -> None:
        """State of an object: the version numbers that PyTorch keeps beside the dictionary, which nobody needs."""
        self.stack.pop()
        self._table()

    def op_GLOBAL(self, name: str) -> None:
        module, _, what = name.partition(" ")
        if name not in CALLS and name != UNTYPED and not (module == "torch" and (what in STORAGES or what in NAMED)):
            _fail(self.path, f"asks for {name.replace(' ', '.')!r}, which is code: nothing of it was run")
        self._push(_Global(name))

    def op_STACK_GLOBAL(self, _: None) -> None:
        module, what = self._last(2)
        self.op_GLOBAL(f"{_text(module)} {_text(what)}")

    def op_BINPERSID(self, _: None) -> None:
        kind, storage, key, _device, _size = self.stack.pop()
        if kind != "storage" or not isinstance(storage, _Global) or not isinstance(key, str):
            raise TypeError
        self._push(_Storage("" if storage.name == UNTYPED else STORAGES[storage.name.removeprefix("torch ")], key))

    def op_REDUCE(self, _: None) -> None:
        call, arguments = self._last(2)
        calls: dict[str, Callable[..., Any]] = {"collections OrderedDict": dict, "torch._utils _rebuild_tensor_v2": self._tensor,
                                                "torch._utils _rebuild_tensor_v3": self._named_tensor,
                                                "torch._utils _rebuild_parameter": lambda tensor, *_: tensor}
        if not isinstance(call, _Global) or not isinstance(arguments, tuple) or (call.name == "collections OrderedDict" and arguments):
            raise TypeError
        self._push(calls[call.name](*arguments))

    def _named_tensor(self, storage: Any, first: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any) -> _Tensor:
        if not isinstance(storage, _Storage) or storage.dtype or not isinstance(dtype, _Global):
            raise TypeError
        return self._tensor(_Storage(NAMED[dtype.name.removeprefix("torch ")], storage.key), first, shape, strides)

    def _tensor(self, storage: Any, first: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        naturals = all(type(n) is int and 0 <= n < 1 << 62 for n in (first, *shape, *strides))
        if not isinstance(storage, _Storage) or not storage.dtype or not naturals:
            raise TypeError
        if len(shape) > 8 or len(strides) != len(shape):
            raise ValueError
        due = [prod(shape[i + 1:]) for i in range(len(shape))]
        if any(n > 1 and s != d for n, s, d in zip(shape, strides, due, strict=True)):
            raise errors.UnsupportedModel(f"{self.path}: a tensor of shape {shape} does not lie row by row\n"
                                          "hint: save the checkpoint again with contiguous tensors, or as safetensors")
        return _Tensor(storage.dtype, storage.key, first, tuple(shape))
