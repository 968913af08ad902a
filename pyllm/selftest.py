"""Whether this installation computes right on this machine: a tiny model is written, run on every CPU level and compared.

All levels and numbers of threads must give the same bits, and those must be near what numpy computes in double precision.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import ref
from ._core import ffi, lib
from .build import tape_text
from .engine import Engine
from .gguf import GGUF

_WIDTH, _FF, _VOCAB, _LAYERS, _HEADS, _CTX = 64, 128, 96, 2, 4, 64
_TYPES = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "F32")     # in turn, for the matrices
# Of the largest logit. Activations are rounded to 8 bits (an error of about 0.6 % of their size) before each of nine matrices in a row:
# 2 % is expected. A wrong kernel is off by half or more.
_TOLERANCE = 0.05


def levels() -> list[str]:
    """CPU levels that this machine runs, the slowest first."""
    names: str = ffi.string(lib.pyllm_cpu_levels()).decode()
    return names.split()


def run(threads: int) -> list[str]:
    """What is wrong, one sentence each; nothing on a sound machine. Takes less than a second."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "selftest.gguf"
        write_model(path)
        with GGUF(path) as gguf:
            tape = tape_text(gguf, _CTX)
            ids = [(7 * i + 3) % _VOCAB for i in range(40)]
            exact = ref.run(tape, gguf.read, ids)
            results = {(level, n): _logits(gguf, tape, ids, level, n) for level in levels() for n in sorted({1, threads})}
    return _faults(results, exact)


def write_model(path: Path) -> None:
    """A llama of random weights, quantized by the gguf package; no vocabulary."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(_CTX)
    writer.add_embedding_length(_WIDTH)
    writer.add_feed_forward_length(_FF)
    writer.add_block_count(_LAYERS)
    writer.add_head_count(_HEADS)
    writer.add_head_count_kv(_HEADS // 2)
    writer.add_layer_norm_rms_eps(1e-5)
    random = np.random.Generator(np.random.PCG64(1))
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (_VOCAB, _WIDTH), "output_norm": (_WIDTH,), "output": (_VOCAB, _WIDTH)}
    for i in range(_LAYERS):
        shapes |= {f"blk.{i}.{name}": shape for name, shape in {
            "attn_norm": (_WIDTH,), "attn_q": (_WIDTH, _WIDTH), "attn_k": (_WIDTH // 2, _WIDTH), "attn_v": (_WIDTH // 2, _WIDTH),
            "attn_output": (_WIDTH, _WIDTH), "ffn_norm": (_WIDTH,), "ffn_gate": (_FF, _WIDTH), "ffn_up": (_FF, _WIDTH),
            "ffn_down": (_WIDTH, _FF)}.items()}
    for i, (name, shape) in enumerate(shapes.items()):
        values = random.standard_normal(shape, np.float32) / np.float32(shape[-1] ** 0.5) if len(shape) > 1 else np.ones(shape, np.float32)
        kind = gguf.GGMLQuantizationType[_TYPES[i % len(_TYPES)] if len(shape) > 1 else "F32"]
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _logits(gguf: GGUF, tape: str, ids: Sequence[int], level: str, threads: int) -> NDArray[np.float32]:
    """A prompt at once, then its last tokens one by one: both paths of the kernels."""
    engine = Engine(gguf.handle, tape, threads=threads, kv="f16", n_positions=_CTX, level=level)
    try:
        seq, out = engine.open_seq(), []
        assert seq is not None      # the engine is new
        for part in (ids[:-4], *([i] for i in ids[-4:])):
            n = engine.step([(seq, part, len(part))])
            out.append(engine.logits[:n].copy())
        return np.concatenate(out)
    finally:
        engine.close()


def _faults(results: dict[tuple[str, int], NDArray[np.float32]], exact: NDArray[np.float64]) -> list[str]:
    (first, expected), *others = results.items()
    faults = [f"the results of {level} with {n} threads differ from those of {first[0]} with {first[1]}"
              for (level, n), got in others if got.tobytes() != expected.tobytes()]
    distance = float(np.abs(expected - exact).max() / np.abs(exact).max())
    if not distance <= _TOLERANCE:      # also true for NaN
        faults.append(f"the results of {first[0]} are {distance:.2g} of the largest logit away from exact ones (at most {_TOLERANCE})")
    return faults
