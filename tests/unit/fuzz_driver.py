"""Child of test_gguf_fuzz.py: damages a model file in every way asked for, and runs each result.

Arguments: model file, bytes of its header, number of cases (0 = all), seed. Prints a JSON object: cases, models that ran, errors by type,
the largest time and memory, and what went wrong.
"""

from __future__ import annotations

import faulthandler
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyllm
from pyllm.gguf import GGUF

SECONDS, WALL_SECONDS, MEGABYTES = 1.0, 10.0, 256     # work of the CPU; a wall that a sleeping or blocked case runs into


def cases(data: bytes, header: int) -> Iterator[tuple[str, bytes]]:
    for at in range(header):
        yield f"byte {at} ^ 1", data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]
        if data[at] != 255:
            yield f"byte {at} = 255", data[:at] + b"\xff" + data[at + 1:]
    for n in range(header):
        yield f"first {n} bytes", data[:n]


def peak_memory() -> int:
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) // 1024


def use(path: str) -> None:
    """All metadata, then two tokens of a chat."""
    with GGUF(path) as file:
        dict(file.kv)
    with pyllm.LLM(path, ctx=48, threads=1) as llm:
        repr(llm), llm.info
        llm.chat("w1 x", temperature=0, max_tokens=2)


def run(path: str, name: str, seen: Counter[str], wrong: list[str]) -> None:
    try:
        use(path)
        seen["ran"] += 1
        if name.startswith("first"):
            wrong.append(f"{name}: ran")
    except pyllm.Error as e:
        seen[type(e).__name__] += 1
        if name.startswith("first") and not re.search("incomplete", str(e)):
            wrong.append(f"{name}: does not say that the file is cut off: {e}")
    except BaseException as e:
        wrong.append(f"{name}: {type(e).__name__}: {e}")


def main() -> None:
    source, header, n, seed = sys.argv[1], *map(int, sys.argv[2:])
    data, path = Path(source).read_bytes(), source + ".damaged"
    use(source)
    every = list(cases(data, header))
    chosen = random.Random(seed).sample(every, n) if n else every
    seen: Counter[str] = Counter()
    wrong: list[str] = []
    slowest, largest = 0.0, 0
    for name, damaged in chosen:
        Path(path).write_bytes(damaged)
        Path(path + ".case").write_text(name)       # for whoever looks after a crash
        Path("/proc/self/clear_refs").write_text("5")
        before, start, begin = peak_memory(), time.process_time(), time.monotonic()
        faulthandler.dump_traceback_later(900, exit=True)
        run(path, name, seen, wrong)
        faulthandler.cancel_dump_traceback_later()
        seconds, megabytes, wall = time.process_time() - start, peak_memory() - before, time.monotonic() - begin
        if seconds > SECONDS or megabytes > MEGABYTES or wall > WALL_SECONDS:
            wrong.append(f"{name}: {seconds:.2f} s of work, {wall:.2f} s, {megabytes} MB")
        slowest, largest = max(slowest, seconds), max(largest, megabytes)
    print(json.dumps({"cases": len(chosen), "seen": seen, "slowest": slowest, "largest": largest, "wrong": wrong}))


main()
