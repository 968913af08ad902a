"""JSON schemas of Python types, and values of those types out of JSON: what `schema=` takes and `reply.parsed` gives back.

Types are dataclasses, TypedDicts, pydantic models (only their own methods are used, so pydantic is no dependency) and annotations made of
str, int, float, bool, None, list, set, tuple, dict, Literal, Enum, unions, Annotated and dates.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import enum
import json
import reprlib
import types
import typing
import uuid
from collections.abc import Mapping
from typing import Any

from . import errors

_PLAIN: dict[Any, dict[str, Any]] = {
    str: {"type": "string"}, int: {"type": "integer"}, float: {"type": "number"}, bool: {"type": "boolean"}, type(None): {"type": "null"},
    Any: {}, object: {}, list: {"type": "array"}, tuple: {"type": "array"}, dict: {"type": "object"},
    datetime.datetime: {"type": "string", "format": "date-time"}, datetime.date: {"type": "string", "format": "date"},
    datetime.time: {"type": "string", "format": "time"}, uuid.UUID: {"type": "string", "format": "uuid"},
}
_ISO = (datetime.datetime, datetime.date, datetime.time)
_LISTS = (list, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Set)
_DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)
_UNIONS = (typing.Union, types.UnionType)


def is_schema(target: Any) -> bool:
    """Whether a target is a JSON schema itself; otherwise it is a type."""
    return isinstance(target, (Mapping, bool))


def json_schema(target: Any, where: str = "schema") -> Any:
    """The JSON schema of a target: a schema stays as it is. Raises ArgumentError for a type that has none, naming its place."""
    if is_schema(target):
        return target
    if _is_pydantic(target):
        return target.model_json_schema()
    defs = _Defs()
    schema = _of(target, defs, where)
    root = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    if root in defs and f'"#/$defs/{root}"' not in json.dumps(defs):
        schema = defs.pop(root)         # nothing else refers to it
    return {**schema, "$defs": dict(defs)} if defs else schema


def parse(target: Any, text: str) -> Any:
    """The value that a reply's text holds, as the type that the target names. Raises ValueError (pydantic's ValidationError is one) where a
    type's own rules refuse it."""
    if _is_pydantic(target):
        return target.model_validate_json(text)
    value = json.loads(text)
    return value if is_schema(target) else _value(target, value)


def _is_pydantic(target: Any) -> bool:
    return isinstance(target, type) and hasattr(target, "model_json_schema") and hasattr(target, "model_validate_json")


def _no_type(target: Any, where: str) -> errors.ArgumentError:
    return errors.ArgumentError(f"{where}: there is no JSON schema for {reprlib.repr(target)}\n"
                                "hint: a JSON schema, a dataclass, a pydantic model, or a type such as list[str]")


def hints(target: Any, where: str) -> dict[str, Any]:
    """The annotations of a class or function as types. Raises ArgumentError for names that cannot be found."""
    try:
        return typing.get_type_hints(target, include_extras=True)
    except Exception as e:      # annotations as texts are evaluated: anything may come of them
        raise errors.ArgumentError(f"{where}: the annotations of {getattr(target, '__name__', target)!r} cannot be read: {e}") from None


# ---- types to schemas ----

class _Defs(dict[str, Any]):
    """Schemas of classes by name; names: of which class each is."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[Any, str] = {}


def _of(t: Any, defs: _Defs, where: str) -> dict[str, Any]:
    """The schema of a type; classes go to defs, which is what makes recursive ones possible."""
    if t is None or t is Any or (isinstance(t, type) and t in _PLAIN):
        return dict(_PLAIN[type(None) if t is None else t])
    origin, args = typing.get_origin(t), typing.get_args(t)
    if origin is typing.Annotated:
        return _annotated(_of(args[0], defs, where), args[1:])
    if origin is typing.Literal:
        return {"enum": list(args)}
    if origin in _UNIONS:
        return {"anyOf": [_of(a, defs, where) for a in args]}
    if origin in _LISTS:
        return {"type": "array", "items": _of(args[0], defs, f"{where}[]")}
    if origin is tuple:
        return _tuple(args, defs, where)
    if origin in _DICTS:
        if args[0] is not str:
            raise errors.ArgumentError(f"{where}: keys of JSON objects are str, not {reprlib.repr(args[0])}")
        return {"type": "object", "additionalProperties": _of(args[1], defs, f"{where}{{}}")}
    if hasattr(t, "__supertype__"):         # NewType
        return _of(t.__supertype__, defs, where)
    if isinstance(t, type) and issubclass(t, enum.Enum):
        return {"enum": [m.value for m in t]}
    if _is_pydantic(t) or dataclasses.is_dataclass(t) or typing.is_typeddict(t):
        return _class(t, defs, where)
    raise _no_type(t, where)


def _annotated(schema: dict[str, Any], notes: tuple[Any, ...]) -> dict[str, Any]:
    """Texts in Annotated describe; dicts are further keywords, such as {"maxLength": 10}."""
    for note in notes:
        if isinstance(note, str):
            schema = {**schema, "description": note}
        elif isinstance(note, Mapping):
            schema = {**schema, **note}
    return schema


def _tuple(args: tuple[Any, ...], defs: _Defs, where: str) -> dict[str, Any]:
    if len(args) == 2 and args[1] is ...:
        return {"type": "array", "items": _of(args[0], defs, f"{where}[]")}
    return {"type": "array", "prefixItems": [_of(a, defs, f"{where}[{i}]") for i, a in enumerate(args)], "items": False,
            "minItems": len(args), "maxItems": len(args)}


def _class(t: Any, defs: _Defs, where: str) -> dict[str, Any]:
    """A reference to the class, which goes to defs."""
    if t not in defs.names:
        name = defs.names[t] = t.__name__ if t.__name__ not in defs.names.values() else f"{t.__name__}{len(defs.names)}"
        defs[name] = {}                 # where recursion ends
        defs[name] = t.model_json_schema(ref_template=f"#/$defs/{name}/$defs/{{model}}") if _is_pydantic(t) else _fields(t, defs, where)
    return {"$ref": f"#/$defs/{defs.names[t]}"}


def _fields(t: Any, defs: _Defs, where: str) -> dict[str, Any]:
    types_of = hints(t, where)
    if typing.is_typeddict(t):
        required = sorted(t.__required_keys__, key=list(types_of).index)
        types_of = {k: _bare(v) for k, v in types_of.items()}
    else:
        init = [f for f in dataclasses.fields(t) if f.init]
        types_of = {f.name: types_of[f.name] for f in init}
        missing = dataclasses.MISSING
        required = [f.name for f in init if f.default is missing and f.default_factory is missing]
    doc = t.__doc__ or ""
    described = doc and not doc.startswith(f"{t.__name__}(") and doc != dict.__doc__        # not what dataclass writes by itself
    properties = {k: _of(v, defs, f"{where}.{k}") for k, v in types_of.items()}
    return {"type": "object", **({"description": doc.strip()} if described else {}), "properties": properties, "required": required,
            "additionalProperties": False}


def _bare(t: Any) -> Any:
    """A TypedDict's field without Required and NotRequired, which Python 3.10 has in typing_extensions only."""
    return typing.get_args(t)[0] if getattr(typing.get_origin(t), "_name", None) in ("Required", "NotRequired") else t


# ---- JSON to values ----

def _value(t: Any, value: Any) -> Any:
    """value, which follows the schema of the type t, as t."""
    origin, args = typing.get_origin(t), typing.get_args(t)
    if t is Any:            # a class in newer versions of Python
        return value
    if origin is typing.Annotated:
        return _value(args[0], value)
    if origin in _UNIONS:
        return _first(args, value)
    if origin in _LISTS or origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"a list is expected, not {reprlib.repr(value)}")
        return _items(origin, args, value)
    if origin in _DICTS:
        if not isinstance(value, dict):
            raise ValueError(f"an object is expected, not {reprlib.repr(value)}")
        return {k: _value(args[1], v) for k, v in value.items()}
    if hasattr(t, "__supertype__"):
        return _value(t.__supertype__, value)
    if isinstance(t, type):
        return _instance(t, value)
    if origin is typing.Literal and not any(value == a and type(value) is type(a) for a in args):
        raise ValueError(f"{reprlib.repr(value)} is not one of {args}")
    return value


def _items(origin: Any, args: tuple[Any, ...], values: list[Any]) -> Any:
    if origin is tuple and not (len(args) == 2 and args[1] is ...):
        return tuple(_value(a, v) for a, v in zip(args, values, strict=True))
    items = [_value(args[0], v) for v in values]
    return items if origin in (list, collections.abc.Sequence, collections.abc.Iterable) else \
        tuple(items) if origin is tuple else frozenset(items) if origin is frozenset else set(items)


def _first(options: tuple[Any, ...], value: Any) -> Any:
    """The value as the first type of a union that takes it."""
    for t in options:
        try:
            return _value(t, value)
        except (ValueError, TypeError, KeyError):
            continue
    raise ValueError(f"{reprlib.repr(value)} is none of {options}")


def _instance(t: Any, value: Any) -> Any:
    if _is_pydantic(t):
        return t.model_validate(value)
    if issubclass(t, enum.Enum):
        return t(value)
    if dataclasses.is_dataclass(t) or typing.is_typeddict(t):
        if not isinstance(value, dict):
            raise ValueError(f"an object is expected, not {reprlib.repr(value)}")
        types_of = {k: _bare(v) for k, v in hints(t, t.__name__).items()}
        if not types_of.keys() >= value.keys():
            raise ValueError(f"{t.__name__} has no {', '.join(value.keys() - types_of.keys())}")
        return t(**{k: _value(types_of[k], v) for k, v in value.items()})
    if t in _ISO:
        return t.fromisoformat(value.replace("Z", "+00:00") if t is not datetime.date else value)
    if t is uuid.UUID:
        return t(value)
    if t is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if t is not object and type(value) is not t:
        raise ValueError(f"{t.__name__} is expected, not {reprlib.repr(value)}")
    return value
