"""Limits of the JSON schemas that replies may follow, and an end to what a schema leaves without one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from . import errors

MAX_STRING = 2000           # characters of a string for which the schema says nothing
MAX_SCHEMA = 1 << 20        # characters of a schema, and of a grammar
MAX_DEPTH = 100             # JSON levels of a schema
MAX_SUBSCHEMAS = 10_000
MAX_PROPERTIES = 1000       # of one object
MAX_MULTIPLE = 10_000       # digits of multipleOf as a whole number: the automaton has as many states
FORMATS = {"duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"}      # that llguidance knows, and these:
_DATE = (r"(([1-9]\d{3}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8])))"
         r"|([1-9]\d(0[48]|[2468][048]|[13579][26])|([2468][048]|[13579][26])00)-02-29)")
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
PATTERNS = {"date": _DATE, "time": _TIME, "date-time": f"{_DATE}T{_TIME}"}      # only what exists: no second of February 30th
WHITESPACE = r"( |\r?\n[ \t]{0,32})"      # between two parts of a JSON text: at most a space, or a line break and an indentation
_ANY = "pyllm-any"          # the definition of a JSON value of any kind

_ONE = ("items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames", "unevaluatedItems",
        "unevaluatedProperties")
_MANY = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def children(schema: Any) -> Iterator[tuple[str, Any]]:
    """(pointer below the schema, subschema) pairs."""
    if not isinstance(schema, Mapping):
        return
    for key in _ONE:
        if isinstance(schema.get(key), (Mapping, bool)):
            yield f"/{key}", schema[key]
    for key in (*_MANY, "items"):
        if isinstance(schema.get(key), list):
            yield from ((f"/{key}/{i}", s) for i, s in enumerate(schema[key]))
    for key in _NAMED:
        if isinstance(schema.get(key), Mapping):
            yield from ((f"/{key}/{_escaped(name)}", s) for name, s in schema[key].items())


def _escaped(name: Any) -> str:
    return str(name).replace("~", "~0").replace("/", "~1")


def _check_depth(value: Any) -> None:
    """Refuses what is nested too deeply for recursion, without recursion."""
    level = [("#", value)]
    for _ in range(MAX_DEPTH):
        level = [(f"{at}/{_escaped(key)}", v) for at, parent in level if isinstance(parent, (Mapping, list, tuple))
                 for key, v in (parent.items() if isinstance(parent, Mapping) else enumerate(parent))
                 if isinstance(v, (Mapping, list, tuple))]
        if not level:
            return
        if len(level) > MAX_SCHEMA:
            break
    raise errors.ArgumentError(f"schema at {level[0][0][:80]}...: nested more than {MAX_DEPTH} levels deep or too large")


def schema_text(schema: Any) -> str:
    """The schema as JSON, checked against the limits, with bounds where it sets none."""
    if schema is False:
        raise errors.ArgumentError("schema: false allows no reply")
    _check_depth(schema)
    try:
        text = json.dumps(schema)
        plain = json.loads(text)
    except (TypeError, ValueError, RecursionError) as e:
        raise errors.ArgumentError(f"the schema is no JSON: {e}") from None
    if len(text) > MAX_SCHEMA:
        raise errors.ArgumentError(f"the schema has {len(text)} characters, the limit is {MAX_SCHEMA}")
    level, count, closed = [("#", plain)], 0, True
    while level:
        count += len(level)
        for at, s in level:
            _check(at, s)
            closed = closed and not _joins(s)
        if count > MAX_SUBSCHEMAS:
            raise errors.ArgumentError(f"schema at {level[0][0]}: more than {MAX_SUBSCHEMAS} parts")
        level = [(at + below, child) for at, s in level for below, child in children(s)]
    bounded = _bounded(plain, closed)
    if isinstance(bounded, dict) and f'"#/$defs/{_ANY}"' in json.dumps(bounded):
        bounded["$defs"] = {**bounded.get("$defs", {}), _ANY: _any_value()}
    return json.dumps(bounded)


def _check(at: str, schema: Any) -> None:
    if not isinstance(schema, dict):
        return
    properties, multiple = schema.get("properties"), schema.get("multipleOf")
    if isinstance(properties, dict) and len(properties) > MAX_PROPERTIES:
        raise errors.ArgumentError(f"schema at {at}/properties: {len(properties)} properties, the limit is {MAX_PROPERTIES}")
    if isinstance(multiple, (int, float)) and multiple == multiple and abs(multiple) != float("inf"):
        digits = Decimal(repr(multiple)).normalize().as_tuple()
        n = int("".join(map(str, digits.digits))) * 10 ** max(int(digits.exponent), 0)
        if n > MAX_MULTIPLE:
            raise errors.ArgumentError(f"schema at {at}/multipleOf: {multiple} takes too large an automaton, the limit is {MAX_MULTIPLE}")


def _joins(schema: Any) -> bool:
    """Whether an object's properties come from several places, each of which must let the others' pass."""
    if not isinstance(schema, dict):
        return False
    sources = len(schema["allOf"]) if isinstance(schema.get("allOf"), list) else 0
    return sources + sum(key in schema for key in ("properties", "$ref", "anyOf", "oneOf", "if")) > 1


def _any_value() -> dict[str, Any]:
    this = {"$ref": f"#/$defs/{_ANY}"}
    return {"anyOf": [{"type": "object", "additionalProperties": this}, {"type": "array", "items": this},
                      {"type": "string", "maxLength": MAX_STRING}, {"type": "number"}, {"type": "boolean"}, {"type": "null"}]}


_SAYS_MORE = {"enum", "const", "$ref", "anyOf", "oneOf", "allOf", "not", "if"}


def _bounded(schema: Any, closed: bool, part: bool = False) -> Any:
    """The schema with an end to strings that set none, and without formats that are notes only. closed: also without further properties
    where some are named and nothing is said of others. part: it is one of allOf's, which may leave things to its siblings."""
    any_value = {"$ref": f"#/$defs/{_ANY}"}
    if schema is True or schema == {}:
        return schema if part else any_value
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    kind = out.get("format")
    if kind not in FORMATS and (kind not in PATTERNS or "pattern" not in out):
        out.pop("format", None)
        if kind in PATTERNS:
            out["pattern"] = f"^{PATTERNS[kind]}$"
    for key in _ONE:
        if key in out and key != "not":
            out[key] = _bounded(out[key], closed)
    for key in (*_MANY, "items"):
        if isinstance(out.get(key), list):
            out[key] = [_bounded(s, closed, part or key == "allOf") for s in out[key]]
    for key in _NAMED:
        if isinstance(out.get(key), dict):
            out[key] = {name: _bounded(s, closed) for name, s in out[key].items()}
    types = [out["type"]] if isinstance(out.get("type"), str) else out.get("type")
    if part or not isinstance(types, list) or _SAYS_MORE & out.keys():
        return out
    if "string" in types and not {"maxLength", "pattern"} & out.keys():
        most = 254 if "format" in out else MAX_STRING       # the longest e-mail address and host name
        out["maxLength"] = max(most, out["minLength"] if isinstance(out.get("minLength"), int) else 0)
    if "array" in types:
        out.setdefault("items", any_value)
    if "object" in types and "additionalProperties" not in out:
        named = out.get("properties") or out.get("patternProperties")
        if closed or not named:
            out["additionalProperties"] = False if named else any_value
    return out
