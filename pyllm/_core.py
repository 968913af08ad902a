"""The C library: the only module that opens it. Everything else imports ffi, lib and check from here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import errors

ABI_VERSION = 4
_NAME = {"win32": "pyllm.dll", "darwin": "libpyllm.dylib"}.get(sys.platform, "libpyllm.so")


def _open() -> tuple[Any, Any]:
    path = Path(__file__).with_name(_NAME)
    try:
        from ._ffi import ffi

        # objects that are collected when the interpreter ends still call into the library: it must never be unloaded
        lib = ffi.dlopen(str(path), ffi.RTLD_NOW | getattr(ffi, "RTLD_NODELETE", 0))
    except (ImportError, OSError) as e:
        raise errors.LibraryError(f"pyllm's native library {path} cannot be loaded: {e}\n"
                                  "hint: install a wheel for this platform, or build with `pip install .` and a C compiler") from e
    if lib.pyllm_abi_version() != ABI_VERSION:
        raise errors.LibraryError(f"{path} has ABI version {lib.pyllm_abi_version()}, this package needs {ABI_VERSION}\n"
                                  "hint: rebuild or reinstall pyllm")
    return ffi, lib


ffi, lib = _open()


@contextmanager
def steady_floats() -> Iterator[None]:
    """Rounding to nearest with subnormals kept, whatever the host has set: around Python arithmetic that the engine's numbers come from."""
    saved = lib.pyllm_float_env_enter()
    try:
        yield
    finally:
        lib.pyllm_float_env_restore(saved)


def new_error() -> Any:
    """A pyllm_error for a C call; read by check()."""
    return ffi.new("pyllm_error *")


def check(rc: int, err: Any) -> int:
    """Returns rc if it is not negative, else raises the exception of its status with the message in err."""
    if rc >= 0:
        return rc
    raise errors.from_status(rc, ffi.string(err.message).decode("utf-8", "replace"))


def quantize(type_id: int, rows: NDArray[np.float32], weights: NDArray[np.float32] | None = None, n_threads: int = 1,
             out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Rows f32 [n, width] as blocks of a tensor type: uint8 [n, bytes of a row], in `out` if given (C order, of that shape).

    weights: importance of the columns, f32 [width], or None for 1. Raises ArgumentError and Unsupported as pyllm_quantize says."""
    n, width = rows.shape
    x, w = np.ascontiguousarray(rows, np.float32), None if weights is None else np.ascontiguousarray(weights, np.float32)
    if w is not None and w.shape != (width,):
        raise errors.ArgumentError(f"weights of shape {w.shape} do not fit rows of {width} columns")
    elems = lib.pyllm_type_elems(type_id)
    shape = (n, width // elems * lib.pyllm_type_bytes(type_id) if elems else 0)
    if out is None:
        out = np.empty(shape, np.uint8)
    elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise errors.ArgumentError(f"the output must be uint8 {shape} in C order, is {out.dtype} {out.shape}")
    err = new_error()
    check(lib.pyllm_quantize(type_id, ffi.from_buffer("float *", x), n, width, ffi.NULL if w is None else ffi.from_buffer("float *", w),
                             n_threads, ffi.from_buffer("uint8_t *", out, require_writable=True), err), err)
    return out
