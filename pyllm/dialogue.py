"""From messages and options to a prompt, and to what reads the reply: reasoning, calls of tools, and the form that it must have."""

from __future__ import annotations

import reprlib
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import errors
from .sampling import Options
from .thinking import CLOSE, OPEN, ReasoningSplitter

if TYPE_CHECKING:
    from .chat import ChatTemplate
    from .structured import Constraint, TriggeredConstraint, Vocabulary
    from .tokenizer import Tokenizer
    from .toolcalls import ToolParser
    from .tools import ToolUse

Message = Mapping[str, Any]
Messages = str | Sequence[Message]
CHAT_OPTIONS = ("tools", "tool_choice", "parallel_tool_calls", "template_options")      # of a chat, beside Options


@dataclass(frozen=True)
class Reading:
    """What reads a reply. shown: texts of tokens that are marks of reasoning or calls and not shown otherwise."""

    splitter: ReasoningSplitter | None = None
    tools: ToolParser | None = None
    constraint: Constraint | TriggeredConstraint | None = None
    shown: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A request. template: of a chat, None where a text is completed; use: its tools, if there are any to call."""

    options: Options
    template: ChatTemplate | None = None
    use: ToolUse | None = None


# ---- the prompt ----

def ask(template: ChatTemplate, messages: Messages, options: Mapping[str, Any]) -> tuple[str, Asked]:
    """The prompt of a chat, and what is asked. Raises ArgumentError for wrong options and messages."""
    own = {k: options[k] for k in CHAT_OPTIONS if options.get(k) is not None}
    extra = own.get("template_options", {})
    if not isinstance(extra, Mapping) or not all(isinstance(k, str) for k in extra) or extra.keys() & {"messages", "tools"}:
        raise errors.ArgumentError(f"template_options is {reprlib.repr(extra)}, must map a template's own names to values")
    made = Options.make({k: v for k, v in options.items() if k not in CHAT_OPTIONS})
    use = _tool_use(template, own) if own.keys() & {"tools", "tool_choice"} else None
    if use is not None and (made.schema, made.grammar, made.regex) != (None, None, None):
        raise errors.ArgumentError("tools cannot be combined with schema, grammar or regex\nhint: tool_choice='none' keeps the tools out")
    return render(template, messages, extra, use), Asked(made, template, use)


def _tool_use(template: ChatTemplate, own: Mapping[str, Any]) -> ToolUse | None:
    from .tools import ToolUse

    return ToolUse.make(template.source, own.get("tools"), own.get("tool_choice"), own.get("parallel_tool_calls", True))


def render(template: ChatTemplate, messages: Messages, template_options: Mapping[str, Any], use: ToolUse | None = None) -> str:
    """The prompt as text."""
    turns: Sequence[Message] = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    if not isinstance(turns, Sequence):
        raise errors.ArgumentError(f"messages is {reprlib.repr(turns)}, must be a text or a list of messages")
    if use is None and not any(isinstance(m, Mapping) and (m.get("tool_calls") or m.get("role") == "tool") for m in turns):
        return template.render(turns, **template_options)
    from .tools import prepared, without_system

    if not all(isinstance(m, Mapping) for m in turns):
        raise errors.ArgumentError('a message is a dict with role and content\nhint: {"role": "user", "content": "..."}')
    ready = prepared(turns, template.source, use)
    if use is None or not use.in_words:
        return template.render(ready, **({**template_options, "tools": list(use.tools)} if use else template_options))
    try:
        return template.render(ready, **template_options)
    except errors.ArgumentError:        # some templates know no system message
        return template.render(without_system(ready), **template_options)


# ---- the reply ----

class Readers:
    """Makes what reads the replies of one model; any thread. n_vocab: of the model, padding included."""

    def __init__(self, tokenizer: Tokenizer, n_vocab: int) -> None:
        self._tokenizer, self._n_vocab = tokenizer, n_vocab
        self._lock = threading.Lock()
        self._vocabulary: Vocabulary | None = None      # made when it is first asked for

    def reading(self, ids: Sequence[int], asked: Asked) -> Reading:
        """ids: the prompt. Raises ArgumentError for a form that cannot be compiled."""
        if asked.template is None:
            return Reading(constraint=self._constraint(asked, "never", {}))
        before = self._tokenizer.decode(ids[-8:], special=True)
        marks, use = asked.template.thinking, asked.use
        splitter = ReasoningSplitter(before, *marks) if marks else ReasoningSplitter(before)
        shown = self._hidden((*(marks or ()), *(use.marks if use else ())))
        thinking = "open" if splitter.thinking else "may" if marks and marks[1] not in before else "never"
        return Reading(splitter, use.parser(len(ids)) if use else None, self._constraint(asked, thinking, shown), shown)

    def _hidden(self, marks: Sequence[str]) -> dict[int, bytes]:
        """The marks that are single tokens which a text does not show."""
        found = {}
        for mark in marks:
            ids = self._tokenizer.encode(mark, add_special=False, parse_special=True)
            if len(ids) == 1 and not self._tokenizer.token_bytes(ids[0]):
                found[ids[0]] = mark.encode()
        return found

    def _constraint(self, asked: Asked, thinking: str, shown: Mapping[int, bytes]) -> Constraint | TriggeredConstraint | None:
        """What holds the reply to its form, if it has any. thinking: "open", the prompt has begun it; "may", the reply may; "never"."""
        options, use = asked.options, asked.use
        free = (options.schema, options.grammar, options.regex) == (None, None, None)
        if free and use is None:
            return None
        from . import structured

        if use is not None and not use.forced and not structured.available():
            return None
        vocabulary = self._words()
        marks = (asked.template.thinking if asked.template else None) or (OPEN, CLOSE)
        if use is None:
            return vocabulary.constraint(structured.form(options.schema, options.grammar, options.regex), thinking, marks)
        form = structured.Form("lark", use.grammar(vocabulary.mark))
        if use.forced:
            return vocabulary.constraint(form, thinking, marks)
        return vocabulary.triggered(form, use.trigger, shown, thinking, marks)

    def _words(self) -> Vocabulary:
        from .structured import Vocabulary

        with self._lock:
            if self._vocabulary is None:
                self._vocabulary = Vocabulary(self._tokenizer, self._n_vocab)
        return self._vocabulary
