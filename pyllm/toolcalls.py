"""Calls of tools in what a model writes: how each family writes them, and a reader of text that comes in pieces.

The reader never fails: what is no call, or is one with a mistake in it, stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from .replies import ToolCall, ToolDelta

MAX_HEAD = 512      # characters in which a call's name and the beginning of its arguments come, if it is written in the usual order
_STRING = r'"(?:[^"\\]|\\.)*"'

_BEHIND = " \t\r\n]"       # what may stand behind the last call of a list

Schemas = Mapping[str, Any]         # name of a tool -> JSON schema of its parameters


@dataclass(frozen=True)
class Format:
    """How a family writes calls.

    begin: the mark before a call; end: the mark after it, or "". head: from the mark to the arguments, which are JSON; group 1 is the name
    as a JSON string, or group 2 as it is; None: only whole calls can be read. tail: what closes the object around the arguments. more: what
    stands before another call without a mark. whole(text, schemas): (name, arguments) of the calls in a text from begin to end; ValueError
    and the like for others. marks: texts that may be tokens which are not shown otherwise. bare: a reply that begins as a call is one.
    trigger: what has been said when a call has begun for sure; its body begins where group 1 is.
    """

    begin: str
    end: str
    head: re.Pattern[str] | None
    tail: re.Pattern[str]
    more: re.Pattern[str] | None
    whole: Callable[[str, Schemas], list[tuple[str, Any]]]
    marks: tuple[str, ...]
    trigger: re.Pattern[bytes]
    bare: bool = False


# ---- whole calls ----

def _from_json(text: str, schemas: Schemas) -> list[tuple[str, Any]]:
    value = json.loads(text)
    found = []
    for item in value if isinstance(value, list) else [value]:
        function = item.get("function", item) if isinstance(item.get("function", item), dict) else item
        arguments = function.get("arguments", function.get("parameters", {}))
        found.append((function["name"], json.loads(arguments) if isinstance(arguments, str) else arguments))
    return found


def _from_hermes(text: str, schemas: Schemas) -> list[tuple[str, Any]]:
    return _from_json(text.removeprefix("<tool_call>").removesuffix("</tool_call>"), schemas)


def _from_mistral(text: str, schemas: Schemas) -> list[tuple[str, Any]]:
    return _from_json(text.removeprefix("[TOOL_CALLS]"), schemas)


def _from_llama(text: str, schemas: Schemas) -> list[tuple[str, Any]]:
    return _from_json(text.strip().removeprefix("<|python_tag|>"), schemas)


_FUNCTION = re.compile(r"\s*<function=([^>\n]+)>(.*?)(?:</function>|\Z)\s*", re.S)
_PARAMETER = re.compile(r"\s*<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>\s*", re.S)


def _from_xml(text: str, schemas: Schemas) -> list[tuple[str, Any]]:
    """Parameters as text: those whose schema says so are texts, the others JSON."""
    m = _FUNCTION.fullmatch(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    if m is None or _PARAMETER.sub("", m[2]).strip():
        raise ValueError("no function")
    known = schemas.get(m[1], {}).get("properties", {})
    return [(m[1], {name: _typed(value, known.get(name, {})) for name, value in _PARAMETER.findall(m[2])})]


_WORDS = {"True": True, "False": False, "None": None}      # templates write values as Python does


def _typed(text: str, schema: Any) -> Any:
    if isinstance(schema, dict) and schema.get("type") == "string":
        return text
    if text in _WORDS:
        return _WORDS[text]
    try:
        return json.loads(text)
    except ValueError:
        return text


def _gemma(begin: str, quote: str, end: str) -> Callable[[str, Schemas], list[tuple[str, Any]]]:
    """Calls as call:name{key:value}, with marks in place of quotes, and keys without."""
    def read(text: str, schemas: Schemas) -> list[tuple[str, Any]]:
        m = re.fullmatch(r"\s*call:([\w.-]+)(\{.*\})\s*", text.removeprefix(begin).removesuffix(end), re.S)
        if m is None:
            raise ValueError("no call")
        parts = m[2].split(quote)
        parts[::2] = [re.sub(r"([{,]\s*)([A-Za-z_][\w.-]*)\s*:", r'\1"\2":', part) for part in parts[::2]]
        parts[1::2] = [json.dumps(part) for part in parts[1::2]]
        return [(m[1], json.loads("".join(parts)))]
    return read


# ---- the families ----

_NEVER, _CLOSE, _COMMA = re.compile(r"(?!)"), re.compile(r"\s*\}"), re.compile(r"\s*,\s*(?=\{)")
_OBJECT = rf'"name"\s*:\s*({_STRING})\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)'


def _gemma_form(begin: str, quote: str, end: str) -> Format:
    trigger = re.compile(re.escape(begin.encode()) + b"()")
    return Format(begin, end, None, _NEVER, None, _gemma(begin, quote, end), (begin, end, quote), trigger)


FORMATS = {
    "hermes": Format("<tool_call>", "</tool_call>", re.compile(rf"\s*\[?\s*\{{\s*{_OBJECT}"), _CLOSE, _COMMA, _from_hermes,
                     ("<tool_call>", "</tool_call>"), re.compile(rb"<tool_call>()")),
    "llama": Format("<|python_tag|>", "", re.compile(rf'\s*\{{\s*(?:"type"\s*:\s*"function"\s*,\s*)?{_OBJECT}'), _CLOSE,
                    re.compile(r"\s*[;,]?\s*(?=\{)"), _from_llama, ("<|python_tag|>",),
                    re.compile(rb'(?:\A\s*|<\|python_tag\|>\s*)()\{\s*"name"\s*:\s*"'), bare=True),
    "mistral": Format("[TOOL_CALLS]", "",
                      re.compile(rf"\s*\[?\s*\{{\s*{_OBJECT}|\s*([\w.-]+?)\s*(?:\[CALL_ID\]\s*[\w-]+\s*)?\[ARGS\]\s*(?=\{{)"),
                      re.compile(rf'\s*(?:,\s*"id"\s*:\s*{_STRING}\s*)?\}}'), _COMMA, _from_mistral,
                      ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"), re.compile(rb"\[TOOL_CALLS\]()")),
    "xml": Format("<tool_call>", "</tool_call>", None, _NEVER, None, _from_xml, ("<tool_call>", "</tool_call>"),
                  re.compile(rb"<tool_call>()")),
    "gemma": _gemma_form("<|tool_call>", '<|"|>', "<tool_call|>"),
    "functiongemma": _gemma_form("<start_function_call>", "<escape>", "<end_function_call>"),
}
FORMATS["mistral-list"] = FORMATS["mistral"]


# ---- reading ----

class _Braces:
    """Finds the end of a JSON object that comes in pieces."""

    def __init__(self) -> None:
        self._depth, self._string, self._held = 0, False, ""

    def end(self, text: str) -> int:
        """Where in the next piece the object ends, or -1."""
        before, text, self._held = len(self._held), self._held + text, ""
        for m in re.finditer(r'\\(?:.|\Z)|[{}\[\]"]', text, re.S):
            sign = m[0]
            if sign[0] == "\\":
                self._held = sign if len(sign) == 1 else ""     # what it stands before comes with the next piece
            elif sign == '"':
                self._string = not self._string
            elif not self._string:
                self._depth += 1 if sign in "{[" else -1
                if self._depth == 0:
                    return m.end() - before
        return -1


class ToolParser:
    """Text piece by piece -> text and pieces of calls; `calls` has those that are complete. n_prompt: tokens of the prompt, of which the
    calls' ids are made: they differ between the turns of a conversation and are the same when it is repeated."""

    def __init__(self, form: Format, schemas: Schemas, n_prompt: int) -> None:
        self.calls: list[ToolCall] = []
        self._form, self._schemas, self._n_prompt = form, schemas, n_prompt
        self._state: Callable[[], bool] = self._start if form.bare else self._text
        self._buffer = self._raw = self._space = self._arguments = self._name = ""
        self._out: list[str] = []
        self._deltas: list[ToolDelta] = []

    def feed(self, text: str) -> tuple[str, tuple[ToolDelta, ...]]:
        self._buffer += text
        while self._buffer and self._state():
            pass
        return self._taken()

    def finish(self) -> tuple[str, tuple[ToolDelta, ...]]:
        """What is still held back."""
        rest = self._raw + self._buffer
        if self._state in (self._head, self._whole):
            self._complete(rest)
        elif self._state in (self._tail, self._after):
            self._say(self._buffer.lstrip(_BEHIND))
        else:
            self._say(rest)
        if not self.calls:
            self._out.append(self._space)
        self._buffer = self._raw = self._space = ""
        return self._taken()

    def _taken(self) -> tuple[str, tuple[ToolDelta, ...]]:
        taken = "".join(self._out), tuple(self._deltas)
        self._out, self._deltas = [], []
        return taken

    def _say(self, text: str) -> None:
        """Text, without the space at its end: that is dropped if a call follows."""
        text = self._space + text
        shown = text.rstrip()
        self._space = text[len(shown):]
        self._out.append(shown)

    def _take(self, n: int) -> str:
        part, self._buffer = self._buffer[:n], self._buffer[n:]
        return part

    # ---- states: each looks at the buffer and says whether another should look on ----

    def _start(self) -> bool:
        """The beginning of a reply that may be a call without a mark."""
        head = self._buffer.lstrip()
        if not head:
            return False
        self._state = self._text
        if head[0] == "{":
            self._raw, self._state = "", self._head
        return True

    def _text(self) -> bool:
        begin = self._form.begin
        at = self._buffer.find(begin)
        if at >= 0:
            self._say(self._take(at))
            self._raw, self._state = self._take(len(begin)), self._head if self._form.head else self._whole
            return True
        keep = max((n for n in range(1, min(len(begin), len(self._buffer) + 1)) if self._buffer.endswith(begin[:n])), default=0)
        self._say(self._take(len(self._buffer) - keep))
        return False

    def _head(self) -> bool:
        assert self._form.head is not None
        m = self._form.head.match(self._buffer)
        if m is None:
            if self._hopeless():
                self._refuse()
            elif len(self._buffer) > MAX_HEAD or (self._form.end and self._form.end in self._buffer):
                self._state = self._whole
            else:
                return False
            return True
        name = json.loads(m[1]) if m[1] is not None else m[2]
        if not self._raw and name not in self._schemas:         # a JSON object without a mark is an answer
            self._refuse()
            return True
        self._plain, self._name, self._arguments, self._braces = m[1] is None, name, "", _Braces()
        self._raw += self._take(m.end())
        self._deltas.append(ToolDelta(len(self.calls), self._id(), name))
        self._state = self._inside
        return True

    def _hopeless(self) -> bool:
        """A JSON object without a mark whose first key is not one of a call's."""
        key = self._buffer.lstrip()[1:].lstrip()
        return not self._raw and bool(key) and not any(k.startswith(key[:len(k)]) for k in ('"name"', '"type"'))

    def _refuse(self) -> None:
        """What was taken for a call is text."""
        self._say(self._raw)
        self._raw, self._state = "", self._text
        if self._form.bare:
            self._say(self._take(1))        # the brace, or it would be looked at again

    def _inside(self) -> bool:
        end = self._braces.end(self._buffer)
        part = self._take(len(self._buffer) if end < 0 else end)
        self._raw += part
        self._arguments += part
        self._deltas.append(ToolDelta(len(self.calls), arguments=part))
        if end < 0:
            return False
        try:
            arguments = json.loads(self._arguments)
        except (ValueError, RecursionError):
            self._refuse()
            return True
        self.calls.append(ToolCall(self._id(), self._name, arguments, self._arguments))
        self._raw, self._state = "", self._after if self._plain else self._tail
        return True

    def _tail(self) -> bool:
        m = self._form.tail.match(self._buffer)
        if m is None and (not self._buffer.strip() or (self._buffer.lstrip()[0] == "," and "}" not in self._buffer)):
            return False
        self._take(m.end() if m else 0)
        self._state = self._after
        return True

    def _after(self) -> bool:
        """Behind a call: another one, the mark of the end, or text."""
        if self._form.more is not None and (m := self._form.more.match(self._buffer)):
            self._raw, self._state = self._take(m.end()) or " ", self._head
            return True
        rest = self._buffer.lstrip(_BEHIND)
        if not rest or (rest[0] in ",;" and not rest[1:].strip()) or (len(rest) < len(self._form.end) and self._form.end.startswith(rest)):
            return False
        self._state = self._text
        if self._form.end and rest.startswith(self._form.end):
            self._take(len(self._buffer) - len(rest) + len(self._form.end))
        elif not self._form.end:
            self._take(len(self._buffer) - len(rest))
        return True

    def _whole(self) -> bool:
        """A call that can only be read once it is there as a whole."""
        at = self._buffer.find(self._form.end) if self._form.end else -1
        if at < 0:
            return False
        self._complete(self._raw + self._take(at + len(self._form.end)))
        self._raw, self._state = "", self._text
        return True

    def _complete(self, text: str) -> None:
        try:
            found = self._form.whole(text, self._schemas)
            if not found or not all(isinstance(n, str) and isinstance(a, dict) for n, a in found):
                raise ValueError("no calls")
            if self._form.bare and not text.lstrip().startswith(self._form.begin) and any(n not in self._schemas for n, _ in found):
                raise ValueError("an answer")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self._say(text)
            return
        for name, arguments in found:
            written = json.dumps(arguments, ensure_ascii=False)
            self._deltas += [ToolDelta(len(self.calls), self._id(), name), ToolDelta(len(self.calls), arguments=written)]
            self.calls.append(ToolCall(self._id(), name, arguments, written))

    def _id(self) -> str:
        """Of the next call: nine letters and digits, as the strictest templates want them."""
        return sha256(f"{self._n_prompt}.{len(self.calls)}".encode()).hexdigest()[:9]
