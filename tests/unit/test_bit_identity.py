"""One checksum a model, whatever the CPU level, threads, neighbours, chunks, saved states and float environment (docs/numerics.md).

The checksum covers the logits of the last 40 of 300 positions: they depend on every bit computed before, across an attention chunk's
border at 256. tests/data/bit_identity.json holds them; a change of one is a line in the CHANGELOG.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, model_path
from test_kernels import foreign_kernels

import pyllm
from pyllm._core import ffi, lib
from pyllm.build import build
from pyllm.engine import Engine
from pyllm.gguf import GGUF

CHECKSUMS: dict[str, str] = json.loads((ROOT / "tests/data/bit_identity.json").read_text())
LEVELS: list[str] = ffi.string(lib.pyllm_cpu_levels()).decode().split()
BEST = LEVELS[-1]
N, WANTED, CTX = 300, 40, 512
NAMES = ["tiny-llama", "tiny-gemma3", "tiny-qwen3moe", "tiny-deepseek3", "tiny-rwkv7", "tiny-mamba2", "tiny-lfm2", "tiny-granite-hybrid",
         "tiny-qwen3next", "tiny-gemma3n", "smollm2", pytest.param("gemma3-270m", marks=pytest.mark.models)]


def golden_file(name: str, folder: Path) -> Path:
    spec = importlib.util.spec_from_file_location("write_gguf", ROOT / "tests/golden/write_gguf.py")
    assert spec and spec.loader
    goldens = sys.modules.setdefault("write_gguf", importlib.util.module_from_spec(spec))
    spec.loader.exec_module(goldens)
    golden = goldens.load(name)
    goldens.write_gguf(folder / f"{name}.gguf", golden.weights, golden.config | {"max_position_embeddings": CTX}, golden.hf_class)
    return folder / f"{name}.gguf"


class Model:
    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path, self.gguf = name, path, GGUF(path)
        self.tape = build(self.gguf, CTX)[0]

    def engine(self, level: str | None = None, threads: int = 2, kv: str = "f16") -> Engine:
        return Engine(self.gguf.handle, self.tape, threads=threads, kv=kv, n_positions=16 * CTX, level=level)

    def tokens(self, engine: Engine, which: int = 0, n: int = N) -> list[int]:
        return [(i * 7919 + which * 104729) % engine.n_vocab for i in range(n)]

    def checksum(self, kv: str = "f16") -> str:
        return CHECKSUMS[f"{self.name}/{kv}"]


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    name = request.param
    tiny = name.startswith("tiny-")
    return Model(name, golden_file(name[5:], tmp_path_factory.mktemp("tiny")) if tiny else model_path(name))


class Sum:
    """SHA-256 over logits rows, as bytes."""

    def __init__(self) -> None:
        self.sha = hashlib.sha256()

    def step(self, engine: Engine, rows: list[tuple[int, list[int], int]], mine: int = 0) -> None:
        engine.step(rows)
        at = sum(want for _, _, want in rows[:mine])
        self.sha.update(engine.logits[at:at + rows[mine][2]].tobytes())

    def hex(self) -> str:
        return self.sha.hexdigest()


def feed(engine: Engine, seq: int, tokens: list[int], total: Sum, chunk: int, begin: int = 0) -> None:
    for a in range(begin, len(tokens), chunk):
        b = min(a + chunk, len(tokens))
        total.step(engine, [(seq, tokens[a:b], b - max(a, min(b, N - WANTED)))])


def run(model: Model, chunk: int = 128, kv: str = "f16", **options: Any) -> str:
    engine, total = model.engine(kv=kv, **options), Sum()
    try:
        feed(engine, engine.open_seq(), model.tokens(engine), total, chunk)
    finally:
        engine.close()
    return total.hex()


def refused(model: Model, kv: str) -> str:
    """Blocks of 32 need heads of 32; rotated keys of 96 hold no rotated values of 64. A type that such a model has all the same."""
    assert kv in ("q8_0", "q4_0") and ("dim=16" in model.tape or model.name == "tiny-deepseek3")
    with pytest.raises(pyllm.Error, match=f"kv {kv}.*\n.*hint: use kv"):
        model.engine(kv=kv)
    return "f32"


@pytest.mark.parametrize("kv", ["f16", "f32", "q8_0", "q4_0"])
@pytest.mark.parametrize("level", LEVELS)
def test_levels(model: Model, level: str, kv: str) -> None:
    if f"{model.name}/{kv}" not in CHECKSUMS:
        kv = refused(model, kv)
    assert run(model, level=level, kv=kv) == model.checksum(kv)


@pytest.mark.parametrize("level", LEVELS)
def test_every_kernel_is_of_its_level(model: Model, level: str) -> None:
    """Matmul, attention, norms and the rest of a run come from the level that was asked for, or from the one that it inherits them of."""
    engine = model.engine(level=level)
    names = engine.kernels()
    engine.close()
    slots = {name.split("=")[0] for name in names}
    expected = {"attn_chunk_f16", "attn_merge", "attn_finish", *({"rmsnorm", "rope", "gated"} if "rope " in model.tape else ())}
    assert expected | set(re.findall(r"^(wkv7|ssm|ssd|delta) ", model.tape, re.M)) <= slots
    assert any(slot.startswith("matmul_") for slot in slots)
    assert not foreign_kernels(names, level)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_threads(model: Model, threads: int) -> None:
    assert run(model, threads=threads) == model.checksum()


@pytest.mark.parametrize("chunk", [1, 7, 32, 512])
def test_chunks(model: Model, chunk: int) -> None:
    assert run(model, chunk=chunk) == model.checksum()


@pytest.mark.parametrize("others", [1, 3, 15])
def test_neighbours(model: Model, others: int) -> None:
    """Other sequences of all lengths before and behind ours in every step, some of which start and end in between."""
    engine, total = model.engine(), Sum()
    try:
        mine, tokens = engine.open_seq(), model.tokens(engine)
        seqs: list[Any] = [engine.open_seq() for _ in range(others)]
        for step, a in enumerate(range(0, N, 20)):
            rows = [(s, model.tokens(engine, i + 1)[: 1 + (step * 5 + i * 3) % 23], int(a < 100)) for i, s in enumerate(seqs)]
            at = step % (others + 1)
            rows.insert(at, (mine, tokens[a:a + 20], 20 if a >= N - WANTED else 0))
            total.step(engine, rows, at)
            engine.close_seq(seqs[step % others])
            seqs[step % others] = engine.open_seq()
    finally:
        engine.close()
    assert total.hex() == model.checksum()


@pytest.mark.parametrize("kv", ["f16", "f32", "q8_0", "q4_0"])
def test_save_and_restore(model: Model, kv: str) -> None:
    """Into another engine, in the middle of a page and of the wanted rows; and back after a cut."""
    if f"{model.name}/{kv}" not in CHECKSUMS:
        kv = refused(model, kv)
    engine, other, total = model.engine(kv=kv), model.engine(kv=kv, threads=1, level=LEVELS[0] if "tiny" in model.name else BEST), Sum()
    try:
        tokens, seq = model.tokens(engine), engine.open_seq()
        feed(engine, seq, tokens[:270], total, 45)
        state = engine.save(seq)
        engine.step([(seq, [1, 2, 3, 4, 5], 1)])
        copy = other.open_seq()
        other.restore(copy, state)
        assert other.save(copy) == state
        feed(other, copy, tokens[:290], total, 5, begin=270)
        back = engine.open_seq()
        engine.restore(back, other.save(copy))
        feed(engine, back, tokens, total, 10, begin=290)
    finally:
        engine.close()
        other.close()
    assert total.hex() == model.checksum(kv)


@contextmanager
def hostile_floats() -> Iterator[Callable[[], None]]:
    """Rounding upwards, subnormals to zero: what a plugin host or a -ffast-math library leaves behind. Yields a check that it holds."""
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    old, new = (ctypes.create_string_buffer(64) for _ in range(2))
    assert libm.fegetenv(old) == 0
    libm.fegetenv(new)
    words = ctypes.cast(new, ctypes.POINTER(ctypes.c_uint32))
    if platform.machine() == "x86_64":
        words[7] |= 0x8040 | 0x4000         # MXCSR: FTZ, DAZ, round up
    else:
        words[0] |= 1 << 24 | 1 << 22       # FPCR: FZ, round up
    numbers = np.array([5e-324, 1.0, 1e-20])        # not constants: the compiler would fold those
    try:
        assert libm.fesetenv(new) == 0

        def check() -> None:
            tiny, one, small = map(float, numbers)
            assert tiny * one == 0 and one + small > one, "the engine changed its caller's float environment"

        check()
        yield check
    finally:
        libm.fesetenv(old)


@pytest.mark.parametrize("level", LEVELS)
def test_hostile_float_environment(model: Model, level: str) -> None:
    """The tape is written, the model loaded and run with rounding upwards and subnormals flushed: the checksum is the usual one."""
    with hostile_floats() as still_hostile:
        got = run(Model(model.name, model.path), level=level, threads=3)
        still_hostile()
    assert got == model.checksum()


def test_text_in_a_hostile_float_environment(smollm2: Path) -> None:
    """The whole way through the public API, sampling parameters and noise included."""
    def text() -> tuple[Any, ...]:
        with pyllm.LLM(smollm2, ctx=128) as llm:
            reply = llm.complete([5, 6, 7], max_tokens=24, temperature=0.7, top_p=0.9, repeat_penalty=1.1, seed=3, logprobs=2)
            return reply.tokens, reply.logprobs, llm.logits([1, 2, 3]).tobytes()

    want = text()
    with hostile_floats() as still_hostile:
        got = text()
        still_hostile()
    assert got == want


@pytest.mark.parametrize("level", LEVELS)
def test_environment_variable(level: str, tmp_path: Path) -> None:
    code = "import pyllm, sys; m = pyllm.LLM(sys.argv[1], ctx=64); print(m.level, *m.kernels())"
    path = golden_file("llama", tmp_path)
    done = subprocess.run([sys.executable, "-c", code, str(path)], env={**os.environ, "PYLLM_CPU": level}, capture_output=True, text=True,
                          cwd=tmp_path, timeout=60, check=True)
    used, *names = done.stdout.split()
    assert used == level and not foreign_kernels(names, level)


def test_unknown_level_is_named(tmp_path: Path) -> None:
    code = "import pyllm, sys; pyllm.LLM(sys.argv[1], ctx=64)"
    done = subprocess.run([sys.executable, "-c", code, str(golden_file("llama", tmp_path))], env={**os.environ, "PYLLM_CPU": "sse9"},
                          capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert "sse9" in done.stderr and LEVELS[0] in done.stderr
