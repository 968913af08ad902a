#!/usr/bin/env python3
"""What 8-bit inputs of matrix products cost in perplexity, apart from everything else the engine does.

    python tools/activation_cost.py MODEL TEXT... [--chunks 4] [--runs 6]

The tape runs in the numpy interpreter (pyllm.ref): with exact inputs, with inputs rounded to int8 blocks as docs/numerics.md says, and so
again `runs` times with inputs disturbed by up to 2^-20 of their size, which is what float32 rounding does: it moves some inputs across
the middle of two codes. The runs show how much of a figure is luck. For a model of 135M and four texts a run takes about a minute.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm import LLM, ref
from pyllm.build import tape_text
from pyllm.gguf import GGUF
from pyllm.perplexity import _nll, split

CTX = 512
FLOATS = ("f32", "f16", "bf16")
WIDE = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs")     # blocks of 256


def rounded(x: NDArray[Any], block: int) -> NDArray[Any]:
    blocks = x.astype(np.float32).reshape(len(x), -1, block)
    amax = np.abs(blocks).max(axis=2, keepdims=True)
    scale = np.divide(np.float32(127), amax, out=np.zeros_like(amax), where=amax > 1e-30)
    out: NDArray[Any] = (np.rint(blocks * scale) * (amax / np.float32(127))).reshape(x.shape)
    return out


def products(kinds: dict[str, str], quantize: bool, seed: int | None) -> Callable[..., NDArray[Any]]:
    rng = None if seed is None else np.random.default_rng(seed)

    def product(x: NDArray[Any], name: str, w: NDArray[Any]) -> NDArray[Any]:
        if rng is not None:
            x = x * (1 + rng.uniform(-(2.0 ** -20), 2.0 ** -20, x.shape))
        if quantize and kinds[name] not in FLOATS:
            x = rounded(x, 256 if kinds[name] in WIDE else 32)
        return (x.astype(np.float32) @ w.astype(np.float32).T).astype(np.float64)

    return product


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--runs", type=int, default=6)
    args = parser.parse_args()
    with LLM(args.model, ctx=CTX) as llm:
        chunks = {text: split(llm, text.read_bytes(), CTX)[:args.chunks] for text in args.texts}
    with GGUF(args.model) as file:
        tape, kinds = tape_text(file, CTX), {name: t.type for name, t in file.tensors.items()}
        weights = {name: file.read(name) for name in kinds}

    def perplexity(text: Path, product: Callable[..., NDArray[Any]]) -> float:
        scores: list[float] = []
        for chunk in chunks[text]:
            logits = ref.run(tape, weights.__getitem__, chunk[:-1], product).astype(np.float32)
            scores += [_nll(logits[i], chunk[i + 1]) for i in range(CTX // 2, CTX - 1)]
        return float(np.exp(np.mean(scores)))

    exact = {text: perplexity(text, products(kinds, False, None)) for text in args.texts}
    print("exact          ", "  ".join(f"{exact[text]:8.4f}" for text in args.texts), flush=True)
    for run in range(args.runs + 1):
        product = products(kinds, True, run - 1 if run else None)
        more = [100 * (perplexity(text, product) / exact[text] - 1) for text in args.texts]
        print(f"8 bits, run {run:<3}", "  ".join(f"{x:+7.3f}%" for x in more), f" mean {np.mean(more):+.3f}%", flush=True)


if __name__ == "__main__":
    main()
