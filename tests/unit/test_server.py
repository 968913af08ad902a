"""The server's OpenAI routes and its life: against a real model, with plain HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import model_path
from serving import Client, Reader, wait_until

import pyllm

pytest.importorskip("uvicorn")

CHAT = "/v1/chat/completions"
GREEDY = {"temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[pyllm.LLM]:
    with pyllm.LLM(smollm2, ctx=2048) as llm:
        yield llm


@pytest.fixture(scope="module")
def client(llm: pyllm.LLM) -> Iterator[Client]:
    with llm.serve(0, name="smollm2", drain_s=0) as server:
        yield Client(server.url)


def text_of(events: list[Any], index: int = 0) -> str:
    return "".join(c["delta"].get("content") or "" for e in events for c in e["choices"] if c["index"] == index)


# ---- chat ----

def test_chat_is_what_the_python_api_says(client: Client, llm: pyllm.LLM) -> None:
    reply = llm.chat("Name a colour.", **GREEDY)
    body = client.chat("Name a colour.", model="smollm2", **GREEDY).json
    assert body["object"] == "chat.completion" and body["model"] == "smollm2"
    choice, = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": reply.text}
    assert choice["finish_reason"] == reply.finish_reason == "length"
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (reply.usage.prompt_tokens, 8)
    assert usage["total_tokens"] == reply.usage.total_tokens


def test_a_stream_says_the_same_and_counts_at_its_end(client: Client, llm: pyllm.LLM) -> None:
    answer = client.chat("Name a colour.", stream=True, stream_options={"include_usage": True}, **GREEDY)
    assert answer.headers["content-type"].startswith("text/event-stream") and answer.body.endswith(b"data: [DONE]\n\n")
    *events, last = answer.events
    reply = llm.chat("Name a colour.", **GREEDY)
    assert text_of(events) == reply.text
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [e["choices"][0]["finish_reason"] for e in events] == [None] * (len(events) - 1) + ["length"]
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 8 and all(e["usage"] is None for e in events)
    assert len({e["id"] for e in (*events, last)}) == 1
    assert not any("usage" in e for e in client.chat("Hi", stream=True, max_tokens=2).events)


def test_several_choices_are_those_of_the_choice_index(client: Client, llm: pyllm.LLM) -> None:
    asked: dict[str, Any] = {"seed": 5, "temperature": 1, "max_tokens": 4}
    expected = [llm.chat("Tell a tale.", choice=i, **asked).text for i in range(3)]
    body = client.chat("Tell a tale.", n=3, **asked).json
    assert [c["message"]["content"] for c in body["choices"]] == expected and len(set(expected)) > 1
    assert body["usage"]["prompt_tokens"] == len(llm.prompt_ids("Tell a tale.")) and body["usage"]["completion_tokens"] == 12
    events = client.chat("Tell a tale.", n=3, stream=True, **asked).events
    assert [text_of(events, i) for i in range(3)] == expected


def test_a_stop_string_may_cross_tokens(client: Client, llm: pyllm.LLM) -> None:
    text = llm.chat("Count to five.", temperature=0, max_tokens=10).text
    pieces = [c.text for c in llm.stream("Count to five.", temperature=0, max_tokens=10)]
    stop = pieces[3][-1:] + pieces[4][:2]
    assert len(stop) >= 2 and stop in text
    for extra in ({"stop": stop}, {"stop": ["never said", stop]}):
        choice = client.chat("Count to five.", temperature=0, max_tokens=10, **extra).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == (text[:text.index(stop)], "stop")
    assert text_of(client.chat("Count to five.", temperature=0, max_tokens=10, stop=stop, stream=True).events) == text[:text.index(stop)]


def test_logprobs_are_those_of_the_python_api(client: Client, llm: pyllm.LLM) -> None:
    reply = llm.chat("Hi", temperature=0, max_tokens=5, logprobs=2)
    asked = {"temperature": 0, "max_tokens": 5, "logprobs": True, "top_logprobs": 2}
    content = client.chat("Hi", **asked).json["choices"][0]["logprobs"]["content"]
    assert [c["logprob"] for c in content] == [p.logprob for p in reply.logprobs]
    assert [[t["logprob"] for t in c["top_logprobs"]] for c in content] == [[value for _, value in p.top] for p in reply.logprobs]
    assert bytes(b for c in content for b in c["bytes"]).decode() == reply.text == "".join(c["token"] for c in content)
    events = client.chat("Hi", stream=True, **asked).events
    streamed = [c for e in events for c in ((e["choices"][0]["logprobs"] or {}).get("content") or [])]
    assert streamed == content


def test_bias_and_seed_reach_the_sampler(client: Client, llm: pyllm.LLM) -> None:
    token = llm.tokenize(" blue", add_special=False)[0]
    assert client.chat("Hi", logit_bias={str(token): 100}, **GREEDY).json["choices"][0]["message"]["content"] == " blue" * 8
    said = [client.chat("Tell a tale.", seed=7, temperature=1, max_tokens=8).json["choices"][0]["message"]["content"] for _ in range(2)]
    assert said[0] == said[1] == llm.chat("Tell a tale.", seed=7, temperature=1, max_tokens=8).text


def test_messages_may_have_parts_and_unknown_fields(client: Client, llm: pyllm.LLM) -> None:
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}], "x": 1}]
    expected = llm.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], **GREEDY).text
    answer = client.post(CHAT, {"messages": messages, "user": "me", "store": False, "top_p": None, "made_up": [1], **GREEDY})
    assert answer.json["choices"][0]["message"]["content"] == expected


# ---- completions ----

def test_completion_with_echo_has_the_logprobs_of_the_prompt(client: Client, llm: pyllm.LLM) -> None:
    prompt = "The sky is blue and the grass is"
    ids = llm.tokenize(prompt)
    logits = llm.logits(ids).astype(np.float64)
    expected = logits - np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1, keepdims=True)) - logits.max(1, keepdims=True)
    body = client.post("/v1/completions", {"prompt": prompt, "echo": True, "logprobs": 3, "max_tokens": 0}).json
    choice, = body["choices"]
    found = choice["logprobs"]
    assert choice["text"] == prompt == "".join(found["tokens"]) and found["token_logprobs"][0] is None
    assert np.allclose(found["token_logprobs"][1:], [expected[i, t] for i, t in enumerate(ids[1:])], rtol=0, atol=1e-9)
    best = np.sort(expected[:-1], 1)[:, ::-1][:, :3]
    assert np.allclose([list(t.values()) for t in found["top_logprobs"][1:]], best, rtol=0, atol=1e-9)
    assert [prompt[a:b] for a, b in zip(found["text_offset"], [*found["text_offset"][1:], None], strict=True)] == found["tokens"]

    reply = llm.complete(prompt, temperature=0, max_tokens=4, logprobs=0)
    choice = client.post("/v1/completions", {"prompt": ids, "echo": True, "logprobs": 0, **GREEDY, "max_tokens": 4}).json["choices"][0]
    assert choice["text"] == prompt + reply.text
    assert choice["logprobs"]["token_logprobs"] == found["token_logprobs"] + [p.logprob for p in reply.logprobs]


def test_several_prompts_come_back_in_order(client: Client, llm: pyllm.LLM) -> None:
    prompts = ["One two three", "Roses are red,"]
    expected = [llm.complete(p, temperature=0, max_tokens=16).text for p in prompts]
    body = client.post("/v1/completions", {"prompt": prompts, "temperature": 0, "n": 2}).json      # 16 tokens are OpenAI's default
    assert [c["text"] for c in body["choices"]] == [e for e in expected for _ in range(2)]
    assert body["usage"]["prompt_tokens"] == sum(len(llm.tokenize(p)) for p in prompts)
    events = client.post("/v1/completions", {"prompt": prompts, "temperature": 0, "stream": True, "echo": True}).events
    assert ["".join(c["text"] for e in events for c in e["choices"] if c["index"] == i) for i in (0, 1)] == [
        p + e for p, e in zip(prompts, expected, strict=True)]


def test_suffix_needs_a_model_that_fills_gaps(client: Client) -> None:
    answer = client.post("/v1/completions", {"prompt": "a", "suffix": "b"})
    assert answer.status == 400 and "fill-in-the-middle" in answer.json["error"]["message"]


@pytest.mark.models
def test_suffix_fills_the_middle() -> None:
    with pyllm.LLM(model_path("qwen2.5-coder-0.5b"), ctx=512) as qwen, qwen.serve(0) as server:
        before, after = "def add(a, b):\n    return ", "\n\nprint(add(1, 2))\n"
        choice = Client(server.url).post("/v1/completions", {"prompt": before, "suffix": after, **GREEDY}).json["choices"][0]
        ids = qwen.tokenize(f"<|fim_prefix|>{before}<|fim_suffix|>{after}<|fim_middle|>")       # as the model's page writes it
        assert choice["text"] == qwen.complete(ids, **GREEDY).text and choice["text"].startswith("a + b")
        assert qwen.complete(before, suffix=after, **GREEDY).text == choice["text"]
        marked = qwen.complete(before + "<|fim_middle|>", suffix=after, temperature=0, max_tokens=1)     # a mark in a text is text
        assert marked.usage.prompt_tokens > qwen.complete(before, suffix=after, temperature=0, max_tokens=1).usage.prompt_tokens + 1


# ---- the other routes ----

def test_models_health_tokens_and_metrics(client: Client, llm: pyllm.LLM) -> None:
    listed = client.get("/v1/models").json["data"]
    assert [m["id"] for m in listed] == ["smollm2"] and listed[0]["max_model_len"] == 2048
    assert client.get("/v1/models/smollm2").json == listed[0]
    assert client.get("/v1/models/other").status == 404
    health = client.get("/health")
    assert health.status == 200 and health.json["status"] == "ok" and health.json["models"] == {"smollm2": "loaded"}
    tokens = client.post("/tokenize", {"content": "Hello <|im_end|>"}).json
    assert tokens == {"tokens": llm.tokenize("Hello <|im_end|>"), "count": 2 + 1, "max_model_len": 2048}
    assert client.post("/detokenize", {"tokens": tokens["tokens"], "special": True}).json["content"] == "Hello <|im_end|>"
    client.chat("Hi", max_tokens=3)
    values = dict(line.rsplit(" ", 1) for line in client.get("/metrics").body.decode().splitlines() if not line.startswith("#"))
    assert float(values['pyllm_generated_tokens_total{model="smollm2"}']) >= 3 and values["pyllm_generations"] == "0"
    assert values['pyllm_model_loaded{model="smollm2"}'] == "1"
    buckets = [float(v) for k, v in values.items() if k.startswith("pyllm_first_token_seconds_bucket")]
    assert buckets == sorted(buckets) and buckets[-1] == float(values['pyllm_first_token_seconds_count{model="smollm2"}'])


def test_a_conversation_beyond_the_context_is_refused_with_numbers(client: Client, llm: pyllm.LLM) -> None:
    text = "word " * 2100
    answer = client.chat(text)
    error = answer.json["error"]
    assert answer.status == 400 and error["code"] == "context_length_exceeded"
    assert str(len(llm.prompt_ids(text))) in error["message"] and "2048" in error["message"]


def test_a_wrong_model_is_named_with_the_right_ones(client: Client) -> None:
    answer = client.chat("Hi", model="gpt-4o")
    assert answer.status == 404 and answer.json["error"]["code"] == "model_not_found" and "smollm2" in answer.json["error"]["message"]


# ---- the life of a request ----

def test_a_client_that_leaves_ends_its_request(client: Client, llm: pyllm.LLM) -> None:
    for stream in (True, False):
        if stream:
            reader: Any = client.open_stream("Write a very long story.")
            reader.first()
        else:
            body = json.dumps({"messages": [{"role": "user", "content": "Write a very long story."}]}).encode()
            reader = client.raw(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                                b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            wait_until(lambda: llm.load[0] == 1)
        assert llm.load[0] == 1
        reader.close()
        wait_until(lambda: llm.load[:2] == (0, 0))
    wait_until(lambda: client.get("/health").json["generations"] == 0)


def test_more_than_the_queue_holds_is_429_with_a_time(llm: pyllm.LLM) -> None:
    with llm.serve(0, queue=2, drain_s=0) as server:
        client = Client(server.url)
        readers = [client.open_stream("Write a very long story.") for _ in range(2)]
        refused = client.chat("Hi", max_tokens=1)
        assert refused.status == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json["error"]["type"] == "rate_limit_error"
        assert client.chat("Hi", n=3).status == 400         # never fits
        assert client.get("/health").status == 200
        for reader in readers:
            reader.close()
        wait_until(lambda: client.chat("Hi", max_tokens=1).status == 200)


def test_a_generation_whose_time_is_over_ends_as_too_long(llm: pyllm.LLM) -> None:
    with llm.serve(0, request_s=0.3, drain_s=0) as server:
        choice = Client(server.url).chat("Write a very long story.").json["choices"][0]
        assert choice["finish_reason"] == "length" and choice["message"]["content"]


def test_closing_the_server_ends_streams_with_an_error(llm: pyllm.LLM) -> None:
    before = threading.active_count()
    with llm.serve(0, drain_s=0.1) as server:
        reader = Client(server.url).open_stream("Write a very long story.")
        reader.first()
    *_, last = reader.lines()
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
    assert llm.chat("Hi", max_tokens=1).text       # the model is its owner's and lives on
    assert "pyllm-server" not in [t.name for t in threading.enumerate()][before:]


def test_the_engine_that_stands_still_fails_health(llm: pyllm.LLM) -> None:
    with llm.serve(0, stall_s=0.1) as server:
        client, release = Client(server.url), threading.Event()
        blocked = threading.Thread(target=llm.on_engine, args=(lambda engine: release.wait(30),))
        blocked.start()
        try:
            wait_until(lambda: client.get("/health").status == 503)
            assert client.get("/health").json["status"] == "stalled"
        finally:
            release.set()
            blocked.join()
        wait_until(lambda: client.get("/health").status == 200)


# ---- the command ----

class Command:
    """A `pyllm serve` of its own."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "pyllm", "serve", "--port", "0", *arguments], stderr=subprocess.PIPE,
                                        text=True, env=os.environ | env)
        assert self.process.stderr is not None
        self.greeting = self.process.stderr.readline()
        self.client = Client(self.greeting.partition("http://")[2].partition(" ")[0])

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.log = self.process.stderr.read() if self.process.stderr else ""
        return code


def test_the_command_loads_serves_and_drains(smollm2: Path) -> None:
    command = Command(f"tiny={smollm2}", "--ctx", "512", "--limit", "drain_s=0.2", "--keep-alive", "1h", "--parallel", "2",
                      "--draft", str(smollm2), "--speculate", "3")
    assert command.greeting.startswith("serving tiny at http://127.0.0.1:")
    statuses = set()
    wait_until(lambda: statuses.add(command.client.get("/health").status) is None and 200 in statuses)
    assert statuses <= {200, 503}
    secret = "a secret word"
    answer = command.client.chat(secret, model="tiny", max_tokens=12)
    assert answer.status == 200 and answer.json["timings"]["draft_n"] == answer.json["timings"]["draft_n_accepted"] >= 6
    assert 'pyllm_accepted_tokens_total{model="tiny"}' in command.client.get("/metrics").body.decode()
    reader: Reader = command.client.open_stream("Write a very long story.")
    reader.first()
    assert command.end() == 0
    assert '"code":"shutting_down"' in [*reader.lines()][-1]
    assert f"POST {CHAT} 200" in command.log and ": 2 requests at once, 512 tokens of context" in command.log and secret not in command.log


def test_the_command_refuses_what_would_be_unsafe(smollm2: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from pyllm.cli import main

    assert main(["serve", str(smollm2), "--host", "0.0.0.0", "--port", "0"]) == 1
    assert "an API key is needed" in capfd.readouterr().err
    assert main(["serve", str(smollm2), "--api-key", "short"]) == 1
    assert "at least 8" in capfd.readouterr().err
    assert main(["serve", str(smollm2), f"b={smollm2}", "--draft", str(smollm2)]) == 1
    assert "of one model" in capfd.readouterr().err


# ---- the page about it ----

def test_the_page_lists_every_route_and_limit() -> None:
    import re
    from dataclasses import fields

    from conftest import ROOT

    from pyllm.server import Limits
    from pyllm.server.app import ROUTES

    page = (ROOT / "docs/server.md").read_text()
    routes = {f"{method} {path.replace(':path', '')}" for path, methods in ROUTES.items() for method in methods}
    assert set(re.findall(r"^\| `((?:GET|POST) [^`]+)` \|", page, re.M)) == routes
    limits = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", page, re.M))
    assert {name: float(value) for name, value in limits.items()} == {f.name: f.default for f in fields(Limits)}
