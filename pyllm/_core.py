"""The C library: the only module that opens it. Everything else imports ffi, lib and check from here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import errors

ABI_VERSION = 2
_NAME = {"win32": "pyllm.dll", "darwin": "libpyllm.dylib"}.get(sys.platform, "libpyllm.so")


def _open() -> tuple[Any, Any]:
    path = Path(__file__).with_name(_NAME)
    try:
        from ._ffi import ffi

        lib = ffi.dlopen(str(path))
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
