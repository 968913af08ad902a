"""Chat templates: the Jinja source in a model file turns messages into the text that the model was trained on.

The template is foreign code from a downloaded file, so it runs in minijinja, which has no way to Python's objects, with limits
on steps, recursion and output. The oracle for its behaviour is transformers' apply_chat_template (a Jinja2 sandbox with
trim_blocks and lstrip_blocks). Where minijinja is milder or lacks something, the source is rewritten before it is compiled;
rewrite() tells how and why.

Known differences: a float from 1e16 on or under 1e-4 that a template prints without tojson is written without an exponent;
str.title and |title capitalize after fewer signs. Known gap: lists nested by a loop, and joining or replacing with long
texts, cost minijinja memory and stack without costing steps, so a template made for harm can still exhaust the process.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from .errors import ArgumentError, Error, UnsupportedTemplate
from .thinking import marks_of

MAX_SOURCE = 1 << 20  # characters
MAX_OUTPUT = 8 << 20  # characters
# minijinja's parser calls itself without a limit for chains such as ---1 and elif; these fit a stack of 512 KB. The longest tag of
# the real templates has 293 characters, the most elifs are 20.
MAX_TAG = 1000  # characters beside strings and spaces
MAX_ELIFS = 200

OTHER_TEMPLATE = "use another template with --chat-template FILE"
OTHER_MESSAGES = "change the messages, or use another template with --chat-template FILE"


class ChatTemplate:
    """A compiled template. bos and eos: texts of those tokens, which templates write themselves."""

    def __init__(self, source: str, bos: str = "", eos: str = "") -> None:
        import minijinja

        self._error = minijinja.TemplateError
        self._tokens = {"bos_token": bos, "eos_token": eos}
        if len(source) > MAX_SOURCE:
            raise UnsupportedTemplate(f"the chat template has {len(source)} characters, the limit is {MAX_SOURCE}\nhint: {OTHER_TEMPLATE}")
        self.source, self.thinking = source, marks_of(source)      # thinking: marks of reasoning, if answers may begin with any
        self._lock = threading.Lock()  # the environment's step limit is set for every rendering
        self._env = minijinja.Environment(trim_blocks=True, lstrip_blocks=True, debug=False,
                                          auto_escape_callback=lambda name: False, globals={
                                              "raise_exception": _refuse, "not_iterable": _not_iterable,
                                              "strftime_now": _strftime_now})
        self._env.remove_global("debug")
        self._env.add_filter("dumps", _dumps)
        # minijinja also calls None iterable, and dicts no sequences
        self._env.add_test("iterable", lambda value: hasattr(value, "__iter__"))
        self._env.add_test("sequence", lambda value: hasattr(value, "__len__") and hasattr(value, "__getitem__"))
        self._guard(lambda: self._env.add_template("template", rewrite(source)))

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any = None, add_generation_prompt: bool = True,
               **kwargs: Any) -> str:
        """The prompt. kwargs are the template's own variables, such as enable_thinking.

        Raises ArgumentError if the template refuses the messages, UnsupportedTemplate if it cannot run here at all.
        """
        def run() -> Any:
            values = {**self._tokens, "documents": None, **kwargs, "messages": _with_reasoning(messages), "tools": tools,
                      "add_generation_prompt": add_generation_prompt, "undefined_json": UNDEFINED}
            plain = {name: _plain(value) for name, value in values.items()}
            with self._lock:
                self._env.fuel = _steps(plain["messages"])
                return self._env.render_template("template", **plain)

        text: str = self._guard(run)
        if len(text) > MAX_OUTPUT:
            raise UnsupportedTemplate(f"the chat template made {len(text)} characters, the limit is {MAX_OUTPUT}\nhint: {OTHER_TEMPLATE}")
        return text

    def _guard(self, step: Callable[[], Any]) -> Any:
        """Runs one step and turns every failure inside of it into an error of ours."""
        try:
            return step()
        except Error:
            raise
        except self._error as error:
            raise _explained(error) from None
        except Exception as error:  # from Python values inside of the template, such as a wrong argument of dict.get
            raise ArgumentError(f"the chat template fails on these messages: {error or type(error).__name__}\n"
                                f"hint: {OTHER_MESSAGES}") from None


# ---- errors ----

# minijinja's names of types and Python's, to tell a method that only minijinja lacks from one that no such value has
TYPES: dict[str, type] = {"string": str, "sequence": list, "iterator": list, "map": dict, "number": int, "plain object": dict}
LACKING = {"SyntaxError", "UnknownFilter", "UnknownTest", "UnknownFunction", "TemplateNotFound", "OutOfFuel", "BadEscape"}
LIMITS = ("recursion limit", "too many elements", "too large", "unable to calculate")


def _explained(error: Any) -> Error:
    """The error of ours for minijinja's: is it the template, or are it the messages?"""
    first = str(error).split("\n")[0]
    what, line = re.sub(r" \(in template:\d+\)$", "", first), f"line {error.line}: " if error.line else ""
    if error.kind == "OutOfFuel":
        return UnsupportedTemplate(f"the chat template takes too many steps for these messages\nhint: {OTHER_TEMPLATE}")
    method = re.search(r"(\w[\w ]*) has no method named (\w+)", what)
    python_type = TYPES.get(method[1]) if method else None
    lacking = method is not None and python_type is not None and hasattr(python_type, method[2])
    if error.kind in LACKING or lacking or any(limit in what for limit in LIMITS):
        return UnsupportedTemplate(f"the chat template does not run here: {line}{what}\nhint: {OTHER_TEMPLATE}")
    return ArgumentError(f"the chat template fails on these messages: {line}{what}\nhint: {OTHER_MESSAGES}")


def _refuse(message: object = "") -> NoReturn:
    # on one line: a template must not be able to write a hint of its own
    raise ArgumentError(f"the chat template refuses these messages: {' '.join(str(message).splitlines())}\nhint: {OTHER_MESSAGES}")


def _strftime_now(form: str) -> str:
    if len(form) > 1000 or re.search(r"\d{3}", form):  # C libraries take widths, such as %999999999d
        raise UnsupportedTemplate(f"the chat template does not run here: the date format {form[:40]!r}\nhint: {OTHER_TEMPLATE}")
    return datetime.now().strftime(form)


def _not_iterable(what: str) -> NoReturn:
    raise ArgumentError(f"the chat template fails on these messages: {what} is None, not a list\n"
                        f"hint: give {what}, or use another template with --chat-template FILE")


# ---- values ----


def _steps(messages: Sequence[Mapping[str, Any]]) -> int:
    """How many steps of minijinja a rendering may take. The hungriest real templates take 3000 for one message with tools, 4.4 for
    every pair of messages (they look back from each), and 0.1 for a character; growing a string costs steps too."""
    characters = sum(len(value) for message in messages for value in message.values() if isinstance(value, str))
    return 500_000 + 1000 * len(messages) + 8 * len(messages) ** 2 + characters


UNDEFINED = "\ue000undefined\ue000"  # stands for an undefined value on its way to JSON


class _List(list[Any]):
    """A list that templates cannot change, as in transformers; otherwise lists could grow without limit."""

    def _fixed(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("templates must not change lists")

    append = extend = insert = pop = remove = clear = sort = reverse = _fixed


class _Dict(dict[Any, Any]):
    """A dict that templates cannot change."""

    def _fixed(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("templates must not change dicts")

    pop = popitem = update = clear = setdefault = _fixed


def _plain(value: Any) -> Any:
    """A copy in plain types: a template can neither change the caller's values nor call their methods."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return _Dict((_plain(key), _plain(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return _List(_plain(item) for item in value)
    raise ArgumentError(f"a chat template cannot take a value of type {type(value).__name__}\n"
                        "hint: give text, numbers, lists and dicts, as JSON has them")


def _with_reasoning(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose reasoning has both names that templates read; callers may use any of three."""
    named = []
    for message in messages:
        if not isinstance(message, Mapping):
            raise ArgumentError(f"a message is a dict with role and content, not {type(message).__name__}\n"
                                'hint: {"role": "user", "content": "..."}')
        names = ("reasoning_content", "thinking", "reasoning")
        reasoning = next((message[name] for name in names if message.get(name) is not None), None)
        named.append(dict(message) if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning})
    return named


def _dumps(text: str, ensure_ascii: bool = False, indent: int | None = None, separators: Sequence[str] | None = None,
           sort_keys: bool = False) -> str:
    """The JSON text that minijinja made, written as Python writes it."""
    value = json.loads(text)
    if UNDEFINED in text and value == UNDEFINED:
        raise ArgumentError(f"the chat template fails on these messages: an undefined value cannot become JSON\nhint: {OTHER_MESSAGES}")
    if not 0 <= (indent or 0) <= 16 or any(len(part) > 16 for part in separators or ()):
        raise UnsupportedTemplate(f"the chat template spaces JSON by more than 16 characters\nhint: {OTHER_TEMPLATE}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys,
                      separators=(separators[0], separators[1]) if separators else None)


# ---- the source ----

_OPEN = re.compile(r"\{[{%#]")
_STRING = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])*'", re.S)
_PIECE = re.compile(_STRING.pattern + r"|[-+]?[%}]\}|[{}]|[^\"'{}%+-]+|.", re.S)
_END_RAW = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")
_PATH = r"[A-Za-z_][\w.]*(?:\[(?:'[^'\\]*'|\"[^\"\\]*\"|\d+)\][\w.]*)*"
_FOR = re.compile(rf"(\{{%[-+]?\s*for\s+[\w\s,]+?\sin\s+)({_PATH})(\s+if\b.*|\s*[-+]?%\}})", re.S)
_GENERATION = re.compile(r"(\{%[-+]?\s*(?:end)?)generation(\s*[-+]?%\})")
_ELIF = re.compile(r"\{%[-+]?\s*elif\b")
_TOJSON = re.compile(r"\|(\s*)tojson\b")


def rewrite(source: str) -> str:
    """The same template in minijinja's words.

    - {% generation %}, with which training marks answers, becomes {% with %}: a scope that prints what is inside.
    - {% for x in path %}: minijinja takes None for an empty list, Jinja2 raises; a look at the path comes first.
    - |tojson: minijinja escapes HTML and writes floats in its own way. Its text, in which 2.0 is still a float (it would
      come to a Python filter as 2), is read and written again by dumps(). An undefined value raises as in Jinja2.
    - .format(): minijinja pads to any width without counting steps, so only literals without long widths may be formatted.
    """
    parts = [(is_tag, _rewrite_tag(part) if is_tag else part) for is_tag, part in _parts(source)]
    if sum(is_tag and _ELIF.match(part) is not None for is_tag, part in parts) > MAX_ELIFS:
        raise UnsupportedTemplate(f"the chat template has more than {MAX_ELIFS} elifs\nhint: {OTHER_TEMPLATE}")
    return "".join(part for _, part in parts)


def _parts(source: str) -> Iterator[tuple[bool, str]]:
    """(is a tag, text) of everything in the source, in order. Tags are {{ }} and {% %}; comments and raw blocks are text."""
    at = 0
    while opening := _OPEN.search(source, at):
        yield False, source[at:opening.start()]
        start, is_tag = opening.start(), opening[0] != "{#"
        at = _tag_end(source, start) if is_tag else source.find("#}", start) + 2
        if at <= start + 1:
            break
        yield is_tag, source[start:at]
        if re.fullmatch(r"\{%[-+]?\s*raw\s*[-+]?%\}", source[start:at]) and (end := _END_RAW.search(source, at)):
            yield False, source[at:end.start()]
            at = end.start()
    else:
        yield False, source[at:]
        return
    yield False, source[start:]  # a tag that never ends: minijinja says so


def _tag_end(source: str, start: int) -> int:
    """Where the tag that starts there ends, or 0. Its end marks may stand in strings and, as braces, in dicts."""
    end, depth, at = "}}" if source[start + 1] == "{" else "%}", 0, start + 2
    while piece := _PIECE.match(source, at):
        text = piece[0]
        if text.endswith(end) and len(text) <= 3 and depth == 0:
            return piece.end()
        if text[-2:] in ("}}", "%}") and text[0] not in "\"'":  # not the end: take its first character only
            depth -= text[0] == "}"
            at += 1
            continue
        depth += (text == "{") - (text == "}")
        at = piece.end()
    return 0


def _rewrite_tag(tag: str) -> str:
    if len(tag) > MAX_TAG and len(re.sub(r"\s+", "", _STRING.sub("", tag))) > MAX_TAG:
        raise UnsupportedTemplate(f"the chat template has a tag longer than {MAX_TAG} characters: {tag[:40]}...\nhint: {OTHER_TEMPLATE}")
    if generation := _GENERATION.fullmatch(tag):
        return f"{generation[1]}with{generation[2]}"
    if loop := _FOR.fullmatch(tag):
        head, path, tail = loop.groups()
        tag = f"{head}({path} if {path} is not none else not_iterable({path!r})){tail}"
    if "format" in tag or "tojson" in tag:
        pieces = re.split(f"({_STRING.pattern})", tag)  # code and strings in turns
        for i in range(0, len(pieces), 2):
            pieces[i] = _TOJSON.sub(r"|\1default(undefined_json)|tojson|dumps", pieces[i])
            _check_format(pieces, i)
        tag = "".join(pieces)
    return tag


def _check_format(pieces: list[str], i: int) -> None:
    for found in re.finditer(r"\.\s*format\b", pieces[i]):
        literal = pieces[i - 1] if i and found.start() == 0 else ""
        if not literal or re.search(r"\d{4}|\{[^}]*\{|\{[^}]*[.\[]", literal):
            raise UnsupportedTemplate(f"the chat template does not run here: .format of a computed or padded text\nhint: {OTHER_TEMPLATE}")
    if re.search(r"\bmap\s*\(\s*$", pieces[i]) and pieces[i + 1:i + 2] in (["'tojson'"], ['"tojson"']):
        raise UnsupportedTemplate(f"the chat template does not run here: map('tojson')\nhint: {OTHER_TEMPLATE}")
