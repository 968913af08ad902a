"""The host process lives and dies as it likes: forks, exits, closes while requests run. Each case is a child process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_gguf

from pyllm import memory

BEGIN = """
import os, sys, threading, time, warnings
import pyllm
warnings.simplefilter("ignore", DeprecationWarning)     # of a fork beside threads, which is the point here
path = sys.argv[1]
llm = pyllm.LLM(path, ctx=4096, chat_template="{{ messages[-1].content }}")
never = {2: float("-inf")}

def streams(n=4):
    found = [iter(llm.stream_complete([5 + i, 6], temperature=0, logit_bias=never)) for i in range(n)]
    for s in found:
        next(s)
    return found
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    path.write_bytes(tiny_gguf.llama("q8_0", ctx=4096)[0])
    return path


def run(path: Path, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BEGIN + code, str(path)], capture_output=True, text=True, timeout=200, cwd=path.parent,
                          check=False)


def child(path: Path, code: str, want: str) -> None:
    """Runs code; it ends by itself, with nothing on stderr and `want` on stdout."""
    done = run(path, code)
    assert (done.returncode, done.stdout, done.stderr) == (0, want, "")


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "llm.close()", "del llm", "del running", "import gc; del llm, running; gc.collect()"])
def test_exit_while_streams_run(path: Path, end: str) -> None:
    child(path, f"running = streams()\nprint('out', flush=True)\n{end}\n", "out\n")


def test_exit_with_readers_in_other_threads(path: Path) -> None:
    """Daemon threads wait for chunks when the interpreter goes."""
    child(path, """
def read(s):
    try:
        for _ in s:
            pass
    except pyllm.Closed:
        pass

for s in streams():
    threading.Thread(target=read, args=(s,), daemon=True).start()
print('out', flush=True)
""", "out\n")


def test_an_exception_ends_the_program(path: Path) -> None:
    done = run(path, "running = streams()\nraise KeyError('mine')\n")
    assert done.returncode == 1 and done.stderr.endswith("KeyError: 'mine'\n")


def test_close_ends_readers_with_an_error(path: Path) -> None:
    child(path, """
ends = []
def read(s):
    try:
        for _ in s:
            pass
        ends.append("ended")
    except pyllm.Closed:
        ends.append("closed")

readers = [threading.Thread(target=read, args=(s,)) for s in streams(8)]
for r in readers:
    r.start()
closers = [threading.Thread(target=llm.close) for _ in range(3)]        # twice is fine, also at once
for c in closers:
    c.start()
for t in closers + readers:
    t.join()
print(sorted(set(ends)), len(ends))
""", "['closed'] 8\n")


def test_close_from_a_logits_processor(path: Path) -> None:
    """On the engine's own thread: no deadlock."""
    child(path, """
def processor(ids, logits):
    llm.close()

try:
    llm.complete([5], logits_processor=processor, max_tokens=3, temperature=0)
except pyllm.Closed:
    print("closed")
""", "closed\n")


def test_calls_from_a_logits_processor(path: Path) -> None:
    """A request that waits for another on the engine's thread would wait for ever: it is refused."""
    child(path, """
said = []
def processor(ids, logits):
    for call in (lambda: llm.complete([6], max_tokens=1), lambda: llm.logits([5, 6]), lambda: llm.bench("pp4"),
                 lambda: list(llm.stream("w1"))):
        try:
            call()
            said.append("ran")
        except pyllm.Error as e:
            said.append(type(e).__name__)

llm.complete([5], logits_processor=processor, max_tokens=1, temperature=0)
print(said)
""", "['ArgumentError', 'ArgumentError', 'ArgumentError', 'ArgumentError']\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("busy", [False, True])
def test_fork(path: Path, busy: bool) -> None:
    """Every call in the child is refused at once, also for streams and sessions that began before; a model of its own works; the parent
    goes on."""
    child(path, f"""
session = llm.session()
session.chat("w1", max_tokens=2)
running = streams() if {busy} else []
streaming = llm.stream_complete([7, 8], temperature=0, max_tokens=30, logit_bias=never)
want = llm.complete([5, 6], temperature=0, max_tokens=5).tokens
pid = os.fork()
if not pid:
    calls = [lambda: llm.complete([5]), lambda: llm.chat("x"), lambda: llm.stream("x"), lambda: llm.logits([5]), lambda: llm.session(),
             lambda: llm.bench("pp4"), lambda: session.chat("x"), lambda: session.save("x"), lambda: session.load("x"),
             lambda: list(session.regenerate()), lambda: list(streaming), lambda: llm.kernels()]
    refused = 0
    for i, call in enumerate(calls):
        try:
            call()
        except pyllm.ForkedProcess as e:
            refused += bool(e.hint)
    session.close()
    streaming.close()
    llm.close()
    with pyllm.LLM(path, ctx=64) as mine:
        same = mine.complete([5, 6], temperature=0, max_tokens=5).tokens == want
    sys.exit(7 if same and refused == len(calls) else refused)      # runs the exit handlers
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert llm.complete([5, 6], temperature=0, max_tokens=5).tokens == want
assert len(list(streaming)) and len(streaming.reply.tokens) == 30
for s in running:
    assert next(s).text is not None
print("parent")
""", "parent\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_workers(path: Path) -> None:
    """multiprocessing with its fork start method: each worker loads its own."""
    child(path, """
import multiprocessing

def work(i):
    with pyllm.LLM(path, ctx=64) as mine:
        return mine.complete([5, i], temperature=0, max_tokens=4).tokens

want = [llm.complete([5, i], temperature=0, max_tokens=4).tokens for i in range(4)]
with multiprocessing.get_context("fork").Pool(2) as pool:
    print(pool.map(work, range(4)) == want)
""", "True\n")


V1 = "9:cpu:/\n4:cpuset,memory:/a/b\n0::/\n"
V1_UNLIMITED = 0x7FFFFFFFFFFFF000


@pytest.mark.parametrize(("membership", "cgroups", "room"), [
    ("0::/a/b\n", {}, None), ("0::/\n", {"": ("max", 5, 0)}, None), ("", {"": (100, 0, 0)}, None),
    ("0::/\n", {"": (1000, 300, 50)}, 750), ("0::/a/b\n", {"a/b": (1000, 300, 50)}, 750),
    ("0::/a/b\n", {"a": (900, 500, 0), "a/b": (1000, 300, 0)}, 400),              # the parent has less
    ("0::/a/b\n", {"a": ("max", 500, 0), "a/b": (1000, 300, 0), "c": (9, 0, 0)}, 700),
    ("0::/../x\n", {"": (1000, 300, 0)}, 700), ("0::/host/path\n", {"": (1000, 300, 0)}, 700),      # of another namespace
    (V1, {"memory/a": (V1_UNLIMITED, 0, 0), "memory/a/b": (1000, 300, 50)}, 750), (V1, {"memory": (100, 10, 5)}, 95),
    (V1, {"memory/a/b": (V1_UNLIMITED, 300, 0), "cpu": (100, 0, 0)}, None)])
def test_room_in_cgroups(membership: str, cgroups: dict[str, tuple[int | str, int, int]], room: int | None, tmp_path: Path,
                         monkeypatch: pytest.MonkeyPatch) -> None:
    """cgroups: folder to limit, use, and what of it are files' pages that can be dropped."""
    (tmp_path / "membership").write_text(membership)
    for folder, (limit, used, droppable) in cgroups.items():
        place = tmp_path / "fs" / folder
        place.mkdir(parents=True, exist_ok=True)
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if "memory" in folder else ("memory.max", "memory.current")
        for name, value in zip(names, (limit, used), strict=True):
            (place / name).write_text(f"{value}\n")
        key = "total_inactive_file" if "memory" in folder else "inactive_file"
        (place / "memory.stat").write_text(f"anon 1\n{key} {droppable}\n")
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "fs")
    system = memory._system()
    assert memory.available() == room if room is not None else memory.available() > system // 2


def test_interrupt(path: Path) -> None:
    """Ctrl-C in a waiting call: KeyboardInterrupt comes out, the request is dropped, the model goes on."""
    child(path, """
import signal
signal.setitimer(signal.ITIMER_REAL, 0.2)
signal.signal(signal.SIGALRM, signal.default_int_handler)
try:
    llm.complete([5, 6], temperature=0, logit_bias=never)
except KeyboardInterrupt:
    print("interrupted", len(llm.complete([5, 6], temperature=0, max_tokens=3, logit_bias=never).tokens))
""", "interrupted 3\n")
