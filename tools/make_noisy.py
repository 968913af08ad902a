"""Makes a float checkpoint out of a quantized one, whose weights lie on no type's grid: the values that the file stands for plus seeded
uniform noise.

    python tools/make_noisy.py IN.gguf OUT.gguf [--type f32|f16] [--seed N] [--check TEXT [--ctx N] [--chunks N]]

Quantizers are compared fairly only on such weights: on dequantized ones, the type that they came from is exact. The noise
is
half a quantization step wide, a quarter of a step to both sides, with the step of the block that a weight was coded in. Vectors are kept.
--check prints the perplexities of both files on a text and fails if they differ by more than 3 %.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyllm import LLM
from pyllm.perplexity import perplexity
from pyllm.quantize.source import GGUFSource, TensorSource, n_rows
from pyllm.quantize.types import block, type_id, type_name
from pyllm.quantize.writer import TensorSpec, Writer

SLAB = 1 << 22              # weights at a time
WIDTH = np.float32(0.5)     # of the noise, in steps
LIMIT = 0.03                # of the perplexities' ratio, from 1
Floats = NDArray[np.float32]
Blocks = NDArray[np.uint8]      # [blocks, bytes of a block]


def half(blocks: Blocks, at: int) -> Floats:
    """The f16 at a place of every block: float32 [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at:at + 2]).view("<f2").astype(np.float32)


def sixes(s: Blocks) -> Floats:
    """The eight 6-bit scales of Q4_K and Q5_K out of their 12 bytes."""
    return np.concatenate([s[:, :4] & 63, (s[:, 8:] & 15) | (s[:, :4] >> 6 << 4)], axis=1).astype(np.float32)


# The distance between neighbouring codes: [blocks, sub-blocks], one for each equal part of a block. Layouts: the GGUF types' specification.
STEPS: dict[str, Callable[[Blocks], Floats]] = {
    "q4_0": lambda b: half(b, 0), "q4_1": lambda b: half(b, 0), "q5_0": lambda b: half(b, 0), "q5_1": lambda b: half(b, 0),
    "q8_0": lambda b: half(b, 0), "q4_k": lambda b: half(b, 0) * sixes(b[:, 4:16]), "q5_k": lambda b: half(b, 0) * sixes(b[:, 4:16]),
    "q6_k": lambda b: half(b, 208) * b[:, 192:208].view(np.int8),
    "f16": lambda b: np.zeros((len(b), 1), np.float32), "f32": lambda b: np.zeros((len(b), 1), np.float32),
}


def noisy(tensor: TensorSource, begin: int, end: int, rng: np.random.Generator) -> Floats:
    elems, size = block(tensor.type_id)
    step = np.abs(STEPS[type_name(tensor.type_id)](tensor.raw(begin, end).reshape(-1, size)))
    noise = rng.random(((end - begin) * tensor.dims[0] // elems, step.shape[1], elems // step.shape[1]), np.float32) - np.float32(0.5)
    return tensor.read(begin, end) + (noise * (WIDTH * step[:, :, None])).reshape(end - begin, -1)


def make(source: Path, out: Path, kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    with GGUFSource(source) as model:
        specs = [TensorSpec(t.name, t.dims, type_id(kind if len(t.dims) > 1 else type_name(t.type_id))) for t in model.tensors]
        with Writer(out, model.metadata, specs, model.files) as w:
            for t in model.tensors:
                rows, at_once = n_rows(t.dims), max(1, SLAB // t.dims[0])
                for at in range(0, rows, at_once):
                    end = min(at + at_once, rows)
                    dtype = np.float16 if kind == "f16" else np.float32
                    w.write(noisy(t, at, end, rng).astype(dtype) if len(t.dims) > 1 else t.raw(at, end))
            w.commit()


def check(files: list[Path], text: bytes, ctx: int, chunks: int | None) -> int:
    values = []
    for file in files:
        with LLM(file, ctx=ctx, kv="f32") as llm:
            values.append(perplexity(llm, text, ctx, chunks).value)
    ratio = values[1] / values[0]
    print(f"perplexity {values[0]:.3f}, with noise {values[1]:.3f}: {ratio - 1:+.2%}")
    return int(abs(ratio - 1) > LIMIT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", choices=("f32", "f16"), default="f32")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--check", type=Path, metavar="TEXT")
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int)
    args = parser.parse_args()
    make(args.source, args.out, args.type, args.seed)
    return check([args.source, args.out], args.check.read_bytes(), args.ctx, args.chunks) if args.check else 0


if __name__ == "__main__":
    sys.exit(main())
