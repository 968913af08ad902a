"""The form of a call, as Lark for llguidance: what keeps a model from calling functions that do not exist, with arguments that do not fit.

Every function here is lark(functions, token, whole, parallel). functions: the "function" of definitions. token(mark): the Lark of a mark.
whole: the form of a whole reply, one call or (parallel) several; else what follows the mark of the beginning, up to the end of that call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .bounds import MAX_STRING, WHITESPACE, schema_text

Functions = Sequence[Mapping[str, Any]]
Token = Callable[[str], str]
Lark = Callable[[Functions, Token, bool, bool], str]


def _text(literal: str) -> str:
    return json.dumps(literal)


def _moved(value: Any, to: str) -> Any:
    """A schema that has become a part of another one: its references begin at the new place."""
    if isinstance(value, dict):
        return {k: f"#{to}{v[1:]}" if k == "$ref" and isinstance(v, str) and v.startswith("#") else _moved(v, to) for k, v in value.items()}
    return [_moved(v, to) for v in value] if isinstance(value, list) else value


def _json(schema: dict[str, Any]) -> str:
    # lenient: keywords that llguidance does not know are left out rather than the whole call
    return "%json " + json.dumps({**schema, "x-guidance": {"whitespace_pattern": WHITESPACE, "lenient": True}})


def _arguments(function: Mapping[str, Any], to: str = "") -> Any:
    schema = json.loads(schema_text(function["parameters"]))
    return _moved(schema, to) if to else schema


def _objects(functions: Functions, key: str, more: Mapping[str, Any] | None = None) -> str:
    """A JSON object with a function's name and its arguments under key; more: properties that may follow."""
    def one(function: Mapping[str, Any], at: str) -> dict[str, Any]:
        properties = {"name": {"const": function["name"]}, key: _arguments(function, f"{at}/properties/{key}"), **(more or {})}
        return {"type": "object", "properties": properties, "required": ["name", key], "additionalProperties": False}

    if len(functions) == 1:
        return _json(one(functions[0], ""))
    return _json({"anyOf": [one(f, f"/anyOf/{i}") for i, f in enumerate(functions)]})


def hermes(functions: Functions, token: Token, whole: bool, parallel: bool) -> str:
    body = f'body: "\\n"? object "\\n"? {token("</tool_call>")}\nobject: {_objects(functions, "arguments")}\n'
    return _start(token("<tool_call>"), whole, parallel, '"\\n"') + body


def _start(begin: str, whole: bool, parallel: bool, between: str = "") -> str:
    """The first rule, for calls that are a mark and a body each."""
    more = f" ({between} {begin} body)*" if parallel else ""
    return f"start: {begin} body{more}\n" if whole else "start: body\n"


def llama(functions: Functions, token: Token, whole: bool, parallel: bool) -> str:
    return f"start: {_objects(functions, 'parameters')}\n"


def mistral_list(functions: Functions, token: Token, whole: bool, parallel: bool) -> str:
    begin, more = token("[TOOL_CALLS]") if whole else "", '(", " object)*' if parallel else ""
    id = {"id": {"type": "string", "pattern": "^[a-zA-Z0-9]{9}$"}}
    return f'start: {begin} "[" object {more} "]"\nobject: {_objects(functions, "arguments", id)}\n'


def mistral(functions: Functions, token: Token, whole: bool, parallel: bool) -> str:
    rules = [f"call{i}: {_text(f['name'])} id? {token('[ARGS]')} {_json(_arguments(f))}\n" for i, f in enumerate(functions)]
    start = _start(token("[TOOL_CALLS]"), whole, parallel)
    return f"{start}id: {token('[CALL_ID]')} /[a-zA-Z0-9]{{9}}/\nbody: {_choice('call', functions)}\n{''.join(rules)}"


def _choice(rule: str, items: Sequence[Any]) -> str:
    return " | ".join(f"{rule}{i}" for i in range(len(items)))


def xml(functions: Functions, token: Token, whole: bool, parallel: bool) -> str:
    """Parameters in the schema's order; texts as they are, up to the mark of their end, other values as JSON."""
    rules: list[str] = []
    for i, f in enumerate(functions):
        schema = _arguments(f)
        properties, required = schema.get("properties", {}), schema.get("required", [])
        parts = []
        for j, (name, value) in enumerate(properties.items()):
            begin, rule = _text(f"<parameter={name}>\n"), f"value{i}_{j}"
            if isinstance(value, dict) and value.get("type") == "string" and "enum" not in value:
                rules.append(f'{rule}[suffix="\\n</parameter>\\n"]: /(?s:.{{0,{MAX_STRING}}})/\n')
                parts.append(f"({begin} {rule}){'' if name in required else '?'}")
                continue
            texts = value.get("enum", []) if isinstance(value, dict) else []
            if texts and all(isinstance(t, str) for t in texts):
                rules.append(f"{rule}: {' | '.join(map(_text, texts))}\n")
            elif isinstance(value, dict) and value.get("type") == "boolean":
                rules.append(f'{rule}: "true" | "false" | "True" | "False"\n')
            else:
                rules.append(f"{rule}: {_json(_moved_out(value, schema))}\n")
            parts.append(f'({begin} {rule} "\\n</parameter>\\n"){"" if name in required else "?"}')
        opening = _text(f"<function={f['name']}>\n")
        rules.append(f'call{i}: {opening} {" ".join(parts)} "</function>"\n')
    start, end = _start(token("<tool_call>"), whole, parallel, '"\\n"'), token("</tool_call>")
    return f'{start}body: "\\n" call "\\n" {end}\ncall: {_choice("call", functions)}\n{"".join(rules)}'


def _moved_out(value: Any, schema: Mapping[str, Any]) -> dict[str, Any]:
    """A property's schema on its own, with the definitions that it may refer to."""
    return {**(value if isinstance(value, dict) else {}), **{k: schema[k] for k in ("$defs", "definitions") if k in schema}}


def gemma(begin: str, quote: str, end: str) -> Lark:
    """Values as Gemma writes them: keys without quotes, texts between marks."""
    def lark(functions: Functions, token: Token, whole: bool, parallel: bool) -> str:
        mark, anything = token(quote), f"/(?s:.{{0,{MAX_STRING}}})/"
        rest = f"rest: {anything} {mark}" if mark.startswith("<") else f"rest[suffix={mark}]: {anything}"
        rules = [f"string: {mark} rest\n{rest}\n",
                 'number: /-?(0|[1-9][0-9]{0,14})(\\.[0-9]{1,15})?/\ninteger: /-?(0|[1-9][0-9]{0,17})/\nboolean: "true" | "false"\n'
                 'any: string | number | boolean | "null" | "[" (any ("," any)*)? "]" | "{" (key ":" any ("," key ":" any)*)? "}"\n'
                 "key: /[A-Za-z_][A-Za-z0-9_]{0,63}/\n"]

        def value(schema: Any) -> str:
            schema = schema if isinstance(schema, dict) else {}
            kind, texts = schema.get("type"), schema.get("enum", [])
            if texts and all(isinstance(t, str) for t in texts):
                return f"({mark} ({' | '.join(map(_text, texts))}) {mark})"
            if kind in ("string", "number", "integer", "boolean"):
                return str(kind)
            if kind == "array":
                item = value(schema.get("items"))
                return f'("[" ({item} ("," {item})*)? "]")'
            return fields(schema) if kind == "object" and schema.get("properties") else "any"

        def fields(schema: Mapping[str, Any]) -> str:
            """An object: its keys in the order of the alphabet, as the template writes them."""
            required, items = schema.get("required", []), sorted(schema.get("properties", {}).items())
            base = len(rules)
            rules.extend([""] * (2 * len(items)))       # rule 2 i + 1: from the i-th key on, with something before it
            for i in reversed(range(len(items))):
                name, part = items[i]
                rest = f"fields{base + 2 * i + 3}" if i + 1 < len(items) else ""
                first = f"fields{base + 2 * i + 2}" if i + 1 < len(items) else '""'
                field = f"{_text(name + ':')} {value(part)} {rest}"
                skip = [] if name in required else [first]
                later = [] if name in required else [rest or '""']
                rules[base + 2 * i] = f"fields{base + 2 * i}: {' | '.join([field, *skip])}\n"
                rules[base + 2 * i + 1] = f"fields{base + 2 * i + 1}: {' | '.join([f'{_text(chr(44))} {field}', *later])}\n"
            return f'("{{" {f"fields{base}" if items else ""} "}}")'

        calls = [f"{_text('call:' + f['name'])} {fields(_arguments(f))}" for f in functions]
        body = f"body: ({' | '.join(calls)}) {token(end)}\n"
        return _start(token(begin), whole, parallel) + body + "".join(rules)
    return lark


LARK: dict[str, Lark] = {
    "hermes": hermes, "llama": llama, "mistral": mistral, "mistral-list": mistral_list, "xml": xml,
    "gemma": gemma("<|tool_call>", '<|"|>', "<tool_call|>"),
    "functiongemma": gemma("<start_function_call>", "<escape>", "<end_function_call>")}
