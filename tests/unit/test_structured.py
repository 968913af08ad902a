"""Structured output: which tokens a form lets pass, against brute force; replies of SmolLM2 against jsonschema; errors; limits."""

from __future__ import annotations

import enum
import json
import re
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import jsonschema
import pytest
import tiny_gguf
from pydantic import BaseModel, Field, ValidationError, field_validator
from schema_maker import Maker

import pyllm
from pyllm import schemas, structured
from pyllm.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[pyllm.LLM]:
    with pyllm.LLM(smollm2, ctx=16 * 1024) as llm:
        yield llm


@pytest.fixture(scope="module")
def vocabulary(smollm2: Path) -> structured.Vocabulary:
    tokenizer = Tokenizer(smollm2)
    return structured.Vocabulary(tokenizer, tokenizer.n_vocab)


# ---- types ----

class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Point(TypedDict):
    x: float
    y: float


@dataclass
class Node:
    """A tree."""

    name: str
    children: list[Node] = field(default_factory=list)


@dataclass
class Everything:
    text: Annotated[str, "some text", {"maxLength": 9}]
    count: int
    ratio: float
    flag: bool
    maybe: int | None
    colour: Colour
    kind: Literal["a", 1]
    day: date
    at: datetime
    key: uuid.UUID
    point: Point
    pair: tuple[int, str]
    many: tuple[int, ...]
    names: set[str]
    table: Mapping[str, list[int]]
    tree: Node
    anything: Any = None


class City(BaseModel):
    name: str = Field(max_length=20)
    people: int


class Town(City):
    @field_validator("people")
    @classmethod
    def few(cls, value: int) -> int:
        if value > 10_000:
            raise ValueError("a city")
        return value


class Country(BaseModel):
    capital: City
    cities: list[City]


VALUE = Everything("hi", 3, 2.0, True, None, Colour.BLUE, 1, date(2024, 2, 29), datetime.fromisoformat("2024-01-02T03:04:05+00:00"),
                   uuid.UUID(int=5), {"x": 1.0, "y": 2.5}, (1, "a"), (1, 2, 3), {"x"}, {"k": [1]}, Node("r", [Node("l")]), [{"deep": None}])
TEXT = json.dumps({"text": "hi", "count": 3, "ratio": 2, "flag": True, "maybe": None, "colour": "blue", "kind": 1, "day": "2024-02-29",
                   "at": "2024-01-02T03:04:05Z", "key": str(uuid.UUID(int=5)), "point": {"x": 1, "y": 2.5}, "pair": [1, "a"],
                   "many": [1, 2, 3], "names": ["x"], "table": {"k": [1]},
                   "tree": {"name": "r", "children": [{"name": "l"}]}, "anything": [{"deep": None}]})


def test_types_have_schemas_and_values_come_back() -> None:
    schema = schemas.json_schema(Everything)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(TEXT), schema)
    assert schemas.parse(Everything, TEXT) == VALUE
    assert schema["properties"]["text"] == {"type": "string", "description": "some text", "maxLength": 9}
    assert schema["required"] == [f for f in schema["properties"] if f != "anything"]
    assert schema["$defs"]["Node"]["description"] == "A tree."
    for key, wrong in (("count", "3"), ("count", True), ("colour", "green"), ("pair", [1]), ("kind", "1"), ("tree", {"name": "r", "x": 1})):
        value = {**json.loads(TEXT), key: wrong}
        assert list(jsonschema.Draft202012Validator(schema).iter_errors(value))
        with pytest.raises((ValueError, TypeError)):
            schemas.parse(Everything, json.dumps(value))


def test_a_pydantic_model_says_its_own_schema() -> None:
    assert schemas.json_schema(Country) == Country.model_json_schema()
    nested = schemas.json_schema(list[Country])
    jsonschema.validate([{"capital": {"name": "P", "people": 2}, "cities": []}], nested)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([{"capital": {"name": "P" * 30, "people": 2}, "cities": []}], nested)
    found = schemas.parse(list[Country], '[{"capital": {"name": "P", "people": 2}, "cities": []}]')
    assert found == [Country(capital=City(name="P", people=2), cities=[])]


def test_types_without_a_schema_are_named_with_their_place() -> None:
    @dataclass
    class Bad:
        inner: list[complex]

    for target, place in ((3, "schema:"), (complex, "schema:"), (Bad, r"schema\.inner\[\]:"), (dict[int, str], "schema: keys")):
        with pytest.raises(pyllm.ArgumentError, match=place):
            schemas.json_schema(target)


# ---- masks ----

def allowed(mask: bytes, n: int) -> set[int]:
    return {t for t in range(n) if mask[t >> 3] >> (t & 7) & 1}


def test_a_mask_lets_exactly_those_tokens_pass_that_can_go_on(vocabulary: structured.Vocabulary, smollm2: Path) -> None:
    tokenizer = Tokenizer(smollm2)
    pieces, ends = tokenizer.pieces(), set(tokenizer.ends())
    # every prefix of a match of (?:ab|a b|[0-9]{1,4})(?:, )? as a set of its own makes brute force easy
    words = [*(str(i).zfill(n) for n in range(1, 5) for i in range(10**n)), "ab", "a b"]
    words += [w + ", " for w in words]
    prefixes = {w[:n].encode() for w in words for n in range(len(w) + 1)}
    whole = {w.encode() for w in words}
    constraint = vocabulary.constraint(structured.form(regex=r"(?:ab|a b|[0-9]{1,4})(?:, )?"))
    said = b""
    for token in tokenizer.encode("20, ", add_special=False):
        mask = constraint.mask(1000)
        assert mask is not None
        expected = {t for t, p in enumerate(pieces) if p and said + p in prefixes} | (ends if said in whole else set())
        assert allowed(mask, len(pieces)) == expected
        constraint.accept(token)
        said += pieces[token]
    assert constraint.complete


def test_sampling_under_a_mask_equals_sampling_with_the_others_banned(llm: pyllm.LLM) -> None:
    digits = [t for t, p in enumerate(llm.tokenizer.pieces()) if p in {b"1", b"2", b"3", b"4"}]
    bias = {t: float("-inf") for t in range(llm.tokenizer.n_vocab) if t not in digits}
    for options in ({"temperature": 1.5, "top_k": 0, "seed": 3}, {"temperature": 0}, {"top_k": 3, "seed": 4},
                    {"seed": 5, "top_n_sigma": 1.0}):
        one = llm.chat("Say a number.", regex="[1-4]{6}", logprobs=2, **options)
        two = llm.chat("Say a number.", logit_bias=bias, max_tokens=6, logprobs=2, **options)
        assert one.tokens == two.tokens and one.logprobs == two.logprobs and one.finish_reason == "stop"


# ---- replies ----

def check(value: Any, schema: Any) -> None:
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER).validate(value)


PERSON = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
                                           "likes": {"type": "array", "items": {"enum": ["tea", "music", "chess"]}, "maxItems": 4}},
          "required": ["name", "age"]}
FORMS: list[dict[str, Any]] = [
    {"schema": PERSON}, {"schema": City}, {"schema": {"type": "object"}}, {"schema": Literal["yes", "no"]}, {"regex": r"\d{3}-[a-f]+!"},
    {"grammar": 'start: greeting " " /[a-z]+/ "."\ngreeting: "Hello" | "Good day"'}, {"grammar": 'root ::= ("ab" | "c"){2,3} "\\n"'},
    {"grammar": 'start: "<<" thing ">>"\nthing: %json {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}'}]
CHECKS = [None, None, None, r'"(yes|no)"', r"\d{3}-[a-f]+!", r"(Hello|Good day) [a-z]+\.", r"(ab|c){2,3}\n", r"<<\[[\s\S]*\]>>"]


def test_replies_have_the_form_alone_and_in_a_batch(llm: pyllm.LLM) -> None:
    def ask(i: int) -> pyllm.Reply:
        return llm.chat("Tell me about Ada in Paris as JSON.", temperature=1, seed=i, max_tokens=60, **FORMS[i % len(FORMS)])

    alone = [ask(i) for i in range(len(FORMS))]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(len(FORMS))))
    assert [r.tokens for r in together] == [r.tokens for r in alone]
    for reply, form, check in zip(alone, FORMS, CHECKS, strict=True):
        if check is not None:
            assert reply.finish_reason == "length" or re.fullmatch(check, reply.text), reply.text
            continue
        assert reply.finish_reason == "stop", reply.text
        jsonschema.validate(json.loads(reply.text), schemas.json_schema(form["schema"]))
    assert isinstance(alone[1].parsed, City) and alone[0].parsed == json.loads(alone[0].text) and alone[4].parsed is None
    assert alone[3].parsed in ("yes", "no")


def test_streams_and_sessions_take_forms(llm: pyllm.LLM) -> None:
    stream = llm.stream("Pick one.", schema=Literal["heads", "tails"], seed=1)
    assert "".join(c.text for c in stream) == stream.reply.text and stream.reply.parsed in ("heads", "tails")
    with llm.session() as session:
        first = session.chat("Pick a number.", regex="[1-9]", seed=1)
        again = session.chat("And another.", regex="[1-9]{2}", seed=1)
        assert re.fullmatch("[1-9]", first.text) and re.fullmatch("[1-9]{2}", again.text) and again.usage.cached_tokens > 0


def test_a_types_own_rules_speak_when_parsed_is_read(llm: pyllm.LLM) -> None:
    reply = llm.chat("Reply.", schema=City, grammar=None, temperature=0, max_tokens=60)
    assert reply.parsed == City.model_validate_json(reply.text)
    bad = pyllm.Reply('{"name": "x", "people": 20000}', (), "stop", reply.usage, reply.timings, schema=Town)
    with pytest.raises(ValidationError):
        _ = bad.parsed
    assert pyllm.Reply('{"name": "x"', (), "length", reply.usage, reply.timings, schema=City).parsed is None


def test_a_reply_in_json_is_closed_before_it_is_cut_off(llm: pyllm.LLM) -> None:
    text = {"type": "string"}
    story = {"type": "object", "required": ["title", "text", "score"], "properties": {
        "title": text, "text": {"type": "string", "minLength": 3}, "score": {"type": "number", "minimum": -1, "maximum": 1}}}
    author = {"type": "object", "required": ["name", "born"], "properties": {
        "name": text, "born": {"type": "string", "format": "date"},
        "notes": {"anyOf": [{"type": "array", "items": text}, {"type": "null"}]}}}
    stories = {"type": "object", "required": ["stories", "author"],
               "properties": {"stories": {"type": "array", "minItems": 1, "items": story}, "author": author}}

    def write(seed: int) -> pyllm.Reply:
        return llm.chat("Write long stories as JSON.", schema=stories, temperature=1.2, top_k=0, seed=seed, max_tokens=110)

    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(write, range(6)))
    for reply in replies:
        assert reply.finish_reason == "stop", reply.text
        check(reply.parsed, stories)
    short = llm.chat("Write long stories as JSON.", schema=stories, seed=1, max_tokens=20)
    assert short.finish_reason == "length" and short.parsed is None


OPTIONS: dict[str, Any] = {"temperature": 1, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def follow(llm: pyllm.LLM, seeds: Iterable[int], max_tokens: int) -> list[pyllm.Reply]:
    """One reply a random schema, with the model's whole distribution; every one that says stop is checked."""
    def ask(seed: int) -> pyllm.Reply:
        schema = Maker(seed).schema()
        reply = llm.chat(f"Write one plausible record as JSON for this JSON schema:\n{json.dumps(schema)}", schema=schema, seed=seed,
                         max_tokens=max_tokens, **OPTIONS)
        if reply.finish_reason == "stop":
            check(json.loads(reply.text), schema)
        return reply

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(ask, seeds))


def test_random_schemas_are_followed(llm: pyllm.LLM) -> None:
    small = [seed for seed in range(200) if len(json.dumps(Maker(seed).schema())) < 300][:30]
    replies = follow(llm, small, 60)
    assert sum(r.finish_reason == "stop" for r in replies) >= 28


@pytest.mark.slow
def test_a_thousand_random_schemas_are_followed(smollm2: Path) -> None:
    with pyllm.LLM(smollm2, ctx=64 * 1024) as llm:
        replies = follow(llm, range(1000), 512)
    assert sum(r.finish_reason == "stop" for r in replies) >= 950


# ---- reasoning ----

def thinker(path: Path) -> Path:
    """A model of random weights whose vocabulary has thinking marks and whose template uses them."""
    kv = tiny_gguf.metadata() | tiny_gguf.vocabulary()
    tokens, types = list(kv["tokenizer.ggml.tokens"]), list(kv["tokenizer.ggml.token_type"])
    tokens[260:263], types[260:263] = ["<think>", "</think>", "\n\n"], [4, 4, 4]
    kv |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": types, "tokenizer.chat_template":
           "{% for m in messages %}{{ m.content }}{% endfor %}{% if open %}<think>{% elif closed %}<think></think>{% endif %}"}
    path.write_bytes(tiny_gguf.build(kv, tiny_gguf.tensors("f32", tiny_gguf.shapes()))[0])
    return path


def test_reasoning_is_free_and_the_answer_has_the_form(tmp_path: Path) -> None:
    with pyllm.LLM(thinker(tmp_path / "thinker.gguf"), ctx=128) as llm:
        opens, closes = (llm.tokenize(m, add_special=False)[-1] for m in ("<think>", "</think>"))
        seen = set()
        for seed in range(12):
            for template in ({}, {"open": True}, {"closed": True}):
                # marks are likelier than by chance, line breaks follow them
                reply = llm.chat("w1", schema=Literal["yes", "no"], seed=seed, max_tokens=100, template_options=template, temperature=1.0,
                                 top_k=0, logit_bias={opens: 4.0, closes: 5.0})
                if reply.finish_reason == "stop":
                    assert reply.parsed in ("yes", "no")
                    seen.add((tuple(template), reply.reasoning is not None, opens in reply.tokens))
        assert {((), True, True), (("open",), True, False), (("closed",), False, False)} <= seen | {(("open",), True, True)}
        assert not any(t == ("closed",) and reasoned for t, reasoned, _ in seen)


# ---- errors and limits ----

@pytest.mark.parametrize(("options", "message"), [
    ({"schema": {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "strin"}}}}},
     "schema at #/properties/a/items: Invalid type: strin"),
    ({"schema": {"$defs": {"x/y": {"properties": {"b": {"not": {}}}}}, "$ref": "#/$defs/x~1y"}},
     r'schema at #/\$defs/x~1y/properties/b: Unimplemented keys: \["not"\]'),
    ({"schema": {"items": {"pattern": "(", "type": "string"}}}, "schema at #/items: regex parse error"),
    ({"schema": {"$ref": "#/$defs/none"}}, r"schema at #: Pointer '/\$defs/none' does not exist"),
    ({"schema": {"minimum": 5, "maximum": 3, "type": "integer"}}, "schema at #: Unsatisfiable schema"),
    ({"schema": False}, "schema: false allows no reply"),
    ({"schema": {"properties": {"n": {"multipleOf": 1000003}}}}, "schema at #/properties/n/multipleOf: 1000003"),
    ({"schema": {"a": object()}}, "the schema is no JSON"),
    ({"regex": "a[bc"}, "regex: at 1"), ({"grammar": 'start: "a" foo'}, r'grammar: at 1\(8\): unknown name: "foo"'),
    ({"grammar": 'root ::= "a" ('}, "grammar: .* at line 1"), ({"grammar": 5}, "grammar is 5, must be a text"),
    ({"regex": "a", "grammar": "b"}, "grammar and regex cannot be combined")])
def test_what_cannot_be_compiled_is_named_with_its_place(llm: pyllm.LLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(pyllm.ArgumentError, match=message):
        llm.chat("Hi", max_tokens=4, **options)


def nested(n: int) -> Any:
    schema: Any = {"type": "integer"}
    for _ in range(n):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def endless() -> Any:
    schema: dict[str, Any] = {"type": "object"}
    schema["properties"] = {"a": schema}
    return schema


HOSTILE: dict[str, Any] = {
    "deep": lambda: {"schema": nested(20_000)}, "cyclic": lambda: {"schema": endless()},
    "enum": lambda: {"schema": {"enum": [f"value number {i}" for i in range(200_000)]}},
    "properties": lambda: {"schema": {"properties": {f"p{i}": {"type": "string"} for i in range(100_000)}}},
    "parts": lambda: {"schema": {"anyOf": [{"type": "object", "properties": {f"k{i}": {"const": i}}} for i in range(20_000)]}},
    "pattern": lambda: {"schema": {"type": "string", "pattern": "(" * 50_000}},
    "choices": lambda: {"schema": {"allOf": [
        {"anyOf": [{"properties": {f"p{i}": {}}}, {"properties": {f"q{i}": {}}}]} for i in range(30)]}},
    "multiple": lambda: {"schema": {"type": "integer", "multipleOf": 10**9 + 7}},
    "grammar": lambda: {"grammar": "start: " + "(" * 60_000}, "chain": lambda: {"grammar": "start: r0\n" + "".join(
        f"r{i}: r{i + 1}\n" for i in range(499)) + 'r499: "a" foo\n'},
    "rules": lambda: {"grammar": "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(4000))},
    "long": lambda: {"grammar": "start: " + "|".join(f'"{i}"' for i in range(200_000))},
    "gbnf": lambda: {"grammar": "root ::= " + "(" * 60_000},
    "repeat": lambda: {"regex": "((((a{1,100}){1,100}){1,100}){1,100}){1,100}(((("},
    "regex": lambda: {"regex": "(" * 5000 + "a" + ")" * 5000}}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_forms_are_refused_soon(llm: pyllm.LLM, name: str) -> None:
    """From a thread with a small stack, as servers in other programs have them."""
    options, outcome = HOSTILE[name](), list[Any]()

    def ask() -> None:
        started = time.process_time()
        try:
            llm.chat("Hi", max_tokens=4, **options)
        except pyllm.ArgumentError as e:
            outcome.append((time.process_time() - started, len(str(e))))

    before = threading.stack_size(256 << 10)
    thread = threading.Thread(target=ask)
    thread.start()
    threading.stack_size(before)
    thread.join()
    assert outcome and outcome[0][0] < 3 and outcome[0][1] < 2000, outcome


def test_a_form_that_grows_too_large_on_the_way_ends_its_own_request_only(llm: pyllm.LLM) -> None:
    heavy = {"grammar": 'start: ((("a"{1,1000}){1,1000}){1,1000}){1,1000}', "logit_bias": {llm.tokenize("a", add_special=False)[0]: 50.0}}
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(llm.chat, "Count to five.", temperature=0, max_tokens=12)
        with pytest.raises(pyllm.ArgumentError, match="takes too much work"):
            llm.chat("Hi", max_tokens=60, **heavy)
    assert other.result().text == llm.chat("Count to five.", temperature=0, max_tokens=12).text
