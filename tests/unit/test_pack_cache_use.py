"""Packed weights on disk while models run from them: files that change, other processes, crashes, full and broken disks, and the commands
that show and remove them. No text becomes wrong, no process dies."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_gguf
from packed import IDS, load, one_pack, packs, write_model

import pyllm
from pyllm import pack_cache


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYLLM_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "models/tiny.gguf", "q8_0")


# ---- while it is in use ----

BEGIN = """
import os, sys, time, signal, threading, json, logging
from pathlib import Path
import pyllm
model, home = Path(sys.argv[1]), Path(os.environ["PYLLM_HOME"])
def load(**options):
    return pyllm.LLM(model, ctx=64, threads=2, pack_cache=True, **options)
def pack():
    (path,) = home.glob("packed/*.pack")
    return path
IDS = list(range(3, 40))
"""


def child(code: str, model: Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BEGIN + code, str(model)], capture_output=True, text=True, timeout=300, check=False,
                          cwd=model.parent, **options)     # type: ignore[call-overload, no-any-return]


CHANGES = {"cut off": "os.truncate(pack(), 2 << 20)", "cut in the middle": "os.truncate(pack(), (2 << 20) + 300000)",
           "emptied": "open(pack(), 'w').close()",
           "written to": "f = open(pack(), 'r+b'); f.seek(3 << 20); f.write(b'x'); f.close()"}


@pytest.mark.parametrize("what", CHANGES)
def test_a_file_that_is_changed_while_a_model_runs_from_it(what: str, model: Path, home: Path) -> None:
    """An error, no wrong text, no dead process; the next load works."""
    expected = load(model)[1]
    one_pack(home).chmod(0o600)
    done = child(f"""
with load() as llm, load() as other, llm.session() as session:
    assert llm.info["pack_cache"] == other.info["pack_cache"] == "mapped"
    good = llm.logits(IDS).tobytes()
    {CHANGES[what]}
    for attempt in range(3):
        for x in (llm, other):
            try:
                x.logits(IDS)
            except pyllm.FileError as e:
                assert "load the model again" in e.hint and ".pack" in e.message, e
            else:
                raise SystemExit("no error")
    try:
        session.save("state")
    except pyllm.FileError:
        pass
with load() as llm:
    assert (llm.info["pack_cache"], llm.logits(IDS).tobytes()) == ("stored", good)
print("ok")
""", model)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")
    assert load(model) == ("mapped", expected)


def test_a_file_that_is_removed_or_replaced_stays_mapped(model: Path, home: Path) -> None:
    expected = load(model)[1]
    with pyllm.LLM(model, ctx=64, threads=2, pack_cache=True) as llm:
        one_pack(home).unlink()
        assert llm.logits(IDS).tobytes() == expected
        assert load(model) == ("stored", expected)
        assert llm.logits(IDS).tobytes() == expected


def test_sigbus_is_ours_only_while_something_is_mapped(model: Path) -> None:
    """The signal's handler is set with the first mapping and given back with the last; a fault elsewhere ends the process as ever."""
    load(model)
    done = child("""
def caught():
    line = next(l for l in open("/proc/self/status") if l.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (signal.SIGBUS - 1) & 1)
assert not caught()
a = load()
b = load()
assert caught()
a.close()
assert caught()
b.close()
assert not caught()
a = load()
import mmap
with open("own", "w+b") as f:
    f.truncate(8192)
    m = mmap.mmap(f.fileno(), 8192)
    f.truncate(0)
    print("before", flush=True)
    m[5000]
""", model)
    assert (done.returncode, done.stdout) == (-signal.SIGBUS, "before\n")


def test_a_handler_that_was_there_before_gets_what_is_not_ours(model: Path) -> None:
    load(model)
    done = child("""
import faulthandler
faulthandler.enable()
a = load()
os.kill(os.getpid(), signal.SIGBUS)
print("not reached")
""", model)
    assert done.returncode == -signal.SIGBUS and done.stdout == "" and "Fatal Python error: Bus error" in done.stderr


# ---- other processes, crashes ----

def spawn(code: str, model: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", BEGIN + code, str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, cwd=model.parent)


def test_many_processes_at_once(model: Path, home: Path) -> None:
    """All load, some remove what the others write or map; all compute the same."""
    expected = load(model, keep=False)[1]
    code = """
import zlib, contextlib
input()
for i in range(6):
    with load() as llm:
        print(zlib.crc32(llm.logits(IDS).tobytes()), llm.info["pack_cache"])
    if len(sys.argv) and os.getpid() % 3 == i % 3:
        for path in home.glob("packed/*.pack"):
            with contextlib.suppress(OSError):
                path.unlink()
"""
    import zlib

    processes = [spawn(code, model) for _ in range(6)]
    for p in processes:
        assert p.stdin is not None
        p.stdin.write("\n")
        p.stdin.flush()
    for p in processes:
        out, err = p.communicate(timeout=300)
        lines = [line.split() for line in out.splitlines()]
        assert (p.returncode, err) == (0, "") and len(lines) == 6
        assert {int(crc) for crc, _ in lines} == {zlib.crc32(expected)} and {state for _, state in lines} <= {"mapped", "stored", "failed"}
    assert load(model)[1] == expected and load(model) == ("mapped", expected)
    assert [p.suffix for p in packs(home)] == [".pack"]


def test_threads_of_one_process(model: Path, home: Path) -> None:
    done = child("""
logits, states = set(), []
def work():
    with load() as llm:
        states.append(llm.info["pack_cache"])
        logits.add(llm.logits(IDS).tobytes())
threads = [threading.Thread(target=work) for _ in range(6)]
for t in threads: t.start()
for t in threads: t.join()
assert len(logits) == 1 and len(states) == 6, states
print("ok")
""", model)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")
    assert load(model)[0] == "mapped" and len(packs(home)) == 1


def test_killed_while_writing(tmp_path: Path, home: Path) -> None:
    """There is a whole file or none, and what was left goes with the next writing."""
    path = write_model(tmp_path / "m.gguf", "f32")
    expected = load(path, keep=False)[1]
    left = 0
    for attempt in range(12):
        p = spawn("""
from pyllm import pack_cache, weights
with load() as llm:
    print("ready", flush=True)
    from pyllm.gguf import GGUF
    with GGUF(model) as gguf:
        target = pack()
        while True:
            weights.store(llm._engine._model, gguf.handle, target, 2, llm._engine._cancel)
""", path)
        assert p.stdout is not None and p.stdout.readline() == "ready\n", p.communicate()
        time.sleep(0.02 + 0.013 * attempt)
        p.kill()
        p.communicate()
        left += any(f.suffix == ".tmp" for f in packs(home))
        assert load(path) == ("mapped", expected)
        one = next(f for f in packs(home) if f.suffix == ".pack")
        if attempt % 2:
            one.unlink()
            assert load(path) == ("stored", expected)
            assert [f.suffix for f in packs(home)] == [".pack"]
    assert left


def test_somebody_else_writes_it(model: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    import fcntl

    expected = load(model)[1]
    pack = one_pack(home)
    pack.unlink()
    with open(f"{pack}.1-1.tmp", "wb") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        assert load(model) == ("failed", expected) and "another process is writing" in caplog.text
    assert load(model) == ("stored", expected) and one_pack(home) == pack


def test_interrupted_while_loading(tmp_path: Path, home: Path) -> None:
    """Ctrl-C ends a load that packs and stores; nothing of it is left."""
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_gguf.llama("f32", False, n_layers=12, n_ff=4096, n_vocab=8000)[0])
    time.sleep(0.1)
    for _ in range(30):
        p = spawn("""
print("ready", flush=True)
try:
    while True:
        with load(): pass
        for f in home.glob("packed/*.pack"): f.unlink()
except KeyboardInterrupt:
    print("interrupted", [t.name for t in threading.enumerate()], flush=True)
""", path)
        assert p.stdout is not None and p.stdout.readline() == "ready\n"
        time.sleep(0.3)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=300)
        assert (p.returncode, out) == (0, "interrupted ['MainThread']\n"), err
        if "Traceback" not in err:
            break
    assert err == "" and not list(home.glob("packed/*.tmp"))


# ---- disks ----

SHIM = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
static long written;
static int fails(const char *call) { return getenv("FAIL") && !strcmp(getenv("FAIL"), call); }
ssize_t pwrite(int fd, const void *p, size_t n, off_t at) {
    ssize_t (*next)(int, const void *, size_t, off_t) = (ssize_t (*)(int, const void *, size_t, off_t))dlsym(RTLD_NEXT, "pwrite");
    if (fails("short")) n = n > 100000 ? 100000 : n;
    if (fails("pwrite") && (written += (long)n) > 3000000) return errno = ENOSPC, -1;
    return next(fd, p, n, at);
}
int fsync(int fd) {
    int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return fails("fsync") ? (errno = EIO, -1) : next(fd);
}
int rename(const char *a, const char *b) {
    int (*next)(const char *, const char *) = (int (*)(const char *, const char *))dlsym(RTLD_NEXT, "rename");
    return fails("rename") ? (errno = EROFS, -1) : next(a, b);
}
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes system calls fail, as a full or broken disk does."""
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(folder / "shim.so"), str(folder / "shim.c"), "-ldl"], check=True)
    return folder / "shim.so"


@pytest.mark.parametrize(("call", "said"), [("pwrite", "No space left on device"), ("fsync", "Input/output error"),
                                            ("rename", "Read-only file system"), ("short", None)])
def test_disks_that_fail(call: str, said: str | None, shim: Path, model: Path, home: Path) -> None:
    expected = load(model, keep=False)[1]
    done = child("""
logging.basicConfig(format="%(message)s")
with load() as llm:
    print(llm.info["pack_cache"], llm.logits(IDS).tobytes().hex())
""", model, env={**os.environ, "LD_PRELOAD": str(shim), "FAIL": call})
    state, logits = done.stdout.split()
    assert done.returncode == 0 and bytes.fromhex(logits) == expected
    if said is None:
        assert (state, done.stderr) == ("stored", "")
    else:
        assert state == "failed" and done.stderr.startswith("packed weights are not kept in ") and said in done.stderr
        assert packs(home) == []


@pytest.mark.parametrize("place", ["a file", "/proc/nothing"])
def test_a_cache_that_cannot_be_written(place: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                        caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a file").write_text("x")
    expected = load(model, keep=False)[1]
    monkeypatch.setenv("PYLLM_HOME", place if place.startswith("/") else str(tmp_path / place))
    assert load(model) == ("failed", expected)
    assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.WARNING and "packed weights are not kept" in caplog.text
    assert pack_cache.entries() == []


def test_the_warning_reaches_the_terminal(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("x")
    env = {**os.environ, "PYLLM_HOME": str(tmp_path / "a file")}
    arguments = ["bench", str(model), "-p", "4", "-n", "0", "-r", "1"]
    for more, warned in ((["--pack-cache"], 1), ([], 0)):
        command = [sys.executable, "-m", "pyllm", *arguments, *more]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0 and done.stderr.count("warning: packed weights are not kept in ") == warned
        assert "Traceback" not in done.stderr


def free_disk(monkeypatch: pytest.MonkeyPatch, capacity: int) -> None:
    """A disk on which nothing but the packed weights takes room."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=capacity - sum(e.bytes for e in pack_cache.entries())))


def test_the_least_recently_used_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write_model(tmp_path / f"m{i}.gguf", seed=i) for i in range(4)]
    load(paths[0])
    size = pack_cache.entries()[0].bytes
    free_disk(monkeypatch, 5 * (3 * size + 1000))           # a fifth is three of them

    def kept() -> set[str]:
        assert sum(e.bytes for e in pack_cache.entries()) <= 3 * size + 1000
        return {e.model.stem for e in pack_cache.entries()}

    for i in (1, 2):
        time.sleep(0.02)
        assert load(paths[i])[0] == "stored"
    assert kept() == {"m0", "m1", "m2"}
    time.sleep(0.02)
    assert load(paths[0])[0] == "mapped"            # used again: m1 is now the one not used for longest
    assert [e.model.stem for e in pack_cache.entries()] == ["m0", "m2", "m1"]
    time.sleep(0.02)
    assert load(paths[3])[0] == "stored" and kept() == {"m0", "m2", "m3"}
    paths[2].unlink()
    time.sleep(0.02)
    assert load(paths[1])[0] == "stored" and kept() == {"m0", "m1", "m3"}       # m2's model is gone: it goes though m0 is older


def test_what_is_larger_than_a_fifth_of_the_disk(model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    other = write_model(model.with_name("other.gguf"), "q4_0")
    load(other)
    free_disk(monkeypatch, 5 * pack_cache.of_model(other)[0].bytes)
    assert load(model)[0] == "failed" and "a fifth of the free disk" in caplog.text
    assert [e.model for e in pack_cache.entries()] == [other]           # nothing goes for what cannot be kept anyway


def test_damaged_files_and_strangers_go_with_the_next_writing(model: Path, home: Path) -> None:
    load(model)
    good = one_pack(home)
    (home / "packed/bad.pack").write_bytes(b"x" * 100)
    (home / "packed/bad.pack.9-9.tmp").write_bytes(b"x")
    (home / "packed/notes.txt").write_text("mine")
    assert [e.path for e in pack_cache.entries()] == [good]
    good.unlink()
    assert load(model)[0] == "stored"
    assert {p.name for p in packs(home)} == {good.name, "notes.txt"}


def test_nobody_else_can_read_it_and_nobody_writes_by_mistake(model: Path, home: Path) -> None:
    load(model)
    assert one_pack(home).stat().st_mode & 0o777 == 0o400


def test_a_load_that_does_not_fit_is_refused_with_packed_weights_too(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(model)
    monkeypatch.setattr(pyllm.llm.memory, "available", lambda: 1 << 20)
    with pytest.raises(pyllm.OutOfMemory, match=r"needs \d+ MB \(\d+ weights, .* 1 MB are available\nhint: "):
        load(model)


# ---- list, rm ----

def pyllm_command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    from pyllm import cli

    code = cli.main(list(words))
    return code, *capsys.readouterr()


def test_list_and_rm(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, outside = write_model(home / "own.gguf"), write_model(tmp_path / "elsewhere.gguf")
    assert "PACKED" not in pyllm_command(capsys, "list")[1]
    before = time.time()
    assert load(own)[0] == load(outside)[0] == "stored"
    _, out, err = pyllm_command(capsys, "list")
    table = out.split("\n\n")[1].splitlines()
    assert err == "" and table[0].split() == ["PACKED", "WEIGHTS", "OF", "SIZE", "LAST", "USED"]
    size = pack_cache.of_model(own)[0].bytes
    assert [line.split()[0] for line in table[1:]] == ["own", str(outside)] and f"{size / 1e6:.3g} MB" in table[1]
    assert time.strftime("%Y-%m-%d", time.localtime(before)) in table[1]
    rows = json.loads(pyllm_command(capsys, "list", "--json")[1])
    assert [(r["name"], r["where"], r["packed_bytes"]) for r in rows] == [("own", "pyllm", size), (str(outside), "file", size)]
    assert all(before - 5 < r["packed_used"] < time.time() + 5 for r in rows)

    assert pyllm_command(capsys, "rm", "-y", str(outside))[0] == 1 and outside.exists()
    outside.unlink()
    assert str(outside) in pyllm_command(capsys, "list")[1]
    code, out, err = pyllm_command(capsys, "rm", "--packed", "-y", str(outside))
    assert (code, out) == (0, "") and err.startswith(f"removed the packed weights of {outside} (")
    assert [e.model for e in pack_cache.entries()] == [own]
    code, _, err = pyllm_command(capsys, "rm", "--packed", "-y", str(outside))
    assert code == 1 and "hint: `pyllm list`" in err

    assert pyllm_command(capsys, "rm", "--packed", "-y", "own")[0] == 0 and own.exists() and packs(home) == []
    assert load(own)[0] == "stored"
    code, _, err = pyllm_command(capsys, "rm", "-y", "own")
    assert code == 0 and "with its packed weights" in err and not own.exists() and packs(home) == []


def test_one_model_under_two_names(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_model(tmp_path / "real.gguf")
    (home / "link.gguf").symlink_to(path)
    assert load(home / "link.gguf")[0] == "stored" and load(path)[0] == "mapped"
    rows = json.loads(pyllm_command(capsys, "list", "--json")[1])
    assert [(r["name"], r["packed_bytes"] is not None) for r in rows] == [("link", True)]
    assert pyllm_command(capsys, "rm", "-y", "link")[0] == 0 and path.exists() and packs(home) == []


def test_the_command_line_keeps_and_maps(model: Path, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model.parent / "t.txt").write_text("w1 w2 w3 " * 40)
    results = []
    for more in ([], ["--pack-cache"], ["--pack-cache"]):
        code, out, _ = pyllm_command(capsys, "ppl", str(model), "-f", str(model.parent / "t.txt"), "--ctx", "16", "--chunks", "2", *more)
        assert code == 0 and len(packs(home)) == bool(more)
        results.append(out)
    assert results[0] == results[1] == results[2]
