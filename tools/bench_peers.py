#!/usr/bin/env python3
"""Speed against llama.cpp: same file, same threads, same tokens, run by run in turns.

    python tools/bench_peers.py [--model FILE ...] [--test pp512 ...] [--curve] [--kv f16] [--level L] [--rounds 9] [--threads N]
                                [--peer native|avx2] [--peer-python PYTHON | --llama-bench FILE] [--json FILE] [--plot FILE] [--check]

The peer is llama-cpp-python, built here in its own environment, driven through its low-level calls (or any llama-bench program). Both
models stay loaded; a round times one, then the other, the first of the two alternating. A figure is the median of the rounds' ratios
(ours / theirs, above 1 = faster), with the quartiles; absolute speeds are medians and drift. Rounds wait for an idle machine. Tests: ppN, a
prompt of N tokens; tgN, N tokens one by one; tgNxS, in each of S sequences at once; @D behind any: after D tokens. Decoding gets its share
of the memory bandwidth (tokens/s times the bytes of tensors read for a token), prompts their share of the 8-bit peak (multiply-adds of
quantized matrices), both limits measured in the same rounds. --curve: the time of one pass over m rows in parts of that over one.
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
BUILDS = {"native": "-DGGML_NATIVE=ON",
          "avx2": "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON"}
TESTS, CURVE = ("pp512", "tg128"), (1, 2, 3, 4, 8, 16, 32)
BUSY, PATIENCE_S = 0.15, 300

# Each child loads the file and answers every test on its input with the seconds that it took.
PYLLM = """
import re, sys, pyllm
path, threads, ctx, kv, level = sys.argv[1:]
with pyllm.LLM(path, ctx=int(ctx), threads=int(threads), kv=kv, level=level or None) as llm:
    print("ready", llm.level, flush=True)
    for line in sys.stdin:
        test, _, depth = line.strip().partition("@")
        n, _, count = test[2:].partition("x")
        print(int(n) * int(count or 1) / llm.bench(test, depth=int(depth or 0), reps=1)[0], flush=True)
"""
LLAMA = """
import sys, time, llama_cpp as l
path, threads, ctx, kv, _ = sys.argv[1:]
model = l.llama_model_load_from_file(path.encode(), l.llama_model_default_params())
c = l.llama_context_default_params()
c.n_ctx, c.n_batch, c.n_ubatch, c.n_threads, c.n_threads_batch, c.flash_attn_type = int(ctx), 512, 512, int(threads), int(threads), 1
c.type_k = c.type_v = {"f32": 0, "f16": 1, "q8_0": 8}[kv]
c.n_seq_max, c.kv_unified = 16, True
context = l.llama_init_from_model(model, c)
n_vocab = l.llama_vocab_n_tokens(l.llama_model_get_vocab(model))
tokens = [1 + i * 7919 % (n_vocab - 2) for i in range(int(ctx))]
batch = l.llama_batch_init(512, 0, 1)
def decode(at, n, step, seqs):
    for i in range(at, at + n, step):
        rows = [(s, j, j == min(i + step, at + n) - 1) for s in seqs for j in range(i, min(i + step, at + n))]
        for r, (s, j, last) in enumerate(rows):
            batch.token[r], batch.pos[r], batch.n_seq_id[r], batch.seq_id[r][0], batch.logits[r] = tokens[j], j, 1, s, last
        batch.n_tokens = len(rows)
        assert l.llama_decode(context, batch) == 0
    l.llama_synchronize(context)
print("ready", flush=True)
for line in sys.stdin:
    test, _, depth = line.strip().partition("@")
    n, _, count = test[2:].partition("x")
    depth, n, seqs = int(depth or 0), int(n), range(int(count or 1))
    l.llama_memory_clear(l.llama_get_memory(context), True)
    for s in seqs:
        decode(0, depth, 512, [s])
    start = time.perf_counter()
    decode(depth, n, 512 // len(seqs) if test[:2] == "pp" else 1, seqs)
    l.llama_get_logits(context)
    print(time.perf_counter() - start, flush=True)
"""


class Child:
    """One engine in its own process. level: pyllm's CPU level, empty for the best; afterwards the one it runs."""

    def __init__(self, python: str, code: str, path: Path, threads: int, ctx: int, kv: str, level: str = "") -> None:
        self._process = subprocess.Popen([python, "-I", "-c", code, str(path), str(threads), str(ctx), kv, level], text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.level = self._answer("ready")

    def seconds(self, test: str) -> float:
        assert self._process.stdin
        self._process.stdin.write(test + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self, begin: str = "") -> str:
        assert self._process.stdout
        line = self._process.stdout.readline().strip()
        if not line or not line.startswith(begin):
            raise SystemExit(f"{self._process.args[0]} ended: {line!r}")  # type: ignore[index]
        return line[len(begin):].strip()


class LlamaBench:
    """A llama-bench program: loads the model anew for every test, which it does not count."""

    def __init__(self, program: str, path: Path, threads: int, kv: str) -> None:
        self._command = [program, "-m", str(path), "-t", str(threads), "-fa", "1", "-ctk", kv, "-ctv", kv, "-r", "1", "-o", "json"]

    def seconds(self, test: str) -> float:
        kind, n, count, depth = parse(test)
        if count > 1:
            raise SystemExit(f"llama-bench has no test {test}")
        sizes = ["-p", str(n), "-n", "0"] if kind == "pp" else ["-p", "0", "-n", str(n)]
        out = subprocess.run([*self._command, *sizes, "-d", str(depth)], capture_output=True, text=True, check=True).stdout
        return float(json.loads(out)[0]["avg_ns"]) * 1e-9

    def close(self) -> None:
        pass


def peer_python(build: str) -> str:
    """The interpreter of the peer's environment, made and built on first use (10 to 20 minutes)."""
    from pyllm.catalogue import cache_dir

    folder = cache_dir() / "peers" / f"{PEER}-{build}"
    python = folder / "bin" / "python"
    if not (folder / "built").exists():
        print(f"building {PEER} in {folder}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-binary", "llama-cpp-python", PEER], check=True,
                       env={**os.environ, "CMAKE_ARGS": BUILDS[build]})
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


def parse(test: str) -> tuple[str, int, int, int]:
    """(kind, tokens, sequences, depth) of "tg32x8@4096"."""
    found = re.fullmatch(r"(pp|tg)(\d+)(?:x(\d+))?(?:@(\d+))?", test)
    if not found:
        raise SystemExit(f"there is no test {test!r}; pp512, tg128, tg32x8, tg32@4096 and so on")
    return found[1], int(found[2]), int(found[3] or 1), int(found[4] or 0)


def work(path: Path, test: str, ctx: int) -> tuple[int, int]:
    """(bytes of tensors that a pass over the weights reads, 8-bit multiply-adds of the whole test), without attention."""
    from pyllm.build import tape_text
    from pyllm.cost import bytes_per_token, run_costs
    from pyllm.gguf import GGUF

    kind, n, count, depth = parse(test)
    with GGUF(path) as gguf:
        tape = tape_text(gguf, ctx)
        steps = run_costs(gguf, tape, n, 512 if kind == "pp" else 1, depth, "f16")
        return bytes_per_token(gguf, tape), sum(c.macs for c in steps if c.op in ("linear", "gated")) * count


class Pair:
    """Both engines on one file."""

    def __init__(self, path: Path, tests: Sequence[str], args: argparse.Namespace) -> None:
        self.path, self.threads, self.kv = path, args.threads, args.kv
        self.ctx = max(1024, *((n + depth) * count for _, n, count, depth in map(parse, tests)))
        self.ours = Child(sys.executable, PYLLM, path, args.threads, self.ctx, args.kv, args.level)
        self.level = self.ours.level
        self.peer = (LlamaBench(args.llama_bench, path, args.threads, args.kv) if args.llama_bench else
                     Child(args.peer_python or peer_python(args.peer), LLAMA, path, args.threads, self.ctx, args.kv))

    def close(self) -> None:
        self.ours.close()
        self.peer.close()

    def round(self, test: str, i: int) -> tuple[float, float]:
        """(our seconds, theirs)"""
        wait_until_idle()
        order = (self.ours, self.peer) if i % 2 else (self.peer, self.ours)
        taken = {child: child.seconds(test) for child in order}
        return taken[self.ours], taken[self.peer]

    def compare(self, test: str, rounds: int) -> dict[str, Any]:
        """Medians of speeds (tokens/s), of ratios, and of the share of the limit."""
        from pyllm.limits import dot_peak, read_bandwidth

        kind, n, count, _ = parse(test)
        size, macs = work(self.path, test, self.ctx)
        taken, limits = [], []
        for i in range(rounds + 1):             # the first warms up
            taken.append(self.round(test, i))
            limits.append(read_bandwidth(self.threads) if kind == "tg" else dot_peak(self.threads, self.level))
        low, middle, high = statistics.quantiles([theirs / mine for mine, theirs in taken[1:]], n=4)
        mine, theirs = (statistics.median(column) for column in zip(*taken[1:], strict=True))
        limit = statistics.median(limits)
        share = (n * size if kind == "tg" else macs) / mine / limit
        speed, peer_speed, kind_of_limit = n * count / mine, n * count / theirs, "bandwidth" if kind == "tg" else "8-bit peak"
        print(f"{self.path.name:<42} {test:<12} {middle:5.2f}x ({low:.2f} to {high:.2f})  {speed:8.1f} t/s, peer {peer_speed:8.1f}, "
              f"{share:.0%} of the {kind_of_limit}", flush=True)
        return {**self.facts(test, rounds), "ratio": middle, "ratio_q1": low, "ratio_q3": high, "tokens_per_s": speed,
                "peer_tokens_per_s": peer_speed,
                "limit": "bytes/s" if kind == "tg" else "macs/s", "limit_value": limit, "limit_share": share}

    def curve(self, rounds: int) -> dict[str, Any]:
        """T(m)/T(1) of both, medians of the ratios within a round."""
        seconds = [[self.round(f"pp{m}", i) for m in CURVE] for i in range(rounds + 1)][1:]
        ours, theirs = ([statistics.median(r[k][who] / r[0][who] for r in seconds) for k in range(len(CURVE))] for who in (0, 1))
        for name, values in (("pyllm", ours), ("peer", theirs)):
            points = "  ".join(f"{m}: {v:.2f}" for m, v in zip(CURVE, values, strict=True))
            print(f"{self.path.name:<42} {name:<6} T(m)/T(1)  {points}", flush=True)
        return {**self.facts("curve", rounds), "m": CURVE, "ours": ours, "peer": theirs}

    def facts(self, test: str, rounds: int) -> dict[str, Any]:
        return {"model": self.path.name, "test": test, "level": self.level, "threads": self.threads, "kv": self.kv, "rounds": rounds}


def environment(args: argparse.Namespace) -> dict[str, str]:
    """What the figures were taken with."""
    cpu = re.search(r"^model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text(), re.M)
    compiler = subprocess.run(["cc", "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False,
                            cwd=Path(__file__).parent).stdout.strip()
    return {"peer": args.llama_bench or f"{PEER} {args.peer}", "cpu": cpu[1] if cpu else platform.machine(), "compiler": compiler,
            "commit": commit}


def real_models() -> list[Path]:
    from fetch_models import MODELS

    from pyllm.catalogue import cache_dir

    files = [cache_dir() / model.file for model in MODELS.values() if model.file.endswith(".gguf")]
    for path in files:
        if not path.exists():
            raise SystemExit(f"{path} is not there\nhint: python tools/fetch_models.py all")
    return files


def plot(rows: Sequence[dict[str, Any]]) -> str:
    """Ratios as an SVG of horizontal bars from 0, a line at 1, quartiles as whiskers."""
    rows = [row for row in rows if "ratio" in row]
    widest, left, unit = max(row["ratio_q3"] for row in rows), 330, 60
    width, height = int(left + widest * unit + 70), 24 * len(rows) + 34
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="13">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    for i, row in enumerate(rows):
        y, colour = 24 * i + 24, "#2f6db3" if row["test"].startswith("pp") else "#d98a29"
        low, middle, high = (left + unit * row[key] for key in ("ratio_q1", "ratio", "ratio_q3"))
        out += [f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{row["model"].removesuffix(".gguf")[:36]}  {row["test"]}</text>',
                f'<rect x="{left}" y="{y}" width="{middle - left:.1f}" height="17" fill="{colour}"/>',
                f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 8.5}" y2="{y + 8.5}" stroke="black"/>',
                f'<text x="{high + 6:.1f}" y="{y + 13}">{row["ratio"]:.2f}x</text>']
    out += [f'<line x1="{left + unit}" x2="{left + unit}" y1="18" y2="{height - 8}" stroke="black" stroke-dasharray="4 3"/>',
            f'<text x="{left + unit}" y="13" text-anchor="middle">llama.cpp</text>', "</svg>"]
    return "\n".join(out) + "\n"


def main() -> int:
    from pyllm._core import lib

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", type=Path, help="a GGUF file; default: the real models of tools/fetch_models.py")
    parser.add_argument("--test", action="append", help="pp512, tg128, tg32x8, tg32@4096 and so on; default: the first two")
    parser.add_argument("--curve", action="store_true", help="also T(m)/T(1); alone if no --test is given")
    parser.add_argument("--kv", choices=("f16", "f32", "q8_0"), default="f16")
    parser.add_argument("--level", default="", help="pyllm's CPU level; default: the best")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=lib.pyllm_threads_default())
    parser.add_argument("--peer", choices=tuple(BUILDS), default="native", help="instruction set that the peer is built for")
    parser.add_argument("--peer-python", help="an interpreter that has the peer")
    parser.add_argument("--llama-bench", help="a llama-bench program instead of the peer")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="an SVG of the ratios")
    parser.add_argument("--check", action="store_true", help="exit status 1 if a ratio is below 1")
    args = parser.parse_args()
    if args.rounds < 2:
        parser.error("quartiles need at least 2 rounds")
    rows = []
    for path in args.model or real_models():
        tests = args.test or ([] if args.curve else list(TESTS))
        pair = Pair(path, tests or ["pp512"], args)
        try:
            rows += [pair.compare(test, args.rounds) for test in tests]
            rows += [pair.curve(args.rounds)] if args.curve else []
        finally:
            pair.close()
    if args.json:
        args.json.write_text(json.dumps({**environment(args), "rows": rows}, indent=1) + "\n")
    if args.plot:
        args.plot.write_text(plot(rows))
    return int(args.check and any(row.get("ratio", 1) < 1 for row in rows))


if __name__ == "__main__":
    sys.exit(main())
