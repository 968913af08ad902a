"""The cost model and the profile: counted against a second, direct count, and against what the engine says it ran."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest

import pyllm
from pyllm._core import ffi, lib
from pyllm.build import tape_text
from pyllm.cost import Cost, Limits, costs, run_costs
from pyllm.gguf import GGUF
from pyllm.limits import dot_peak


def hparam(tape: str, op: str, key: str) -> int:
    found = re.search(rf"^{op} .*\b{key}=(\d+)", tape, re.M)
    assert found
    return int(found[1])


def test_a_token_of_smollm2(smollm2: Path) -> None:
    """Every tensor is read once (the embedding is the tied output); products: all matrices, and both of attention."""
    with GGUF(smollm2) as file:
        tape = tape_text(file, 2048)
        steps = costs(file, tape, depth=99)
        tensors = file.tensors.values()
        assert sum(c.bytes for c in steps if c.op not in ("embed", "attn")) == sum(t.n_bytes for t in tensors)
        assert sum(c.macs for c in steps if c.op != "attn") == sum(t.shape[0] * t.shape[1] for t in tensors if len(t.shape) == 2)
    attn = [c for c in steps if c.op == "attn"]
    assert len(attn) == 30
    assert {(c.bytes, c.macs) for c in attn} == {(100 * 3 * 64 * 2 * 2, 100 * 9 * 64 * 2 * 4)}     # positions x heads x dim x (K, V)


def test_parts_of_a_matrix(smollm2: Path) -> None:
    """A slice has its rows' share of bytes and products, and a look-up is one row."""
    with GGUF(smollm2) as file:
        whole = tape_text(file, 2048)
        first, rest = "w=blk.0.ffn_down.weight[0:64]", "w=blk.0.ffn_down.weight[64:576]"
        steps = [next(c for c in costs(file, re.sub(r"w=blk\.0\.ffn_down\.weight", w, whole)) if c.name == "down0") for w in (first, rest)]
        down = next(c for c in costs(file, whole) if c.name == "down0")
        assert (sum(c.bytes for c in steps), sum(c.macs for c in steps)) == (down.bytes, down.macs) and steps[0].macs * 9 == down.macs
        assert costs(file, whole)[0].bytes == file.tensors["token_embd.weight"].n_bytes // 49152


@pytest.mark.parametrize(("n", "size"), [(700, 512), (5, 1)])
def test_a_run_is_the_sum_of_its_batches(smollm2: Path, n: int, size: int) -> None:
    with GGUF(smollm2) as file:
        tape = tape_text(file, 2048)
        run = run_costs(file, tape, n, size, 10, "q8_0")
    by_hand = sum((10 + i + 1) * 9 * 64 * 2 for i in range(n)) * 30
    if size == 1:
        assert sum(c.macs for c in run if c.op == "attn") == by_hand
    assert abs(sum(c.macs for c in run if c.op == "attn") / by_hand - 1) < 1e-3
    head = next(c for c in run if c.name == "logits")
    assert head.macs == 49152 * 576 * (5 if size == 1 else 1)


def test_windows_cost_their_window(smollm2: Path) -> None:
    with GGUF(smollm2) as file:
        tape = tape_text(file, 2048).replace("window=0", "window=128")
        assert max(c.bytes for c in costs(file, tape, depth=1000) if c.op == "attn") == 128 * 3 * 64 * 2 * 2


def test_least_time() -> None:
    limits = Limits(bytes_per_s=1e9, macs_per_s=1e10)
    assert Cost("linear", "x", 1000, 1000).seconds(limits) == 1e-6
    assert Cost("linear", "x", 10, 1_000_000).seconds(limits) == 1e-4


def test_profile(smollm2: Path) -> None:
    """One time for every step of the tape, none longer than all took."""
    with pyllm.LLM(smollm2, ctx=256) as llm:
        begin = time.perf_counter()
        steps = llm.profile("pp64", reps=1)
        took = time.perf_counter() - begin
        assert len(steps) == lib.pyllm_model_n_steps(llm._engine._model)
        assert {c.op for c, _ in steps} >= {"embed", "norm", "linear", "rope", "attn", "gated", "rows"}
        times = {c.name: seconds for c, seconds in steps}
        assert sum(times.values()) < took and min(times[name] for name in ("ffn0", "down29", "attn0", "logits")) > 1e-6
        assert [c for c, _ in llm.profile("tg2", reps=1)] == run_costs_of(llm, 2, 1)


def run_costs_of(llm: pyllm.LLM, n: int, size: int) -> list[Cost]:
    with GGUF(llm.path) as file:
        return run_costs(file, tape_text(file, llm.ctx), n, size, 0, llm.kv)


def test_dot_peak() -> None:
    """Vector levels are several times faster than the reference, two threads not slower than one by much; nonsense is refused."""
    levels = ffi.string(lib.pyllm_cpu_levels()).decode().split()
    rates = {level: dot_peak(1, level) for level in levels}
    assert all(rates[level] > 5 * rates["ref"] for level in levels[1:]), rates
    out: Any = ffi.new("double *")
    for threads, level, where in ((0, ffi.NULL, out), (1025, ffi.NULL, out), (1, b"sse9", out), (1, ffi.NULL, ffi.NULL)):
        assert lib.pyllm_dot_peak(level, threads, where, ffi.NULL) == lib.PYLLM_ERR_ARG
