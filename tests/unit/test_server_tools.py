"""Tools and forms of replies over every API: forced calls, so that the smallest model makes them, whole and in pieces."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Client

import pyllm

pytest.importorskip("uvicorn")
pytest.importorskip("llguidance")

QUESTION = "What is the weather in Oslo?"
WEATHER: dict[str, Any] = {"name": "get_weather", "description": "The weather of a city", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}, "days": {"type": "integer"}},
    "required": ["city", "days"], "additionalProperties": False}}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": {**WEATHER, "name": "get_tides"}}]
FORCED = {"type": "function", "function": {"name": "get_weather"}}
PERSON = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 10}, "age": {"type": "integer", "maximum": 150}},
          "required": ["name", "age"], "additionalProperties": False}
GREEDY = {"temperature": 0, "max_tokens": 60}


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[pyllm.LLM]:
    with pyllm.LLM(smollm2, ctx=2048) as llm:
        yield llm


@pytest.fixture(scope="module")
def client(llm: pyllm.LLM) -> Iterator[Client]:
    with llm.serve(0, name="smollm2", drain_s=0) as server:
        yield Client(server.url)


@pytest.fixture(scope="module")
def call(llm: pyllm.LLM) -> pyllm.replies.ToolCall:
    reply = llm.chat(QUESTION, tools=TOOLS, tool_choice="get_weather", parallel_tool_calls=False, **GREEDY)
    call, = reply.tool_calls
    return call


def test_openai(client: Client, llm: pyllm.LLM, call: pyllm.replies.ToolCall) -> None:
    asked = {"tools": TOOLS, "tool_choice": FORCED, "parallel_tool_calls": False, **GREEDY}
    choice = client.chat(QUESTION, **asked).json["choices"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    made, = choice["message"]["tool_calls"]
    assert made["type"] == "function" and made["function"] == {"name": "get_weather", "arguments": call.text} and made["id"]

    events = client.chat(QUESTION, stream=True, **asked).events
    pieces = [t for e in events for c in e["choices"] for t in c["delta"].get("tool_calls", [])]
    assert pieces[0]["id"] == made["id"] and pieces[0]["function"]["name"] == "get_weather"
    assert all(p["index"] == 0 for p in pieces) and not any("id" in p for p in pieces[1:])
    assert "".join(p["function"]["arguments"] for p in pieces) == call.text
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"

    history = [{"role": "user", "content": QUESTION}, choice["message"], {"role": "tool", "tool_call_id": made["id"], "content": "rain"}]
    expected = llm.chat([history[0], {"role": "assistant", "content": "", "tool_calls": [call.to_openai()]}, history[2]], tools=TOOLS,
                        tool_choice="none", temperature=0, max_tokens=8).text
    answer = client.post("/v1/chat/completions", {"messages": history, "tools": TOOLS, "tool_choice": "none", **GREEDY, "max_tokens": 8})
    assert answer.json["choices"][0]["message"]["content"] == expected


def test_anthropic(client: Client, llm: pyllm.LLM, call: pyllm.replies.ToolCall) -> None:
    tools = [{"name": t["function"]["name"], "description": t["function"]["description"], "input_schema": t["function"]["parameters"]}
             for t in TOOLS]
    asked: dict[str, Any] = {"tools": tools, "tool_choice": {"type": "tool", "name": "get_weather", "disable_parallel_tool_use": True},
                             **GREEDY, "messages": [{"role": "user", "content": QUESTION}]}
    body = client.post("/v1/messages", asked).json
    block, = body["content"]
    assert body["stop_reason"] == "tool_use"
    assert (block["type"], block["name"], block["input"]) == ("tool_use", "get_weather", call.arguments)

    events = client.post("/v1/messages", {**asked, "stream": True}).events
    start = next(e["content_block"] for e in events if e["type"] == "content_block_start")
    assert start == {"type": "tool_use", "id": block["id"], "name": "get_weather", "input": {}}
    pieces = [e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta"]
    assert json.loads("".join(pieces)) == call.arguments and events[-2]["delta"]["stop_reason"] == "tool_use"

    turns = [*asked["messages"], {"role": "assistant", "content": [block]},
             {"role": "user", "content": [
                 {"type": "tool_result", "tool_use_id": block["id"], "content": [{"type": "text", "text": "rain"}]},
                 {"type": "text", "text": "So?"}]}]
    same = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "", "tool_calls": [call.to_openai()]},
            {"role": "tool", "tool_call_id": block["id"], "content": "rain"}, {"role": "user", "content": "So?"}]
    counted = client.post("/v1/messages/count_tokens", {"messages": turns, "tools": tools}).json["input_tokens"]
    assert counted == len(llm.prompt_ids(same, TOOLS))


def test_responses(client: Client, call: pyllm.replies.ToolCall) -> None:
    asked: dict[str, Any] = {"input": QUESTION, "tools": [{"type": "function", **t["function"]} for t in TOOLS], "temperature": 0,
                             "tool_choice": {"type": "function", "name": "get_weather"}, "parallel_tool_calls": False,
                             "max_output_tokens": 60}
    item, = client.post("/v1/responses", asked).json["output"]
    assert (item["type"], item["name"], item["arguments"], item["status"]) == ("function_call", "get_weather", call.text, "completed")
    events = client.post("/v1/responses", {**asked, "stream": True}).events
    assert "".join(e["delta"] for e in events if e["type"] == "response.function_call_arguments.delta") == call.text
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    assert {k: v for k, v in events[-1]["response"]["output"][0].items() if k != "id"} == {k: v for k, v in item.items() if k != "id"}
    history = [{"role": "user", "content": QUESTION}, item, {"type": "function_call_output", "call_id": item["call_id"], "output": "rain"}]
    assert client.post("/v1/responses", {**asked, "input": history, "tool_choice": "none", "max_output_tokens": 4}).status == 200


def test_ollama(client: Client) -> None:
    person = client.post("/api/chat", {"messages": [{"role": "user", "content": "Ada is 36."}], "format": PERSON, "stream": False,
                                       "options": {"temperature": 0}}).json
    assert set(json.loads(person["message"]["content"])) == {"name", "age"} and person["done_reason"] == "stop"
    made = client.post("/api/generate", {"prompt": "Say anything.", "format": "json", "stream": False,
                                         "options": {"temperature": 0, "num_predict": 80}}).json
    assert isinstance(json.loads(made["response"]), dict)
    calls = [{"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}]
    turns = [{"role": "assistant", "content": "", "tool_calls": calls}, {"role": "tool", "tool_name": "get_weather", "content": "x"},
             {"role": "user", "content": "So?"}]
    assert client.post("/api/chat", {"messages": turns, "tools": TOOLS, "stream": False, "options": {"num_predict": 2}}).status == 200


@pytest.mark.models
def test_ollama_calls() -> None:
    """Ollama's API cannot force a call; a larger model makes one by itself."""
    from conftest import model_path

    with pyllm.LLM(model_path("qwen2.5-coder-1.5b"), ctx=1024) as qwen, qwen.serve(0) as server:
        body = {"messages": [{"role": "user", "content": QUESTION}], "tools": TOOLS[:1], "options": {"temperature": 0}}
        expected = qwen.chat(QUESTION, tools=TOOLS[:1], temperature=0)
        lines = [json.loads(line) for line in Client(server.url).post("/api/chat", body).body.splitlines()]
        calls = [c for line in lines for c in line["message"].get("tool_calls", [])]
        assert [c["function"] for c in calls] == [{"name": c.name, "arguments": c.arguments} for c in expected.tool_calls]


@pytest.mark.parametrize("form", [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "p", "strict": True, "schema": PERSON}}},
    {"response_format": {"type": "json_object", "schema": PERSON}}])
def test_replies_follow_a_schema(client: Client, llm: pyllm.LLM, form: dict[str, Any]) -> None:
    expected = llm.chat("Ada is 36.", schema=PERSON, **GREEDY).text
    assert set(json.loads(expected)) == {"name", "age"}
    assert client.chat("Ada is 36.", **form, **GREEDY).json["choices"][0]["message"]["content"] == expected
    events = client.chat("Ada is 36.", stream=True, **form, **GREEDY).events
    assert "".join(c["delta"].get("content") or "" for e in events for c in e["choices"]) == expected


def test_other_forms(client: Client) -> None:
    text = {"format": {"type": "json_schema", "name": "p", "schema": PERSON}}
    body = client.post("/v1/responses", {"input": "Ada is 36.", "text": text, "temperature": 0, "max_output_tokens": 60}).json
    assert set(json.loads(body["output"][0]["content"][0]["text"])) == {"name", "age"}
    assert client.chat("Yes?", regex="yes|no", **GREEDY).json["choices"][0]["message"]["content"] in ("yes", "no")
    assert client.post("/v1/completions", {"prompt": "A or B?", "grammar": 'root ::= "A" | "B"'}).json["choices"][0]["text"] in ("A", "B")
    assert client.chat("Hi", response_format={"type": "text"}, **GREEDY).status == 200


def nested(depth: int) -> dict[str, Any]:
    return {"type": "array", "items": nested(depth - 1)} if depth else {"type": "string"}


def schema(value: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": value}}}


HOSTILE: list[dict[str, Any]] = [
    {"response_format": 1}, {"response_format": {"type": "xml"}}, {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "json_schema", "json_schema": 1}}, schema(None), schema([1]), schema("x"), schema({"type": "thing"}),
    schema({"type": 1}), schema({"enum": []}), schema({"enum": [str(i) * 20 for i in range(200_000)]}), schema({"$ref": "#"}),
    schema({"$ref": "http://127.0.0.1:9/x.json"}), schema({"$ref": "file:///etc/passwd"}), schema({"pattern": "(" * 50_000}),
    schema({"type": "string", "pattern": "(?<=x)*"}), schema({"type": "string", "pattern": "foo**"}),
    schema({"type": "string", "pattern": "(a+)+" * 500 + "b{1000}{1000}"}), schema({"type": "string", "minLength": 10**9}),
    schema({"type": "integer", "minimum": 1e308, "maximum": -1e308}), schema({"type": "number", "multipleOf": 1e-300}),
    schema({"type": "array", "minItems": 10**9}), schema({"allOf": [{"type": "string"}, {"type": "integer"}]}), schema(nested(55)),
    schema({"properties": {str(i): {"type": "string"} for i in range(20_000)}}), schema({"uniqueItems": True, "type": "array"}),
    schema({"anyOf": [{"const": i} for i in range(50_000)]}), {"grammar": 1}, {"grammar": "root ::= " + "(" * 60_000},
    {"grammar": "root ::= root"}, {"grammar": 'a ::= "x"'}, {"grammar": "root ::= missing"}, {"grammar": "x" * 100_000},
    {"grammar": "\n".join(f"r{i} ::= r{i + 1}" for i in range(5000))}, {"regex": "("}, {"regex": "a{1000000}"}, {"regex": "(" * 60_000},
    {"regex": "(?=x)y"}, {"regex": 1}, {"regex": "a", "grammar": 'root ::= "a"'}, {"tools": 1}, {"tools": [1]}, {"tools": [{}]},
    {"tools": [{"type": "function"}]}, {"tools": [{"type": "web_search"}]}, {"tools": TOOLS * 2}, {"tools": TOOLS[:1] * 200},
    {"tools": [{"type": "function", "function": {"name": "x" * 65}}]}, {"tools": [{"type": "function", "function": {"name": "a b"}}]},
    {"tools": TOOLS, "tool_choice": "other"}, {"tools": TOOLS, "tool_choice": 1}, {"tools": TOOLS, "tool_choice": {"function": 1}},
    {"tools": TOOLS, "parallel_tool_calls": "x"}, {"tools": TOOLS, **schema(PERSON)},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": nested(55)}}}}],
     "tool_choice": "required"},
    {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"pattern": "("}}}}}],
     "tool_choice": "required"},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": 1, "arguments": "{}"}}]}]},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "x", "arguments": 1}}]}]},
    {"messages": [{"role": "assistant", "tool_calls": "x"}]}, {"messages": [{"role": "assistant", "tool_calls": [{}] * 200}]},
]


def test_hostile_forms_and_tools_are_answered_within_a_second(client: Client) -> None:
    """A refusal that names the place, or an answer: some of these are legal."""
    import time

    client.chat("Hi", max_tokens=1, regex="a|b")        # the vocabulary's tables are made once
    for body in HOSTILE:
        for _attempt in range(3):
            begun = time.monotonic()
            answer = client.chat("Hi", **{"max_tokens": 1, **body}) if "messages" not in body else client.post("/v1/chat/completions", body)
            if (took := time.monotonic() - begun) < 1:
                break
        else:
            raise AssertionError((str(body)[:200], took))
        refused = 400 <= answer.status < 500 and answer.json["error"]["message"]
        assert answer.status == 200 or refused, (str(body)[:200], answer.body[:300])
    assert client.get("/health").status == 200
