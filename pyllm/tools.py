"""Tools: functions that a model may ask to be called. Their definitions, how families of templates write calls, and the form of a call.

A template that knows tools gets them as it wants them; for others the definitions go into the system message in words, and calls are
written as Hermes models write them. What comes back is read in toolcalls.py.
"""

from __future__ import annotations

import inspect
import json
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import errors, schemas
from .toolcalls import FORMATS, ToolParser
from .toolforms import LARK

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
MAX_TOOLS = 128

Definition = dict[str, Any]


# ---- definitions ----

def definitions(tools: Any) -> list[Definition]:
    """Tools as OpenAI writes them: {"type": "function", "function": {name, description, parameters}}. tools: Python functions, and
    definitions in that form or only what stands under "function". Raises ArgumentError, which names the place."""
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Iterable):
        raise errors.ArgumentError(f"tools is {reprlib.repr(tools)}, must be a list of functions or definitions")
    found = [_of_function(t) if callable(t) else _checked(t, f"tools[{i}]") for i, t in enumerate(tools)]
    names = [d["function"]["name"] for d in found]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise errors.ArgumentError(f"tools: two are called {twice!r}")
    if len(found) > MAX_TOOLS:
        raise errors.ArgumentError(f"tools: there are {len(found)}, the limit is {MAX_TOOLS}")
    return found


def _checked(tool: Any, where: str) -> Definition:
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping) or tool.get("type", "function") != "function":
        raise errors.ArgumentError(f"{where} is {reprlib.repr(tool)}, must be a function or a definition\n"
                                   'hint: {"type": "function", "function": {"name": ..., "description": ..., "parameters": {...}}}')
    where, name = f"{where}.function" if "function" in tool else where, function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise errors.ArgumentError(f"{where}.name is {reprlib.repr(name)}, must be 1 to 64 letters, digits and _ - .")
    description, parameters = function.get("description"), function.get("parameters")
    if description is not None and not isinstance(description, str):
        raise errors.ArgumentError(f"{where}.description is {reprlib.repr(description)}, must be a text")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise errors.ArgumentError(f"{where}.parameters is {reprlib.repr(parameters)}, must be a JSON schema")
    return {"type": "function", "function": {**function, "name": name, "description": description or "",
                                             "parameters": dict(parameters or {"type": "object", "properties": {}})}}


def _of_function(fn: Callable[..., Any]) -> Definition:
    """The definition of a Python function: parameters from its signature, descriptions from its docstring (Google's or Sphinx's style)."""
    name = getattr(fn, "__name__", type(fn).__name__)
    if not _NAME.fullmatch(name):
        raise errors.ArgumentError(f"a function called {name!r} cannot be a tool\nhint: define it with def, under a name")
    description, about = _docstring(inspect.getdoc(fn) or "")
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError) as e:
        raise errors.ArgumentError(f"{name}: its parameters cannot be read: {e}\nhint: give a definition as JSON") from None
    types = schemas.hints(fn, name)
    properties: dict[str, Any] = {}
    defs: dict[str, Any] = {}
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY):
            raise errors.ArgumentError(f"{name}: parameter {p.name} cannot be given by name\nhint: tools take named parameters only")
        schema = dict(schemas.json_schema(types.get(p.name, Any), f"{name}.{p.name}"))
        defs |= schema.pop("$defs", {})
        default = {} if p.default is p.empty or not _is_json(p.default) else {"default": p.default}
        properties[p.name] = {**schema, **({"description": about[p.name]} if p.name in about else {}), **default}
    required = [p.name for p in parameters if p.default is p.empty]
    return {"type": "function", "function": {"name": name, "description": description, "parameters": {
        "type": "object", "properties": properties, "required": required, **({"$defs": defs} if defs else {})}}}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


_SECTION = re.compile(r"^(Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?):\s*$", re.M)


_ENTRY = re.compile(r"^\*{0,2}(\w+)(?: ?\([^)]*\))?:(.*(?:\n[ \t]+.*)*)", re.M)


def _docstring(doc: str) -> tuple[str, dict[str, str]]:
    """(description, parameter -> its description)."""
    about = {m[1]: " ".join(m[2].split()) for m in re.finditer(r"^:param (?:[^:]+ )?(\w+):((?:.|\n(?!\s*:|\s*$))*)", doc, re.M)}
    sections = _SECTION.split(re.split(r"^\s*:(?:param|returns?|raises|type|rtype)\b", doc, maxsplit=1, flags=re.M)[0])
    for title, text in zip(sections[1::2], sections[2::2], strict=True):
        if title in ("Args", "Arguments", "Parameters"):
            inside = inspect.cleandoc("\n" + text)
            about |= {m[1]: " ".join(m[2].split()) for m in _ENTRY.finditer(inside)}
    return sections[0].strip(), about


def choice(tool_choice: Any, tools: Sequence[Definition]) -> str:
    """"auto", "none", "required", or "=" and the name of the tool that must be called."""
    names = [d["function"]["name"] for d in tools]
    named = tool_choice
    if isinstance(tool_choice, Mapping):
        function = tool_choice.get("function", tool_choice)
        named = function.get("name") if isinstance(function, Mapping) else None
    elif tool_choice in ("auto", "none", "required", None):
        return tool_choice or "auto"
    if not isinstance(named, str) or named not in names:
        raise errors.ArgumentError(f"tool_choice is {reprlib.repr(tool_choice)}\n"
                                   f"hint: auto, none, required, or one of {', '.join(names) or 'no tools'}")
    return f"={named}"


# ---- a request with tools ----

def format_name(source: str) -> str:
    """How the model of a template writes calls: a key of FORMATS, or "" if its template does not know tools in a way that is known here."""
    if "<start_function_call>" in source:
        return "functiongemma"
    if "<|tool_call>call:" in source:
        return "gemma"
    if "[TOOL_CALLS]" in source:
        return "mistral" if "[ARGS]" in source else "mistral-list"
    if "<function=" in source and "<parameter=" in source:
        return "xml"
    if "<|start_header_id|>" in source and '"parameters": ' in source and "tools" in source:
        return "llama"
    return "hermes" if "<tool_call>" in source and "<arg_key>" not in source and re.search(r"\btools\b", source) else ""


@dataclass(frozen=True)
class ToolUse:
    """The tools of one request. form: how calls are written; in_words: the template does not know tools; choice: see choice()."""

    tools: Sequence[Definition]
    form: str
    in_words: bool
    choice: str
    parallel: bool

    @classmethod
    def make(cls, source: str, tools: Any, tool_choice: Any, parallel: Any) -> ToolUse | None:
        """None if there is nothing to call."""
        found = definitions(tools or ())
        chosen = choice(tool_choice, found)
        if not isinstance(parallel, bool):
            raise errors.ArgumentError(f"parallel_tool_calls is {reprlib.repr(parallel)}, must be True or False")
        if not found and chosen == "required":
            raise errors.ArgumentError("tool_choice is 'required', but there are no tools")
        if not found or chosen == "none":
            return None
        known = format_name(source)
        return cls(found, known or "hermes", not known, chosen, parallel)

    @property
    def forced(self) -> bool:
        return self.choice != "auto"

    @property
    def trigger(self) -> re.Pattern[bytes]:
        return FORMATS[self.form].trigger

    @property
    def marks(self) -> tuple[str, ...]:
        return FORMATS[self.form].marks

    def parser(self, n_prompt: int) -> ToolParser:
        schemas_of = {d["function"]["name"]: d["function"]["parameters"] for d in self.tools}
        return ToolParser(FORMATS[self.form], schemas_of, n_prompt)

    def grammar(self, token: Callable[[str], str]) -> str:
        """Lark of what follows the mark that begins a call or, where a call is forced, of the whole reply. token: the Lark of a mark."""
        called = [d["function"] for d in self.tools if self.choice in ("auto", "required", f"={d['function']['name']}")]
        return LARK[self.form](called, token, self.forced, self.parallel)


# ---- messages ----

def prepared(messages: Sequence[Mapping[str, Any]], source: str, use: ToolUse | None) -> list[dict[str, Any]]:
    """Messages as templates take them: arguments of calls as objects, ids as Mistral's templates want them; calls and tools in words where
    the template has no place for them."""
    known = format_name(source)
    out = [_with_arguments(m, known.startswith("mistral")) for m in messages]
    if not known and any(m.get("tool_calls") or m.get("role") == "tool" for m in out):
        out = [_in_words(m) for m in out]
    if use is None or not use.in_words:
        return out
    words = _WORDS.format(tools="\n".join(json.dumps(d["function"], ensure_ascii=False) for d in use.tools))
    if out and out[0].get("role") == "system" and isinstance(out[0].get("content"), str):
        return [{**out[0], "content": f"{out[0]['content']}\n\n{words}"}, *out[1:]]
    return [{"role": "system", "content": words}, *out]


_WORDS = """# Tools

You can call these functions, given as JSON:
<tools>
{tools}
</tools>

To call a function, write its name and its arguments as JSON between these marks:
<tool_call>
{{"name": "the name", "arguments": {{"a parameter": "its value"}}}}
</tool_call>"""


def without_system(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The system message as the beginning of the first message of the user, for templates that know none."""
    system, *rest = messages
    at = next((i for i, m in enumerate(rest) if m.get("role") == "user" and isinstance(m.get("content"), str)), None)
    if system.get("role") != "system" or at is None:
        return list(messages)
    rest[at] = {**rest[at], "content": f"{system['content']}\n\n{rest[at]['content']}"}
    return rest


def _with_arguments(message: Mapping[str, Any], short_ids: bool) -> dict[str, Any]:
    out = dict(message)
    if isinstance(out.get("tool_calls"), Sequence) and not isinstance(out["tool_calls"], str):
        out["tool_calls"] = [_call(c, short_ids) for c in out["tool_calls"]]
    if short_ids and isinstance(out.get("tool_call_id"), str):
        out["tool_call_id"] = _short(out["tool_call_id"])
    return out


def _call(call: Any, short_ids: bool) -> Any:
    """A call of an earlier turn, with its arguments as an object; ToolCall and both of OpenAI's shapes are taken."""
    if hasattr(call, "to_openai"):
        call = call.to_openai()
    if not isinstance(call, Mapping):
        return call
    out, function = dict(call), call.get("function", call)
    if isinstance(function, Mapping):
        function = dict(function)
        try:
            arguments = json.loads(function["arguments"]) if isinstance(function.get("arguments"), str) else None
        except ValueError:
            arguments = None        # stays the text that it is
        if isinstance(arguments, dict):
            function["arguments"] = arguments
        out = {**out, "function": function} if "function" in out else {**out, **function}
    if short_ids and isinstance(out.get("id"), str):
        out["id"] = _short(out["id"])
    return out


def _short(id: str) -> str:
    """An id of nine letters and digits; one that is such an id stays as it is."""
    from hashlib import sha256

    return id if re.fullmatch(r"[A-Za-z0-9]{9}", id) else sha256(id.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def _in_words(message: dict[str, Any]) -> dict[str, Any]:
    """Calls and their results for a template that has no place for them."""
    if message.get("role") == "tool":
        content = message.get("content")
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    functions = [c.get("function", c) for c in calls if isinstance(c, Mapping)]
    texts = [json.dumps({"name": f.get("name"), "arguments": f.get("arguments")}, ensure_ascii=False) for f in functions]
    written = "\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in texts)
    rest = {k: v for k, v in message.items() if k != "tool_calls"}
    return {**rest, "content": f"{message['content']}\n{written}" if message.get("content") else written}
