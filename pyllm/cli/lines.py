"""Reading a message from the terminal: over several lines, with a history, and with completion where prompt_toolkit is installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..catalogue import cache_dir

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completion
    from prompt_toolkit.document import Document
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.key_binding.key_processor import KeyPressEvent

PROMPT, MORE = ">>> ", "... "
QUOTES = '"""'


class Reader(Protocol):
    def read(self, draft: str) -> str:
        """The next message, draft being the line to begin with. Raises EOFError (Ctrl-D) and Interrupted (Ctrl-C)."""


class Interrupted(Exception):
    """Ctrl-C; text is what was typed so far."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


def is_open(text: str) -> bool:
    """Whether a message goes on in the next line: triple quotes at its beginning are not closed at its end."""
    text = text.strip()
    return text.startswith(QUOTES) and not (text.endswith(QUOTES) and len(text) >= 2 * len(QUOTES))


def unquoted(text: str) -> str:
    """The message without the triple quotes around it."""
    text = text.strip()
    return text[3:-3].strip("\n") if text.startswith(QUOTES) and not is_open(text) else text


class PlainReader:
    """input(), with the line editing and the history of readline where Python has it."""

    def __init__(self) -> None:
        if find_spec("readline") is not None:
            import readline  # noqa: F401  # importing it is what gives input() its line editing

    def read(self, draft: str) -> str:
        text = ""
        try:
            while True:
                text += input(MORE if text else PROMPT)
                if text.endswith("\\") and not is_open(text):
                    text = text[:-1] + "\n"
                elif is_open(text):
                    text += "\n"
                else:
                    return text
        except (KeyboardInterrupt, EOFError) as e:
            print()                     # the cursor is still in the line that was left
            raise (Interrupted(text) if isinstance(e, KeyboardInterrupt) else e) from None


class PromptReader:
    """prompt_toolkit. toolbar() is the text below the line; complete(text) gives (completion, number of characters it replaces, help)."""

    def __init__(self, toolbar: Callable[[], str], complete: Callable[[str], Iterator[tuple[str, int, str]]]) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.styles import Style

        self._session: PromptSession[str] = PromptSession(
            history=_history(), multiline=True, key_bindings=_keys(), completer=_completer(complete), complete_while_typing=False,
            bottom_toolbar=toolbar, prompt_continuation=lambda columns, line, wrapped: "" if wrapped else MORE,
            style=Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack"}))

    def read(self, draft: str) -> str:
        try:
            return self._session.prompt(PROMPT, default=draft)
        except KeyboardInterrupt:
            raise Interrupted(self._session.default_buffer.text) from None


def _history() -> Any:
    """Earlier messages, in a file that only its owner can read; in memory where the cache folder cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = cache_dir() / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
        path.chmod(0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def _keys() -> KeyBindings:
    """Enter sends, unless the message is open or ends in a backslash; Alt-Enter starts a new line."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_open(buffer.text):
            buffer.insert_text("\n")
        elif buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _completer(complete: Callable[[str], Iterator[tuple[str, int, str]]]) -> Any:
    from prompt_toolkit.completion import Completer, Completion

    class Commands(Completer):
        def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
            for text, replaced, about in complete(document.text_before_cursor):
                yield Completion(text, -replaced, display_meta=about)

    return Commands()


def paths(begun: str) -> Iterator[tuple[str, int, str]]:
    """Completions of a path that has been begun."""
    folder, _, name = begun.rpartition("/")
    try:
        entries = sorted(os.scandir(os.path.expanduser(folder + "/") if "/" in begun else "."), key=lambda e: e.name)
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith(name) and (name or not entry.name.startswith(".")):
            yield entry.name + ("/" if Path(entry).is_dir() else ""), len(name), ""


def make_reader(toolbar: Callable[[], str], complete: Callable[[str], Iterator[tuple[str, int, str]]]) -> Reader:
    """prompt_toolkit where it is installed and the terminal can do more than print."""
    able = find_spec("prompt_toolkit") is not None and os.environ.get("TERM", "dumb") != "dumb"
    return PromptReader(toolbar, complete) if able else PlainReader()
