"""Other people's clients against the server, with a real model: what they send and expect is the test.

They are many packages: pip install '.[clients]'. Slow: pytest -m slow tests/unit/test_server_clients.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import pyllm

pytestmark = pytest.mark.slow
HI = [{"role": "user", "content": "Name a colour."}]


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[pyllm.LLM]:
    with pyllm.LLM(smollm2, ctx=2048) as llm:
        yield llm


@pytest.fixture(scope="module")
def url(llm: pyllm.LLM) -> Iterator[str]:
    with llm.serve(0, name="smollm2", api_keys=["test-key-1"], drain_s=0) as server:
        yield server.url


@pytest.fixture(scope="module")
def expected(llm: pyllm.LLM) -> str:
    return llm.chat(HI, temperature=0, max_tokens=8).text


# ---- openai ----

@pytest.fixture(scope="module")
def openai_client(url: str):    # type: ignore[no-untyped-def]
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="test-key-1", max_retries=0) as client:
        yield client


def test_openai_chat(openai_client, expected: str) -> None:     # type: ignore[no-untyped-def]
    said = openai_client.chat.completions.create(model="smollm2", messages=HI, temperature=0, max_completion_tokens=8, logprobs=True)
    assert said.choices[0].message.content == expected and said.usage.completion_tokens == 8
    assert len(said.choices[0].logprobs.content) == 8
    chunks = list(openai_client.chat.completions.create(model="smollm2", messages=HI, temperature=0, max_tokens=8, stream=True,
                                                        stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected
    assert chunks[-1].usage.completion_tokens == 8 and chunks[-1].choices == []
    stop = expected[6:9]        # this call wants a reply that is whole
    with openai_client.chat.completions.stream(model="smollm2", messages=HI, temperature=0, max_tokens=8, stop=stop) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == expected[:expected.index(stop)]


def test_openai_errors(openai_client) -> None:      # type: ignore[no-untyped-def]
    import openai

    with pytest.raises(openai.NotFoundError, match="smollm2"):
        openai_client.chat.completions.create(model="gpt-4o", messages=HI)
    with pytest.raises(openai.BadRequestError) as e:
        openai_client.chat.completions.create(model="smollm2", messages=[{"role": "user", "content": "word " * 4000}])
    assert e.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        openai_client.with_options(api_key="wrong-key").models.list()


def test_openai_completions_and_models(openai_client, llm: pyllm.LLM) -> None:      # type: ignore[no-untyped-def]
    said = openai_client.completions.create(model="smollm2", prompt="The sea", temperature=0, max_tokens=4, logprobs=2, echo=True)
    assert said.choices[0].text == "The sea" + llm.complete("The sea", temperature=0, max_tokens=4).text
    assert len(said.choices[0].logprobs.token_logprobs) == len(said.choices[0].logprobs.top_logprobs) == 6
    pieces = [c.choices[0].text for c in openai_client.completions.create(model="smollm2", prompt="The sea", max_tokens=4, stream=True)]
    assert "".join(pieces)
    assert [m.id for m in openai_client.models.list()] == ["smollm2"] and openai_client.models.retrieve("smollm2").id == "smollm2"


def test_openai_responses(openai_client, expected: str) -> None:        # type: ignore[no-untyped-def]
    said = openai_client.responses.create(model="smollm2", input="Name a colour.", temperature=0, max_output_tokens=8)
    assert said.output_text == expected and said.usage.output_tokens == 8
    with openai_client.responses.stream(model="smollm2", input=HI, temperature=0, max_output_tokens=8) as stream:
        deltas = [e.delta for e in stream if e.type == "response.output_text.delta"]
    assert "".join(deltas) == expected


async def _openai_together(url: str) -> list[str]:
    import asyncio

    import openai

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="test-key-1") as client:
        said = await asyncio.gather(*(client.chat.completions.create(model="smollm2", messages=HI, temperature=0, max_tokens=8)
                                      for _ in range(8)))
    return [s.choices[0].message.content or "" for s in said]


def test_openai_many_at_once(url: str, expected: str) -> None:
    import asyncio

    pytest.importorskip("openai")
    assert asyncio.run(_openai_together(url)) == [expected] * 8


WEATHER = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}}, "required": ["city"],
           "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city", "parameters": WEATHER}}
QUESTION = [{"role": "user", "content": "What is the weather in Oslo?"}]
CITIES = ({"city": "Oslo"}, {"city": "Rome"})


@cache
def person():       # type: ignore[no-untyped-def]
    from pydantic import BaseModel, Field

    class Person(BaseModel):
        name: str = Field(max_length=10)
        age: int = Field(ge=0, le=150)

    return Person


def test_openai_parse(openai_client) -> None:       # type: ignore[no-untyped-def]
    asked = {"model": "smollm2", "messages": [{"role": "user", "content": "Ada is 36."}], "temperature": 0}
    said = openai_client.chat.completions.parse(response_format=person(), **asked)
    assert said.choices[0].message.parsed.age >= 0
    with openai_client.chat.completions.stream(response_format=person(), **asked) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.parsed == said.choices[0].message.parsed
    parsed = openai_client.responses.parse(model="smollm2", input="Ada is 36.", text_format=person(), temperature=0).output_parsed
    assert parsed.name == said.choices[0].message.parsed.name


def test_openai_tools(openai_client) -> None:       # type: ignore[no-untyped-def]
    asked = {"model": "smollm2", "messages": QUESTION, "tools": [TOOL], "tool_choice": "required", "temperature": 0}
    call = openai_client.chat.completions.create(**asked).choices[0].message.tool_calls[0]
    assert call.function.name == "get_weather" and json.loads(call.function.arguments) in CITIES
    with openai_client.chat.completions.stream(**asked) as stream:
        done = [e for e in stream if e.type == "tool_calls.function.arguments.done"]
    assert json.loads(done[0].arguments) == json.loads(call.function.arguments)
    flat = {"type": "function", "strict": True, **TOOL["function"]}
    asked = {"model": "smollm2", "input": QUESTION, "tools": [flat], "tool_choice": "required", "temperature": 0}
    item = openai_client.responses.create(**asked).output[0]
    assert item.type == "function_call" and json.loads(item.arguments) in CITIES
    with openai_client.responses.stream(**asked) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output[0].arguments == item.arguments


def test_openai_embeddings(openai_client, llm: pyllm.LLM) -> None:      # type: ignore[no-untyped-def]
    """The client asks for base64 unless told otherwise."""
    import numpy as np

    texts = ["a cat", "another cat", "the sea"]
    wanted = llm.embed(texts)
    for asked in ({}, {"encoding_format": "float"}):
        said = openai_client.embeddings.create(model="smollm2", input=texts, **asked)
        assert np.array_equal(np.array([d.embedding for d in said.data], np.float32), wanted)
        assert said.usage.prompt_tokens == sum(len(llm.tokenize(t)) for t in texts)
    short = openai_client.embeddings.create(model="smollm2", input=llm.tokenize("the sea"), dimensions=8).data[0].embedding
    assert np.array_equal(np.array(short, np.float32), llm.embed("the sea", dimensions=8))


# ---- anthropic ----

def test_anthropic(url: str, expected: str, llm: pyllm.LLM) -> None:
    anthropic = pytest.importorskip("anthropic")
    with anthropic.Anthropic(base_url=url, api_key="test-key-1", max_retries=0) as client:
        said = client.messages.create(model="smollm2", messages=HI, max_tokens=8, extra_body={"temperature": 0})
        assert said.content[0].text == expected and said.stop_reason == "max_tokens"
        with client.messages.stream(model="smollm2", messages=HI, max_tokens=8, extra_body={"temperature": 0}) as stream:
            assert "".join(stream.text_stream) == expected
            assert stream.get_final_message().usage.output_tokens == 8
        counted = client.messages.count_tokens(model="smollm2", messages=HI)
        assert counted.input_tokens == len(llm.prompt_ids(HI))
        with pytest.raises(anthropic.NotFoundError):
            client.messages.create(model="claude", messages=HI, max_tokens=8)


def test_anthropic_tools(url: str) -> None:
    anthropic = pytest.importorskip("anthropic")
    tool = {"name": "get_weather", "description": "The weather of a city", "input_schema": WEATHER}
    with anthropic.Anthropic(base_url=url, api_key="test-key-1", max_retries=0) as client:
        asked = {"model": "smollm2", "messages": QUESTION, "max_tokens": 100, "tools": [tool], "tool_choice": {"type": "any"},
                 "extra_body": {"temperature": 0}}
        said = client.messages.create(**asked)
        assert said.stop_reason == "tool_use" and said.content[0].input in CITIES
        with client.messages.stream(**asked) as stream:
            for _ in stream:
                pass
            assert stream.get_final_message().content[0].input == said.content[0].input
        result = {"type": "tool_result", "tool_use_id": said.content[0].id, "content": "rain"}
        turns = [*QUESTION, {"role": "assistant", "content": said.content}, {"role": "user", "content": [result]}]
        assert client.messages.create(model="smollm2", messages=turns, max_tokens=4, tools=[tool]).usage.output_tokens <= 4


# ---- ollama ----

def test_ollama(url: str, expected: str) -> None:
    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=url, headers={"Authorization": "Bearer test-key-1"})
    options = {"temperature": 0, "num_predict": 8}
    assert client.chat("smollm2", HI, options=options).message.content == expected
    assert "".join(c.message.content or "" for c in client.chat("smollm2", HI, options=options, stream=True)) == expected
    assert client.generate("smollm2", "Name a colour.", options=options).response == expected
    assert [m.model for m in client.list().models] == ["smollm2"] == [m.model for m in client.ps().models]
    assert client.show("smollm2").details.family == "llama"
    said = client.chat("smollm2", [{"role": "user", "content": "Ada is 36."}], format=person().model_json_schema(),
                       options={"temperature": 0})
    assert person().model_validate_json(said.message.content).age >= 0
    assert client.chat("smollm2", QUESTION, tools=[TOOL], options=options).done
    with pytest.raises(ollama.ResponseError):
        client.chat("other", HI)


def test_ollama_embeddings(url: str, llm: pyllm.LLM) -> None:
    import numpy as np

    ollama = pytest.importorskip("ollama")
    client = ollama.Client(host=url, headers={"Authorization": "Bearer test-key-1"})
    said = client.embed("smollm2", ["a cat", "the sea"])
    assert np.array_equal(np.array(said.embeddings, np.float32), llm.embed(["a cat", "the sea"])) and said.prompt_eval_count > 2
    older = client.embeddings("smollm2", "the sea").embedding
    assert np.array_equal(np.array(older, np.float32), llm.embed("the sea", normalize=False))


# ---- what others build on openai's client ----

def test_langchain(url: str, expected: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(base_url=f"{url}/v1", api_key="test-key-1", model="smollm2", temperature=0, max_tokens=8)
    assert model.invoke("Name a colour.").content == expected
    assert "".join(str(c.content) for c in model.stream("Name a colour.")) == expected


def test_langchain_embeddings(url: str, llm: pyllm.LLM) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.OpenAIEmbeddings(base_url=f"{url}/v1", api_key="test-key-1", model="smollm2", check_embedding_ctx_length=False)
    assert model.embed_documents(["a cat", "the sea"])[1] == pytest.approx(llm.embed("the sea").tolist(), abs=1e-7)


def test_langchain_structured_output_and_tools(url: str) -> None:
    langchain = pytest.importorskip("langchain_openai")
    model = langchain.ChatOpenAI(base_url=f"{url}/v1", api_key="test-key-1", model="smollm2", temperature=0)
    assert model.with_structured_output(person()).invoke("Ada is 36.").age >= 0
    called = model.bind_tools([TOOL], tool_choice="get_weather").invoke("What is the weather in Oslo?").tool_calls
    assert called[0]["name"] == "get_weather" and called[0]["args"] in CITIES


def test_instructor(url: str) -> None:
    instructor, openai = pytest.importorskip("instructor"), pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="test-key-1") as plain:
        client = instructor.from_openai(plain)
        found = client.chat.completions.create(model="smollm2", response_model=person(), temperature=0, max_retries=0,
                                               messages=[{"role": "user", "content": "Ada is 36."}])
    assert 0 <= found.age <= 150


def test_llm(url: str, expected: str, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: local\n  model_name: smollm2\n  api_base: {url}/v1\n  api_key_name: local\n  supports_schema: true\n")
    (tmp_path / "keys.json").write_text('{"local": "test-key-1"}')

    def run(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", "llm", "-m", "local", "-o", "temperature", "0", *arguments], check=False, timeout=120,
                              env=os.environ | {"LLM_USER_PATH": str(tmp_path)}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run("-o", "max_tokens", "8", "Name a colour.") == expected
    assert person().model_validate_json(run("--schema", json.dumps(person().model_json_schema()), "Ada is 36.")).age >= 0
