"""Compressed attention (MLA) beside its goldens: what is stored, its types, files of the older form, many heads."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from checkpoints import goldens

from pyllm import LLM, Error, build, ref
from pyllm.engine import Engine, plan_bytes
from pyllm.gguf import GGUF

BAR = 2e-4


def worst(got: Any, want: Any) -> float:
    return float(np.abs(got - want).max() / np.abs(want).max())


def logits(file: GGUF, tape: str, ids: list[int], kv: str, sizes: list[int]) -> Any:
    """Of the last 40 positions, fed in batches of these sizes, the last repeated, beside another sequence that grows with it."""
    engine = Engine(file.handle, tape, threads=2, kv=kv, n_positions=1024, level=None)
    try:
        seq, other, rows, at = engine.open_seq(), engine.open_seq(), [], 0
        while at < len(ids):
            n = min(sizes.pop(0) if len(sizes) > 1 else sizes[0], len(ids) - at)
            want = max(0, at + n - max(at, len(ids) - 40))
            engine.step([(other, ids[:3], 1), (seq, ids[at:at + n], want)])
            rows.append(engine.logits[1:want + 1].copy())
            at += n
    finally:
        engine.close()
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    @cache
    def get(name: str) -> tuple[Any, Path]:
        golden, path = goldens.load(name), tmp_path_factory.mktemp("latent") / "f32.gguf"
        goldens.write_gguf(path, golden.weights, golden.config, golden.hf_class)
        return golden, path

    return get


def test_one_vector_a_token_is_stored(model: Any) -> None:
    golden, path = model("deepseek3")
    with GGUF(path) as file:
        tape = build.tape_text(file)
        for kv, n_bytes in (("f32", 4.0), ("f16", 2.0), ("q8_0", 1.0625)):
            few, many = (plan_bytes(file, tape, threads=1, kv=kv, n_positions=n, parallel=1)[1] for n in (1600, 3200))
            assert many - few == 1600 * golden.config["num_hidden_layers"] * (64 + 32) * n_bytes


def test_f16_keys_are_the_values(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter with keys rounded as they are stored, and so with values out of them."""
    golden, path = model("deepseek2-groups")
    whole = ref._Run.attn

    def stored(self: Any, q: Any, k: Any, v: Any, **params: str) -> Any:
        assert v is k
        k = k.astype(np.float16).astype(np.float64)
        return whole(self, q, k, k, **params)

    with GGUF(path) as file:
        tape = build.tape_text(file)
        got = logits(file, tape, golden.ids, "f16", [17, 1, 5])
        assert worst(got, golden.logits) > BAR / 10
        monkeypatch.setattr(ref._Run, "attn", stored)
        assert worst(got, ref.run(tape, file.read, golden.ids)) < BAR


def test_8_bit_keys_are_the_values(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above; codes that float32 moves across a middle are what is left."""
    golden, path = model("deepseek3")
    whole = ref._Run.attn

    def codes(x: Any, scale: Any) -> Any:
        blocks = x.astype(np.float32).reshape(len(x), -1, 32)
        d = np.abs(blocks).max(axis=2, keepdims=True) / np.float32(127)
        return (np.rint(blocks / d) * scale(d)).reshape(x.shape).astype(np.float64)

    def stored(self: Any, q: Any, k: Any, v: Any, **params: str) -> Any:
        k = codes(k, lambda d: d.astype(np.float16).astype(np.float32))
        return whole(self, codes(q, lambda d: d), k, k, **params)

    with GGUF(path) as file:
        tape = build.tape_text(file)
        got = logits(file, tape, golden.ids, "q8_0", [40])
        monkeypatch.setattr(ref._Run, "attn", stored)
        want = ref.run(tape, file.read, golden.ids)
    assert np.abs(got - want).max() < 0.1 * np.abs(golden.logits - want).max()


@pytest.mark.parametrize("name", ["deepseek2", "deepseek3"])
def test_files_of_the_older_form(name: str, model: Any, tmp_path: Path) -> None:
    """Keys and values of a head side by side in one matrix, attn_kv_b, and head counts and sizes that are those of plain attention."""
    golden, path = model(name)
    with GGUF(path) as file:
        kv = {key: file.kv[key] for key in file.kv if key == "general.architecture" or key.startswith("deepseek2.")}
        heads, old = kv["deepseek2.attention.head_count"], "deepseek2.attention."
        for key in ("key_length", "value_length"):
            kv[old + key] = kv.pop(f"{old}{key}_mla")
        kv[old + "head_count_kv"] = heads
        tensors = {tensor: file.read(tensor) for tensor in file.tensors}
    for layer in range(kv["deepseek2.block_count"]):
        k, v = (tensors.pop(f"blk.{layer}.attn_{x}_b.weight") for x in "kv")
        tensors[f"blk.{layer}.attn_kv_b.weight"] = np.concatenate([k.swapaxes(1, 2), v], axis=1).reshape(-1, k.shape[1])
    data, _ = tiny_gguf.build(kv, [(n, 0, t.shape[::-1], t.astype("<f4").tobytes()) for n, t in tensors.items()])
    (tmp_path / "old.gguf").write_bytes(data)
    with GGUF(tmp_path / "old.gguf") as file:
        tape = build.tape_text(file)
        assert "headwise" not in tape and "values=48" in tape
        assert worst(logits(file, tape, golden.ids, "f32", [9, 1]), golden.logits) < BAR
        assert worst(ref.run(tape, file.read, golden.ids), golden.logits) < 1e-5


@pytest.mark.parametrize("heads", [67, 72])
def test_more_heads_than_a_kernel_takes(heads: int, tmp_path: Path) -> None:
    """Blocks of 36 heads, and of one where the number is a prime; several chunks of positions, in one item and split."""
    golden = goldens.load("deepseek3")
    shapes = {}
    for name, shape in golden.shapes.items():
        shape = [heads * n // 4 if n in (4 * 80, 4 * 96, 4 * 48) and "self_attn" in name else n for n in shape]
        if "layers.0." in name or "layers" not in name:
            shapes[name] = shape
    config = golden.config | {"num_attention_heads": heads, "num_hidden_layers": 1, "max_position_embeddings": 512}
    weights = {name: goldens.tensor("many", name, shape) for name, shape in shapes.items()}
    goldens.write_gguf(tmp_path / "m.gguf", weights, config, golden.hf_class)
    ids = [(7 * i * i + 3) % 272 for i in range(300)]
    with GGUF(tmp_path / "m.gguf") as file:
        tape = build.tape_text(file)
        assert f"heads={heads} kv_heads=1 dim=96" in tape
        want = ref.run(tape, file.read, ids)[-40:]
        assert worst(logits(file, tape, ids, "f32", [270, 27, 1]), want) < BAR


def test_llm_saves_and_goes_on(model: Any) -> None:
    """Through the front door, with a cached prefix."""
    golden, path = model("deepseek3")
    with LLM(path, ctx=128, kv="q8_0", threads=2) as llm:
        first = llm.complete(golden.ids, temperature=0, max_tokens=8).tokens
        assert llm.complete(golden.ids, temperature=0, max_tokens=8).tokens == first


@pytest.mark.parametrize("old, new, said", [
    (r"heads=4 from=48 to=80", "heads=4 from=48 to=81", "4 heads of a width of 320 have no values 48 to 81"),
    (r"heads=4 from=0 to=48", "heads=4 from=48 to=48", "no values 48 to 48"),
    (r"heads=4 from=0 to=48", "heads=0 from=0 to=48", "no values"),
    (r"(join joined1 .*) heads=4,4", r"\1 heads=4,3", "input 1 is not that many heads"),
    (r"(join joined1 .*) heads=4,4", r"\1 heads=4,2", "do not belong together"),
    (r"blk.1.attn_v_b", "blk.1.attn_k_b", "takes 48 values, its input has 64"),
    (r"blk.1.attn_v_b", "blk.1.attn_q_a", "input is not 1 heads|takes 64 values"),
    (r"values=64", "values=112", "keys of 96 do not hold values of 112"),
    (r"values=64", "values=60", "only multiples of 16"),
    (r"groups=3,2,2", "groups=5,2,2", "not a division of 12 experts"),
    (r"groups=3,2,2", "groups=6,1,2", "not a division of 12 experts from which 3"),
    (r"groups=3,2,2", "groups=3,2,5", "not a division"),
    (r"groups=3,2,2", "groups=3,2", "not a division"),
])
def test_tapes_that_do_not_fit(old: str, new: str, said: str, model: Any) -> None:
    with GGUF(model("deepseek3")[1]) as file:
        tape = build.tape_text(file)
        wrong = re.sub(old, new, tape)
        assert wrong != tape
        with pytest.raises(Error, match=said):
            Engine(file.handle, wrong, threads=1, kv="f32", n_positions=64, level=None)
