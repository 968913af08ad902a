"""Tapes that the library must refuse, and calls of the C interface that a host without Python may get wrong. Each once crashed or lied."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf

import pyllm
from pyllm._core import check, ffi, lib, new_error
from pyllm.build import build
from pyllm.engine import Engine
from pyllm.gguf import GGUF


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GGUF]:
    path = tmp_path_factory.mktemp("tape") / "tiny.gguf"
    path.write_bytes(tiny_gguf.llama("q8_0", n_layers=1, n_embd=64, n_ff=64, heads=2, kv_heads=2, ctx=256)[0])
    with GGUF(path) as file:
        yield file


@pytest.fixture(scope="module")
def tape(file: GGUF) -> str:
    return build(file)[0]


def load(file: GGUF, tape: str) -> Engine:
    return Engine(file.handle, tape, threads=1, kv="f16", n_positions=256, level=None)


def refused(file: GGUF, tape: str, message: str) -> None:
    with pytest.raises(pyllm.Error, match=message):
        load(file, tape).close()


def test_rope_after_rows(file: GGUF, tape: str) -> None:
    """It runs for every row of the batch, and late values have room for those with logits only."""
    lines = tape.splitlines()
    rows = next(line for line in lines if line.startswith("rows "))
    angles = next(line.split()[1] for line in lines if line.startswith("angles "))
    late = f"rope q_late,k_late in={rows.split()[1]},{rows.split()[1]} angles={angles} heads=2,2 dim=32 rot=32 neox=0 norm=-,- eps=0x0p+0"
    refused(file, tape.replace(rows, f"{rows}\n{late}"), "rope cannot stand after rows")


def test_no_attention(file: GGUF, tape: str) -> None:
    attn = next(line for line in tape.splitlines() if line.startswith("attn "))
    name, source = attn.split()[1], re.search(r"in=(\w+)", attn)
    assert source
    without = "\n".join(f"scale {name} in={source[1]} by=0x1p+0" if line == attn else line for line in tape.splitlines()) + "\n"
    refused(file, without, "at least one attn")


def test_a_slice_is_not_the_whole(file: GGUF, tape: str) -> None:
    """A slice that stands first on the tape must not stand in for the whole matrix behind it."""
    head = next(line for line in tape.splitlines() if line.startswith("linear logits "))
    matrix, source = re.search(r"w=(\S+)", head), re.search(r"in=(\S+)", head)
    assert matrix and source
    first = f"linear few in={source[1]} w={matrix[1]}[0:16] bias=-"
    engine, plain = load(file, tape.replace(head, f"{first}\n{head}")), load(file, tape)
    seqs = engine.open_seq(), plain.open_seq()
    for e, seq in zip((engine, plain), seqs, strict=True):
        e.step([(seq, [5, 6, 7], 1)])       # type: ignore[list-item]
    assert np.array_equal(engine.logits[0], plain.logits[0]) and engine.n_vocab == plain.n_vocab
    engine.close()
    plain.close()


def test_logits_without_a_place_for_them(file: GGUF, tape: str) -> None:
    engine = load(file, tape)
    seq, err = engine.open_seq(), new_error()
    with pytest.raises(pyllm.errors.ArgumentError, match="no place"):
        check(lib.pyllm_step(engine._engine, 1, ffi.new("int32_t *", 5), ffi.new("int32_t *", seq), ffi.new("uint8_t *", 1), ffi.NULL,
                             ffi.NULL, err), err)
    assert engine.length(seq or 0) == 0
    engine.close()


def test_any_word_is_a_float_environment() -> None:
    saved = lib.pyllm_float_env_enter()
    lib.pyllm_float_env_restore(saved | 1 << 16 | 1 << 40)      # reserved bits would fault
    lib.pyllm_float_env_restore(saved)


def test_a_cancel_flag_that_flickers(smollm2: Path) -> None:
    """Set and taken back while a step runs: the step is either whole or Cancelled without a trace, never something between."""
    with GGUF(smollm2) as model:
        engine = Engine(model.handle, build(model, 1024)[0], threads=3, kv="f16", n_positions=1024, level=None)
    seq, tokens = engine.open_seq(), [5 + i * 7919 % 40000 for i in range(600)]
    assert seq is not None
    for at in range(0, 592, 296):
        engine.step([(seq, tokens[at:at + 296], 0)])
    engine.step([(seq, tokens[592:], 1)])
    want, stop = engine.logits[0].copy(), threading.Event()

    def flicker() -> None:
        while not stop.is_set():
            engine.cancel(True)
            engine.cancel(False)
            time.sleep(0.0005)

    thread = threading.Thread(target=flicker)
    thread.start()
    whole = dropped = 0
    try:
        while whole < 20 or dropped < 20:
            engine.truncate(seq, 592)
            try:
                engine.step([(seq, tokens[592:], 1)])
            except pyllm.errors.Cancelled:
                dropped += 1
                assert engine.length(seq) == 592
            else:
                whole += 1
                assert np.array_equal(engine.logits[0], want)
    finally:
        stop.set()
        thread.join()
        engine.close()
