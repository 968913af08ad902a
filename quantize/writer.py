"""Writes a GGUF file in pieces, under its name only once it is complete and on the disk. Source of the format: the GGUF specification."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from pyllm import errors
from pyllm.gguf import file_path

from .fields import Field, encode_string
from .source import n_rows
from .types import row_bytes

_PREFIX, _SUFFIX = ".pyllm-", ".part"
_SYNC_BYTES = 1 << 26           # handed to the disk at a time, so that the last sync has little left to do


class TensorSpec(NamedTuple):
    """A tensor to be written: dims with ne[0] first."""

    name: str
    dims: tuple[int, ...]
    type_id: int

    @property
    def n_bytes(self) -> int:
        return row_bytes(self.type_id, self.dims[0]) * n_rows(self.dims)


class Writer:
    """A GGUF file being written:

        with Writer(path, metadata, specs) as out:
            for piece in pieces:        # the tensors' data, in order, any number of pieces a tensor
                out.write(piece)
            out.commit()

    The data goes to a temporary file beside the final one, which commit() syncs and renames. Without commit() nothing is left, and a file
    that was there before stays. A temporary file is locked while its writer lives: those of writers that were killed are removed by the
    next one in the same folder (`removed` lists them). inputs: files that must not be written to, under whatever name; ArgumentError if
    path is one of them. Raises FileError for all that the system refuses, a full disk included.
    """

    def __init__(self, path: str | os.PathLike[str], metadata: Mapping[str, Field], tensors: Sequence[TensorSpec],
                 inputs: Iterable[Path] = ()) -> None:
        self._fd = -1
        self.temporary: Path | None = None      # while the file is not complete
        self.path = output_path(path, inputs)
        self._specs = list(tensors)
        self._align = _alignment(metadata)
        self._header, self._places = _header(metadata, self._specs, self._align)
        self._left = [s.n_bytes for s in self._specs]       # bytes of each tensor that are still to come
        self._next = 0                                      # index of the tensor whose bytes come next
        self.n_bytes = _n_bytes(self._header, self._specs, self._align)
        self._unsynced = 0
        self.removed = remove_stale(self.path.parent)
        _check_room(self.path, self.n_bytes)
        try:
            self._create()
            self._put(self._header)
            self._skip_empty()
        except BaseException:
            self.close()
            raise

    def write(self, piece: Any) -> None:
        """The next bytes of the tensors' data; a piece belongs to one tensor."""
        data = memoryview(piece).cast("B")
        if not data.nbytes:
            return
        if self._next == len(self._specs) or data.nbytes > self._left[self._next]:
            raise errors.ArgumentError(f"{self.path}: more data than the tensors hold")
        self._put(data)
        self._left[self._next] -= data.nbytes
        self._skip_empty()

    def patch(self, key: str, value: Field) -> None:
        """Replaces a value in the header by one of the same size, before commit()."""
        at, size = self._places[key]
        data = value.encode()
        if len(data) != size:
            raise errors.ArgumentError(f"{key}: a value of {len(data)} bytes cannot replace one of {size}")
        with self._refused():
            os.pwrite(self._fd, data, at)

    def sync(self) -> None:
        """What was written so far is on the disk, and reading it back will read the disk."""
        with self._refused():
            os.fsync(self._fd)
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def commit(self) -> None:
        """Makes the file appear under its name: complete, on the disk."""
        if self._next != len(self._specs):
            raise errors.ArgumentError(f"{self.path}: the data of tensor {self._specs[self._next].name} is not complete")
        if self.temporary is None:
            raise errors.ArgumentError(f"{self.path}: already closed")
        with self._refused():
            os.fchmod(self._fd, _mode(self.path))
            os.fsync(self._fd)
            os.rename(self.temporary, self.path)
            self.temporary = None
            _sync_folder(self.path.parent)
        self.close()

    def close(self) -> None:
        """Ends the writing; what was not committed is removed."""
        if self.temporary is not None:
            with suppress(OSError):
                os.unlink(self.temporary)
            self.temporary = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()        # for an interrupt between creation and `with`

    def _create(self) -> None:
        """Opens a new, locked temporary file. Its name is known before it exists: no interrupt can leave it behind."""
        while self._fd < 0:
            self.temporary = self.path.parent / f"{_PREFIX}{secrets.token_hex(6)}{_SUFFIX}"
            with self._refused():
                self._fd = os.open(self.temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                with suppress(OSError):             # no locks on this file system: then nothing is ever taken for stale either
                    fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not os.fstat(self._fd).st_nlink:     # another writer took it for stale before it was locked
                    self.close()

    def _put(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        with self._refused():
            while view.nbytes:
                n = os.write(self._fd, view)
                view = view[n:]
                self._unsynced += n
            if self._unsynced >= _SYNC_BYTES:
                getattr(os, "fdatasync", os.fsync)(self._fd)
                self._unsynced = 0

    def _skip_empty(self) -> None:
        """Goes on to the next tensor that has bytes, with the padding before it."""
        while self._next < len(self._specs) and not self._left[self._next]:
            self._put(bytes(-self._specs[self._next].n_bytes % self._align))
            self._next += 1

    @contextmanager
    def _refused(self) -> Iterator[None]:
        with writing(self.path, self.n_bytes):
            yield


@contextmanager
def writing(path: Path, n_bytes: int) -> Iterator[None]:
    """What the system refuses becomes a FileError that names the file."""
    try:
        yield
    except OSError as e:
        if isinstance(e, errors.Error):
            raise
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise errors.FileError(f"{path}: the disk is full; the file takes {n_bytes // 10**6} MB\n"
                                   "hint: free some space or write to another disk") from e
        raise errors.FileError(f"{path} cannot be written: {e.strerror or e}\nhint: check the folder, its permissions and limits") from e


def output_path(path: str | os.PathLike[str], inputs: Iterable[Path] = ()) -> Path:
    """Where a file of this name is written: links followed. ArgumentError for a folder, a device, or one of the inputs under any name."""
    out = Path(os.path.realpath(file_path(path)))
    with writing(out, 0):
        if not out.parent.is_dir():
            raise errors.FileError(f"{out}: there is no folder {out.parent}\nhint: make it first")
        if not out.exists():
            return out
        if not stat.S_ISREG(out.stat().st_mode):
            raise errors.ArgumentError(f"{path} is {'a folder' if out.is_dir() else 'not a regular file'}\n"
                                       "hint: give the name of a file to write")
        for given in inputs:
            if given.exists() and os.path.samefile(out, given):
                raise errors.ArgumentError(f"{path} is the input {given} itself\nhint: give the output another name")
    return out


def file_bytes(metadata: Mapping[str, Field], tensors: Sequence[TensorSpec]) -> int:
    """Bytes that a file takes."""
    align = _alignment(metadata)
    return _n_bytes(_header(metadata, tensors, align)[0], tensors, align)


def write_outline(path: str | os.PathLike[str], metadata: Mapping[str, Field], tensors: Sequence[TensorSpec],
                  data: Mapping[str, bytes]) -> None:
    """A file of these tensors that takes next to no room: holes in the place of all data but that in `data`. Raises FileError."""
    align = _alignment(metadata)
    header = _header(metadata, tensors, align)[0]
    size = _n_bytes(header, tensors, align)
    with writing(Path(path), size), open(path, "wb") as f:
        f.write(header)
        for spec in tensors:
            at = f.tell()
            f.write(data.get(spec.name, b""))
            f.seek(at + -(-spec.n_bytes // align) * align)
        f.truncate(size)


def remove_stale(folder: Path) -> list[Path]:
    """Removes the temporary files of writers that no longer live; returns them."""
    removed = []
    for path in sorted(folder.glob(f"{_PREFIX}*{_SUFFIX}")):
        with suppress(OSError):                     # locked by its writer, or removed meanwhile
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(path)
                removed.append(path)
            finally:
                os.close(fd)
    return removed


def _check_room(path: Path, n_bytes: int) -> None:
    with writing(path, n_bytes):
        free = shutil.disk_usage(path.parent).free
    if free < n_bytes:
        raise errors.FileError(f"{path.parent} has {free // 10**6} MB free, {path.name} takes {n_bytes // 10**6} MB\n"
                               "hint: free some space or write to another disk")


def _mode(path: Path) -> int:
    """Permissions: of the file that is replaced, else as any new file has them."""
    if path.exists():
        return stat.S_IMODE(path.stat().st_mode)
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _alignment(metadata: Mapping[str, Field]) -> int:
    align = metadata["general.alignment"].value if "general.alignment" in metadata else 32
    if not isinstance(align, int) or align < 1 or align > 1 << 20 or align & (align - 1):
        raise errors.FormatError(f"general.alignment is {align!r}, which is not a power of two")
    return align


def _n_bytes(header: bytes, specs: Sequence[TensorSpec], align: int) -> int:
    return len(header) + sum(-(-s.n_bytes // align) * align for s in specs)


def _header(metadata: Mapping[str, Field], specs: Sequence[TensorSpec], align: int) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The header with its padding, and where each key's value stands in it: (offset, bytes)."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(specs), len(metadata)))
    places = {}
    for key, field in metadata.items():
        out += encode_string(key)
        value = field.encode()
        places[key] = (len(out), len(value))
        out += value
    offset = 0
    for s in specs:
        out += encode_string(s.name) + struct.pack(f"<I{len(s.dims)}QIQ", len(s.dims), *s.dims, s.type_id, offset)
        offset += -(-s.n_bytes // align) * align
    return bytes(out + bytes(-len(out) % align)), places
