"""Reads the header of safetensors files. Nothing in it is believed: every rule of the format is checked before a byte of data is read.

Format: 8 bytes little-endian length of the header, the header (a JSON object), the data. An entry is {"dtype", "shape", "data_offsets":
[begin, end]}, offsets from the start of the data. The data of the tensors covers everything behind the header without holes or overlaps.
"""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from pyllm import errors

from .stored import DTYPES, Stored, WeightFile

MAX_HEADER = 100_000_000    # bytes, the format's own limit
MAX_DIMS = 8


def read_header(file: WeightFile) -> dict[str, Stored]:
    """The tensors of a safetensors file by name, in the order of their data. Raises FormatError naming file and tensor."""
    path = file.path
    if file.size < 8:
        _fail(path, f"has {file.size} bytes, too few for a safetensors file")
    (size,) = struct.unpack("<Q", file.read(0, 8))
    if size > min(MAX_HEADER, file.size - 8):
        _fail(path, f"says its header has {size} bytes; the file has {file.size}, and {MAX_HEADER} are the most that the format allows")
    header = _parse(path, file.read(8, size))
    header.pop("__metadata__", None)
    begin, room = 8 + size, file.size - 8 - size
    spans, found = [], {}
    for name, entry in header.items():
        dtype, shape, span = _entry(path, name, entry, room)
        spans.append((*span, name))
        found[name] = Stored(file, name, dtype, shape, begin + span[0])
    spans.sort()
    at = 0
    for first, last, name in spans:
        if first != at:
            _fail(path, f"tensor {name!r} begins at byte {first} of the data, where {at} is due: "
                  + ("tensors overlap" if first < at else "there is a hole"))
        at = last
    if at != room:
        _fail(path, f"has {room - at} bytes behind its last tensor")
    return {name: found[name] for _, _, name in spans}


def _fail(path: Path, what: str) -> NoReturn:
    raise errors.FormatError(f"{path} {what}\nhint: the file is damaged or no safetensors file; download it again")


def _parse(path: Path, data: bytearray) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            _fail(path, "names something twice in its header")
        return found

    if not data.startswith(b"{"):
        _fail(path, "has no header that begins with a brace")
    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:
        _fail(path, f"has a header that is not JSON ({type(e).__name__})")
    if not isinstance(header, dict):
        _fail(path, "has a header that is no JSON object")
    return header


def _entry(path: Path, name: str, entry: Any, room: int) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """(dtype, shape, span in the data) of one tensor."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _fail(path, f"describes tensor {name!r} with other words than dtype, shape and data_offsets")
    dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise errors.UnsupportedModel(f"{path}: tensor {name!r} has the type {dtype!r}\nhint: these can be read: {', '.join(DTYPES)}")
    if not _naturals(shape) or len(shape) > MAX_DIMS:
        _fail(path, f"gives tensor {name!r} the shape {shape!r}")
    if not _naturals(span) or len(span) != 2 or not span[0] <= span[1] <= room:
        _fail(path, f"puts tensor {name!r} at {span!r} of {room} bytes of data")
    if prod(shape) * np.dtype(DTYPES[dtype][0]).itemsize != span[1] - span[0]:
        _fail(path, f"gives tensor {name!r} {span[1] - span[0]} bytes, which do not hold {dtype} {shape}")
    return dtype, tuple(shape), (span[0], span[1])


def _naturals(x: Any) -> bool:
    return isinstance(x, list) and all(type(n) is int and 0 <= n < 1 << 62 for n in x)
