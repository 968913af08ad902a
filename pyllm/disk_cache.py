"""The KV cache of finished conversations on disk, so that a program that starts again goes on with them instead of reading them anew.

A file holds the pages of one conversation, of one model and layout: a header with tokens, sizes and a checksum for every page, then the
pages. The header, with a checksum of its own, is written last, and the file gets its name when it is complete; what a crash leaves is never
taken for a conversation. Several processes may write and remove files: a name says what is in the file, and one that is gone is computed
again.

What is in here are the words of conversations, as numbers: only their owner can read the folder.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import struct
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import errors
from ._core import ffi, lib
from .prefix_cache import PAGE, common, first_page
from .stores import cache_dir

if TYPE_CHECKING:
    from .driver import Driver
    from .engine import Engine

MAGIC = b"PYLLMKV1"
LEAST = 256         # tokens of a conversation that is worth a file
WORTH = 64          # tokens more than the memory has: from here on the disk is asked
IDLE_S = 1.0        # a conversation that goes on within this time is written once
GROWN = 8           # one that has grown by less than 1/GROWN since it was written is written when the model closes
MOST = 8 << 30      # bytes of all files, unless the user says
SHARE = 0.1         # of the disk that is free without them, at most, too
ALIGN = 4096
MAX_HEADER = 1 << 28
LEFT_S = 600        # seconds after which an unfinished file is nobody's any more

_log = logging.getLogger("pyllm")
_HEAD = struct.Struct("<32s32sIIH")     # key, client, tokens, groups, bytes of the model's path
_GROUP = struct.Struct("<IIQ")          # first page, pages, bytes of a page


class Damaged(Exception):
    """A file that is no conversation of this version."""


class Group(NamedTuple):
    """Pages [first, first + len(sums)) of a layer group, from `offset` on; sums: their checksums."""

    first: int
    page_bytes: int
    offset: int
    sums: array[int]


@dataclass(frozen=True)
class Entry:
    path: Path
    key: bytes
    client: bytes
    model: Path         # its (first) file
    tokens: array[int]
    groups: tuple[Group, ...]
    bytes: int

    @property
    def used(self) -> float:
        """Seconds since 1970; 0: it is gone."""
        with suppress(OSError):
            return self.path.stat().st_mtime
        return 0.0


@dataclass
class _Pending:
    client: str
    tokens: array[int]
    due: float          # monotonic; infinite: when the model closes


def folder() -> Path:
    return cache_dir() / "conversations"


def key_of(paths: Sequence[str | os.PathLike[str]], tape: str, kv: str) -> bytes:
    """What pages depend on: the files of a model and its adapters, as they are now, its tape and the KV type. Raises FileError."""
    digest = hashlib.sha256(f"{kv}\0{tape}".encode())
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as e:
            raise errors.FileError(f"{os.fspath(path)}: {e.strerror}") from e
        digest.update(os.fsencode(os.path.realpath(path)))
        digest.update(struct.pack("<QQQQ", status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & (1 << 64) - 1))
    return digest.digest()


class DiskCache:
    """One model's. `restore` and `ended` on the engine's thread; close() before the engine's ends. limit: bytes of all files of all
    models, None: at most MOST and a tenth of the free disk."""

    def __init__(self, engine: Engine, model: str, key: bytes, limit: int | None) -> None:
        self._engine, self._model, self._key, self._limit = engine, os.path.realpath(model), key, limit
        self._windows = engine.windows
        self._entries: dict[Path, Entry] = {}
        self._seen: int | None = None           # the folder's time of change when it was read
        self._pending: list[_Pending] = []
        self._work = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        self._then: Callable[[], None] | None = None        # what the writer does last

    # ---- reading ----

    def restore(self, seq: int, client: str, tokens: Sequence[int], known: int, make_places: Callable[[Sequence[int]], bool]) -> int:
        """An empty sequence begins with what a file has of `tokens`, but for the last one; how many, 0 if none has more than the `known`
        ones that are in memory by enough."""
        if self._closing:
            return 0
        self._look()
        query, limit, who = array("i", tokens), len(tokens) - 1, _client(client)
        best, n = None, known + WORTH - 1
        for entry in self._entries.values():
            if entry.client == who and entry.tokens[:PAGE] == query[:PAGE]:
                usable = self._usable(entry, min(common(query, entry.tokens), limit))
                if usable > n:
                    best, n = entry, usable
        end = -(-n // PAGE)
        if best is None or not make_places([end - first_page(w, n) for w in self._windows]):
            return 0
        sums = [[0] * g.first + list(g.sums[:max(end - g.first, 0)]) for g in best.groups]
        try:
            self._engine.load(seq, n, os.fspath(best.path), [g.offset - g.first * g.page_bytes for g in best.groups], sums)
        except (errors.FileError, errors.StateError, errors.CacheFull) as e:
            if not isinstance(e, errors.CacheFull):
                _log.warning("a conversation on disk is read anew: %s", e.message)
                if isinstance(e, errors.StateError):
                    self._forget(best.path)
                else:
                    self._entries.pop(best.path, None)      # it could not be opened or read, which another time it may
            return 0
        with suppress(OSError):
            os.utime(best.path)
        return n

    def _usable(self, entry: Entry, n: int) -> int:
        """How many of n common tokens can be gone on from: all that the next one sees must be there."""
        if n < LEAST // 4 or any(first_page(w, n) < g.first for w, g in zip(self._windows, entry.groups, strict=True)):
            return 0
        if any(self._engine.recurrent) and n < len(entry.tokens):       # a state serves the token behind its last one only
            return 0
        return n

    def _look(self) -> None:
        """Reads headers of files that were not there before."""
        mine = f"{self._key.hex()[:24]}-"
        try:
            changed = folder().stat().st_mtime_ns
            if changed == self._seen:
                return
            there = {p for p in folder().iterdir() if p.name.startswith(mine) and p.suffix == ".kv"}
        except OSError:
            return
        self._seen = changed
        self._entries = {path: e for path, e in self._entries.items() if path in there}
        for path in there - self._entries.keys():
            entry = self._entry(path)
            if entry is not None:
                self._entries[path] = entry

    def _entry(self, path: Path) -> Entry | None:
        try:
            entry = read_header(path)
        except Damaged as e:
            _log.warning("%s is removed: %s", path, e)
            self._forget(path)
            return None
        except OSError:
            return None
        layout = [self._engine.page_bytes(g) for g in range(len(self._windows))]
        fits = entry.key == self._key and [g.page_bytes for g in entry.groups] == layout
        return entry if fits else None

    def _forget(self, path: Path) -> None:
        self._entries.pop(path, None)
        with suppress(OSError):
            path.unlink()

    # ---- writing ----

    def ended(self, driver: Driver, client: str, tokens: Sequence[int], n: int) -> None:
        """A request has ended, with n of its tokens in the memory's cache."""
        if n < LEAST or self._closing or not self._started(driver):
            return
        new, who = array("i", tokens[:n]), _client(client)
        have = max((common(new, e.tokens) for e in self._entries.values() if e.client == who), default=0)
        if have == n:
            return
        later = have >= n - n // GROWN
        with self._work:
            self._pending = [p for p in self._pending if p.client != client or p.tokens != new[:len(p.tokens)]]
            self._pending.append(_Pending(client, new, float("inf") if later else time.monotonic() + IDLE_S))
            self._work.notify()

    def _started(self, driver: Driver) -> bool:
        if self._thread is None:
            thread = threading.Thread(target=self._run, args=(driver,), name="pyllm-disk-cache", daemon=True)
            try:
                thread.start()
            except RuntimeError as e:
                _log.warning("conversations are not kept on disk: %s", e)
                return False
            self._thread = thread
        return True

    def close(self) -> None:
        """Writes what is not on disk yet."""
        with self._work:
            self._closing = True
            self._work.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def disable(self) -> None:
        """Nothing is written from now on."""
        with self._work:
            self._closing = True
            self._pending.clear()
            self._work.notify()

    def end(self, then: Callable[[], None]) -> bool:
        """The engine's pages are not looked at any more; False on the writer's own thread, which calls `then` at its end."""
        self.disable()
        thread = self._thread
        if thread is threading.current_thread():
            self._then = then
            return False
        if thread is not None:
            thread.join()
        return True

    def _run(self, driver: Driver) -> None:
        try:
            while (pending := self._next()) is not None:
                try:
                    self._write(driver, pending)
                except (errors.Error, OSError) as e:
                    if isinstance(e, errors.Closed):
                        return
                    _log.warning("a conversation is not kept in %s: %s", folder(), e)
        finally:
            then, self._then = self._then, None
            if then is not None:
                self._thread = None
                then()

    def _next(self) -> _Pending | None:
        """The next one to be written, when its time has come; None at the end."""
        with self._work:
            while True:
                first = min(self._pending, key=lambda p: p.due, default=None)
                if self._closing or (first is not None and first.due <= time.monotonic()):
                    if first is not None:
                        self._pending.remove(first)
                    return first
                wait = None if first is None or first.due == float("inf") else first.due - time.monotonic()
                self._work.wait(wait)

    def _write(self, driver: Driver, pending: _Pending) -> None:
        """The pages stay where they are while they are written: a sequence of its own holds them."""
        held: list[tuple[int, int]] = []

        def hold() -> None:
            seq = self._engine.open_seq()
            if seq is None:
                raise errors.CacheFull("all sequences are in use")
            hit = driver.cache.attach(seq, pending.client, pending.tokens, len(pending.tokens))
            held.append((seq, hit.n))

        def give_back(_: None) -> None:
            self._engine.close_seq(held[0][0])

        driver.call(hold, undo=give_back)
        seq, n = held[0]
        try:
            if n >= LEAST:
                entry = self._store(seq, _client(pending.client), pending.tokens[:n])
                if entry is not None:
                    driver.call(lambda: self._replaces(entry))
        finally:
            with suppress(errors.Error):
                driver.post(lambda: self._engine.close_seq(seq))

    def _replaces(self, entry: Entry) -> None:
        """A conversation that went on takes the place of what it was."""
        for old in list(self._entries.values()):
            begins = old.client == entry.client and len(old.tokens) < len(entry.tokens) and old.tokens == entry.tokens[:len(old.tokens)]
            if begins and not any(self._windows):
                self._forget(old.path)
        self._entries[entry.path] = entry

    def _store(self, seq: int, client: bytes, tokens: array[int]) -> Entry | None:
        n_pages = -(-len(tokens) // PAGE)
        firsts = [first_page(w, len(tokens)) for w in self._windows]
        sizes = [self._engine.page_bytes(g) for g in range(len(firsts))]
        path = os.fsencode(self._model)
        head = (len(MAGIC) + 8 + _HEAD.size + len(path) + 4 * len(tokens) + 8
                + sum(_GROUP.size + 8 * (n_pages - first) for first in firsts))
        at, groups = -(-head // ALIGN) * ALIGN, list[Group]()
        for first, size in zip(firsts, sizes, strict=True):
            groups.append(Group(first, size, at, array("Q")))
            at += (n_pages - first) * size
        name = f"{self._key.hex()[:24]}-{hashlib.sha256(client + tokens.tobytes()).hexdigest()[:24]}.kv"
        if not self._make_room(at, name):
            return None
        target = folder() / name
        temporary = folder() / f".{name}.{os.getpid()}-{os.urandom(4).hex()}.tmp"
        try:
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600), "wb") as f:
                for g, group in enumerate(groups):
                    f.seek(group.offset)
                    for i in range(group.first, n_pages):
                        page = self._engine.page(seq, g, i)
                        if page is None:
                            return None
                        group.sums.append(lib.pyllm_checksum(ffi.from_buffer(page), len(page)))
                        f.write(page)
                entry = Entry(target, self._key, client, Path(self._model), tokens, tuple(groups), at)
                f.seek(0)
                f.write(header_of(entry))
            os.replace(temporary, target)
            return entry
        finally:
            with suppress(OSError):
                temporary.unlink()

    def _make_room(self, size: int, name: str) -> bool:
        """Removes what was used least recently until a file of `size` bytes has its place."""
        place = folder()
        place.mkdir(parents=True, mode=0o700, exist_ok=True)
        files = [(s.st_mtime, s.st_size, path) for path, s in _files(place) if path.name != name]
        taken = sum(n for _, n, _ in files)
        share = int(SHARE * (shutil.disk_usage(place).free + taken))
        limit = min(MOST, share) if self._limit is None else self._limit
        if size > limit:
            _log.info("a conversation of %d MB is not kept: all of them may take %d MB", size >> 20, limit >> 20)
            return False
        for _, n, path in sorted(files):
            if taken + size <= limit:
                break
            with suppress(OSError):
                path.unlink()
            taken -= n
        return True


def entries() -> list[Entry]:
    """All conversations of all models, most recently used first; without files that are damaged."""
    found = []
    for path, _ in _files(folder()):
        with suppress(Damaged, OSError):
            found.append(read_header(path))
    return sorted(found, key=lambda e: -e.used)


def of_model(path: str | os.PathLike[str]) -> list[Entry]:
    """Those of a model's file, which need not be there any more."""
    real = Path(os.path.realpath(path))
    return [e for e in entries() if e.model == real]


def _files(place: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Finished files; what a process that died left of unfinished ones is removed."""
    with suppress(OSError):
        for path in sorted(place.iterdir()):
            with suppress(OSError):
                status = path.stat()
                if path.suffix == ".kv":
                    yield path, status
                elif path.suffix == ".tmp" and time.time() - status.st_mtime > LEFT_S:
                    path.unlink()


def _client(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()


# ---- the header ----

def header_of(entry: Entry) -> bytes:
    path = os.fsencode(entry.model)
    body = _HEAD.pack(entry.key, entry.client, len(entry.tokens), len(entry.groups), len(path)) + path
    body += b"".join(_GROUP.pack(g.first, len(g.sums), g.page_bytes) for g in entry.groups)
    body += entry.tokens.tobytes() + b"".join(g.sums.tobytes() for g in entry.groups)
    body += struct.pack("<Q", lib.pyllm_checksum(ffi.from_buffer(body), len(body)))
    return MAGIC + struct.pack("<Q", len(body)) + body


def read_header(path: Path) -> Entry:
    """Raises Damaged, OSError."""
    with open(path, "rb", buffering=0) as f:
        size = os.fstat(f.fileno()).st_size
        start = f.read(16)
        n = struct.unpack("<Q", start[8:])[0] if len(start) == 16 else 0
        if start[:8] != MAGIC or not _HEAD.size + 8 < n < min(size, MAX_HEADER):
            raise Damaged("it is no conversation of this version")
        body = f.read(n)
    if len(body) != n or struct.pack("<Q", lib.pyllm_checksum(ffi.from_buffer(body), n - 8)) != body[-8:]:
        raise Damaged("the checksum of its header does not match")
    try:
        return _parsed(path, body[:-8], size)
    except (struct.error, ValueError, IndexError):
        raise Damaged("its header does not fit its size") from None


def _parsed(path: Path, body: bytes, size: int) -> Entry:
    key, client, n_tokens, n_groups, n_path = _HEAD.unpack_from(body)
    at = _HEAD.size
    model = Path(os.fsdecode(body[at:at + n_path]))
    at += n_path
    shapes = [_GROUP.unpack_from(body, at + i * _GROUP.size) for i in range(n_groups)]
    at += n_groups * _GROUP.size
    tokens = array("i")
    tokens.frombytes(body[at:at + 4 * n_tokens])
    at += 4 * n_tokens
    offset, groups = -(-(len(body) + 24) // ALIGN) * ALIGN, []
    for first, n, page_bytes in shapes:
        sums = array("Q")
        sums.frombytes(body[at:at + 8 * n])
        at += 8 * n
        groups.append(Group(first, page_bytes, offset, sums))
        offset += n * page_bytes
        if len(sums) != n or first + n != -(-n_tokens // PAGE):
            raise ValueError
    if at != len(body) or len(tokens) != n_tokens or offset != size or not n_tokens:
        raise ValueError
    return Entry(path, key, client, model, tokens, tuple(groups), size)
