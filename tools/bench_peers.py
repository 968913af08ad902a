#!/usr/bin/env python3
"""Speed against llama.cpp: same file, same threads, same tokens, run by run in turns.

    python tools/bench_peers.py [--model FILE ...] [--test pp512 ...] [--kv f16] [--rounds 9] [--threads N] [--json FILE] [--check]

The peer is llama-cpp-python, built here with the native instruction set in its own environment, driven through its low-level calls. Both
models stay loaded; a round times one, then the other, the first of the two alternating. A figure is the median of the rounds' ratios
(ours / theirs, above 1 = faster), with the quartiles; absolute speeds are medians and drift. Rounds wait for an idle machine. Tests: ppN, a
prompt of N tokens; tgN, N tokens one by one; @D behind either: after D tokens. Decoding also gets its share of the memory bandwidth,
measured in the same rounds: tokens/s times the bytes of tensors read for a token.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
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
path, threads, ctx, kv = sys.argv[1:]
with pyllm.LLM(path, ctx=int(ctx), threads=int(threads), kv=kv) as llm:
    print("ready", flush=True)
    for line in sys.stdin:
        test, _, depth = line.strip().partition("@")
        print(int(test[2:]) / llm.bench(test, depth=int(depth or 0), reps=1)[0], flush=True)
"""
LLAMA = """
import sys, time, llama_cpp as l
path, threads, ctx, kv = sys.argv[1:]
model = l.llama_model_load_from_file(path.encode(), l.llama_model_default_params())
c = l.llama_context_default_params()
c.n_ctx, c.n_batch, c.n_ubatch, c.n_threads, c.n_threads_batch, c.flash_attn_type = int(ctx), 512, 512, int(threads), int(threads), 1
c.type_k = c.type_v = {"f32": 0, "f16": 1, "q8_0": 8}[kv]
context = l.llama_init_from_model(model, c)
n_vocab = l.llama_vocab_n_tokens(l.llama_model_get_vocab(model))
tokens = (l.llama_token * int(ctx))(*(1 + i * 7919 % (n_vocab - 2) for i in range(int(ctx))))
def decode(at, n, step):
    for i in range(at, at + n, step):
        size = min(step, at + n - i)
        part = (l.llama_token * size)(*tokens[i:i + size])
        assert l.llama_decode(context, l.llama_batch_get_one(part, size)) == 0
    l.llama_synchronize(context)
print("ready", flush=True)
for line in sys.stdin:
    test, _, depth = line.strip().partition("@")
    depth, n = int(depth or 0), int(test[2:])
    l.llama_memory_clear(l.llama_get_memory(context), True)
    decode(0, depth, 512)
    start = time.perf_counter()
    decode(depth, n, 512 if test[:2] == "pp" else 1)
    l.llama_get_logits(context)
    print(time.perf_counter() - start, flush=True)
"""


class Child:
    """One engine in its own process."""

    def __init__(self, python: str, code: str, path: Path, threads: int, ctx: int, kv: str) -> None:
        self._process = subprocess.Popen([python, "-c", code, str(path), str(threads), str(ctx), kv], text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
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


def parse(test: str) -> tuple[str, int, int]:
    """(kind, tokens, depth) of "tg128@4096"."""
    found = re.fullmatch(r"(pp|tg)(\d+)(?:@(\d+))?", test)
    if not found:
        raise SystemExit(f"there is no test {test!r}; pp512, tg128, tg32@4096 and so on")
    return found[1], int(found[2]), int(found[3] or 0)


def token_bytes(path: Path, ctx: int) -> int:
    """Bytes of tensors that decoding one token reads."""
    from pyllm.build import tape_text
    from pyllm.cost import bytes_per_token
    from pyllm.gguf import GGUF

    with GGUF(path) as gguf:
        return bytes_per_token(gguf, tape_text(gguf, ctx))


def compare(path: Path, tests: Sequence[str], rounds: int, threads: int, kv: str, python: str) -> list[dict[str, Any]]:
    """One row a test: medians of speeds (tokens/s), of ratios and of the share of the memory bandwidth."""
    from pyllm.limits import read_bandwidth

    ctx = max(1024, *(n + depth for _, n, depth in map(parse, tests)))
    ours, peer = Child(sys.executable, PYLLM, path, threads, ctx, kv), Child(python, LLAMA, path, threads, ctx, kv)
    read, rows = token_bytes(path, ctx), []
    try:
        for test in tests:
            kind, n, _ = parse(test)
            rounds_s, bandwidths = [], []
            for i in range(rounds + 1):             # the first warms up
                wait_until_idle()
                order = (ours, peer) if i % 2 else (peer, ours)
                taken = {child: child.seconds(test) for child in order}
                rounds_s.append((taken[ours], taken[peer]))
                if kind == "tg":
                    bandwidths.append(read_bandwidth(threads))
            ratios = [theirs / mine for mine, theirs in rounds_s[1:]]
            low, middle, high = statistics.quantiles(ratios, n=4)
            mine, theirs = (statistics.median(column) for column in zip(*rounds_s[1:], strict=True))
            share = n / mine * read / statistics.median(bandwidths) if bandwidths else None
            rows.append({"model": path.name, "test": test, "threads": threads, "kv": kv, "rounds": rounds, "ratio": middle, "ratio_q1": low,
                         "ratio_q3": high, "tokens_per_s": n / mine, "peer_tokens_per_s": n / theirs, "bandwidth_share": share})
            print(f"{path.name:<42} {test:<10} {middle:5.2f}x ({low:.2f} to {high:.2f})  {n / mine:8.1f} t/s, peer {n / theirs:8.1f}"
                  + (f", {share:.0%} of the bandwidth" if share else ""), flush=True)
    finally:
        ours.close()
        peer.close()
    return rows


def environment() -> dict[str, str]:
    """What the figures were taken with."""
    cpu = re.search(r"^model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(), re.M)
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False,
                            cwd=Path(__file__).parent).stdout.strip()
    return {"peer": PEER, "cpu": cpu[1] if cpu else platform.machine(), "compiler": compiler, "commit": commit}


def main() -> int:
    from pyllm._core import lib
    from pyllm.catalogue import cache_dir

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", help="a GGUF file; default: the real models of tools/fetch_models.py")
    parser.add_argument("--test", action="append", help="pp512, tg128, tg32@4096 and so on; default: the first two")
    parser.add_argument("--kv", choices=("f16", "f32", "q8_0"), default="f16")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=lib.pyllm_threads_default())
    parser.add_argument("--peer-python", help="an interpreter that has the peer")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    files = [Path(m) for m in args.model or sorted(cache_dir().glob("*.gguf"), key=lambda p: p.stat().st_size)]
    python = args.peer_python or peer_python()
    rows = [row for path in files for row in compare(path, args.test or TESTS, args.rounds, args.threads, args.kv, python)]
    if args.json:
        args.json.write_text(json.dumps({**environment(), "rows": rows}, indent=1) + "\n")
    return int(args.check and any(row["ratio"] < 1 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
