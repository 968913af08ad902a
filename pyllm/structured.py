"""Replies that follow a JSON schema, a regular expression or a grammar (extra `structured`: llguidance).

Before a token is chosen, every token that cannot lead to a reply of the asked form is masked; end tokens come only where the form is
complete. Compiling happens on the caller's thread, under limits, so that a request made for harm costs its sender alone.
"""

from __future__ import annotations

import json
import re
import reprlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from . import errors, schemas
from .bounds import WHITESPACE, children, schema_text
from .closing import Closers, shortest
from .tokenizer import Tokenizer

T = TypeVar("T")

MAX_GRAMMAR = 1 << 16
MAX_SAID = 256              # bytes in which a trigger is looked for
MAX_RULES = 500             # of a grammar: a mistake at the end of a chain of rules takes time with the square of its length
STACK = 64 << 20            # bytes of the compiling thread's stack: llguidance calls itself for nested and chained rules
_RULE = re.compile(r"^[ \t]*[?!]?[\w-]+[^\n\"/:]*:", re.M)

_MARK = "\x02"              # merges with nothing
_stack_size = threading.Lock()


@dataclass(frozen=True)
class Form:
    """What a reply has to look like. kind: json_schema, lark, gbnf or regex; text: in that language."""

    kind: str
    text: str


def form(schema: Any = None, grammar: str | None = None, regex: str | None = None) -> Form:
    """The form that options ask for, checked as far as that goes without a vocabulary."""
    given = [name for name, value in (("schema", schema), ("grammar", grammar), ("regex", regex)) if value is not None]
    if len(given) > 1:
        raise errors.ArgumentError(f"{' and '.join(given)} cannot be combined\nhint: give one of schema, grammar and regex")
    if schema is not None:
        return Form("json_schema", schema_text(schemas.json_schema(schema)))
    name, text = ("regex", regex) if grammar is None else ("grammar", grammar)
    if not isinstance(text, str):
        raise errors.ArgumentError(f"{name} is {reprlib.repr(text)}, must be a text")
    if len(text) > MAX_GRAMMAR:
        raise errors.ArgumentError(f"the {name} has {len(text)} characters, the limit is {MAX_GRAMMAR}")
    n_rules = len(_RULE.findall(text)) if name == "grammar" else 0
    if n_rules > MAX_RULES:
        raise errors.ArgumentError(f"the grammar has {n_rules} rules, the limit is {MAX_RULES}")
    return Form("regex" if name == "regex" else "gbnf" if "::=" in text else "lark", text)


# ---- compiling ----

class _Source:
    """A tokenizer as llguidance asks for it."""

    def __init__(self, tokenizer: Tokenizer, pieces: list[bytes], names: list[bytes], special: list[int], end: int) -> None:
        self.eos_token_id, self.bos_token_id, self.tokens, self.special_token_ids = end, tokenizer.bos, names, special
        self._tokenizer, self._pieces = tokenizer, pieces

    def __call__(self, text: str) -> list[int]:
        """Ids of a text in the middle of another: sentencepiece families put a space in front of the first one."""
        ids = self._tokenizer.encode(_MARK + text, add_special=False, parse_special=False)
        at = next((i for i, t in enumerate(ids) if self._pieces[t] == _MARK.encode()), None)
        return self._tokenizer.encode(text, add_special=False, parse_special=False) if at is None else ids[at + 1:]


class Vocabulary:
    """A model's tokens as llguidance needs them: what every one adds to the text. n_vocab: of the model, padding included.

    Immutable; any thread. Raises ArgumentError if llguidance is not installed."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        self._guidance = guidance = _llguidance()
        self._tokenizer, known = tokenizer, range(tokenizer.n_vocab)
        pieces = tokenizer.pieces()
        special = [t for t in known if not pieces[t]]
        self._pieces = pieces
        names = [p or tokenizer.token_text(t).encode() or b"<>" for t, p in zip(known, pieces, strict=True)]
        ends = tokenizer.ends()
        source = _Source(tokenizer, pieces, names, special, ends[0] if ends else 0)
        self._tokens = guidance.LLTokenizer(guidance.TokenizerWrapper(source), n_vocab=n_vocab, eos_token=ends or None)
        self._closers = Closers(pieces, ends)
        # the parser's work for one token, in its own units: a few milliseconds, of which others in the batch notice little
        self._limits = guidance.LLParserLimits(step_lexer_fuel=100_000, step_max_items=20_000, verbose_errors=False)
        self._breaks = frozenset(t for t in known if pieces[t] and not pieces[t].strip(b"\n"))

    def _single(self, mark: str) -> int | None:
        ids = self._tokenizer.encode(mark, add_special=False, parse_special=True)
        return ids[0] if len(ids) == 1 else None

    def mark(self, text: str) -> str:
        """The Lark of a mark: a token of its own if it is one that a text does not show."""
        token = self._single(text)
        return json.dumps(text) if token is None or self._pieces[token] else f"<[{token}]>"

    def constraint(self, form: Form, thinking: str = "never", marks: tuple[str, str] = ("<think>", "</think>")) -> Constraint:
        """The start of a reply. thinking: "open", the prompt has begun it; "may", the reply may begin with it; "never". marks: of
        reasoning. Raises ArgumentError, which names the place, for what cannot be compiled."""
        def compile_it() -> tuple[Any, bytes, int]:
            matcher, first = self._compile(form.kind, form.text)
            if form.kind != "json_schema" or matcher.is_error():
                return matcher, first, 0
            return matcher, first, shortest(matcher, first, self._closers, self._pieces)

        matcher, first, least = _on_big_stack(compile_it)
        error = matcher.get_error()
        if error:
            raise errors.ArgumentError(self._explained(form, error))
        opens, closes = (self._single(mark) for mark in marks)
        if opens is None or closes is None:
            thinking = "never"
        return Constraint(matcher, first, thinking, opens, closes, self._breaks, self._closers, least)

    def triggered(self, form: Form, trigger: re.Pattern[bytes], shown: Mapping[int, bytes], thinking: str, marks: tuple[str, str]
                  ) -> TriggeredConstraint | None:
        """A reply of free text in which what follows a trigger has the form; None if the form cannot be compiled. shown: bytes of tokens
        that a text does not show, for the trigger. thinking, marks: as in constraint()."""
        matcher, _ = _on_big_stack(lambda: self._compile(form.kind, form.text))
        if matcher.is_error():
            return None
        opens, closes = (self._single(mark) for mark in marks)
        return TriggeredConstraint(matcher, trigger, lambda t: shown.get(t) or self._piece(t), self._tokens.tokenize_bytes,
                                   opens if thinking == "may" else None, closes if thinking != "never" else None, thinking == "open")

    def _piece(self, token: int) -> bytes:
        return self._pieces[token] if token < len(self._pieces) else b""

    def _compile(self, kind: str, text: str) -> tuple[Any, bytes]:
        """(matcher, mask of the first token). The matcher is asked for the mask here, because that is when it does most of its work."""
        make = self._guidance.LLMatcher
        if kind == "json_schema":
            source = make.grammar_from_json_schema(text, defaults={"whitespace_pattern": WHITESPACE})
        elif kind == "regex":
            source = make.grammar_from_regex(text)
        else:
            source = make.grammar_from_lark(_lark(text) if kind == "gbnf" else text)
        matcher = make(self._tokens, source, log_level=0, limits=self._limits)
        return matcher, b"" if matcher.is_error() else matcher.compute_bitmask()

    def _explained(self, form: Form, error: str) -> str:
        """The error with its place. Of a schema that is the deepest part that fails in the same way on its own."""
        name = "schema" if form.kind == "json_schema" else "regex" if form.kind == "regex" else "grammar"
        at = self._place(json.loads(form.text), error) if name == "schema" else ""
        message = error.strip()
        if message.startswith("panic"):
            message = "it is too large"
        return f"{name}{at}: {message[:600]}"

    def _place(self, root: Any, error: str) -> str:
        at, tried = "#", 0
        defs = {k: root[k] for k in ("$defs", "definitions") if isinstance(root, dict) and k in root}

        def fails(schema: Any) -> bool:
            if not isinstance(schema, dict):
                return False
            text = json.dumps({**defs, **schema})
            return bool(_on_big_stack(lambda: self._compile("json_schema", text))[0].get_error() == error)

        # what is defined but fails nowhere else is found under its definition
        node, deeper = root, True
        while deeper and tried < 200:
            deeper = False
            for below, child in children(node):
                tried += 1
                if fails(child):
                    at, node, deeper = at + below, child, True
                    break
        return f" at {at}"


def available() -> bool:
    """Whether llguidance is installed."""
    from importlib.util import find_spec

    return find_spec("llguidance") is not None


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise errors.ArgumentError("schema, grammar and regex need the package llguidance\n"
                                   "hint: pip install 'pyllm[structured]'") from None
    return llguidance


def _lark(gbnf: str) -> str:
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        text: str = any_to_lark(gbnf)
        return text
    except RecursionError:
        raise errors.ArgumentError("grammar: it is nested too deeply") from None
    except Exception as e:      # whatever a parser of foreign text comes to
        raise errors.ArgumentError(f"grammar: {e}") from None


def _on_big_stack(fn: Callable[[], T]) -> T:
    """fn() on a thread whose stack does not depend on the caller's. Raises what fn raises."""
    results: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            results.append(fn())
        except BaseException as e:
            failure.append(e)

    thread = threading.Thread(target=run, name="pyllm-compile", daemon=True)
    try:
        with _stack_size:       # the size holds for every thread that starts meanwhile; a larger one does no harm
            before = threading.stack_size(STACK)
            try:
                thread.start()
            finally:
                threading.stack_size(before)
    except RuntimeError as e:
        raise errors.OutOfMemory(f"no thread can be had: {e}\nhint: end other programs, or raise the limit (ulimit -u)") from None
    thread.join()
    if failure:
        raise failure[0]
    return results[0]


class Constraint:
    """Which tokens may come next in one reply: `mask`, then `accept` of the chosen one, in turns, on one thread.

    A model that thinks does so freely; what follows its mark of the end, apart from line breaks, has the form. least: tokens of the
    shortest reply in JSON, 0 for other forms; when not many more are left, only what closes the reply may come."""

    def __init__(self, matcher: Any, first: bytes, thinking: str, opens: int | None, closes: int | None, breaks: frozenset[int],
                 closers: Closers, least: int) -> None:
        self._matcher, self._next = matcher, first
        self._closers, self._reserve = closers, least and least + least // 2 + 16
        self._opens, self._closes, self._breaks = opens, closes, breaks
        self._state = {"open": "thinking", "may": "start"}.get(thinking, "form")

    def mask(self, left: int) -> bytes | None:
        """Bit i % 8 of byte i / 8: token i may come; None: every token may. left: tokens until the reply is cut off, this one included."""
        if self._state == "thinking":
            return None
        if not self._next:
            self._next = self._matcher.compute_bitmask()
            self._check()
        if left <= self._reserve:
            return self._closers.best(int.from_bytes(self._next, "little")).to_bytes(len(self._next), "little")
        also: Sequence[int] = (self._opens,) if self._state == "start" and self._opens is not None else \
            tuple(self._breaks) if self._state == "gap" else ()
        if not also:
            return self._next
        bits = bytearray(self._next)
        for token in also:
            bits[token >> 3] |= 1 << (token & 7)
        return bytes(bits)

    def accept(self, token: int) -> None:
        """The token that was chosen. Raises ArgumentError if the limits of the work for one token are reached."""
        if self._state == "thinking":
            if token == self._closes:
                self._state = "gap"
            return
        if self._state == "start" and token == self._opens:
            self._state = "thinking"
            return
        if self._state == "gap" and token in self._breaks:
            self._state = "form"
            return
        self._state, self._next = "form", b""
        self._matcher.consume_token(token)
        self._check()

    def forced(self) -> list[int]:
        """How the reply must go on, as guesses: the same text may be written with other tokens."""
        if self._state != "form" or self._matcher.is_stopped():
            return []
        tokens: list[int] = self._matcher.compute_ff_tokens()
        return tokens

    @property
    def complete(self) -> bool:
        """Nothing can follow but an end token."""
        return self._state == "form" and bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if self._matcher.is_error():
            raise errors.ArgumentError(f"the form of the reply takes too much work: {self._matcher.get_error().strip()[:300]}\n"
                                       "hint: a simpler schema, regex or grammar")


class TriggeredConstraint:
    """Free text up to a trigger, behind which there is a form; then free text again. The interface is that of Constraint.

    trigger: a pattern for what has been said last; the form begins at its group 1. piece(token): its bytes. opens, closes: tokens around
    reasoning, in which nothing is a trigger; None: there is none."""

    def __init__(self, matcher: Any, trigger: re.Pattern[bytes], piece: Callable[[int], bytes], tokenize: Callable[[bytes], list[int]],
                 opens: int | None, closes: int | None, thinking: bool) -> None:
        self._prototype, self._trigger, self._piece, self._tokenize = matcher, trigger, piece, tokenize
        self._opens, self._closes, self._thinking = opens, closes, thinking and closes is not None
        self._matcher: Any = None       # while a form is being written
        self._said, self._first = b"", True

    def mask(self, left: int) -> bytes | None:
        if self._matcher is None:
            return None
        bits: bytes = self._matcher.compute_bitmask()
        return None if self._matcher.is_error() else bits

    def accept(self, token: int) -> None:
        first, self._first = self._first, False
        if self._thinking or (first and token == self._opens):
            self._thinking = token != self._closes
        elif self._matcher is not None:
            self._matcher.consume_token(token)
            if self._matcher.is_error() or self._matcher.is_stopped():
                self._matcher, self._said = None, b"."      # not the beginning of a reply any more
        else:
            self._said += self._piece(token)
            self._said = self._said if len(self._said) < MAX_SAID else b"." + self._said[-MAX_SAID // 2:]
            found = self._trigger.search(self._said)
            if found is not None:
                self._begin(self._said[found.start(1):])
                self._said = b"."

    def forced(self) -> list[int]:
        tokens: list[int] = [] if self._matcher is None else self._matcher.compute_ff_tokens()
        return tokens

    def _begin(self, said: bytes) -> None:
        """A form has begun, with these bytes."""
        matcher = self._prototype.deep_copy()
        tokens = self._tokenize(said) if said else []
        if matcher.consume_tokens(tokens) and not matcher.is_stopped():
            self._matcher = matcher

    @property
    def complete(self) -> bool:
        return False
