"""Many requests at once: every reply is what its prompt gets alone; errors, bounds and leaving."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf

import pyllm

TINY = {"n_layers": 1, "n_embd": 64, "n_ff": 64, "heads": 2, "kv_heads": 1, "ctx": 256}
TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("batch") / "tiny.gguf"
    path.write_bytes(tiny_gguf.llama("q8_0", **TINY)[0])
    return path


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[pyllm.LLM]:
    with pyllm.LLM(path, chat_template=TEMPLATE) as llm:
        yield llm


def prompt(i: int) -> list[int]:
    return [5 + (i * 31 + k * 7) % 290 for k in range(1 + i * 5 % 60)]


@pytest.mark.parametrize("parallel", [1, 3, 16, 40])
def test_replies_are_those_of_each_alone(path: Path, llm: pyllm.LLM, parallel: int) -> None:
    options: dict[str, Any] = {"seed": 3, "max_tokens": 9, "temperature": 1.0}
    want = [llm.complete(prompt(i), **options).tokens for i in range(50)]
    with pyllm.LLM(path, chat_template=TEMPLATE, parallel=parallel, max_waiting=4) as other:
        assert [r.tokens for r in other.generate_batch(map(prompt, range(50)), chat=False, **options)] == want
        came = dict(other.iter_batch(map(prompt, range(50)), chat=False, **options))
        assert [came[i].tokens for i in range(50)] == want
        assert other.parallel == parallel


def test_chats(llm: pyllm.LLM) -> None:
    talks = ["w1 w2", [{"role": "user", "content": "w3"}, {"role": "user", "content": "w4"}], "w5"]
    replies = llm.generate_batch(talks, temperature=0, max_tokens=5)
    assert [r.tokens for r in replies] == [llm.chat(t, temperature=0, max_tokens=5).tokens for t in talks]
    assert llm.generate_batch([]) == []


def test_an_endless_stream_of_prompts_is_read_as_it_goes(llm: pyllm.LLM) -> None:
    taken = 0

    def endless() -> Iterator[list[int]]:
        nonlocal taken
        for i in itertools.count():
            taken = i + 1
            yield prompt(i % 50)

    replies = llm.iter_batch(endless(), chat=False, max_tokens=4)
    got = {i for i, _ in itertools.islice(replies, 100)}
    assert len(got) == 100 and taken <= 100 + 2 * llm.parallel
    replies.close()     # type: ignore[attr-defined]
    assert llm._driver.call(lambda: llm._driver._scheduler.idle) or not llm.complete([5], max_tokens=1).usage.cached_tokens


@pytest.mark.parametrize("prompts", ["a text", {"role": "user"}, 5, None, [[]], [[5], [10 ** 9]], [[5]] * 40 + [[5] * 300]])
def test_wrong_prompts(llm: pyllm.LLM, prompts: Any) -> None:
    with pytest.raises((pyllm.ArgumentError, pyllm.ContextOverflow)):
        llm.generate_batch(prompts, chat=False, max_tokens=2)
    assert llm.complete([5], max_tokens=1).tokens


def test_more_requests_than_may_wait(path: Path) -> None:
    """One runs and blocks the engine, two wait, the fourth is refused with a time; afterwards there is room again."""
    go, running = threading.Event(), threading.Event()

    def block(ids: Any, logits: Any) -> None:
        running.set()
        go.wait(30)

    with pyllm.LLM(path, parallel=1, max_waiting=2) as llm:
        streams = [llm.stream_complete([5], max_tokens=3, logits_processor=block)]
        running.wait(30)
        streams += [llm.stream_complete([6], max_tokens=3) for _ in range(2)]
        for _ in range(3):
            with pytest.raises(pyllm.Busy, match="2 requests") as e:
                llm.complete([7], max_tokens=3)
            assert e.value.n_waiting == 2 and e.value.retry_s >= 0 and e.value.hint
        streams.pop().cancel()
        go.set()
        for s in streams:
            list(s)
        assert [len(r.tokens) for r in llm.generate_batch([prompt(i) for i in range(20)], chat=False, max_tokens=3)] == [3] * 20
        assert llm._driver._n_waiting == 0


def test_a_closed_model_ends_the_batch(path: Path) -> None:
    llm = pyllm.LLM(path)
    replies = llm.iter_batch(([5, 6] for _ in itertools.count()), chat=False, max_tokens=50)
    next(replies)
    llm.close()
    with pytest.raises(pyllm.Closed):
        list(replies)


def test_times_of_a_reply(llm: pyllm.LLM) -> None:
    t = llm.complete([5] * 20, max_tokens=5).timings
    assert t.ttft_s == t.queue_s + t.prompt_s > 0
