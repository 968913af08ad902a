"""Tools: definitions, calls as families of templates write them (the templates themselves are the oracle), and forced calls of SmolLM2."""

from __future__ import annotations

import json
import lzma
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
from conftest import ROOT

import pyllm
from pyllm import structured, tools
from pyllm.chat import ChatTemplate
from pyllm.replies import ToolDelta
from pyllm.tokenizer import Tokenizer
from pyllm.toolcalls import FORMATS, ToolParser

DATA = json.loads(lzma.decompress((ROOT / "tests/data/templates.json.xz").read_bytes()))
TEMPLATES: dict[str, str] = DATA["templates"]
FAMILIES = {
    "Qwen-Qwen2.5-7B-Instruct": "hermes", "Qwen-Qwen3-0.6B": "hermes", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes",
    "Qwen3-Coder": "xml", "meta-llama-Llama-3.1-8B-Instruct": "llama", "meta-llama-Llama-3.2-3B-Instruct": "llama",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral-list", "Mistral-Small-3.2-24B-Instruct-2506": "mistral",
    "unsloth-mistral-Devstral-Small-2507": "mistral", "google-gemma-4-31B-it": "gemma", "google-gemma-2-2b-it": "",
    "HuggingFaceTB-SmolLM3-3B": "", "microsoft-Phi-3.5-mini-instruct": ""}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Weather of a city.", "parameters": {
    "type": "object", "required": ["city"], "properties": {
        "city": {"type": "string"}, "unit": {"type": "string", "enum": ["C", "F"]}, "days": {"type": "integer", "minimum": 1}}}}}
TRIP = {"type": "function", "function": {"name": "plan_trip", "description": "Plans a trip.", "parameters": {
    "type": "object", "required": ["stops"],
    "properties": {"fast": {"type": "boolean"}, "stops": {"type": "array", "items": {"$ref": "#/$defs/Stop"}}},
    "$defs": {"Stop": {"type": "object", "required": ["place"],
                       "properties": {"place": {"type": "string"}, "nights": {"type": "number"}}}}}}}
CALLS: list[tuple[str, dict[str, Any]]] = [("get_weather", {"city": 'Zürich "am" {See}\n</x>', "days": 2}),
                                           ("plan_trip", {"fast": True, "stops": [{"nights": 1.5, "place": "Bern"}]})]


def conversation(calls: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    made = [{"id": f"abcdefgh{i}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for i, (name, arguments) in enumerate(calls)]
    return [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "", "tool_calls": made}]


def written(name: str, calls: list[tuple[str, dict[str, Any]]]) -> str:
    """What the model of a template would have said for these calls."""
    template = ChatTemplate(TEMPLATES[name], "<s>", "</s>")
    use = tools.ToolUse.make(TEMPLATES[name], [WEATHER, TRIP], None, True)
    messages = tools.prepared(conversation(calls), TEMPLATES[name], use)
    options = {} if use is None or use.in_words else {"tools": list(use.tools)}
    if use is not None and use.in_words and "gemma-2" in name:
        messages = [dict(m) for m in tools.without_system(messages)]
    text = template.render(messages, add_generation_prompt=False, **options)
    text = text[text.rindex("Go."):]
    text = text[text.index(FORMATS[use.form].begin if use is not None and use.form != "llama" else '{"name"'):]
    for end in ("<|im_end|>", "<|eot_id|>", "</s>", "<end_of_turn>", "<turn|>", "<|end|>", "<|tool_response>"):
        text = text.split(end)[0]
    return text


def read(form: str, text: str, pieces: list[str] | None = None) -> tuple[str, list[tuple[str, Any]], list[ToolDelta]]:
    schemas = {d["function"]["name"]: d["function"]["parameters"] for d in (WEATHER, TRIP)}
    parser, out, deltas = ToolParser(FORMATS[form], schemas, 7), "", list[ToolDelta]()
    for piece in [text] if pieces is None else pieces:
        said, more = parser.feed(piece)
        out, deltas = out + said, deltas + list(more)
    said, more = parser.finish()
    return out + said, [(c.name, c.arguments) for c in parser.calls], deltas + list(more)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_template_writes_is_read_back(name: str) -> None:
    """Whole, character by character, and cut at random: always the same calls, and deltas that add up to them."""
    assert tools.format_name(TEMPLATES[name]) == FAMILIES[name]
    form = FAMILIES[name] or "hermes"
    for calls in (CALLS[:1], CALLS[1:], CALLS):
        if len(calls) > 1 and form == "llama":      # one at a time
            continue
        text, rng = written(name, calls), random.Random(1)
        cuts = [sorted(rng.sample(range(len(text)), 5)) for _ in range(10)]
        ways = [None, list(text), *([text[a:b] for a, b in zip([0, *c], [*c, len(text)], strict=True)] for c in cuts)]
        for pieces in ways:
            said, found, deltas = read(form, text, pieces)
            assert found == calls, text
            assert said.strip() == "", text
            for i, (called, arguments) in enumerate(calls):
                mine = [d for d in deltas if d.index == i]
                assert mine[0].name == called and mine[0].id and not any(d.id or d.name for d in mine[1:])
                assert json.loads("".join(d.arguments for d in mine)) == arguments


@pytest.mark.parametrize(("form", "text", "calls"), [
    ("hermes", 'Let me see.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\nDone.', 1),
    ("hermes", '<tool_call>[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]</tool_call>', 2),
    ("hermes", '<tool_call>{"arguments": {"a": "}"}, "name": "f"}</tool_call>', 1),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', 1),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1}}', 1),
    ("llama", '<|python_tag|>{"name": "f", "parameters": {"a": 1}}', 1),
    ("llama", '{"type": "function", "name": "get_weather", "parameters": {"city": "x"}}', 1),
    ("llama", '{"name": "get_weather", "parameters": {"city": "x"}}; {"name": "get_weather", "parameters": {"city": "y"}}', 2),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}, "id": "abcdefghi"}, {"name": "g", "arguments": {}}]', 2),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a": [1]}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}', 2),
    ("xml", "<tool_call>\n<function=get_weather>\n<parameter=city>\nNew\nYork\n</parameter>\n</function>\n</tool_call>", 1),
    ("functiongemma", "<start_function_call>call:f{a:<escape>x: {y}<escape>,b:[1,true]}<end_function_call>", 1)])
def test_other_ways_to_write_calls(form: str, text: str, calls: int) -> None:
    whole = read(form, text)
    assert len(whole[1]) == calls, whole
    assert read(form, text, list(text))[:2] == whole[:2]
    if text.startswith("Let"):
        assert whole[0].split() == ["Let", "me", "see.", "Done."]
    else:
        assert whole[0].strip() == ""


@pytest.mark.parametrize(("form", "text"), [
    ("hermes", "No call <tool_call here, </tool_call> or there."), ("hermes", "<tool_call>\n{broken\n</tool_call> and more"),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": '), ("hermes", '<tool_call>{"name": 5, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1,}}</tool_call>'), ("hermes", "<tool_call>" + "[" * 100_000 + "</tool_call>"),
    ("llama", '{"city": "Bern", "name": "x"}'), ("llama", '{"name": "unknown", "parameters": {}}'), ("llama", "{ and so on"),
    ("llama", "Hello {"), ("mistral", "[TOOL_CALLS]nonsense"), ("xml", "<tool_call><function=f>x</function></tool_call>"),
    ("gemma", "<|tool_call>call:f{a:}<tool_call|>"), ("gemma", "  text with space  "), ("functiongemma", "<start_function_call>call"),
    ("hermes", ""), ("llama", "  \n ")])
def test_what_is_no_call_stays_text(form: str, text: str) -> None:
    for pieces in (None, list(text)) if len(text) < 1000 else (None,):
        said, calls, _ = read(form, text, pieces)
        assert said == text and not calls


def test_noise_never_raises_and_loses_nothing() -> None:
    marks = ["<tool_call>", "</tool_call>", '{"name": "get_weather", "arguments": {', "}", "}}", "[TOOL_CALLS]", "[ARGS]", '"', "\\", "\n",
             " ", "a", "<function=f>", "<parameter=p>", "</parameter>", "</function>", "<|tool_call>call:f{", "<tool_call|>", "[",
             "]", ",", ";", "é"]
    rng = random.Random(2)
    for form in FORMATS:
        for _ in range(300):
            pieces = rng.choices(marks, k=rng.randint(1, 12))
            said, calls, _ = read(form, "".join(pieces), pieces)
            assert calls or said == "".join(pieces)


# ---- definitions ----

def test_a_function_becomes_a_definition() -> None:
    def search(query: str, limit: int = 5, kind: Literal["web", "news"] = "web", tags: list[str] | None = None) -> str:
        """Searches the web.

        All of it.

        Args:
            query: what to look for,
                in words
            limit (int): how many

        Returns:
            a text
        """
        return ""

    made, = tools.definitions([search])
    assert made["function"]["name"] == "search" and made["function"]["description"] == "Searches the web.\n\nAll of it."
    parameters = made["function"]["parameters"]
    assert parameters["properties"] == {
        "query": {"type": "string", "description": "what to look for, in words"},
        "limit": {"type": "integer", "description": "how many", "default": 5}, "kind": {"enum": ["web", "news"], "default": "web"},
        "tags": {"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}], "default": None}}
    assert parameters["required"] == ["query"]

    def sphinx(a: float) -> None:
        """Does it.

        :param a: a number
        :returns: nothing
        """

    made, = tools.definitions([sphinx])
    assert made["function"]["description"] == "Does it." and made["function"]["parameters"]["properties"]["a"]["description"] == "a number"
    assert tools.definitions([WEATHER["function"]]) == tools.definitions([WEATHER])


@pytest.mark.parametrize(("given", "message"), [
    ("x", "tools is 'x'"), ([5], r"tools\[0\] is 5"),
    ([{"type": "function", "function": {"name": "a b"}}], r"tools\[0\].function.name is 'a b'"),
    ([{"name": "f", "parameters": []}], r"tools\[0\].parameters is \[\]"), ([WEATHER, WEATHER], "two are called 'get_weather'"),
    ([lambda x: x], "a function called '<lambda>'"), ([{"type": "web", "name": "f"}], r"tools\[0\] is")])
def test_wrong_tools_are_named_with_their_place(given: Any, message: str) -> None:
    with pytest.raises(pyllm.ArgumentError, match=message):
        tools.definitions(given)


# ---- the form of calls ----

@pytest.fixture(scope="module")
def vocabulary(smollm2: Path) -> structured.Vocabulary:
    tokenizer = Tokenizer(smollm2)
    return structured.Vocabulary(tokenizer, tokenizer.n_vocab)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_form_of_a_call_takes_what_the_template_writes_and_nothing_else(name: str, vocabulary: structured.Vocabulary,
                                                                            smollm2: Path) -> None:
    tokenizer = Tokenizer(smollm2)
    use = tools.ToolUse.make(TEMPLATES[name], [WEATHER, TRIP], "required", True)
    assert use is not None

    def takes(text: str) -> bool:
        constraint = vocabulary.constraint(structured.Form("lark", use.grammar(json.dumps)))
        for token in tokenizer.encode(text, add_special=False):
            mask = constraint.mask(1000)
            if mask is None or not mask[token >> 3] >> (token & 7) & 1:
                return False
            constraint.accept(token)
        mask = constraint.mask(1000)
        return mask is not None and any(mask[t >> 3] >> (t & 7) & 1 for t in tokenizer.ends())

    plain = [("get_weather", {"city": "Bern", "days": 2}), ("plan_trip", {"fast": True, "stops": [{"place": "Bern"}]})]
    for call in plain:
        text = written(name, [call]).strip()
        assert takes(text), text
        assert not takes(text.replace("get_weather", "get_wealth").replace("plan_trip", "plant_rip"))
        assert not takes(text.replace("Bern", "Bern", 1).replace("city", "cities").replace("stops", "steps"))


# ---- replies ----

@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[pyllm.LLM]:
    with pyllm.LLM(smollm2, ctx=4096) as llm:
        yield llm


def get_weather(city: str, unit: Literal["C", "F"] = "C") -> str:
    """The weather of a city.

    Args:
        city: its name
    """
    return f"sun in {city}"


def test_a_forced_call_fits_its_definition(llm: pyllm.LLM) -> None:
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}, "get_weather"):
        offered = [get_weather] if choice == "required" else [get_weather, TRIP]
        reply = llm.chat("What is the weather in Bern?", tools=offered, tool_choice=choice, temperature=1, seed=3, max_tokens=100,
                         parallel_tool_calls=False)
        assert [c.name for c in reply.tool_calls] == ["get_weather"] and reply.text == "" and reply.finish_reason == "stop"
        jsonschema.validate(reply.tool_calls[0].arguments, tools.definitions([get_weather])[0]["function"]["parameters"])
        assert json.loads(reply.tool_calls[0].text) == reply.tool_calls[0].arguments
    messages = [{"role": "user", "content": "What is the weather in Bern?"}, reply.message,
                {"role": "tool", "tool_call_id": reply.tool_calls[0].id, "content": get_weather("Bern")}]
    after = llm.chat(messages, tools=[get_weather], tool_choice="none", max_tokens=8, seed=1)
    assert after.text and not after.tool_calls


def test_a_stream_of_a_call(llm: pyllm.LLM) -> None:
    stream = llm.stream("What is the weather in Bern?", tools=[get_weather], tool_choice="required", seed=3, max_tokens=100,
                        parallel_tool_calls=False)
    deltas = [d for chunk in stream for d in chunk.tool_calls]
    call, = stream.reply.tool_calls
    assert deltas[0] == ToolDelta(0, call.id, "get_weather") and "".join(d.arguments for d in deltas) == call.text and len(deltas) > 2


def test_a_call_that_the_model_begins_itself_is_held_to_its_form(llm: pyllm.LLM) -> None:
    """The beginning is suggested by biases; what follows must fit by itself."""
    begin = llm.tokenize("<tool_call>", add_special=False)
    said: list[int] = []

    def suggest(ids: Any, logits: Any) -> None:
        if len(said) < len(begin):
            logits[begin[len(said)]] += 100
            said.append(begin[len(said)])

    reply = llm.chat("What is the weather in Bern?", tools=[get_weather], temperature=1.3, seed=2, max_tokens=120, logits_processor=suggest)
    assert reply.tool_calls and reply.tool_calls[0].name == "get_weather", reply.text
    jsonschema.validate(reply.tool_calls[0].arguments, tools.definitions([get_weather])[0]["function"]["parameters"])


def test_wrong_choices(llm: pyllm.LLM) -> None:
    for options, message in (({"tools": [get_weather], "tool_choice": "other"}, "tool_choice is 'other'"),
                             ({"tool_choice": "required"}, "no tools"),
                             ({"tools": [get_weather], "schema": {}}, "cannot be combined"),
                             ({"tools": [get_weather], "parallel_tool_calls": 1}, "must be True or False")):
        with pytest.raises(pyllm.ArgumentError, match=message):
            llm.chat("Hi", max_tokens=1, **options)
