"""Conversations that are interrupted, forgotten, moved and damaged, on SmolLM2. The plain ways are in test_api."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyllm

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 4}


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[pyllm.LLM]:
    with pyllm.LLM(smollm2, ctx=512) as llm:
        yield llm


def free_pages(llm: pyllm.LLM) -> int:
    return llm._driver.call(llm._engine.free_pages)


def test_forgotten_sessions_give_their_cache_back(llm: pyllm.LLM) -> None:
    free = free_pages(llm)
    for i in range(20):                 # more than the engine has sequences
        llm.session().chat(f"Say {i}.", **GREEDY)
    gc.collect()
    assert free_pages(llm) == free


def test_a_forgotten_session_frees_its_model(smollm2: Path) -> None:
    llm = pyllm.LLM(smollm2, ctx=64)
    thread = llm._driver._thread
    session = llm.session()
    session.chat("Hi", **GREEDY)
    del llm, session
    gc.collect()
    thread.join(60)
    assert not thread.is_alive()


def test_the_next_message_ends_a_stream_that_was_left(llm: pyllm.LLM) -> None:
    with llm.session() as s:
        left = s.stream("Tell me a very long story.", temperature=0)
        first = next(iter(left)).text
        s.chat("Say hi.", **GREEDY)
        assert [m["content"] for m in s.messages[::2]] == ["Tell me a very long story.", "Say hi."]
        assert s.messages[1]["content"].startswith(first) and left.reply.finish_reason == "cancelled"
        before = list(s.messages)
        left.close()
        del left
        assert s.messages == before


def test_an_answer_without_a_word_leaves_the_messages(llm: pyllm.LLM) -> None:
    with llm.session() as s:
        s.chat("Say hi.", **GREEDY)
        before = list(s.messages)
        s.stream("word " * 400, temperature=0).close()              # while the prompt is computed
        s.regenerate(temperature=0).close()
        with pytest.raises(pyllm.NonFiniteLogits):
            s.chat("Again.", logits_processor=lambda ids, logits: np.full_like(logits, np.nan))
        with pytest.raises(pyllm.ContextOverflow):
            s.chat("word " * 600)
        assert s.messages == before
        assert s.chat("Again.", **GREEDY).tokens == llm.chat([*before, {"role": "user", "content": "Again."}], **GREEDY).tokens


def test_undo_and_system(llm: pyllm.LLM) -> None:
    with llm.session() as s:
        s.system = "Answer briefly."
        assert s.system == "Answer briefly." and s.n_tokens > 0
        for call in (s.undo, s.regenerate):
            with pytest.raises(pyllm.ArgumentError):
                call()
        assert len(s.messages) == 1
        s.chat("Say hi.", **GREEDY)
        one = s.n_tokens
        s.chat("Again.", **GREEDY)
        assert s.n_tokens > one and s.undo() == "Again." and s.n_tokens == one
        s.system = "Be kind."
        s.system = None
        assert s.system is None and [m["role"] for m in s.messages] == ["user", "assistant"]
        s.clear()
        assert s.messages == [] and s.n_tokens == 0


def test_load_makes_room_for_itself(llm: pyllm.LLM, tmp_path: Path) -> None:
    """A conversation that fills most of the context goes where another one already does."""
    with llm.session() as s:
        s.chat("Tell me a story.", temperature=0, max_tokens=300)
        s.save(tmp_path / "talk")
        want = s.chat("Go on.", **GREEDY)
        s.chat("More.", **GREEDY)
        s.load(tmp_path / "talk")
        reply = s.chat("Go on.", **GREEDY)
        assert reply.tokens == want.tokens and reply.usage.cached_tokens >= want.usage.cached_tokens > 0
    assert [p.name for p in tmp_path.iterdir()] == ["talk"]


def test_load_during_an_answer(llm: pyllm.LLM, tmp_path: Path) -> None:
    with llm.session() as s:
        s.chat("Say hi.", **GREEDY)
        s.save(tmp_path / "talk")
        left = s.stream("Tell me a very long story.", temperature=0)
        next(iter(left))
        s.load(tmp_path / "talk")
        assert s.messages[0]["content"] == "Say hi." and len(s.messages) == 2
        assert s.chat("Go on.", **GREEDY).tokens


@pytest.mark.parametrize("head", [b"[]", b'{"messages": [1], "tokens": []}', b'{"messages": [{}], "tokens": []}', b"[" * 100_000,
                                  b'{"messages": [], "tokens": [1e999]}', b'{"messages": [], "tokens": [5]}', b"\xff"])
def test_made_up_files_are_refused(llm: pyllm.LLM, tmp_path: Path, head: bytes) -> None:
    body = struct.pack("<QQ", len(head), 0) + head
    path = tmp_path / "talk"
    path.write_bytes(b"PYLLMCHAT1\n" + hashlib.sha256(body).digest() + body)
    with llm.session([{"role": "user", "content": "hi"}]) as s:
        with pytest.raises(pyllm.StateError):
            s.load(path)
        assert len(s.messages) == 1


def test_files_that_are_no_sessions(llm: pyllm.LLM, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    path.write_bytes(b"PYLLMCHAT1\n" + bytes(32) + struct.pack("<QQ", 1 << 63, 1 << 63))
    with llm.session() as s:
        for bad in (path, "/dev/zero", "/dev/null"):        # none is read further than its first bytes
            with pytest.raises(pyllm.StateError):
                s.load(bad)
        with pytest.raises(pyllm.FileError):
            s.load(tmp_path)
        with pytest.raises(pyllm.FileError):
            s.save(tmp_path / "no" / "folder")
        s.messages = [{"role": "user", "content": b"bytes"}]
        with pytest.raises(pyllm.ArgumentError):
            s.save(path)


def test_a_forked_child_never_waits(llm: pyllm.LLM) -> None:
    session = llm.session()
    stream = session.stream("Tell me a very long story.")
    next(iter(stream))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = []
        try:
            stream.close()
            session.chat("hi")
        except pyllm.ForkedProcess:
            said.append("forked")
        except BaseException as e:
            said.append(repr(e))
        os.write(write, json.dumps(said).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as f:
        assert json.load(f) == ["forked"]
    os.waitpid(pid, 0)
    session.close()
