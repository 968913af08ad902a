"""What the server takes of a request, decided before the work that it bounds: sizes, counts, ranges, times."""

from __future__ import annotations

import asyncio
import json
import math
import re
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from starlette.requests import Request

from .failures import Refusal


@dataclass(frozen=True)
class Limits:
    """Bytes, counts and seconds (those that end in _s). Every one is a keyword of `LLM.serve` as well."""

    body: int = 4 << 20             # of one request's body
    bodies: int = 64 << 20          # of all bodies that are being read
    headers: int = 64               # lines; together at most 32 KiB
    depth: int = 64                 # lists and objects within each other
    values: int = 1 << 18           # commas and opening brackets of a body, which bound its elements
    messages: int = 4096            # of a conversation
    text: int = 1 << 20             # of a text for /tokenize
    inputs: int = 2048              # texts for /v1/embeddings
    n: int = 16                     # choices of one prompt
    stop: int = 16                  # stop strings
    stop_length: int = 256          # characters of one
    logprobs: int = 20              # alternatives of a token
    bias: int = 1024                # tokens of a logit_bias
    tools: int = 128
    queue: int = 64                 # generations that run or wait, all clients together
    connections: int = 256          # open at the same time
    header_s: float = 10            # from the first byte of a request to the end of its headers
    body_s: float = 30              # for the body after them
    write_s: float = 60             # a client may refuse to read for so long
    request_s: float = 1800         # a generation ends after so long with finish_reason "length"
    stall_s: float = 5              # /health fails when the engine did not finish a step for so long
    drain_s: float = 5              # running requests may go on for so long after SIGTERM


class Bodies:
    """Counts the bytes of the bodies that are being read; reads them."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._held = limits, 0

    async def read(self, request: Request) -> dict[str, Any]:
        """The request's JSON object."""
        announced = request.headers.get("content-length", "0")
        if not announced.isascii() or not announced.isdecimal() or int(announced[:20]) > self._limits.body:
            raise self._too_large()
        try:
            data = await asyncio.wait_for(self._bytes(request), self._limits.body_s)
        except asyncio.TimeoutError:
            raise Refusal(408, f"the body did not arrive within {self._limits.body_s:g} seconds", headers={"Connection": "close"}) from None
        return parse(data, self._limits)

    async def _bytes(self, request: Request) -> bytes:
        data = bytearray()
        try:
            async for part in request.stream():
                data += part
                self._held += len(part)
                if len(data) > self._limits.body:
                    raise self._too_large()
                if self._held > self._limits.bodies:
                    raise Refusal(429, "too many large requests at once", kind="rate_limit_error", code="rate_limit_exceeded", retry_s=1)
            return bytes(data)
        finally:
            self._held -= len(data)

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the body is larger than {self._limits.body} bytes", code="request_too_large")


_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(data: bytes, limits: Limits) -> dict[str, Any]:
    """A JSON object within the limits; texts are valid Unicode and numbers finite."""
    if data.count(b",") + data.count(b"[") + data.count(b"{") > limits.values:
        raise Refusal(400, f"the body has more than {limits.values} commas and opening brackets", code="too_many")
    try:
        value = json.loads(data.decode(), parse_constant=_no_number)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeError:
        raise Refusal(400, "the body is not valid Unicode: UTF-8 without lone surrogates is needed") from None
    except RecursionError:
        raise _too_deep(limits) from None
    except ValueError as e:
        reason = str(e) if isinstance(e, json.JSONDecodeError) else "a number has too many digits"
        raise Refusal(400, f"the body is not valid JSON: {reason}") from None
    if not isinstance(value, dict):
        raise Refusal(400, f"the body is {kind_of(value)}, must be a JSON object")
    level: list[Any] = [value]
    for _ in range(limits.depth):
        level = [v for c in level for v in (c.values() if isinstance(c, dict) else c) if isinstance(v, dict | list)]
    if level:
        raise _too_deep(limits)
    return value


def _too_deep(limits: Limits) -> Refusal:
    return Refusal(400, f"the body is nested deeper than {limits.depth} levels")


def _no_number(name: str) -> NoReturn:
    raise json.JSONDecodeError(f"{name} is not JSON", name, 0)


def kind_of(value: Any) -> str:
    """What JSON calls a value."""
    names: dict[type, str] = {str: "a string", bool: "a boolean", int: "an integer", float: "a number", list: "a list", dict: "an object"}
    return "null" if value is None else names[type(value)]


class Fields:
    """The fields of a JSON object by type. null is as good as absent; unknown fields are ignored; a wrong type is a Refusal that names the
    field."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self.values, self._path = values, path

    def name(self, key: str) -> str:
        return f"{self._path}.{key}" if self._path else key

    def wrong(self, key: str, must: str) -> Refusal:
        value = self.values.get(key)
        shown = reprlib.repr(value) if isinstance(value, int | float) else kind_of(value)
        return Refusal(400, f"{self.name(key)} is {shown}, must be {must}", param=self.name(key), code="invalid_value")

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def text(self, key: str, default: str | None = None) -> str | None:
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a string")
        return default if value is None else value

    def needed_text(self, key: str) -> str:
        value = self.text(key)
        if value is None:
            raise self.wrong(key, "a string")
        return value

    def choice(self, key: str, choices: Sequence[str], default: str) -> str:
        value = self.text(key) or default
        if value not in choices:
            raise self.wrong(key, "one of " + ", ".join(choices))
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return default if value is None else value

    def number(self, key: str, low: float, high: float) -> float | None:
        value = self.values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self.wrong(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, key: str, low: int, high: int) -> int | None:
        value = self.values.get(key)
        if isinstance(value, float) and math.isfinite(value) and value == int(value):
            value = int(value)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(key, f"a whole number from {low} to {high}")
        return value

    def items(self, key: str, most: int) -> list[Any]:
        value = self.values.get(key)
        if value is not None and not isinstance(value, list):
            raise self.wrong(key, "a list")
        if value is not None and len(value) > most:
            raise Refusal(400, f"{self.name(key)} has {len(value)} elements, at most {most} are taken", param=self.name(key),
                          code="too_many")
        return value or []

    def inner(self, key: str) -> Fields:
        """The fields of an object in here; of an absent one, none."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return Fields(value or {}, self.name(key))

    def objects(self, key: str, most: int) -> Iterator[Fields]:
        """The fields of every object of a list."""
        for i, value in enumerate(self.items(key, most)):
            if not isinstance(value, dict):
                raise Refusal(400, f"{self.name(key)}[{i}] is {kind_of(value)}, must be an object", param=f"{self.name(key)}[{i}]",
                              code="invalid_type")
            yield Fields(value, f"{self.name(key)}[{i}]")
