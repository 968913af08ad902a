"""Mixtures of experts beside their goldens: quantized experts, importance and cost of every expert, checkpoints with 4-bit experts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from checkpoints import goldens
from conftest import ROOT

from pyllm import LLM, build, cost, ref
from pyllm.gguf import GGUF
from pyllm.quantize import convert, imatrix, quantize

NAMES = ["qwen3moe", "gpt-oss"]


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    golden, path = goldens.load(request.param), tmp_path_factory.mktemp("moe") / "f32.gguf"
    goldens.write_gguf(path, golden.weights, golden.config, golden.hf_class)
    return golden, path


def rounded(x: Any) -> Any:
    """Inputs of a product in blocks of 32 codes of 8 bits, docs/numerics.md section 2."""
    blocks = x.astype(np.float32).reshape(len(x), -1, 32)
    amax = np.abs(blocks).max(axis=2, keepdims=True)
    return (np.rint(blocks * (np.float32(127) / amax)) * (amax / np.float32(127))).reshape(x.shape)


@pytest.mark.parametrize("mix", ["Q8_0", "MXFP4_MOE"])
def test_quantized_experts(model: tuple[Any, Path], mix: str, tmp_path: Path) -> None:
    """The engine's logits are those of the interpreter with the file's weights and inputs rounded as the engine does it. Input codes that
    float32 moves across a middle are what is left; exact inputs are ten times further away."""
    golden, path = model
    quantize(path, tmp_path / "q.gguf", mix, n_threads=1)
    with GGUF(tmp_path / "q.gguf") as file, LLM(tmp_path / "q.gguf", ctx=64, kv="f32", threads=2) as llm:
        kinds = {name: t.type for name, t in file.tensors.items()}
        assert kinds["blk.0.ffn_down_exps.weight"] == ("mxfp4" if mix == "MXFP4_MOE" else "q8_0")
        tape = build.tape_text(file)

        def as_the_engine(x: Any, name: str, w: Any) -> Any:
            return (rounded(x) if kinds[name] not in ("f32", "f16") else x) @ w.T

        want, exact = (ref.run(tape, file.read, golden.ids, product) for product in (as_the_engine, ref.exact))
        got = llm.logits(golden.ids)
    assert np.abs(got - want).max() < 0.1 * np.abs(exact - want).max()


def test_importance_of_each_expert(model: tuple[Any, Path]) -> None:
    """Sums and counts of a text against the interpreter's values."""
    _, path = model
    text = b"w1 w2 w3 the quick brown fox"
    with LLM(path, ctx=16, kv="f32") as llm, GGUF(path) as file:
        found = imatrix.compute(llm, text, "text", 16, 1)
        tape = llm.on_engine(lambda e: e.tape)
        values = ref.values(tape, file.read, llm.tokenizer.encode(text.decode())[:16])
        for line in tape.splitlines():
            op, _, *words = line.split(" ")
            if op not in ("moe_gated", "moe_down"):
                continue
            given = dict(word.split("=", 1) for word in words)
            x, chosen = (values[name] for name in given["in"].split(","))
            k = chosen.shape[1] // 2
            rows = np.repeat(x, k, axis=0) if op == "moe_gated" else x.reshape(len(x) * k, -1)
            for name in given["w"].split(","):
                for e in range(file.tensors[name].shape[2]):
                    mine = rows[chosen[:, :k].ravel() == e]
                    assert found.counts[name][e] == len(mine)
                    np.testing.assert_allclose(found.sums[name][e], (mine**2).sum(axis=0), rtol=1e-3, atol=1e-6)


def test_cost_counts_the_experts_that_are_read(model: tuple[Any, Path]) -> None:
    golden, path = model
    used, experts = golden.config["num_experts_per_tok"], golden.config.get("num_experts") or golden.config["num_local_experts"]
    with GGUF(path) as file:
        tape = build.tape_text(file)
        one, many = (next(c for c in cost.costs(file, tape, rows=n) if c.op == "moe_down") for n in (1, 1000))
        tensor = file.tensors["blk.0.ffn_down_exps.weight"]
        assert one.bytes == round(tensor.n_bytes * used / experts) and many.bytes == tensor.n_bytes
        assert one.macs == tensor.shape[0] * tensor.shape[1] * used * 4 and many.macs == 1000 * one.macs


def test_experts_of_4_bits_in_a_checkpoint(tmp_path: Path) -> None:
    """gpt-oss as it is published: blocks and exponents, whose bits go into the file as they are; the same values as by the formula."""
    golden = goldens.load("gpt-oss")
    weights: dict[str, Any] = dict(golden.weights)
    rng = np.random.default_rng(5)
    table = np.array([0, .5, 1, 1.5, 2, 3, 4, 6, 0, -.5, -1, -1.5, -2, -3, -4, -6], np.float32)
    want = {}
    for layer in range(golden.config["num_hidden_layers"]):
        for name in ("gate_up_proj", "down_proj"):
            stem = f"model.layers.{layer}.mlp.experts.{name}"
            experts, n_in, n_out = weights.pop(stem).shape
            codes = rng.integers(0, 16, (experts, n_out, n_in // 32, 32))
            exponents = rng.integers(120, 126, (experts, n_out, n_in // 32))
            weights[f"{stem}_blocks"] = (codes[..., ::2] | codes[..., 1::2] << 4).astype(np.uint8)
            weights[f"{stem}_scales"] = exponents.astype(np.uint8)
            want[layer, name] = (table[codes] * np.exp2(exponents[..., None] - 127.0)).reshape(experts, n_out, n_in).astype(np.float32)
    config = golden.config | {"quantization_config": {"quant_method": "mxfp4"}}
    goldens.write_checkpoint(tmp_path / "hf", weights, config, golden.hf_class)
    result = convert(tmp_path / "hf", tmp_path / "m.gguf", "MXFP4_MOE", n_threads=1)
    assert result.types["blk.0.ffn_up_exps.weight"] == "mxfp4"
    with GGUF(tmp_path / "m.gguf") as file:
        for layer in range(golden.config["num_hidden_layers"]):
            np.testing.assert_array_equal(file.read(f"blk.{layer}.ffn_gate_exps.weight"), want[layer, "gate_up_proj"][:, ::2])
            np.testing.assert_array_equal(file.read(f"blk.{layer}.ffn_up_exps.weight"), want[layer, "gate_up_proj"][:, 1::2])
            np.testing.assert_array_equal(file.read(f"blk.{layer}.ffn_down_exps.weight"), want[layer, "down_proj"])


@pytest.mark.parametrize("like, used", [("qwen3moe", "q4_0"), ("gpt-oss", "mxfp4")])
def test_synthetic_models_for_speed_tests(like: str, used: str, tmp_path: Path) -> None:
    """tools/make_model.py in small: the engine reads its experts in their type, and the logits are of a usual size."""
    command = [sys.executable, str(ROOT / "tools/make_model.py"), str(tmp_path / "m.gguf"), "--like", like]
    sizes = {"layers": 2, "embd": 128, "heads": 4, "head-dim": 32, "kv-heads": 2, "ff": 64, "experts": 8, "used": 2, "vocab": 300}
    subprocess.run([*command, *(word for name, n in sizes.items() for word in (f"--{name}", str(n)))], check=True)
    with GGUF(tmp_path / "m.gguf") as file:
        assert file.architecture == like and file.tensors["blk.1.ffn_down_exps.weight"].type == used
    with LLM(tmp_path / "m.gguf", ctx=64, threads=1) as llm:
        assert 0.2 < llm.logits(range(5, 45)).std() < 5


def test_layers_that_guess_further_tokens_are_left_out(tmp_path: Path) -> None:
    """GLM-4.5's files have such a layer behind the others, and count it."""
    golden = goldens.load("glm4moe")
    goldens.write_gguf(tmp_path / "m.gguf", golden.weights, golden.config, golden.hf_class)
    with GGUF(tmp_path / "m.gguf") as file:
        kv = {key: file.kv[key] for key in file.kv if key == "general.architecture" or key.startswith("glm4moe.")}
        n = kv["glm4moe.block_count"]
        tensors = {name: file.read(name) for name in file.tensors}
    tensors |= {name.replace(f"blk.{n - 1}.", f"blk.{n}."): t for name, t in tensors.items() if name.startswith(f"blk.{n - 1}.")}
    tensors[f"blk.{n}.nextn.eh_proj.weight"] = np.zeros((64, 128), np.float32)
    kv |= {"glm4moe.block_count": n + 1, "glm4moe.nextn_predict_layers": 1}
    data, _ = tiny_gguf.build(kv, [(name, 0, t.shape[::-1], t.astype("<f4").tobytes()) for name, t in tensors.items()])
    (tmp_path / "guessing.gguf").write_bytes(data)
    with GGUF(tmp_path / "guessing.gguf") as file:
        got = ref.run(build.tape_text(file), file.read, golden.ids)
    assert np.abs(got - golden.logits).max() < 1e-5 * np.abs(golden.logits).max()
