"""Saved sequences and sessions: any wrong byte is refused and changes nothing; other models, KV types and layouts are refused."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from tok_oracle import read_header

import pyllm
from pyllm.build import build
from pyllm.engine import Engine
from pyllm.gguf import GGUF

TINY = {"n_layers": 1, "n_embd": 64, "n_ff": 64, "heads": 2, "kv_heads": 1, "ctx": 256}
TOKENS = [5 + i * 7919 % 290 for i in range(21)]


def engine(path: Path, kv: str = "f16", n_positions: int = 64) -> Engine:
    with GGUF(path) as file:
        return Engine(file.handle, build(file)[0], threads=1, kv=kv, n_positions=n_positions, level=None)


def write(folder: Path, name: str, seed: int = 1, **sizes: int) -> Path:
    (folder / name).write_bytes(tiny_gguf.llama("q8_0", seed=seed, **(TINY | sizes))[0])
    return folder / name


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("state"), "tiny.gguf")


@pytest.fixture
def running(path: Path) -> Iterator[Engine]:
    e = engine(path)
    yield e
    e.close()


def logits(e: Engine, seq: int, tokens: list[int]) -> np.ndarray:
    n = e.step([(seq, tokens, len(tokens))])
    return e.logits[:n].copy()


@pytest.mark.parametrize("kv", ["f32", "f16", "q8_0", "q4_0"])
def test_every_wrong_byte_is_refused(path: Path, kv: str) -> None:
    """Every byte of a state with its lowest bit flipped and with all bits flipped; meanwhile the sequence that was to be replaced stays."""
    e = engine(path, kv)
    saved, other, twin = (e.open_seq() for _ in range(3))
    assert saved is not None and other is not None and twin is not None
    logits(e, saved, TOKENS)
    state = e.save(saved)
    for seq in (other, twin):
        logits(e, seq, TOKENS[3:15])
    before, free = e.save(other), e.free_pages()
    data = bytearray(state)
    for at in range(len(state)):
        for change in (1, 255):
            data[at] ^= change
            with pytest.raises(pyllm.errors.StateError):
                e.restore(other, bytes(data))
            data[at] ^= change
    assert data == state and e.save(other) == before and e.free_pages() == free
    assert np.array_equal(logits(e, other, [7, 8, 9]), logits(e, twin, [7, 8, 9]))
    e.restore(other, state)
    assert e.save(other) == state
    assert np.array_equal(logits(e, other, [7, 8, 9]), logits(e, saved, [7, 8, 9]))
    e.close()


def test_lengths_and_noise(running: Engine) -> None:
    seq = running.open_seq()
    assert seq is not None
    logits(running, seq, TOKENS)
    state = running.save(seq)
    rng = random.Random(5)
    wrong = [state[:n] for n in range(0, len(state), 7)] + [state + bytes(n) for n in (1, 8, 4096)]
    wrong += [state[1:], state * 2, b"x" * len(state)]
    wrong += [rng.randbytes(n) for n in (1, 47, 48, 56, 1000, len(state))]
    for data in wrong:
        with pytest.raises(pyllm.errors.StateError) as e:
            running.restore(seq, data)
        assert str(e.value)
    assert running.save(seq) == state


def test_other_models_are_refused(path: Path, running: Engine, tmp_path: Path) -> None:
    """Another KV type, other weights of the same shape, another depth or width."""
    seq = running.open_seq()
    assert seq is not None
    logits(running, seq, TOKENS)
    state = running.save(seq)
    others = [engine(path, "f32"), engine(path, "q8_0"), engine(write(tmp_path, "seed.gguf", seed=2)),
              engine(write(tmp_path, "deep.gguf", n_layers=2)), engine(write(tmp_path, "heads.gguf", kv_heads=2))]
    for other in others:
        mine = other.open_seq()
        assert mine is not None
        logits(other, mine, [5, 6])
        before = other.save(mine)
        with pytest.raises(pyllm.errors.StateError, match="another model") as e:
            other.restore(mine, state)
        assert e.value.hint and other.save(mine) == before
        other.close()


@pytest.mark.parametrize("tensor", ["token_embd.weight", "blk.0.attn_q.weight"])
def test_one_byte_makes_another_model(path: Path, running: Engine, tmp_path: Path, tensor: str) -> None:
    """Also in the middle of a weight, and in an embedding that stays in the file."""
    data = bytearray(path.read_bytes())
    begin = read_header(bytes(data))[1][tensor][2]
    data[begin + 34 * 41 + 7] ^= 1
    (tmp_path / "other.gguf").write_bytes(data)
    seq, other = running.open_seq(), engine(tmp_path / "other.gguf")
    assert seq is not None
    logits(running, seq, TOKENS)
    target = other.open_seq()
    assert target is not None
    with pytest.raises(pyllm.errors.StateError, match="another model"):
        other.restore(target, running.save(seq))
    other.close()


@pytest.mark.parametrize("kv", ["f32", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("n", [1, 5, 21])
def test_a_state_holds_nothing_of_other_sequences(path: Path, kv: str, n: int) -> None:
    """Pages change hands uncleared; what is saved is the same as from a fresh engine, and goes on the same."""
    fresh, used = engine(path, kv), engine(path, kv)
    for length in (60, 40):
        before = used.open_seq()
        assert before is not None
        logits(used, before, [(i * 31 + length) % 290 for i in range(length)])
        if length == 60:
            used.close_seq(before)
        else:
            used.truncate(before, 0)
    a, b = fresh.open_seq(), used.open_seq()
    assert a is not None and b is not None
    logits(fresh, a, TOKENS[:n])
    logits(used, b, TOKENS[:n])
    assert fresh.save(a) == used.save(b)
    used.restore(b, fresh.save(a))
    assert np.array_equal(logits(fresh, a, [7, 8, 9]), logits(used, b, [7, 8, 9]))
    fresh.close()
    used.close()


def test_a_state_that_does_not_fit(path: Path, running: Engine) -> None:
    """More tokens than the other engine holds: refused before anything is freed."""
    seq = running.open_seq()
    assert seq is not None
    logits(running, seq, TOKENS)
    small = engine(path, n_positions=16)
    mine = small.open_seq()
    assert mine is not None
    logits(small, mine, [5, 6])
    before = small.save(mine)
    with pytest.raises(pyllm.errors.CacheFull, match="21 tokens"):
        small.restore(mine, running.save(seq))
    assert small.save(mine) == before
    small.close()


def test_sequences_that_do_not_exist(running: Engine) -> None:
    for seq in (-1, 3, 16, 1 << 30):
        with pytest.raises(pyllm.errors.ArgumentError, match=str(seq)):
            running.save(seq)
        with pytest.raises(pyllm.errors.ArgumentError, match=str(seq)):
            running.restore(seq, b"x" * 100)
        assert not running.truncate(seq, 0) and running.length(seq) == -1


def test_session_files(path: Path, tmp_path: Path) -> None:
    """Every 13th byte and every header byte of a session's file flipped, and truncations: refused, and the conversation goes on."""
    file = tmp_path / "talk"
    with pyllm.LLM(path, chat_template="{{ messages[-1].content }}") as llm, llm.session() as s, llm.session() as t, llm.session() as twin:
        s.chat("w1 w2", seed=1, max_tokens=6)
        s.save(file)
        want = s.chat("w3", seed=2, max_tokens=6)
        for other in (t, twin):
            other.chat("w5 w6", seed=3, max_tokens=6)
        data = file.read_bytes()
        begin = random.randrange(13)
        print(f"from {begin}")
        for at in [*range(60), *range(60 + begin, len(data), 13)]:
            file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
            with pytest.raises(pyllm.errors.StateError, match=str(file)):
                t.load(file)
        for n in [*range(70), *range(70 + begin, len(data), 97)]:
            file.write_bytes(data[:n])
            with pytest.raises(pyllm.errors.StateError, match=str(file)):
                t.load(file)
        assert t.messages == twin.messages
        assert t.chat("w7", seed=4, max_tokens=6).tokens == twin.chat("w7", seed=4, max_tokens=6).tokens
        file.write_bytes(data)
        t.load(file)
        assert t.chat("w3", seed=2, max_tokens=6).tokens == want.tokens


@pytest.mark.parametrize("head", [b"", b"[]", b"{}", b"5", b"null", b'{"messages": 5, "tokens": []}', b'{"messages": [5], "tokens": []}',
                                  b'{"messages": [], "tokens": ["x"]}', b'{"messages": [], "tokens": [1e400]}',
                                  b'{"messages": [], "tokens": [5]}', b'{"messages": [], "tokens": 5}', b"\xff\xfe", b"[" * 100_000],
                         ids=lambda head: head[:40].decode(errors="replace"))
def test_session_heads_that_lie(path: Path, tmp_path: Path, head: bytes) -> None:
    """A file with a right checksum whose content is not a session."""
    body = struct.pack("<QQ", len(head), 0) + head
    (tmp_path / "talk").write_bytes(b"PYLLMCHAT1\n" + hashlib.sha256(body).digest() + body)
    with pyllm.LLM(path) as llm, llm.session([{"role": "user", "content": "x"}]) as s:
        with pytest.raises(pyllm.errors.StateError):
            s.load(tmp_path / "talk")
        assert s.messages == [{"role": "user", "content": "x"}]


def test_sessions_of_other_models(path: Path, tmp_path: Path) -> None:
    template = "{{ messages[-1].content }}"
    with pyllm.LLM(path, chat_template=template) as llm, llm.session() as s:
        s.chat("w1", max_tokens=2)
        s.save(tmp_path / "talk")
    for other in (write(tmp_path, "seed.gguf", seed=2), write(tmp_path, "deep.gguf", n_layers=2)):
        with pyllm.LLM(other, chat_template=template) as llm, llm.session() as s:
            with pytest.raises(pyllm.errors.StateError, match="another model") as e:
                s.load(tmp_path / "talk")
            assert e.value.hint and s.messages == []
