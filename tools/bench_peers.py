#!/usr/bin/env python3
"""Speed against llama.cpp: same file, same threads, same tokens, run by run in turns.

    python tools/bench_peers.py [--model NAME|FILE ...] [--test pp512 ...] [--rounds 9] [--threads N] [--json FILE] [--check]

The peer is llama-cpp-python, built here with the native instruction set in its own environment, driven through its low-level calls. Both
models stay loaded; a round times one, then the other, the first of the two alternating. A figure is the median of the rounds' ratios
(ours / theirs, above 1 = faster), with the quartiles; absolute speeds are medians and drift. Rounds wait for an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PEER = "llama-cpp-python==0.3.36"
TESTS = ("pp512", "tg128")
BUSY, PATIENCE_S = 0.15, 300

# Each child loads the file and answers every test name on its input with the seconds that the test took.
PYLLM = """
import sys, pyllm
with pyllm.LLM(sys.argv[1], ctx=1024, threads=int(sys.argv[2])) as llm:
    print("ready", flush=True)
    for test in sys.stdin:
        test = test.strip()
        print(int(test[2:]) / llm.bench(test, reps=1)[0], flush=True)
"""
LLAMA = """
import sys, time, llama_cpp as l
p = l.llama_model_default_params()
model = l.llama_model_load_from_file(sys.argv[1].encode(), p)
c = l.llama_context_default_params()
c.n_ctx, c.n_batch, c.n_ubatch, c.n_threads, c.n_threads_batch, c.flash_attn_type = 1024, 512, 512, int(sys.argv[2]), int(sys.argv[2]), 1
context = l.llama_init_from_model(model, c)
n_vocab = l.llama_vocab_n_tokens(l.llama_model_get_vocab(model))
tokens = (l.llama_token * 1024)(*(1 + i * 7919 % (n_vocab - 2) for i in range(1024)))
def decode(at, n):
    part = (l.llama_token * n)(*tokens[at:at + n])
    assert l.llama_decode(context, l.llama_batch_get_one(part, n)) == 0
print("ready", flush=True)
for test in sys.stdin:
    kind, n = test[:2], int(test[2:])
    l.llama_memory_clear(l.llama_get_memory(context), True)
    start = time.perf_counter()
    if kind == "pp":
        decode(0, n)
    else:
        for i in range(n):
            decode(i, 1)
    l.llama_synchronize(context)
    l.llama_get_logits(context)
    print(time.perf_counter() - start, flush=True)
"""


class Child:
    """One engine in its own process."""

    def __init__(self, python: str, code: str, path: Path, threads: int) -> None:
        self._process = subprocess.Popen([python, "-c", code, str(path), str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.DEVNULL, text=True)
        self._answer("ready")

    def seconds(self, test: str) -> float:
        assert self._process.stdin
        self._process.stdin.write(test + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self, want: str = "") -> str:
        assert self._process.stdout
        line = self._process.stdout.readline().strip()
        if not line or (want and line != want):
            raise SystemExit(f"{self._process.args[0]} ended: {line!r}")  # type: ignore[index]
        return line


def peer_python() -> str:
    """The interpreter of the peer's environment, made and built on first use (10 to 20 minutes)."""
    from pyllm.catalogue import cache_dir

    folder = cache_dir() / "peers" / PEER
    python = folder / "bin" / "python"
    if not (folder / "built").exists():
        print(f"building {PEER} in {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-binary", "llama-cpp-python", PEER], check=True,
                       env={**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=ON"})
        (folder / "built").touch()
    return str(python)


def busy_share(seconds: float = 0.3) -> float:
    """Share of all cores that others used meanwhile."""
    def ticks() -> tuple[int, int]:
        values = [int(x) for x in Path("/proc/stat").read_text().split("\n")[0].split()[1:]]
        return sum(values), values[3] + values[4]

    (all0, idle0), _ = ticks(), time.sleep(seconds)
    all1, idle1 = ticks()
    return 1 - (idle1 - idle0) / max(all1 - all0, 1)


def wait_until_idle() -> None:
    end = time.monotonic() + PATIENCE_S
    while (share := busy_share()) > BUSY:
        if time.monotonic() > end:
            raise SystemExit(f"the machine is busy ({share:.0%} of its cores): figures would mean nothing")
        time.sleep(1)


def compare(path: Path, tests: Sequence[str], rounds: int, threads: int, python: str) -> list[dict[str, Any]]:
    """One row a test: medians of speeds (tokens/s) and of ratios."""
    ours, peer = Child(sys.executable, PYLLM, path, threads), Child(python, LLAMA, path, threads)
    rows = []
    try:
        for test in tests:
            pairs = []
            for i in range(rounds + 1):             # the first warms up
                wait_until_idle()
                order = (ours, peer) if i % 2 else (peer, ours)
                taken = {child: child.seconds(test) for child in order}
                pairs.append((taken[ours], taken[peer]))
            ratios = [theirs / mine for mine, theirs in pairs[1:]]
            low, middle, high = statistics.quantiles(ratios, n=4)
            n = int(test[2:])
            rows.append({"model": path.name, "test": test, "threads": threads, "rounds": rounds, "ratio": middle, "ratio_q1": low,
                         "ratio_q3": high, "tokens_per_s": n / statistics.median(mine for mine, _ in pairs[1:]),
                         "peer_tokens_per_s": n / statistics.median(theirs for _, theirs in pairs[1:])})
            print("{model:<45} {test:<7} {ratio:5.2f}x ({ratio_q1:.2f} to {ratio_q3:.2f})  {tokens_per_s:8.1f} t/s, peer "
                  "{peer_tokens_per_s:8.1f}".format(**rows[-1]), flush=True)
    finally:
        ours.close()
        peer.close()
    return rows


def main() -> int:
    from pyllm._core import lib
    from pyllm.catalogue import cache_dir

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", help="a GGUF file; default: the real models of tools/fetch_models.py")
    parser.add_argument("--test", action="append", help="pp512, tg128 and so on; default: both of these")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=lib.pyllm_threads_default())
    parser.add_argument("--peer-python", help="an interpreter that has the peer")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    files = [Path(m) for m in args.model or sorted(cache_dir().glob("*.gguf"), key=lambda p: p.stat().st_size)]
    python = args.peer_python or peer_python()
    rows = [row for path in files for row in compare(path, args.test or TESTS, args.rounds, args.threads, python)]
    if args.json:
        args.json.write_text(json.dumps({"peer": PEER, "rows": rows}, indent=1) + "\n")
    return int(args.check and any(row["ratio"] < 1 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
