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


def test_rope_with_angles_after_rows(file: GGUF, tape: str) -> None:
    """Angles of the rows with logits only are not there for the others."""
    lines = {line.split()[0]: line for line in reversed(tape.splitlines())}         # the first of each
    angles, rope = lines["angles"].split()[1], lines["rope"]
    again = re.sub(r"^rope \S+", "rope q_late,k_late", rope.replace(f"angles={angles}", "angles=few"))
    assert "angles=few" in again
    refused(file, tape.replace(rope, f"rows few in={angles}\n{again}\n{rope}"), "rope cannot stand after rows")


def test_two_steps_of_one_layer(file: GGUF, tape: str) -> None:
    """The second reads what the first stores, so it has the same keys and values, stored in the same way; no layer is without a step."""
    attn = next(line for line in tape.splitlines() if line.startswith("attn "))
    name, k, v = re.search(r"^attn (\S+) in=\S+,(\S+),(\S+) ", attn).groups()      # type: ignore[union-attr]
    again = attn.replace(f"attn {name} ", "attn again ")
    load(file, tape.replace(attn, f"{attn}\n{again}")).close()
    for wrong in (again.replace(f",{k},{v} ", f",{v},{k} "), again.replace("window=0", "window=8")):
        assert wrong != again
        refused(file, tape.replace(attn, f"{attn}\n{wrong}"), "layer 0 twice")
    refused(file, tape.replace(attn, f"{attn}\n{again}".replace("layer=0", "layer=1")), "no attn step of layer 0")


def test_rope_of_one(file: GGUF, tape: str) -> None:
    line = next(line for line in tape.splitlines() if line.startswith("rope "))
    q = re.search(r"in=(\S+),(\S+) ", line)
    assert q
    alone = line.replace(line.split()[1], "alone").replace(q[0], f"in={q[1]} ")
    alone = alone.replace("heads=2,2", "heads=2").replace("norm=-,-", "norm=-")
    load(file, tape.replace(line, f"{line}\n{alone}")).close()
    for wrong in (alone.replace("heads=2", "heads=2,2"), alone.replace("alone", "alone,more")):
        refused(file, tape.replace(line, f"{line}\n{wrong}"), "an output, head count and norm for each input")


@pytest.mark.parametrize("step, says", [
    ("blend y in=x,x parts=3 plus=0x0p+0", "not parts of one width"),
    ("blend y in=x,x parts=0 plus=0x0p+0", "not parts of one width"),
    ("blend y in=x,x parts=2 plus=0x0p+0 from=2", "no part 2"),
    ("blend y in=x,x parts=2 plus=0x0p+0 by=x", "one number for each part"),
    ("scale y in=x by=0x1p+0 w=-", "one vector of the input's width"),
    ("match y in=half,x floor=0x0p+0", "parts as wide as"),
])
def test_parts_that_do_not_fit(file: GGUF, tape: str, step: str, says: str) -> None:
    embed = next(line for line in tape.splitlines() if line.startswith("embed "))
    assert embed.split()[1] == "x"
    refused(file, tape.replace(embed, f"{embed}\ntake half in=x heads=1 from=0 to=32\n{step}"), says)


def test_early_steps_behind_rows_always_run(file: GGUF, tape: str) -> None:
    """rows may be taken of several values: what comes after the first one and is no late value runs in steps without logits, too."""
    embed = next(line for line in tape.splitlines() if line.startswith("embed "))
    moved = tape.replace(f"{embed}\n", f"{embed}\nrows early in={embed.split()[1]}\n")
    assert moved != tape
    logits = []
    for text in (tape, moved):
        engine = load(file, text)
        seq = engine.open_seq()
        engine.step([(seq, [5, 6, 7], 0)])          # type: ignore[list-item]
        engine.step([(seq, [8], 1)])                # type: ignore[list-item]
        logits.append(engine.logits[0].copy())
        engine.close()
    assert np.array_equal(*logits)


def test_engines_that_share_workers(file: GGUF, tape: str) -> None:
    """Whose workers are used keeps them; in a circle nobody would have any."""
    a, b, c = (load(file, tape) for _ in range(3))
    err = new_error()
    b.follow(a)
    with pytest.raises(pyllm.ArgumentError, match="keeps them"):
        check(lib.pyllm_engine_share(a._engine, c._engine, err), err)
    a.follow(b)                                     # its own already
    c.follow(b)                                     # whose are a's
    for engine in (a, b, c):
        engine.step([(engine.open_seq(), [5, 6], 1)])       # type: ignore[list-item]
    assert np.array_equal(a.logits[0], b.logits[0]) and np.array_equal(a.logits[0], c.logits[0])
    for engine in (c, b, a):
        engine.close()


@pytest.mark.parametrize("first, n", [(2**63 - 1, 1), (1 << 60, 1), (0, 2**63 - 1), (1, 2**63 - 1), (-1, 1), (0, -1)])
def test_pages_far_away(file: GGUF, tape: str, first: int, n: int) -> None:
    engine, err, pages = load(file, tape), new_error(), ffi.new("int32_t[]", [0] * 64)
    seq = engine.open_seq()
    engine.step([(seq, [5] * 20, 0)])               # type: ignore[list-item]
    for call in (lib.pyllm_seq_pages, lib.pyllm_seq_adopt):
        with pytest.raises(pyllm.ArgumentError, match="has no"):
            check(call(engine._engine, seq, first, n, pages, err), err)
    empty = engine.open_seq()
    with pytest.raises(pyllm.ArgumentError, match="cannot begin"):
        check(lib.pyllm_seq_attach(engine._engine, empty, max(n, 1 << 40), pages, err), err)
    engine.close()


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
