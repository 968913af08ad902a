#!/usr/bin/env python3
"""Errors and speed of the encoders against those of llama.cpp: same rows, same importance weights.

    python tools/quantize_error.py --tiny FILE [--type q4_k ...] [--rows N] [--threads N] [--peer native|avx2] [--peer-python PYTHON]
                                   [--speed] [--rounds 5] [--write docs/quantize.md]

The peer is ggml_quantize_chunk of the library inside llama-cpp-python (the environment of tools/bench_peers.py). The error of a type is the
sum of w * (x - decoded)^2 over all matrices whose rows are whole blocks of it, decoded by the gguf package; w is 1, or
drawn per column from
a log-normal distribution (seeded). Matrices: those of a float GGUF file (--tiny: the random model of the reference data), Whisper base as
published (F16) and the 1536-wide ones of MiniLM (F32); tools/fetch_models.py whisper-base-ct2 minilm fetches the last two. Prints ratios
ours / theirs. Exit status: 0, or 1 if a ratio is above 1.

--speed: millions of elements a second on one thread, one after the other in rounds; medians. --write: puts the tables into a page, each
between its marks.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import gguf
import numpy as np
from bench_peers import PEER, peer_python
from numpy.typing import NDArray

from pyllm import _core
from pyllm.catalogue import cache_dir
from pyllm.gguf import GGUF

Floats = NDArray[np.float32]
Encoder = Callable[[int, Floats, Floats | None], NDArray[np.uint8]]
TYPES = ("f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs",
         "iq3_s", "mxfp4")
IDS = {name: gguf.GGMLQuantizationType[name.upper()].value for name in TYPES}
SLAB = 1 << 20                      # elements quantized and decoded at a time


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(description="Errors and speed of the encoders against those of llama.cpp.")
    p.add_argument("--tiny", type=Path, required=True, metavar="FILE", help="a GGUF file in F32 (tiny-f32.gguf of the reference data)")
    p.add_argument("--type", action="append", choices=TYPES, help="only these types")
    p.add_argument("--rows", type=int, default=1 << 30, help="at most so many rows of a matrix")
    p.add_argument("--threads", type=int, default=2, help="slabs at a time")
    p.add_argument("--peer", choices=("native", "avx2"), default="native")
    p.add_argument("--peer-python", type=Path, metavar="PYTHON", help="interpreter of an environment with the peer")
    p.add_argument("--speed", action="store_true", help="measure speed instead of errors")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    args = p.parse_args(argv)
    types, peer = args.type or TYPES, load_peer(args.peer_python or Path(peer_python(args.peer)))
    if args.speed:
        lines, worse = speed_table(types, peer, args.rounds), False
    else:
        lines, worse = error_table(types, peer, args)
    print(*lines, sep="\n")
    if args.write:
        put(args.write, "speed" if args.speed else "errors", lines)
    return int(worse)


# ---- the encoders ----

def ours(kind: int, x: Floats, w: Floats | None) -> NDArray[np.uint8]:
    return _core.quantize(kind, x, w, 1)


def load_peer(python: Path) -> Encoder:
    found = sorted(python.parent.parent.glob("lib/python3*/site-packages/llama_cpp/lib/libggml-base.*"))
    if not found:
        raise SystemExit(f"no library of {PEER} in the environment of {python}")
    lib = ctypes.CDLL(str(found[0]))
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    for kind in IDS.values():
        lib.ggml_quantize_init(ctypes.c_int(kind))

    def encode(kind: int, x: Floats, w: Floats | None) -> NDArray[np.uint8]:
        elems, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        out = np.empty((len(x), x.shape[1] // elems * size), np.uint8)
        written = lib.ggml_quantize_chunk(kind, x.ctypes.data, out.ctypes.data, 0, *x.shape, w.ctypes.data if w is not None else None)
        assert written == out.nbytes
        return out
    return encode


# ---- matrices ----

def tiny(path: Path) -> Iterator[Floats]:
    with GGUF(path) as file:
        for name, tensor in file.tensors.items():
            if len(tensor.shape) == 2:
                yield file.read(name)


def whisper(path: Path) -> Iterator[Floats]:
    """F16 matrices of a CTranslate2 model: u32 version, spec name, u32 revision, u32 count, then name, rank, u32 dimensions, type, u32
    bytes, data of each variable. Names: u16 length, text."""
    def number(f: BinaryIO, n: int) -> int:
        return int.from_bytes(f.read(n), "little")

    with open(path, "rb") as f:
        assert number(f, 4) == 6
        f.read(number(f, 2))
        f.read(4)
        for _ in range(number(f, 4)):
            f.read(number(f, 2))
            shape = [number(f, 4) for _ in range(number(f, 1))]
            kind, data = number(f, 1), f.read(number(f, 4))
            if kind == 4 and len(shape) == 2:
                yield np.frombuffer(data, "<f2").reshape(shape).astype(np.float32)


def minilm(path: Path) -> Iterator[Floats]:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    for tensor in json.loads(data[8:8 + size]).values():
        shape = tensor.get("shape", [])
        if len(shape) == 2 and shape[1] == 1536:
            yield np.frombuffer(data, "<f4", shape[0] * 1536, 8 + size + tensor["data_offsets"][0]).reshape(shape)


def sources(tiny_file: Path) -> dict[str, Iterator[Floats]]:
    files = {"whisper-base-ct2": cache_dir() / "whisper-base.ct2.bin", "minilm": cache_dir() / "all-MiniLM-L6-v2.safetensors"}
    for name, path in files.items():
        if not path.is_file():
            raise SystemExit(f"{path} is missing; fetch it with: python tools/fetch_models.py {name}")
    return {"tiny": tiny(tiny_file), "Whisper base": whisper(files["whisper-base-ct2"]), "MiniLM": minilm(files["minilm"])}


# ---- errors ----

def error_table(types: list[str], peer: Encoder, args: argparse.Namespace) -> tuple[list[str], bool]:
    """A line of ratios for each type, and whether one is above 1."""
    names: list[str] = []
    sums: dict[tuple[str, str, bool], NDArray[np.float64]] = {}
    with ThreadPoolExecutor(args.threads) as pool:
        for source, matrices in sources(args.tiny).items():
            names.append(source)
            rng = np.random.default_rng(1)
            for matrix in matrices:
                x = np.ascontiguousarray(matrix[:args.rows])
                weights = np.exp(rng.normal(size=x.shape[1])).astype(np.float32)
                fits = [t for t in types if x.shape[1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(IDS[t])][0] == 0]
                rows = max(1, SLAB // x.shape[1])
                jobs = [(t, x[i:i + rows], w) for t in fits for w in (None, weights) for i in range(0, len(x), rows)]
                for (t, _, w), errors in zip(jobs, pool.map(lambda job: both_errors(peer, *job), jobs), strict=True):
                    for key in ((t, source, w is not None), (t, "all", w is not None)):
                        sums[key] = sums.get(key, np.zeros(2)) + errors
            print(f"{source}: done", file=sys.stderr)
    columns = [(s, w) for s in [*names, "all"] for w in (False, True)]
    lines = ["| type | " + " | ".join(f"{s}, {'weights' if w else 'w = 1'}" for s, w in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    ratios = {key: 1.0 if not errors.any() else float(np.divide(*errors)) for key, errors in sums.items()}     # of two without error: 1
    for t in types:
        lines.append(f"| {t} | " + " | ".join(f"{ratios[t, s, w]:.4f}" if (t, s, w) in ratios else "" for s, w in columns) + " |")
    return lines, any(ratio > 1 for ratio in ratios.values())


def both_errors(peer: Encoder, kind: str, x: Floats, w: Floats | None) -> NDArray[np.float64]:
    return np.array([weighted_error(kind, x, w, encode(IDS[kind], x, w)) for encode in (ours, peer)])


def weighted_error(kind: str, x: Floats, w: Floats | None, blocks: NDArray[np.uint8]) -> float:
    decoded = np.asarray(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(IDS[kind]))).reshape(x.shape)
    squares = (x.astype(np.float64) - decoded) ** 2
    return float((squares if w is None else squares * w).sum())


# ---- speed ----

def speed_table(types: list[str], peer: Encoder, rounds: int) -> list[str]:
    x = np.concatenate([m for m in whisper(cache_dir() / "whisper-base.ct2.bin") if m.shape[1] == 2048])
    weights = np.exp(np.random.default_rng(1).normal(size=2048)).astype(np.float32)
    lines = ["| type | ours, w = 1 | llama.cpp | times | ours, weights | llama.cpp | times |", "|---" * 7 + "|"]
    for t in types:
        cells = []
        for w in (None, weights):
            rate: dict[bool, list[float]] = {True: [], False: []}
            for i in range(rounds + 1):
                for own in (True, False) if i % 2 else (False, True):
                    rows = x if own else x[:len(x) // 16]
                    start = time.perf_counter()
                    (ours if own else peer)(IDS[t], rows, w)
                    if i:           # the first round is a warm-up
                        rate[own].append(rows.size / (time.perf_counter() - start) * 1e-6)
            mine, theirs = statistics.median(rate[True]), statistics.median(rate[False])
            cells += [f"{mine:.0f}", f"{theirs:.1f}", f"{mine / theirs:.1f}"]
        lines.append(f"| {t} | " + " | ".join(cells) + " |")
        print(lines[-1], file=sys.stderr)
    return lines


def put(page: Path, name: str, lines: list[str]) -> None:
    """Puts lines between the marks <!-- name --> and <!-- end --> of a page."""
    text, n = re.subn(rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m: m[1] + "\n".join(lines) + "\n" + m[2],
                      page.read_text(), flags=re.S)
    if n != 1:
        raise SystemExit(f"{page} has no marks <!-- {name} --> and <!-- end -->")
    page.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
