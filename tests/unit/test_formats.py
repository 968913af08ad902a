"""Every tensor type: its values bit for bit, whole models of it, and a clear word where it cannot be multiplied."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import format_oracle as oracle
import gguf
import numpy as np
import pytest
import tiny_gguf
from numpy.typing import NDArray
from tok_oracle import read_header

import pyllm
from pyllm import ref
from pyllm._core import ffi, lib
from pyllm.build import tape_text
from pyllm.gguf import GGUF

MULTIPLIED = [name for name in oracle.TYPES if name not in oracle.DATA_ONLY]
TOKENS = [1 + i * 7919 % 290 for i in range(24)]


def test_the_table_is_the_formats() -> None:
    """Names, ids and block sizes; ids that were removed or never given have no name."""
    for name, i in oracle.TYPES.items():
        assert ffi.string(lib.pyllm_type_name(i)).decode() == name
        if i in gguf.GGMLQuantizationType._value2member_map_:
            kind = gguf.GGMLQuantizationType(i)
            assert (kind.name.lower(), gguf.GGML_QUANT_SIZES[kind]) == (name, (lib.pyllm_type_elems(i), lib.pyllm_type_bytes(i)))
    assert all(lib.pyllm_type_name(i) == ffi.NULL for i in range(300) if i not in oracle.NAMES)


@pytest.mark.parametrize("name", oracle.TYPES)
def test_random_blocks(name: str) -> None:
    """10,000 blocks of random bytes, infinite and NaN scales among them."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    blocks = oracle.random_blocks(name, 10_000, np.random.default_rng(seed))
    assert oracle.different(oracle.pyllm_decode(name, blocks), oracle.decode(name, blocks)) == 0


@pytest.mark.parametrize("name", oracle.SCALES)
def test_zeros_of_both_signs(name: str) -> None:
    """Scales and minima of 0 and -0 beside others: the sign of a zero is part of a value."""
    rng = np.random.default_rng(1)
    blocks = oracle.random_blocks(name, 10_000, rng)
    blocks[:5000] &= rng.integers(0, 256, (5000, blocks.shape[1]), np.uint8)       # more codes and sub-scales of 0
    for at in oracle.SCALES[name]:
        zero = rng.random(len(blocks)) < 0.5
        blocks[zero, at], blocks[zero, at + 1] = 0, rng.choice(np.array([0, 128], np.uint8), int(zero.sum()))
    assert oracle.different(oracle.pyllm_decode(name, blocks), oracle.decode(name, blocks)) == 0


# ---- whole models ----

def activation_blocks(kinds: dict[str, str], rng: np.random.Generator | None = None) -> Callable[[ref.Array, str, ref.Array], ref.Array]:
    """Products in float64 with inputs quantized to int8 blocks as docs/design.md 3 says. rng: disturbs each input by up to 2^-20 of its
    size first, which is more than what an f32 accumulation over these row lengths loses."""
    def product(x: ref.Array, name: str, w: ref.Array) -> ref.Array:
        if rng is not None:
            x = x * (1 + rng.uniform(-(2.0 ** -20), 2.0 ** -20, x.shape))
        kind = kinds[name]
        if kind in ("f32", "f16", "bf16"):
            return ref.exact(x, name, w)
        blocks = x.astype(np.float32).reshape(len(x), -1, 256 if lib.pyllm_type_elems(oracle.TYPES[kind]) == 256 else 32)
        amax = np.abs(blocks).max(axis=2, keepdims=True)
        q = np.rint(blocks * (np.float32(127) / amax)).astype(np.float64)
        return ref.exact((q * (amax / np.float32(127))).reshape(x.shape), name, w)
    return product


def check_logits(path: Path) -> None:
    """The engine's logits are those of the numpy interpreter with quantized inputs.

    They differ by f32 rounding, and where that rounding moves an input across the middle of two int8 codes, by that code's step. The
    bound is what the interpreter itself does when its inputs are disturbed by more than f32 rounding: the largest change in 8 such runs."""
    with GGUF(path) as file:
        tape = tape_text(file)
        kinds = {name: t.type for name, t in file.tensors.items()}
        weights: dict[str, NDArray[np.float32]] = {name: file.read(name) for name in file.tensors}
    want = ref.run(tape, weights.__getitem__, TOKENS, activation_blocks(kinds))
    runs = [ref.run(tape, weights.__getitem__, TOKENS, activation_blocks(kinds, np.random.default_rng(i))) for i in range(8)]
    bound = max(float(np.abs(run - want).max()) for run in runs)
    with pyllm.LLM(path, kv="f32") as llm:
        got = llm.logits(TOKENS)
    assert np.isfinite(got).all()
    error = float(np.abs(got - want).max())
    print(f"{path.name}: logits differ by {error:.3g}, bound {bound:.3g}, largest {np.abs(want).max():.3g}")
    assert 0 < bound < 0.1 * np.abs(want).max()
    assert error <= bound


@pytest.mark.parametrize("name", MULTIPLIED)
def test_models_of_every_type(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(tiny_gguf.llama(name, tied=len(name) % 2 == 0)[0])
    check_logits(path)


@pytest.mark.parametrize("name", oracle.DATA_ONLY)
def test_types_without_products_are_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tensors = tiny_gguf.tensors("f32", tiny_gguf.shapes())
    at = next(i for i, t in enumerate(tensors) if t[0] == "blk.1.ffn_up.weight")
    n = int(np.prod(tensors[at][2]))
    tensors[at] = (tensors[at][0], oracle.TYPES[name], tensors[at][2], bytes(n * lib.pyllm_type_bytes(oracle.TYPES[name])))
    path.write_bytes(tiny_gguf.build(tiny_gguf.metadata() | tiny_gguf.vocabulary(), tensors)[0])
    with GGUF(path) as file:
        assert not file.read("blk.1.ffn_up.weight").any()
    with pytest.raises(pyllm.errors.UnsupportedModel, match=f"blk.1.ffn_up.weight is {name}") as e:
        pyllm.LLM(path)
    assert e.value.hint


@pytest.mark.parametrize("tensor", ["token_embd.weight", "blk.0.attn_k.weight", "output_norm.weight"])
@pytest.mark.parametrize("kind", oracle.REMOVED)
def test_unknown_types_are_named(kind: int, tensor: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tensors = [(n, kind if n == tensor else k, shape, data) for n, k, shape, data in tiny_gguf.tensors("f32", tiny_gguf.shapes())]
    path.write_bytes(tiny_gguf.build(tiny_gguf.metadata() | tiny_gguf.vocabulary(), tensors)[0])
    with GGUF(path) as file, pytest.raises(pyllm.errors.Unsupported, match=f"{tensor}.* {kind}"):
        file.read(tensor)
    with pytest.raises(pyllm.errors.UnsupportedModel, match=f"{tensor}.* {kind}") as e:
        pyllm.LLM(path)
    assert e.value.hint


# ---- files that llama.cpp quantized ----

FILES = ["BF16", "F16", "IQ1_M", "IQ1_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ3_M", "IQ3_S", "IQ3_XS", "IQ3_XXS", "IQ4_NL", "IQ4_XS",
         "MXFP4_MOE", "Q1_0", "Q2_0", "Q2_K", "Q2_K_S", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q4_0", "Q4_1", "Q4_K_M", "Q4_K_S", "Q5_0", "Q5_1",
         "Q5_K_M", "Q5_K_S", "Q6_K", "Q8_0", "TQ1_0", "TQ2_0"]
PLAIN = ["IQ3_S", "IQ4_NL", "IQ4_XS", "Q2_K", "Q3_K_M", "Q4_0", "Q4_1", "Q4_K_M", "Q5_0", "Q5_1", "Q5_K_M", "Q6_K", "Q8_0", "TQ2_0"]
QUANTS = [f"imatrix/tiny-{name}.gguf" for name in FILES] + [f"plain/tiny-{name}.gguf" for name in PLAIN]


@pytest.mark.shared
@pytest.mark.parametrize("name", QUANTS)
def test_files_of_every_type(name: str, shared: Path) -> None:
    """All tensors bit for bit, and the logits."""
    path = shared / "quants" / name
    data = path.read_bytes()
    tensors = read_header(data)[1]
    with GGUF(path) as file:
        assert file.tensors.keys() == tensors.keys()
        for tensor, (kind, shape, at) in tensors.items():
            n = int(np.prod(shape)) // lib.pyllm_type_elems(kind)
            size = lib.pyllm_type_bytes(kind)
            blocks = np.frombuffer(data, np.uint8, n * size, at).reshape(n, size)
            got = file.read(tensor)
            assert got.shape == tuple(reversed(shape))
            assert oracle.different(got.ravel(), oracle.decode(oracle.NAMES[kind], blocks).ravel()) == 0, tensor
    check_logits(path)
