"""Packed weights that are kept on disk, so that the next load maps them instead of packing: which files, how many, and which of them go.

They lie in the folder `packed` of the cache, one file for the weights of one model's file. What is in them, and when they may be used, is
csrc/engine/pack_cache.h. Together they take at most a fifth of the disk space that would be free without them. What was used least recently
goes first, and what belongs to a model that is gone goes at once. Nothing here ends a load: what cannot be kept is logged and not kept.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from . import errors, weights
from ._core import check, ffi, lib, new_error
from .gguf import GGUF
from .stores import cache_dir

State = Literal["mapped", "stored", "failed"]
SHARE = 0.2         # of the free disk, at most

_log = logging.getLogger("pyllm")
_log.addHandler(logging.NullHandler())      # silent unless the program wants to hear


class Entry(NamedTuple):
    """A file of packed weights. model: path of the model's (first) file, without symbolic links; bytes: of the weights; used: seconds since
    1970."""

    path: Path
    model: Path
    bytes: int
    used: float


def folder() -> Path:
    return cache_dir() / "packed"


def load(gguf: Any, tape: bytes, level: str | None, threads: int, cancel: Any, path: Path) -> tuple[Any, State]:
    """As weights.load: mapped if an earlier load has stored the packed weights at path, else packed and stored there."""
    if path.exists():
        try:
            return weights.load(gguf, tape, level, threads, cancel, path), "mapped"
        except (errors.FileError, errors.StateError) as e:
            _log.warning("packed weights are made anew: %s", e.message)
            _remove(path)
    model = weights.load(gguf, tape, level, threads, cancel)
    try:
        return model, "stored" if _store(model, gguf, path, threads, cancel) else "failed"
    except BaseException:
        lib.pyllm_model_free(model)
        raise


def entries() -> list[Entry]:
    """What is there, most recently used first; without files that cannot be read or are damaged."""
    found = (_read(path) for path in _files("*.pack"))
    return sorted((e for e in found if isinstance(e, Entry)), key=lambda e: -e.used)


def of_model(path: str | os.PathLike[str]) -> list[Entry]:
    """Those of a model's file, which need not be there any more."""
    real = Path(os.path.realpath(path))
    return [e for e in entries() if e.model == real]


def entry_path(gguf: GGUF, tape: str) -> Path:
    """Where the weights that a tape reads from a file are kept."""
    text = tape.encode()
    size, key, err = ffi.new("int64_t *"), ffi.new("uint64_t *"), new_error()
    check(lib.pyllm_model_plan(gguf.handle, text, len(text), size, key, err), err)
    real = os.path.realpath(gguf.path)
    name = re.sub(r"[^\w.-]", "_", Path(real).stem, flags=re.ASCII)[:80]
    return folder() / f"{name}-{zlib.crc32(os.fsencode(real)):08x}{key[0]:016x}.pack"


# ---- keeping ----

def _store(model: Any, gguf: Any, path: Path, threads: int, cancel: Any) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        reason = _make_room(path, lib.pyllm_model_weight_bytes(model))
        if reason is None:
            weights.store(model, gguf, path, threads, cancel)
            return True
    except (OSError, errors.StateError) as e:
        reason = e.message if isinstance(e, errors.Error) else str(e)
    _log.warning("packed weights are not kept in %s: %s", path, reason)
    return False


def _make_room(path: Path, size: int) -> str | None:
    """Removes what must go for a file of `size` bytes at path; or the reason why it cannot be there."""
    if _clear_unfinished(path):
        return "another process is writing them"
    kept: list[Entry] = []
    for old in _files("*.pack"):
        entry = _read(old)
        if isinstance(entry, errors.StateError) or (entry is not None and not entry.model.exists()):
            _log.info("%s is removed: %s", old, "its model is gone" if isinstance(entry, Entry) else entry)
            _remove(old)
        elif entry is not None and old != path:
            kept.append(entry)
    own = _read(path)
    taken = sum(e.bytes for e in kept)
    limit = int(SHARE * (shutil.disk_usage(path.parent).free + taken + (own.bytes if isinstance(own, Entry) else 0)))
    if size > limit:
        return f"they take {size // 10**6} MB, all of them may take {limit // 10**6} MB, a fifth of the free disk"
    for entry in sorted(kept, key=lambda e: e.used):
        if taken + size <= limit:
            break
        _log.info("%s is removed: it was used least recently", entry.path)
        _remove(entry.path)
        taken -= entry.bytes
    return None


def _clear_unfinished(path: Path) -> bool:
    """Removes what a process left that was killed while it wrote; True if one is alive and writes this path."""
    import fcntl

    alive = False
    for temporary in _files("*.tmp"):
        with suppress(OSError), open(temporary, "rb") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)       # a writer holds it as long as it lives
                _remove(temporary)
            except BlockingIOError:
                alive = alive or temporary.name.startswith(path.name)
    return alive


def _read(path: Path) -> Entry | errors.StateError | None:
    """None: gone, or not to be read by us. StateError: damaged, or of another version."""
    info, err = ffi.new("pyllm_pack *"), new_error()
    try:
        check(lib.pyllm_pack_info(os.fsencode(path), info, err), err)
        return Entry(path, Path(os.fsdecode(ffi.string(info.model))), info.bytes, path.stat().st_atime)
    except errors.StateError as e:
        return e
    except OSError:
        return None


def _files(pattern: str) -> Iterator[Path]:
    with suppress(OSError):
        yield from sorted(folder().glob(pattern))


def _remove(path: Path) -> None:
    with suppress(OSError):         # another process was faster, or the folder is not ours to write
        path.unlink()
