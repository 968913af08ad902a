"""pyllm.LLM from many threads and tasks, its ends and its errors, on SmolLM2."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT

import pyllm
from pyllm.engine import Engine

PROMPTS = ["Why is the sky blue?", "Name three colours.", "Write a haiku about the sea.", "What is 2 + 2?",
           "Translate 'good morning' into French.", "Who wrote Hamlet?", "List the planets.", "Tell me a joke."]


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[pyllm.LLM]:
    with pyllm.LLM(smollm2, ctx=2048) as llm:
        yield llm


def options(i: int) -> dict[str, Any]:
    """Greedy and sampled, short and long requests."""
    return {"max_tokens": 8 + i * 5 % 17, **({"temperature": 0} if i % 2 else {"temperature": 1.1, "seed": i, "top_k": 0})}


@pytest.fixture(scope="module")
def solo(llm: pyllm.LLM) -> list[pyllm.Reply]:
    return [llm.chat(PROMPTS[i % 8], **options(i)) for i in range(20)]


# ---- sharing ----

def test_threads_get_what_they_get_alone(llm: pyllm.LLM, solo: list[pyllm.Reply]) -> None:
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda i: llm.chat(PROMPTS[i % 8], **options(i)), range(20)))
    assert [(r.text, r.tokens, r.finish_reason) for r in replies] == [(r.text, r.tokens, r.finish_reason) for r in solo]


def test_a_hundred_tasks_get_what_they_get_alone(llm: pyllm.LLM, solo: list[pyllm.Reply]) -> None:
    async def all_of_them() -> list[pyllm.Reply]:
        return await asyncio.gather(*(llm.achat(PROMPTS[i % 20 % 8], **options(i % 20)) for i in range(100)))

    assert [r.tokens for r in asyncio.run(all_of_them())] == [solo[i % 20].tokens for i in range(100)]


def test_threads_of_all_kinds_at_once(llm: pyllm.LLM, solo: list[pyllm.Reply]) -> None:
    logits = llm.logits([1, 2, 3, 4, 5] * 30)
    wrong: list[str] = []

    def work(kind: int) -> None:
        for i in range(kind, 20, 4):
            if kind == 0:
                got: Any = [c.text for c in llm.stream(PROMPTS[i % 8], **options(i))]
                ok = "".join(got) == solo[i].text
            elif kind == 1:
                for n, _ in enumerate(llm.stream(PROMPTS[i % 8])):     # left early
                    if n == 2:
                        break
                ok = True
            elif kind == 2:
                ok = np.array_equal(llm.logits([1, 2, 3, 4, 5] * 30), logits)
            else:
                with llm.session() as s:
                    ok = s.chat(PROMPTS[i % 8], **options(i)).tokens == solo[i].tokens
            if not ok:
                wrong.append(f"{kind} {i}")

    threads = [threading.Thread(target=work, args=(k % 4,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_more_requests_than_the_cache_holds(smollm2: Path, solo: list[pyllm.Reply]) -> None:
    """The KV cache of 160 tokens is shared by 20 requests of up to 70: those that find no room wait, or give way and go on later."""
    with pyllm.LLM(smollm2, ctx=160) as small, ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda i: small.chat(PROMPTS[i % 8], **options(i)), range(20)))
    assert [r.tokens for r in replies] == [r.tokens for r in solo]


# ---- leaving ----

def test_leaving_a_stream_frees_its_place(llm: pyllm.LLM) -> None:
    free = llm._driver.call(llm._engine.free_pages)
    for _ in range(40):                 # more than there are sequences
        stream = llm.stream("Tell me a very long story.")
        assert next(iter(stream)).text
        del stream
    gc.collect()
    llm.complete([1], max_tokens=1)
    assert llm._driver.call(llm._engine.free_pages) == free and llm._driver._scheduler.idle


@pytest.mark.parametrize("alone", [True, False])
def test_cancelling_returns_at_once(llm: pyllm.LLM, alone: bool) -> None:
    """A prompt of 2,000 tokens takes most of a second; whoever leaves has control back within 50 ms, the next request its answer within
    100 ms, and neighbours keep their text."""
    neighbour = None if alone else ThreadPoolExecutor(1).submit(llm.chat, "Name three colours.", temperature=0, max_tokens=30)
    waits, answers = [], [0.0]
    for delay in (0.02, 0.05, 0.1):
        stream = llm.stream_complete([5 + i % 1000 for i in range(2000)], max_tokens=40)
        time.sleep(delay)
        begin = time.perf_counter()
        stream.close()
        waits.append(time.perf_counter() - begin)
        if alone:                       # the running step stops too: the next request does not wait for it
            llm.complete([1, 2, 3], max_tokens=1)
            answers.append(time.perf_counter() - begin)
    assert max(waits) < 0.05 and max(answers) < 0.1, (waits, answers)
    if neighbour is not None:
        assert neighbour.result().text == llm.chat("Name three colours.", temperature=0, max_tokens=30).text


def test_a_loop_that_closes_in_the_middle_of_a_stream_ends_it(llm: pyllm.LLM) -> None:
    loop = asyncio.new_event_loop()
    stream = llm.astream("Tell me a very long story.", max_tokens=1000).__aiter__()
    loop.run_until_complete(stream.__anext__())
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    deadline = time.monotonic() + 10
    while llm._driver.call(lambda: len(llm._driver._generations)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert llm._driver.call(lambda: llm._driver._scheduler.idle)


def test_an_interrupted_wait_keeps_no_sequence(llm: pyllm.LLM) -> None:
    """Ctrl-C while `logits` waits for the busy engine: whether its job ran meanwhile or not, the sequence is free again."""
    free = llm._driver.call(llm._engine.free_pages)
    main = threading.main_thread()
    for delay in (0.0, 0.02, 0.05, 0.1) * 5:
        busy = llm.stream_complete(list(range(5, 1500)), max_tokens=4)
        timer = threading.Timer(delay, lambda: signal.pthread_kill(main.ident or 0, signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            for _ in range(1000):
                llm.logits([1, 2, 3])
        timer.join()
        busy.close()
    seqs = llm._driver.call(lambda: [llm._engine.open_seq() for _ in range(llm.parallel)])
    for seq in seqs:
        llm._driver.call(partial(llm._engine.close_seq, seq))
    assert None not in seqs and llm._driver.call(llm._engine.free_pages) == free


@pytest.mark.parametrize("name", ["pyllm-load", "pyllm-engine"])
def test_no_thread_for_the_engine(smollm2: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    closed: list[bool] = []
    close, start = Engine.close, threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == name:
            raise RuntimeError("can't start new thread")
        start(self)

    def noted(self: Engine) -> None:
        closed.append(True)
        close(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(Engine, "close", noted)
    with pytest.raises(pyllm.OutOfMemory, match="no thread"):
        pyllm.LLM(smollm2, ctx=64)
    assert closed == [True] * (name == "pyllm-engine")


def test_a_cancelled_task_leaves_the_others(llm: pyllm.LLM, solo: list[pyllm.Reply]) -> None:
    async def some_leave() -> list[Any]:
        tasks = [asyncio.create_task(llm.achat(PROMPTS[i % 8], **options(i))) for i in range(12)]
        await asyncio.sleep(0.05)
        for t in tasks[::3]:
            t.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    for i, got in enumerate(asyncio.run(some_leave())):
        if isinstance(got, asyncio.CancelledError):
            assert i % 3 == 0
        else:
            assert got.tokens == solo[i].tokens


def test_async_stream(llm: pyllm.LLM, solo: list[pyllm.Reply]) -> None:
    async def one() -> tuple[str, pyllm.Reply]:
        stream = llm.astream(PROMPTS[3], **options(3))
        return "".join([c.text async for c in stream]), stream.reply

    text, reply = asyncio.run(one())
    assert text == reply.text == solo[3].text


def test_closing_ends_running_requests(smollm2: Path) -> None:
    llm = pyllm.LLM(smollm2, ctx=2048)
    stream = iter(llm.stream("Tell me a very long story."))
    next(stream)
    llm.close()
    llm.close()
    with pytest.raises(pyllm.Closed):
        list(stream)
    with pytest.raises(pyllm.Closed):
        llm.chat("hello")


def test_a_forgotten_model_goes_away(smollm2: Path) -> None:
    llm = pyllm.LLM(smollm2, ctx=64)
    seen, thread = weakref.ref(llm), llm._driver._thread
    stream = llm.stream("Hello", max_tokens=5)
    del llm
    gc.collect()
    assert "".join(c.text for c in stream)      # a stream keeps its model
    del stream
    gc.collect()
    assert seen() is None
    thread.join(5)
    assert not thread.is_alive()


def test_exit_while_a_request_runs(smollm2: Path, tmp_path: Path) -> None:
    code = "import pyllm, sys; m = pyllm.LLM(sys.argv[1], ctx=512); s = iter(m.stream('Tell me a story')); next(s); print('out')"
    done = subprocess.run([sys.executable, "-X", "dev", "-c", code, str(smollm2)], capture_output=True, text=True, timeout=30, cwd=tmp_path,
                          check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_after_a_fork(smollm2: Path, tmp_path: Path) -> None:
    code = """
import os, pyllm, sys, warnings
warnings.simplefilter("ignore")
with pyllm.LLM(sys.argv[1], ctx=64) as m:
    want = m.complete("Hello", temperature=0, max_tokens=3).tokens
    child = os.fork()
    if not child:
        try:
            m.complete("Hello")
        except pyllm.ForkedProcess as e:
            m.close()
            with pyllm.LLM(sys.argv[1], ctx=64) as mine:
                os._exit(7 if mine.complete("Hello", temperature=0, max_tokens=3).tokens == want and e.hint else 1)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert m.complete("Hello", temperature=0, max_tokens=3).tokens == want
"""
    subprocess.run([sys.executable, "-c", code, str(smollm2)], timeout=60, cwd=tmp_path, check=True)


# ---- requests ----

def test_the_prompt_must_fit(llm: pyllm.LLM) -> None:
    with pytest.raises(pyllm.ContextOverflow) as e:
        llm.complete([1] * 2049)
    assert (e.value.n_tokens, e.value.n_ctx) == (2049, 2048) and "2049" in str(e.value) and e.value.hint
    with pytest.raises(pyllm.ContextOverflow):
        llm.logits([1] * 2049)


def test_a_full_context_is_a_length_stop(smollm2: Path) -> None:
    with pyllm.LLM(smollm2, ctx=48) as llm:
        reply = llm.complete("Once upon a time", logit_bias={llm.tokenizer.eos: float("-inf"), 0: float("-inf")}, temperature=0)
        assert reply.finish_reason == "length" and reply.usage.total_tokens == 48
        full = llm.complete([1] * 48)
        assert (full.finish_reason, full.text, full.tokens) == ("length", "", ())


def test_stop_strings_cross_token_borders(llm: pyllm.LLM) -> None:
    plain = llm.chat("Why is the sky blue?", temperature=0, max_tokens=40).text
    for begin, n in ((3, 1), (10, 7), (31, 12)):
        stop = plain[begin:begin + n]
        expected = plain[:plain.index(stop)]
        stream = llm.stream("Why is the sky blue?", temperature=0, max_tokens=40, stop=["\0never", stop])
        assert "".join(c.text for c in stream) == stream.reply.text == expected
        assert stream.reply.finish_reason == "stop"


def test_streamed_text_is_the_reply(llm: pyllm.LLM) -> None:
    for seed in range(4):
        stream = llm.stream("Answer with many emoji and Chinese characters: 你好 🌊", seed=seed, temperature=1.5, max_tokens=40)
        chunks = [c.text for c in stream]
        assert "".join(chunks) == stream.reply.text == str(stream.reply)
        assert all(chunks)


def test_seeds(llm: pyllm.LLM) -> None:
    texts = [llm.chat("Tell me a joke.", seed=s, temperature=1.3, max_tokens=20).text for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    free = {llm.chat("Tell me a joke.", temperature=1.5, max_tokens=20).text for _ in range(3)}
    assert len(free) > 1


def test_logprobs_are_those_of_the_logits(llm: pyllm.LLM) -> None:
    prompt = llm.prompt_ids("Name three colours.")
    reply = llm.complete(prompt, temperature=0, max_tokens=6, logprobs=4)
    rows = llm.logits([*prompt, *reply.tokens])[len(prompt) - 1:-1].astype(np.float64)
    assert len(reply.logprobs) == len(reply.tokens) == 6
    for row, token, lp in zip(rows, reply.tokens, reply.logprobs, strict=True):
        want = row - row.max() - np.log(np.exp(row - row.max()).sum())
        assert lp.id == token and abs(lp.logprob - want[token]) < 1e-5
        best = np.argsort(-want, kind="stable")[:4]
        assert [i for i, _ in lp.top] == best.tolist()
        np.testing.assert_allclose([p for _, p in lp.top], want[best], atol=1e-5)


def test_logits_processor_and_bias(llm: pyllm.LLM) -> None:
    seen = []

    def only_even(ids: Any, logits: Any) -> Any:
        seen.append(len(ids))
        logits[1::2] = -np.inf
        return logits

    reply = llm.complete("Hello", temperature=0, max_tokens=5, logits_processor=only_even)
    assert all(t % 2 == 0 for t in reply.tokens) and seen == sorted(seen) and len(seen) == len(reply.tokens)
    assert set(llm.complete("Hello", max_tokens=5, logit_bias={1000: 1e9}).tokens) == {1000}


def test_a_broken_request_ends_alone(llm: pyllm.LLM, solo: list[pyllm.Reply]) -> None:
    def nan(ids: Any, logits: Any) -> Any:
        return logits * np.float32("nan")

    def bug(ids: Any, logits: Any) -> Any:
        raise KeyError("mine")

    with ThreadPoolExecutor(6) as pool:
        futures = [pool.submit(llm.chat, PROMPTS[i], **options(i)) for i in range(4)]
        bad = [pool.submit(llm.chat, "Hello", logits_processor=p) for p in (nan, bug)]
        with pytest.raises(pyllm.NonFiniteLogits):
            bad[0].result()
        with pytest.raises(KeyError, match="mine"):
            bad[1].result()
        assert [f.result().tokens for f in futures] == [solo[i].tokens for i in range(4)]


@pytest.mark.parametrize("wrong, part", [
    ({"temprature": 1}, "temperature"), ({"max_tokens": 0}, "max_tokens"), ({"top_p": 2.0}, "top_p"),
    ({"temperature": "hot"}, "temperature"),
    ({"order": "q"}, "order"), ({"logit_bias": {10**9: 1.0}}, "1000000000"), ({"temperature": float("nan")}, "temperature"),
    ({"stop": 5}, "stop"),
    ({"seed": 1 << 64}, "seed"), ({"seed": 1.5}, "seed"), ({"stop": [""]}, "stop"), ({"logit_bias": {1: "x"}}, "logit_bias"),
    ({"top_k": "many"}, "top_k"),
])
def test_wrong_options_are_named(llm: pyllm.LLM, wrong: dict[str, Any], part: str) -> None:
    with pytest.raises(pyllm.ArgumentError, match=part):
        llm.complete("Hello", **wrong)


@pytest.mark.parametrize("prompt", ["", [], [10**9], [-1], None, 3.5, ["a"]])
def test_wrong_prompts_are_arguments_errors(llm: pyllm.LLM, prompt: Any) -> None:
    with pytest.raises(pyllm.ArgumentError):
        llm.complete(prompt, max_tokens=1)


@pytest.mark.parametrize("arguments", [{"ctx": 0}, {"ctx": 1 << 40}, {"threads": 0}, {"threads": 5000}, {"kv": "q3"}, {"level": "mmx"}])
def test_wrong_model_arguments(smollm2: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(pyllm.ArgumentError):
        pyllm.LLM(smollm2, **{"ctx": 64, **arguments})


def test_what_cannot_fit_is_refused_with_numbers(smollm2: Path) -> None:
    with pytest.raises(pyllm.OutOfMemory, match=r"\d+ MB .*KV cache of 16777216 tokens"):
        pyllm.LLM(smollm2, ctx=1 << 24, kv="f32")
    plan = pyllm.LLM.plan(smollm2, ctx=1 << 24, kv="f32")
    assert plan.kv == 30 * 3 * 64 * 2 * 4 * ((1 << 24) + 16 * 16)      # a page more for each sequence
    assert plan.total == plan.weights + plan.kv + plan.activations


def test_errors_derive_from_one() -> None:
    own = [e for e in vars(pyllm.errors).values() if isinstance(e, type) and issubclass(e, Exception)]
    assert len(own) > 15 and all(issubclass(e, pyllm.Error) for e in own)


# ---- sessions ----

def test_a_session_computes_only_what_is_new(llm: pyllm.LLM) -> None:
    with llm.session([{"role": "system", "content": "Answer briefly."}]) as s:
        first = s.chat("Name a colour.", temperature=0, max_tokens=10)
        second = s.chat("Another one.", temperature=0, max_tokens=10)
        assert first.usage.cached_tokens == 0 and second.usage.cached_tokens >= first.usage.prompt_tokens
        assert second.tokens == llm.chat(s.messages[:-1], temperature=0, max_tokens=10).tokens
        assert [m["role"] for m in s.messages] == ["system", "user", "assistant", "user", "assistant"]
        again = s.regenerate(temperature=0, max_tokens=10)
        assert "".join(c.text for c in again) == second.text
        s.undo()
        assert len(s.messages) == 3
        s.clear()
        assert [m["role"] for m in s.messages] == ["system"]


def test_saved_sessions(llm: pyllm.LLM, tmp_path: Path) -> None:
    path = tmp_path / "talk"
    with llm.session() as s, llm.session() as t:
        s.chat("My name is Ada.", temperature=0, max_tokens=12)
        s.save(path)
        want = s.chat("What is my name?", temperature=0, max_tokens=12)
        t.chat("Something else.", max_tokens=3)
        t.load(path)
        got = t.chat("What is my name?", temperature=0, max_tokens=12)
        assert got.tokens == want.tokens and got.usage.cached_tokens >= want.usage.cached_tokens > 0
        before, data = t.messages, path.read_bytes()
        rng = np.random.default_rng(1)
        places = {0, len(data) - 1, *rng.integers(0, len(data), 60).tolist()}
        for at in places:
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
            with pytest.raises(pyllm.StateError):
                t.load(path)
        for n in (0, 5, 50, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:n])
            with pytest.raises(pyllm.StateError):
                t.load(path)
        with pytest.raises(pyllm.FileError):
            t.load(tmp_path / "missing")
        assert t.messages == before
        assert t.regenerate(temperature=0, max_tokens=12).__iter__().__next__().text


def test_sessions_of_another_model_are_refused(llm: pyllm.LLM, smollm2: Path, tmp_path: Path) -> None:
    with llm.session() as s:
        s.chat("Hello", max_tokens=2)
        s.save(tmp_path / "talk")
    with pyllm.LLM(smollm2, ctx=256, kv="q8_0") as other, other.session() as t, pytest.raises(pyllm.StateError):
        t.load(tmp_path / "talk")


def test_idle_sessions_give_way(smollm2: Path) -> None:
    """Thirty conversations on an engine of sixteen sequences and 512 tokens: the oldest are computed again when they go on."""
    with pyllm.LLM(smollm2, ctx=512) as llm:
        sessions = [llm.session() for _ in range(30)]
        first = [s.chat(f"Say the number {i}.", temperature=0, max_tokens=4).tokens for i, s in enumerate(sessions)]
        assert [llm.chat(f"Say the number {i}.", temperature=0, max_tokens=4).tokens for i in range(30)] == first
        more = sessions[0].chat("And again.", temperature=0, max_tokens=4)
        assert more.tokens == llm.chat(sessions[0].messages[:-1], temperature=0, max_tokens=4).tokens


# ---- figures ----

def test_first_token_comes_quickly(smollm2: Path) -> None:
    times = []
    for _ in range(4):
        begin = time.perf_counter()
        with pyllm.LLM(smollm2) as llm:
            llm.complete(list(range(100, 116)), max_tokens=1)
            times.append(time.perf_counter() - begin)
    assert min(times) <= 0.3, times


def test_readme_example(smollm2: Path, tmp_path: Path) -> None:
    """The answer printed in the README is the one that the command gives."""
    readme = (ROOT / "README.md").read_text()
    want = readme.split("<!-- answer -->")[1].split("<!-- /answer -->")[0].strip().removeprefix("```text\n").removesuffix("\n```")
    done = subprocess.run([sys.executable, "-m", "pyllm", "run", "--seed", "1", "Why is the sky blue?"], capture_output=True, text=True,
                          cwd=tmp_path, timeout=120, check=True)
    assert done.stdout.strip() == want
