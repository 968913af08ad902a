"""The encoders: blocks that others decode, errors at most those of llama.cpp's encoders on the same rows with the same weights, and bytes
that depend on nothing else. Equality of the CPU levels: tests/kernels/kernel_encode.c."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import format_oracle
import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from pyllm import _core, errors
from pyllm.gguf import GGUF
from pyllm.quantize import imatrix_file
from pyllm.quantize.types import block, type_id

Floats = NDArray[np.float32]
TYPES = ("f16", "bf16", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs",
         "iq3_s", "mxfp4")


def encode(kind: str, x: Floats, w: Floats | None = None, n_threads: int = 1) -> NDArray[np.uint8]:
    return _core.quantize(type_id(kind), x, w, n_threads)


def decode(kind: str, blocks: NDArray[np.uint8], shape: tuple[int, ...]) -> Floats:
    """By the gguf package, as readers of the file do."""
    found: Any = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind.upper()])
    return np.asarray(found, np.float32).reshape(shape)


def error(kind: str, x: Floats, w: Floats | None, blocks: NDArray[np.uint8]) -> float:
    squares = (x.astype(np.float64) - decode(kind, blocks, x.shape)) ** 2
    return float((squares if w is None else squares * w).sum())


def rows(n: int = 24, width: int = 512, seed: int = 1) -> Floats:
    """Heavy-tailed, of very different sizes."""
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_t(4, (n, width)) * rng.lognormal(0, 2, (n, 1)) * 0.02, np.float32)


# relative mean square error of normal values that a type stays below: a little above what it takes, far below what a mistake leaves
BOUNDS = {"f16": 1e-7, "bf16": 4e-6, "q8_0": 5e-5, "q6_k": 6e-4, "q5_k": 1.8e-3, "q5_1": 1.8e-3, "q5_0": 2.2e-3, "q4_k": 7e-3, "q4_1": 7e-3,
          "q4_0": 9e-3, "iq4_nl": 7e-3, "iq4_xs": 7.5e-3, "mxfp4": 1.5e-2, "iq3_s": 2.2e-2, "q3_k": 3.5e-2, "q2_k": 0.1}


@pytest.mark.parametrize("kind", TYPES)
def test_blocks_are_what_others_decode(kind: str) -> None:
    x = np.random.default_rng(2).standard_normal((16, 512)).astype(np.float32)
    blocks = encode(kind, x)
    assert blocks.shape == (16, 512 // block(type_id(kind))[0] * block(type_id(kind))[1])
    assert error(kind, x, None, blocks) < BOUNDS[kind] * float(np.square(x, dtype=np.float64).sum())
    if kind not in ("f16", "bf16"):
        own = format_oracle.decode(kind, blocks.reshape(-1, block(type_id(kind))[1])).reshape(x.shape)
        np.testing.assert_array_equal(own, decode(kind, blocks, x.shape))


@pytest.mark.parametrize("kind", TYPES)
def test_bytes_depend_on_values_and_weights_alone(kind: str) -> None:
    """Not on threads, on how many rows a call has, nor on the scale of the weights."""
    x, w = rows(), np.random.default_rng(3).lognormal(size=512).astype(np.float32)
    for weights in (None, w):
        whole = encode(kind, x, weights)
        for threads in (2, 3, 7):
            np.testing.assert_array_equal(encode(kind, x, weights, threads), whole)
        np.testing.assert_array_equal(np.concatenate([encode(kind, x[i:i + 5], weights) for i in range(0, len(x), 5)]), whole)
        if weights is not None:
            np.testing.assert_array_equal(encode(kind, x, weights * np.float32(1024)), whole)


@pytest.mark.parametrize("kind", [t for t in TYPES if t not in ("f16", "bf16")])
def test_weights_buy_what_they_weigh(kind: str) -> None:
    """With weights the weighted error is smaller, without them the plain one."""
    x, w = rows(), np.random.default_rng(4).lognormal(size=512).astype(np.float32)
    plain, weighted = encode(kind, x), encode(kind, x, w)
    assert error(kind, x, w, weighted) < error(kind, x, w, plain) and error(kind, x, None, plain) < error(kind, x, None, weighted)


@pytest.mark.parametrize("kind", TYPES)
def test_odd_rows(kind: str) -> None:
    """Zeros stay zeros; the largest and the smallest numbers, and equal ones, come back as near as f16 scales allow."""
    assert not decode(kind, encode(kind, np.zeros((1, 256), np.float32)), (256,)).any()
    for value in (1.0, -3.0, 1e-3, 400.0):
        back = decode(kind, encode(kind, np.full((1, 256), value, np.float32)), (256,))
        assert np.abs(back - value).max() <= (0.25 if kind == "iq3_s" else 0.07) * abs(value), value
    for size in (1e38, 3e4, 1e-38):
        x = np.random.default_rng(5).uniform(-size, size, (4, 256)).astype(np.float32)
        assert np.isfinite(decode(kind, encode(kind, x), x.shape)).all()
    nan = np.zeros((3, 256), np.float32)
    nan[1, 7] = np.nan
    with pytest.raises(errors.ArgumentError, match="row 1, column 7 is nan"):
        encode(kind, nan)


def weights_of(importance: imatrix_file.Imatrix | None, name: str, dims: tuple[int, ...]) -> Floats | None:
    found = importance.weights(name, dims) if importance is not None else None
    return None if found is None else found[0]


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["plain", "imatrix"])
def test_errors_are_at_most_those_of_the_reference_files(shared: Path, folder: str) -> None:
    """Every tensor of the files that llama.cpp quantized, encoded here from the same floats with the same importance: sums by type."""
    sums: dict[str, NDArray[np.float64]] = {}
    with GGUF(shared / "quants/tiny-f32.gguf") as source, imatrix_file.read(shared / "quants/tiny.imatrix.gguf") as matrix:
        for path in sorted((shared / "quants" / folder).glob("*.gguf")):
            with GGUF(path) as theirs:
                for name, tensor in theirs.tensors.items():
                    if tensor.type not in TYPES or len(tensor.shape) != 2:
                        continue
                    x = source.read(name)
                    w = weights_of(matrix if folder == "imatrix" else None, name, tensor.shape)
                    kind = tensor.type
                    data = theirs.read_bytes(name, 0, tensor.n_bytes).reshape(len(x), -1)
                    sums[kind] = sums.get(kind, np.zeros(2)) + np.array([error(kind, x, w, encode(kind, x, w)), error(kind, x, w, data)])
    assert len(sums) >= {"plain": 10, "imatrix": 14}[folder]
    ratios = {kind: float(ours / theirs) for kind, (ours, theirs) in sums.items()}
    assert all(ratio <= 1 for ratio in ratios.values()), ratios
