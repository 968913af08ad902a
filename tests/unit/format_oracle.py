"""Tensor types decoded without pyllm: by the gguf package, and by numpy where that package has no decoder. Random blocks of every type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from pyllm._core import ffi, lib

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

# The ids of the format, from its specification.
TYPES = {
    "f32": 0, "f16": 1, "q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8, "q2_k": 10, "q3_k": 11, "q4_k": 12, "q5_k": 13, "q6_k": 14,
    "iq2_xxs": 16, "iq2_xs": 17, "iq3_xxs": 18, "iq1_s": 19, "iq4_nl": 20, "iq3_s": 21, "iq2_s": 22, "iq4_xs": 23, "i8": 24, "i16": 25,
    "i32": 26, "i64": 27, "f64": 28, "iq1_m": 29, "bf16": 30, "tq1_0": 34, "tq2_0": 35, "mxfp4": 39, "nvfp4": 40, "q1_0": 41, "q2_0": 42,
}
NAMES = {i: name for name, i in TYPES.items()}
DATA_ONLY = ("i8", "i16", "i32", "i64", "f64")      # nothing multiplies them
REMOVED = (4, 5, 9, 15, 31, 32, 33, 36, 37, 38, 43, 255)        # gone from the format, activations only, or never in it

# Where a block's f16 scales are. IQ1_M, MXFP4 and NVFP4 keep theirs otherwise.
SCALES: dict[str, tuple[int, ...]] = {
    "q4_0": (0,), "q4_1": (0, 2), "q5_0": (0,), "q5_1": (0, 2), "q8_0": (0,), "q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2),
    "q5_k": (0, 2), "q6_k": (208,), "iq2_xxs": (0,), "iq2_xs": (0,), "iq3_xxs": (0,), "iq1_s": (0,), "iq4_nl": (0,), "iq3_s": (0,),
    "iq2_s": (0,), "iq4_xs": (0,), "tq1_0": (52,), "tq2_0": (64,), "q1_0": (0,), "q2_0": (0,),
}


def decode(name: str, blocks: Bytes) -> Floats:
    """Values of blocks [n, bytes of a block]: float32 [n, elements]."""
    with np.errstate(all="ignore"):
        if name in OWN:
            return OWN[name](blocks)
        return np.asarray(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(TYPES[name])), np.float32)


def _plain(dtype: str) -> Callable[[Bytes], Floats]:
    return lambda blocks: np.ascontiguousarray(blocks).view(dtype).astype(np.float32)


def _bits(blocks: Bytes, width: int) -> tuple[Floats, Floats]:
    """The f16 scale [n, 1] in front, and the codes of `width` bits behind it, lowest bits first."""
    d = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    shifts = np.arange(0, 8, width, dtype=np.uint8)
    codes = (blocks[:, 2:, None] >> shifts) & ((1 << width) - 1)
    return d, codes.reshape(len(blocks), -1).astype(np.float32)


def _q1_0(blocks: Bytes) -> Floats:
    d, bit = _bits(blocks, 1)
    return np.where(bit == 1, d, -d)


def _q2_0(blocks: Bytes) -> Floats:
    d, q = _bits(blocks, 2)
    return d * (q - 1)


OWN: dict[str, Callable[[Bytes], Floats]] = {
    "f32": _plain("<f4"), "f16": _plain("<f2"), "f64": _plain("<f8"), "i8": _plain("<i1"), "i16": _plain("<i2"), "i32": _plain("<i4"),
    "i64": _plain("<i8"), "q1_0": _q1_0, "q2_0": _q2_0,
}


def random_blocks(name: str, n: int, rng: np.random.Generator) -> Bytes:
    return rng.integers(0, 256, (n, lib.pyllm_type_bytes(TYPES[name])), dtype=np.uint8)


def random_matrix(name: str, rows: int, k: int, rng: np.random.Generator) -> Bytes:
    """A matrix of random codes whose products keep the size of what they are multiplied with (variance about 1/k): uint8 [rows, bytes]."""
    if name in ("f32", "f16", "bf16"):
        values = rng.normal(0, k ** -0.5, (rows, k)).astype(np.float32)
        return values.view(np.uint8) if name == "f32" else values.astype("<f2").view(np.uint8) if name == "f16" else _bf16(values)
    blocks = random_blocks(name, rows * k // lib.pyllm_type_elems(TYPES[name]), rng)
    _set_scales(name, blocks, 1.0)
    size = float(np.std(decode(name, blocks[:1000])))
    _set_scales(name, blocks, k ** -0.5 / size)
    return blocks.reshape(rows, -1)


def _bf16(values: Floats) -> Bytes:
    return np.ascontiguousarray(values.view("<u4") >> 16).astype("<u2").view(np.uint8)


def _set_scales(name: str, blocks: Bytes, d: float) -> None:
    half = np.array([d], "<f2").view(np.uint8)
    for at in SCALES.get(name, ()):
        blocks[:, at:at + 2] = half
    if name == "iq1_m":             # the f16 in four top nibbles
        for i in range(4):
            nibble = half[i // 2] >> 4 * (i % 2) & 15
            blocks[:, 49 + 2 * i] = blocks[:, 49 + 2 * i] & 15 | nibble << 4
    if name == "mxfp4":             # 2^(e - 127)
        blocks[:, 0] = 127 + round(np.log2(d))
    if name == "nvfp4":             # four unsigned E4M3: 2^(e - 7) * (1 + m/8)
        blocks[:, :4] = (max(1, 7 + round(np.log2(d))) << 3) | blocks[:, :4] & 7


def pyllm_decode(name: str, blocks: Any) -> Floats:
    """What pyllm_dequantize makes of blocks [n, bytes]: float32 [n, elements]."""
    from pyllm._core import check, new_error

    out, err = np.empty((len(blocks), lib.pyllm_type_elems(TYPES[name])), np.float32), new_error()
    check(lib.pyllm_dequantize(TYPES[name], ffi.from_buffer(blocks), out.size, ffi.from_buffer("float *", out), err), err)
    return out


def different(a: Floats, b: Floats) -> int:
    """How many values differ in bits; NaN equals NaN, -0 is not 0."""
    assert a.shape == b.shape
    return int(((a.view(np.uint32) != b.view(np.uint32)) & ~(np.isnan(a) & np.isnan(b))).sum())
