"""A model's weights out of its file: packed, or mapped from a file of packed weights. The work is done in C (csrc/engine)."""

from __future__ import annotations

import os
import reprlib
from typing import Any

from . import errors
from ._core import check, ffi, lib, new_error


def load(gguf: Any, tape: bytes, level: str | None, threads: int, cancel: Any, pack: str | os.PathLike[str] | None = None) -> Any:
    """The pyllm_model of a tape over an open file; whoever gets it frees it. pack: map what `store` wrote there. Raises what the library
    does: FileError or StateError where that file cannot be read, is damaged or is not this model's."""
    out, err = ffi.new("pyllm_model **"), new_error()
    name = ffi.NULL if level is None else level_name(level)
    path = ffi.NULL if pack is None else os.fsencode(pack)
    check(lib.pyllm_model_load(gguf, tape, len(tape), name, path, threads, cancel, out, err), err)
    return out[0]


def store(model: Any, gguf: Any, pack: str | os.PathLike[str], threads: int, cancel: Any) -> None:
    """Writes the weights of a model to a file that `load` can map."""
    err = new_error()
    check(lib.pyllm_model_store(model, gguf, os.fsencode(pack), threads, cancel, err), err)


def level_name(level: Any) -> bytes:
    if isinstance(level, str) and level.isascii() and level.isalnum():
        return level.encode()
    raise errors.ArgumentError(f"CPU level {reprlib.repr(level)} does not exist\n"
                               f"hint: available: {ffi.string(lib.pyllm_cpu_levels()).decode()}")
