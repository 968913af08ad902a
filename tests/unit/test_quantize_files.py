"""What pyllm quantize leaves on the disk: a whole file under its name or the one that was there, whatever happens; and nothing else."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf

from pyllm import errors
from pyllm.cli import main
from pyllm.quantize import pipeline, quantize, writer
from pyllm.quantize.writer import Writer

MIX, SLAB = "Q5_1", 1 << 13          # small slabs: many writes


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "in.gguf"
    path.write_bytes(tiny_gguf.llama("f16", n_layers=1)[0])
    return path


@pytest.fixture(scope="module")
def whole(source: Path) -> bytes:
    """What the file holds when all goes well."""
    out = source.parent / "whole.gguf"
    quantize(source, out, MIX)
    return out.read_bytes()


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SLAB", SLAB)
    monkeypatch.setattr(writer, "_SYNC_BYTES", 1 << 16)


CALLS = ("write", "pwrite", "fsync", "fdatasync", "fchmod", "rename", "open")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ---- what the system refuses ----

@pytest.mark.parametrize(("call", "code"), [("write", errno.ENOSPC), *((c, errno.EIO) for c in CALLS), ("fsync", errno.EDQUOT)])
def test_every_call_may_fail(source: Path, whole: bytes, tmp_path: Path, small_slabs: None, monkeypatch: pytest.MonkeyPatch, call: str,
                             code: int) -> None:
    """The k-th call of one kind fails, for every k until none does: a typed error, the old file as it was, and nothing beside it."""
    out, real = tmp_path / "out.gguf", getattr(os, call)
    fails, left = 0, [0]

    def failing(*args: Any, **kwargs: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    monkeypatch.setattr(writer, "os", type("os", (), {**vars(os), call: staticmethod(failing)}))
    while True:
        out.write_bytes(b"old")
        left[0] = fails + 1
        try:
            quantize(source, out, MIX)
        except errors.FileError as e:
            fails += 1
            full = code in (errno.ENOSPC, errno.EDQUOT)
            assert ("the disk is full" if full else "cannot be written") in str(e) and str(out) in str(e) and e.hint
        else:
            break
        # once it is renamed, only the sync of the folder can fail: the file is whole, but perhaps not for ever
        assert out.read_bytes() == b"old" or (call in ("fsync", "open") and out.read_bytes() == whole)
        assert names(tmp_path) == ["out.gguf"]
    assert out.read_bytes() == whole and names(tmp_path) == ["out.gguf"]
    assert fails >= {"write": 80, "pwrite": 1, "fsync": 2, "fdatasync": 3, "fchmod": 1, "rename": 1, "open": 2}[call]


ON_SMALL_DISK = """
import os, sys
from pathlib import Path
from pyllm import errors
from pyllm.quantize import pipeline, quantize, writer
source, mount, mix, slab = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
pipeline.SLAB = slab
writer._check_room = lambda path, n: None       # the room seems enough when it starts
out, filler, full = mount / "out.gguf", mount / "filler", 0
free = os.statvfs(mount).f_bavail * 4096
for room in range(4096, free, 4096):            # every page of the file may be the one too many
    with open(filler, "wb") as f:
        os.posix_fallocate(f.fileno(), 0, free - room)
    try:
        quantize(source, out, mix)
        break
    except errors.FileError as e:
        assert "the disk is full" in str(e), e
        full += 1
    assert [p.name for p in mount.iterdir()] == ["filler"], list(mount.iterdir())
print(full, out.stat().st_size)
sys.stdout.flush()
sys.stdout.buffer.write(out.read_bytes())
"""


def test_full_disk(source: Path, whole: bytes, tmp_path: Path) -> None:
    """A file system in memory, with room for one page more each time."""
    script = f"mount -t tmpfs -o size=4m tmpfs '{tmp_path}' && exec '{sys.executable}' -c \"$0\" \"$@\""
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script, ON_SMALL_DISK, str(source), str(tmp_path), MIX, str(SLAB)],
                          capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    figures, _, content = done.stdout.partition(b"\n")
    full, size = map(int, figures.split())
    assert content == whole and size == len(whole) and full >= len(whole) // 4096 - 1


LIMITED = """
import resource, sys
from pyllm import errors
from pyllm.quantize import quantize
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), -1))
try:
    quantize(sys.argv[1], sys.argv[2], sys.argv[4])
except errors.FileError as e:
    print(e)
"""


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_limit_on_file_size(source: Path, whole: bytes, tmp_path: Path, share: float) -> None:
    out = tmp_path / "out.gguf"
    done = subprocess.run([sys.executable, "-c", LIMITED, str(source), str(out), str(int(share * len(whole))), MIX], capture_output=True,
                          text=True, check=True)
    assert "File too large\nhint: " in done.stdout and names(tmp_path) == []


def test_too_little_room_is_seen_first(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1000}))
    with pytest.raises(errors.FileError, match=r"has 0 MB free, out.gguf takes \d+ MB\nhint: free some space"):
        quantize(source, tmp_path / "out.gguf", MIX)
    assert names(tmp_path) == []


# ---- interruptions ----

# Forks for every line of its input: a process that quantizes, ready to be killed.
FORKS = """
import os, signal, sys
from pyllm.quantize import pipeline, quantize, writer
pipeline.SLAB = int(sys.argv[4])
signal.signal(signal.SIGINT, signal.SIG_IGN)
for line in sys.stdin:
    child = os.fork()
    if not child:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            quantize(sys.argv[1], sys.argv[2], sys.argv[3], n_threads=2)
        except KeyboardInterrupt:
            os._exit(130)
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    def __init__(self, source: Path, out: Path) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", FORKS, str(source), str(out), MIX, str(SLAB)], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, text=True)

    def run(self, number: int | None = None, after_s: float = 0.0) -> tuple[int, float]:
        """Exit code and seconds of one process, which gets a signal on its way."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        child, begin = int(self._process.stdout.readline()), time.perf_counter()
        if number is not None:
            time.sleep(after_s)
            os.kill(child, number)          # still there as a zombie if it was faster: waited for only below, or gone
        return int(self._process.stdout.readline()), time.perf_counter() - begin

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture
def forks(source: Path, tmp_path: Path) -> Iterator[Forks]:
    found = Forks(source, tmp_path / "out.gguf")
    yield found
    found.close()


def interrupted(forks: Forks, folder: Path, whole: bytes, number: int, times: int, check: Callable[[int], None]) -> int:
    """Signals at random moments of the work; returns how many arrived before its end."""
    out, rng, hits = folder / "out.gguf", random.Random(7), 0
    out.write_bytes(b"old")
    usual = min(forks.run()[1] for _ in range(3))
    assert out.read_bytes() == whole
    for i in range(times):
        old = whole if i % 2 else b"old"
        out.write_bytes(old)
        try:
            code, _ = forks.run(number, rng.uniform(0, 1.1 * usual))
        except ProcessLookupError:          # it was done and waited for
            code, _ = 0, forks._process.stdout.readline()  # type: ignore[union-attr]
        assert out.read_bytes() in (old, whole)
        hits += code != 0
        check(code)
    assert forks.run()[0] == 0
    assert out.read_bytes() == whole and names(folder) == ["out.gguf"]      # what the killed ones left is gone
    return hits


def killed(forks: Forks, folder: Path, whole: bytes, times: int) -> None:
    left: list[int] = []
    hits = interrupted(forks, folder, whole, signal.SIGKILL, times, lambda code: left.append(len(names(folder)) - 1))
    assert hits >= times // 4 and max(left) == 1       # some were in the middle, and never more than one leftover


def test_kills(forks: Forks, whole: bytes, tmp_path: Path) -> None:
    killed(forks, tmp_path, whole, 20)


@pytest.mark.slow
def test_kills_many(forks: Forks, whole: bytes, tmp_path: Path) -> None:
    killed(forks, tmp_path, whole, 200)


def ctrl_c(forks: Forks, folder: Path, whole: bytes, times: int) -> None:
    def check(code: int) -> None:
        assert code in (0, 130) and names(folder) == ["out.gguf"]

    assert interrupted(forks, folder, whole, signal.SIGINT, times, check) >= times // 6


def test_ctrl_c_leaves_nothing(forks: Forks, whole: bytes, tmp_path: Path) -> None:
    ctrl_c(forks, tmp_path, whole, 30)


@pytest.mark.slow
def test_ctrl_c_many(forks: Forks, whole: bytes, tmp_path: Path) -> None:
    """Rare places: an interrupt while the threads' queues change hands must not leave one of them waiting for ever."""
    ctrl_c(forks, tmp_path, whole, 1000)


def test_exception_of_the_caller_leaves_nothing(source: Path, tmp_path: Path, small_slabs: None) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        quantize(source, tmp_path / "out.gguf", MIX, progress=stop)
    assert names(tmp_path) == []


def test_leftovers_of_the_dead_go_and_those_of_the_living_stay(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dead, living, other = (tmp_path / n for n in (".pyllm-0123.part", ".pyllm-4567.part", ".pyllm-notes.txt"))
    for path in (dead, living, other):
        path.write_bytes(b"x")
    with open(living, "rb") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        assert main(["quantize", str(source), str(tmp_path / "out.gguf"), MIX]) == 0
    assert names(tmp_path) == sorted([living.name, other.name, "out.gguf"])
    assert capsys.readouterr().err == f"removed {dead}, left behind by a process that was killed\n"
    with Writer(tmp_path / "a.gguf", {}, []) as a, Writer(tmp_path / "b.gguf", {}, []) as b:
        assert a.removed == [living] and b.removed == []
        a.commit()
        b.commit()


# ---- where it writes ----

def test_input_is_never_the_output(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, content = tmp_path / "in.gguf", source.read_bytes()
    model.write_bytes(content)
    (tmp_path / "soft").symlink_to(model)
    (tmp_path / "softer").symlink_to("soft")
    os.link(model, tmp_path / "hard")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/way").symlink_to("..")
    monkeypatch.chdir(tmp_path)
    for name in ("in.gguf", str(model), "./folder/../in.gguf", "soft", "softer", "hard", "folder/way/in.gguf"):
        with pytest.raises(errors.ArgumentError, match=r"is the input .*in.gguf itself\nhint: "):
            quantize("in.gguf", name, MIX)
        with pytest.raises(errors.ArgumentError, match="is the input"):
            quantize(name, "in.gguf", MIX)
    text = tmp_path / "text"
    text.write_text("text")
    with pytest.raises(errors.ArgumentError, match="is the input"):
        quantize("in.gguf", text, MIX, evaluate=text)
    assert model.read_bytes() == content and names(tmp_path) == ["folder", "hard", "in.gguf", "soft", "softer", "text"]


def test_outputs_that_cannot_be(source: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for out, says in ((tmp_path, "is a folder"), (tmp_path / "pipe", "not a regular file"), (Path("/dev/null"), "not a regular file")):
        with pytest.raises(errors.ArgumentError, match=says):
            quantize(source, out, MIX)
    with pytest.raises(errors.FileError, match=r"there is no folder .*nowhere\nhint: make it"):
        quantize(source, tmp_path / "nowhere/out.gguf", MIX)
    with pytest.raises(errors.FileError, match=r"cannot be written: .*\nhint: "):
        quantize(source, tmp_path / (300 * "n"), MIX)
    with pytest.raises(errors.ArgumentError, match="is not a path"):
        quantize(source, "a\0b", MIX)
    assert names(tmp_path) == ["pipe"]


def test_links_are_followed_and_permissions_kept(source: Path, whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target.gguf")
    quantize(source, tmp_path / "link", MIX)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target.gguf").read_bytes() == whole
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "target.gguf").stat().st_mode & 0o777 == 0o666 & ~mask
    (tmp_path / "target.gguf").chmod(0o640)
    quantize(source, tmp_path / "link", MIX)
    assert (tmp_path / "target.gguf").stat().st_mode & 0o777 == 0o640
    long = tmp_path / (250 * "n" + ".gguf")             # as long as names can be
    quantize(source, long, MIX)
    assert long.read_bytes() == whole


@pytest.mark.parametrize("at", [0.02, 0.5, 0.999])
def test_verify_finds_what_the_disk_changed(source: Path, whole: bytes, tmp_path: Path, small_slabs: None, monkeypatch: pytest.MonkeyPatch,
                                            at: float) -> None:
    """A bit turns between writing and reading."""
    real = Writer.sync

    def sync(self: Writer) -> None:
        assert self.temporary
        data = bytearray(self.temporary.read_bytes())
        data[int(at * len(data))] ^= 4
        self.temporary.write_bytes(data)
        real(self)

    monkeypatch.setattr(Writer, "sync", sync)
    with pytest.raises((errors.FileError, errors.FormatError)):
        quantize(source, tmp_path / "out.gguf", MIX, verify=True)
    assert names(tmp_path) == []


# ---- the writer alone ----

def test_writer_wants_exactly_the_data(tmp_path: Path) -> None:
    specs = [writer.TensorSpec("a", (8, 2), 0), writer.TensorSpec("none", (8, 0), 0), writer.TensorSpec("b", (32,), 8)]
    out = tmp_path / "out.gguf"
    with Writer(out, {}, specs) as w:
        w.write(bytes(60))
        with pytest.raises(errors.ArgumentError, match="more data than the tensors hold"):
            w.write(bytes(5))
        with pytest.raises(errors.ArgumentError, match="tensor a is not complete"):
            w.commit()
        w.write(bytes(4))
        w.write(bytes(34))
        with pytest.raises(errors.ArgumentError, match="more data"):
            w.write(b"x")
        w.commit()
        with pytest.raises(errors.ArgumentError, match="already closed"):
            w.commit()
    assert out.stat().st_size == w.n_bytes == writer.file_bytes({}, specs)
    with pytest.raises(errors.ArgumentError, match="not whole blocks of q8_0"):
        Writer(out, {}, [writer.TensorSpec("b", (33,), 8)])
