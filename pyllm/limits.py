"""The machine's limits, measured: decoding reads all weights for every token, so memory bounds it; prompts run against the vector units."""

from __future__ import annotations

from . import memory
from ._core import check, ffi, lib, new_error

_MOST, _LEAST = 512 << 20, 64 << 20


def read_bandwidth(threads: int | None = None) -> float:
    """Bytes a second that `threads` (None: the physical cores) read from memory together; takes about a second. Raises OutOfMemory."""
    out, err = ffi.new("double *"), new_error()
    size = max(_LEAST, min(_MOST, memory.available() // 4))
    check(lib.pyllm_read_bandwidth(threads or lib.pyllm_threads_default(), size, out, err), err)
    rate: float = out[0]
    return rate


def dot_peak(threads: int | None = None, level: str | None = None) -> float:
    """8-bit multiply-adds a second that `threads` do together with a CPU level's dot product (None: the best) and nothing else."""
    out, err = ffi.new("double *"), new_error()
    check(lib.pyllm_dot_peak(ffi.NULL if level is None else level.encode(), threads or lib.pyllm_threads_default(), out, err), err)
    rate: float = out[0]
    return rate
