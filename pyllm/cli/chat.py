"""A conversation in the terminal."""

from __future__ import annotations

import re
import secrets
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from .. import errors
from ..llm import LLM
from ..replies import Reply, Stream
from ..session import SessionStream
from ._output import note, styled
from .commands import Leave, complete, parse_command, run_command
from .display import make_display
from .lines import Interrupted, make_reader, unquoted
from .screen import safe, wrap


class Chat:
    """options: sampling options that apply to every answer. system: the system message or None."""

    def __init__(self, llm: LLM, options: dict[str, Any], system: str | None) -> None:
        llm.template        # noqa: B018  # a model without a chat template says so before the user has typed
        self.llm, self.options = llm, options
        self.session = llm.session()
        self.session.system = system
        self.attachments: list[tuple[str, str]] = []        # (name, text) of files that go with the next message
        self.last: Reply | None = None
        self.seed = 0                   # of the last answer
        self._tries = 0                 # how often the last message was answered again
        self._draft = ""                # a message that could not be sent: the next line begins with it
        self._counted: tuple[list[dict[str, Any]] | None, int] = (None, 0)      # messages and their tokens
        self._stream: Stream | None = None      # the answer that is being written
        self._pressed = False           # Ctrl-C, since the message was sent
        self._reader = make_reader(self._toolbar, complete)

    def run(self) -> int:
        """Until the user leaves: exit code."""
        self._greet()
        armed = False                   # the last thing was a Ctrl-C: another one leaves
        while True:
            draft, self._draft = self._draft, ""
            try:
                text = self._reader.read(draft)
            except EOFError:
                return 0
            except Interrupted as e:
                if armed and not e.text:
                    return 130
                armed = True
                self.say("Ctrl-C again or Ctrl-D leaves")
                continue
            armed = False
            try:
                with self._interruptible():
                    self._take(text)
            except Leave:
                return 0
            except errors.Error as e:
                self._explain(e)
            print(flush=True)

    def say(self, text: str) -> None:
        """Text that is not the model's."""
        for line in wrap(safe(text), shutil.get_terminal_size().columns - 1):
            print(styled(line, "dim"), flush=True)

    def regenerate(self) -> None:
        """Answers the last message again, differently also with a fixed seed."""
        stream = self.session.regenerate(**self._next_options(self._tries + 1))
        self._tries += 1
        self._answer(stream)

    @property
    def used(self) -> int:
        """Tokens that the conversation takes of the context."""
        messages = self.session.messages
        if messages is not self._counted[0]:
            try:
                self._counted = messages, self.session.n_tokens
            except errors.Error:        # a template that does not take a system message alone
                self._counted = messages, 0
        return self._counted[1]

    def gauge(self) -> str:
        return f"{self.used:,} of {self.llm.ctx:,} tokens ({self.used / self.llm.ctx:.0%})"

    # ---- inside ----

    def _greet(self) -> None:
        self.say(f"{Path(self.llm.path).stem} · /help lists commands, Ctrl-D leaves")
        if not (find_spec("rich") and find_spec("prompt_toolkit")):
            note("pip install 'pyllm[chat]' brings line editing, completion and Markdown")
        self.say("")

    def _toolbar(self) -> str:
        parts = [self.gauge()]
        if self.last is not None:
            parts.append(f"{self.last.timings.predicted_per_s:.0f} tokens/s")
        return " · ".join([*parts, *(f"+ {safe(name)}" for name, _ in self.attachments)])

    def _take(self, text: str) -> None:
        """A command or a message."""
        if (command := parse_command(text)) is not None:
            run_command(self, *command)
            return
        message = unquoted(text)
        if not message.strip():
            return
        self._draft = text              # until it is answered
        stream = self.session.stream(with_files(message, self.attachments), **self._next_options(0))
        self._answer(stream)
        if stream.reply.tokens:
            self._draft, self._tries = "", 0
            self.attachments.clear()

    def _next_options(self, tries: int) -> dict[str, Any]:
        self.seed = self.options.get("seed", secrets.randbits(32))
        return {**self.options, "seed": self.seed, "choice": tries}

    def _answer(self, stream: SessionStream) -> None:
        display = make_display(sys.stdout)
        self._stream = stream
        if self._pressed:
            stream.cancel()
        try:
            with silent_keys():
                for chunk in stream:
                    display.feed(chunk)
        finally:
            self._stream = None
            display.finish()
        self.last = stream.reply
        if self.last.finish_reason == "cancelled":
            self.say("(stopped)")
        elif self.last.finish_reason == "length" and len(self.last.tokens) == self.options.get("max_tokens"):
            self.say("(cut off: this was the longest answer, see /set max_tokens)")
        elif self.last.finish_reason == "length":
            self.say("(cut off: the context is full; /undo or /clear makes room, --ctx N starts with more)")

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Inside, Ctrl-C ends the answer, which keeps what was said; a second one raises KeyboardInterrupt."""
        self._pressed = False

        def press(signum: int, frame: FrameType | None) -> None:
            if self._pressed:
                raise KeyboardInterrupt
            self._pressed = True
            if self._stream is not None:
                self._stream.cancel()

        before = signal.signal(signal.SIGINT, press)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _explain(self, error: errors.Error) -> None:
        hint = "/undo or /clear makes room, --ctx N starts with more" if isinstance(error, errors.ContextOverflow) else error.hint
        note(f"{styled('error:', 'red', sys.stderr)} {safe(error.message)}" + (f"\nhint: {safe(hint)}" if hint else ""))


def with_files(message: str, files: list[tuple[str, str]]) -> str:
    """The message, then each file in a fence that is longer than any in it."""
    parts = [message]
    for name, text in files:
        fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
        parts.append(f"{name}:\n{fence}\n{text.rstrip()}\n{fence}")
    return "\n\n".join(parts)


@contextmanager
def silent_keys() -> Iterator[None]:
    """Inside, the terminal does not echo keys into the answer; what is typed meanwhile is in the next line."""
    if find_spec("termios") is None or not sys.stdin.isatty():
        yield
        return
    import termios

    before = termios.tcgetattr(sys.stdin)
    try:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, [*before[:3], before[3] & ~termios.ECHO, *before[4:]])
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
