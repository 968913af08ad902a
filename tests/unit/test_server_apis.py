"""The server's other APIs, Anthropic's, Ollama's and /v1/responses, on the wire: what they answer is what the Python API says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Client

import pyllm

pytest.importorskip("uvicorn")

MESSAGES = [{"role": "user", "content": "Name a colour."}]
THINKER = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n<think>\n"


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[pyllm.LLM]:
    with pyllm.LLM(smollm2, ctx=1024) as llm:
        yield llm


@pytest.fixture(scope="module")
def client(llm: pyllm.LLM) -> Iterator[Client]:
    with llm.serve(0, name="smollm2", drain_s=0) as server:
        yield Client(server.url)


@pytest.fixture(scope="module")
def reply(llm: pyllm.LLM) -> pyllm.Reply:
    return llm.chat(MESSAGES, temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def thinker(smollm2: Path) -> Iterator[tuple[pyllm.LLM, Client]]:
    """A model whose template opens a thought, which goes on until its mark comes."""
    with pyllm.LLM(smollm2, ctx=512, chat_template=THINKER) as llm, llm.serve(0, drain_s=0) as server:
        yield llm, Client(server.url)


# ---- Anthropic ----

def test_messages(client: Client, llm: pyllm.LLM, reply: pyllm.Reply) -> None:
    asked = {"model": "smollm2", "messages": MESSAGES, "temperature": 0, "max_tokens": 8}
    body = client.post("/v1/messages", asked, **{"anthropic-version": "2023-06-01"}).json
    assert (body["type"], body["role"], body["content"]) == ("message", "assistant", [{"type": "text", "text": reply.text}])
    assert (body["stop_reason"], body["stop_sequence"]) == ("max_tokens", None)
    usage = body["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == reply.usage.prompt_tokens and usage["output_tokens"] == 8

    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    expected = llm.chat([{"role": "system", "content": "Be brief."}, *MESSAGES], temperature=0, max_tokens=8)
    assert client.post("/v1/messages", {**asked, "system": system}).json["content"][0]["text"] == expected.text
    count = client.post("/v1/messages/count_tokens", {"messages": MESSAGES, "system": "Be brief."}).json
    assert count == {"input_tokens": expected.usage.prompt_tokens}

    stop = reply.text[5:8]
    body = client.post("/v1/messages", {**asked, "stop_sequences": ["never", stop]}).json
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", stop)
    assert body["content"][0]["text"] == reply.text[:reply.text.index(stop)]


def test_messages_stream(client: Client, reply: pyllm.Reply) -> None:
    answer = client.post("/v1/messages", {"messages": MESSAGES, "temperature": 0, "max_tokens": 8, "stream": True})
    names = [line[7:] for line in answer.body.decode().splitlines() if line.startswith("event: ")]
    events = answer.events
    assert names == [e["type"] for e in events]
    assert names[:2] == ["message_start", "content_block_start"]
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"] and set(names[2:-3]) == {"content_block_delta"}
    assert "".join(e["delta"]["text"] for e in events[2:-3]) == reply.text
    assert events[0]["message"]["usage"]["input_tokens"] == reply.usage.prompt_tokens
    assert events[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None} and events[-2]["usage"]["output_tokens"] == 8


def test_turns_of_one_side_are_one_turn(client: Client, llm: pyllm.LLM) -> None:
    two = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, {"role": "user", "content": "c"}]
    expected = len(llm.prompt_ids([{"role": "user", "content": "a\nb\nc"}]))
    assert client.post("/v1/messages/count_tokens", {"messages": two}).json["input_tokens"] == expected


@pytest.mark.parametrize(("change", "status", "kind"), [
    ({"max_tokens": None}, 400, "invalid_request_error"), ({"messages": []}, 400, "invalid_request_error"),
    ({"model": "claude"}, 404, "not_found_error"), ({"messages": [{"role": "robot", "content": "x"}]}, 400, "invalid_request_error"),
    ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/"}}]}]}, 400,
     "invalid_request_error"), ({"messages": [{"role": "user", "content": "word " * 2000}]}, 400, "invalid_request_error")])
def test_messages_refused_in_their_own_words(client: Client, change: dict[str, Any], status: int, kind: str) -> None:
    answer = client.post("/v1/messages", {"messages": MESSAGES, "max_tokens": 8, **change})
    assert answer.status == status and answer.json["type"] == "error" and answer.json["error"]["type"] == kind


# ---- /v1/responses ----

def test_responses(client: Client, llm: pyllm.LLM, reply: pyllm.Reply) -> None:
    for given in ("Name a colour.", [{"role": "user", "content": [{"type": "input_text", "text": "Name a colour."}]}]):
        body = client.post("/v1/responses", {"input": given, "temperature": 0, "max_output_tokens": 8}).json
        item, = body["output"]
        assert body["object"] == "response" and body["store"] is False
        assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
        assert item["content"] == [{"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}]
        assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        assert (body["usage"]["input_tokens"], body["usage"]["output_tokens"]) == (reply.usage.prompt_tokens, 8)
    expected = llm.chat([{"role": "system", "content": "Be brief."}, *MESSAGES], temperature=0, max_tokens=4).text
    body = client.post("/v1/responses", {"input": MESSAGES, "instructions": "Be brief.", "temperature": 0, "max_output_tokens": 4}).json
    assert body["output"][0]["content"][0]["text"] == expected
    assert client.post("/v1/responses", {"input": "Hi", "previous_response_id": "resp_1"}).status == 400


def test_responses_stream(client: Client, reply: pyllm.Reply) -> None:
    events = client.post("/v1/responses", {"input": "Name a colour.", "temperature": 0, "max_output_tokens": 8, "stream": True}).events
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    names = [e["type"].removeprefix("response.") for e in events]
    assert names[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert names[-4:] == ["output_text.done", "content_part.done", "output_item.done", "incomplete"]
    assert set(names[4:-4]) == {"output_text.delta"}
    assert "".join(e["delta"] for e in events[4:-4]) == events[-4]["text"] == reply.text
    assert events[-1]["response"]["output"] == [events[-2]["item"]]
    assert len({e["item_id"] for e in events[3:-2]} | {events[2]["item"]["id"], events[-2]["item"]["id"]}) == 1


# ---- Ollama ----

def lines(body: bytes) -> list[Any]:
    return [json.loads(line) for line in body.splitlines()]


def test_ollama_chat_and_generate(client: Client, llm: pyllm.LLM, reply: pyllm.Reply) -> None:
    options = {"temperature": 0, "num_predict": 8, "num_ctx": 4096}
    answer = client.post("/api/chat", {"model": "smollm2:latest", "messages": MESSAGES, "options": options, "tools": []})
    assert answer.headers["content-type"] == "application/x-ndjson"
    *pieces, last = lines(answer.body)
    assert "".join(p["message"]["content"] for p in pieces) == reply.text and not any(p["done"] for p in pieces)
    assert last["done"] and last["done_reason"] == "length" and last["eval_count"] == 8 and last["eval_duration"] > 0
    whole = client.post("/api/chat", {"model": "smollm2", "messages": MESSAGES, "options": options, "stream": False}).json
    assert whole["message"]["content"] == reply.text and whole["prompt_eval_count"] == reply.usage.prompt_tokens
    made = client.post("/api/generate", {"model": "smollm2", "prompt": "Name a colour.", "options": options, "stream": False}).json
    assert made["response"] == reply.text
    raw = client.post("/api/generate", {"model": "smollm2", "prompt": "The sea", "raw": True, "options": options}).body
    assert "".join(p["response"] for p in lines(raw)) == llm.complete("The sea", temperature=0, max_tokens=8).text
    assert client.post("/api/chat", {"model": "smollm2"}).json["done_reason"] == "load"
    wrong = client.post("/api/chat", {"model": "other", "messages": MESSAGES})
    assert wrong.status == 404 and list(wrong.json) == ["error"]


def test_ollama_about_models(client: Client, llm: pyllm.LLM) -> None:
    model, = client.get("/api/tags").json["models"]
    assert model["name"] == "smollm2" and model["details"]["family"] == "llama" and model["details"]["quantization_level"] == "Q4_1"
    assert model["size"] == 98362432 and len(model["digest"]) == 64
    shown = client.post("/api/show", {"model": "smollm2"}).json
    assert shown["capabilities"] == ["completion", "tools"] and shown["model_info"]["llama.context_length"] == 8192 and shown["template"]
    running, = client.get("/api/ps").json["models"]
    assert running["context_length"] == 1024 and running["digest"] == model["digest"]
    assert client.get("/api/version").json["version"]


# ---- thoughts ----

def test_thoughts_are_apart_in_every_api(thinker: tuple[pyllm.LLM, Client]) -> None:
    llm, client = thinker
    choice = client.chat("Hi", temperature=0, max_tokens=4).json["choices"][0]["message"]
    thought = choice["reasoning_content"]
    assert thought and choice["content"] == "" and thought == llm.chat("Hi", temperature=0, max_tokens=4).reasoning
    events = client.chat("Hi", temperature=0, max_tokens=4, stream=True).events
    assert "".join(e["choices"][0]["delta"].get("reasoning_content", "") for e in events) == thought
    asked = {"messages": [{"role": "user", "content": "Hi"}], "temperature": 0, "max_tokens": 4}
    assert client.post("/v1/messages", asked).json["content"] == [{"type": "thinking", "thinking": thought, "signature": ""}]
    deltas = [e["delta"] for e in client.post("/v1/messages", {**asked, "stream": True}).events if e["type"] == "content_block_delta"]
    assert {d["type"] for d in deltas} == {"thinking_delta"} and "".join(d["thinking"] for d in deltas) == thought
    body = client.post("/v1/responses", {"input": "Hi", "temperature": 0, "max_output_tokens": 4}).json
    assert [i["type"] for i in body["output"]] == ["reasoning", "message"]
    assert body["output"][0]["content"] == [{"type": "reasoning_text", "text": thought}]
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] > 0
    events = client.post("/v1/responses", {"input": "Hi", "temperature": 0, "max_output_tokens": 4, "stream": True}).events
    assert "".join(e["delta"] for e in events if e["type"] == "response.reasoning_text.delta") == thought
    assert [i["type"] for i in events[-1]["response"]["output"]] == ["reasoning", "message"]
    told = client.post("/api/chat", {"messages": [{"role": "user", "content": "Hi"}], "options": {"temperature": 0, "num_predict": 4}})
    assert "".join(m["message"].get("thinking", "") for m in lines(told.body)) == thought
