"""What a line that begins with / does in a conversation."""

from __future__ import annotations

import os
import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING

from .. import errors
from ..sampling import Options
from ..session import is_saved
from ._output import count, size
from .lines import paths
from .run import SAMPLING, number, summary

if TYPE_CHECKING:
    from .chat import Chat

MAX_FILE = 16 << 20     # bytes of a file for /read: more than any context holds
# name of a setting -> (name in the API, converter that checks the range)
SETTINGS = {option.replace("-", "_"): (name, number(kind, low, high)) for option, (name, _, kind, low, high, _) in SAMPLING.items()}


@dataclass(frozen=True)
class Command:
    argument: str
    about: str
    run: Callable[[Chat, str], None]


class Leave(Exception):
    """The conversation is over."""


def parse_command(text: str) -> tuple[str, str] | None:
    """(name, argument) of a command; None for a message. A path such as /usr/bin is a message, and so is what begins with a space."""
    match = re.match(r"/([A-Za-z]+|\?)(\s+|$)", text)
    return (match[1].lower(), text[match.end():].strip()) if match else None


def run_command(chat: Chat, name: str, argument: str) -> None:
    """Raises ArgumentError for a name that does not exist, Leave when the conversation is over."""
    command = COMMANDS.get(ALIASES.get(name, name))
    if command is None:
        near = get_close_matches(name, COMMANDS, 1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists the commands; a space before the / sends the line as it is"
        raise errors.ArgumentError(f"there is no command /{name}\nhint: {hint}")
    if argument and not command.argument:
        raise errors.ArgumentError(f"/{name} takes nothing\nhint: put a space before the / to send the line as it is")
    command.run(chat, argument)


def complete(text: str) -> Iterator[tuple[str, int, str]]:
    """(completion, characters that it replaces, help) of a line: commands, settings, paths."""
    name, space, argument = text.partition(" ")
    if not name.startswith("/"):
        return
    if not space:
        for command, c in COMMANDS.items():
            if command.startswith(name[1:]):
                yield f"/{command}" + " " * bool(c.argument), len(name), c.about
    elif name == "/set" and " " not in argument:
        yield from ((s + " ", len(argument), "") for s in SETTINGS if s.startswith(argument))
    elif name in ("/read", "/save", "/load"):
        yield from paths(argument)


# ---- the commands ----


def _help(chat: Chat, argument: str) -> None:
    left = {f"/{name} {c.argument}".rstrip(): c.about for name, c in COMMANDS.items()}
    left |= {'"""': "begins and ends a message of several lines", "Alt-Enter, \\ at the end": "the message goes on in the next line",
             "Ctrl-C": "stops the answer", "Ctrl-D": "leaves"}
    for what, about in left.items():
        chat.say(f"  {what:<24} {about}")


def _clear(chat: Chat, argument: str) -> None:
    chat.session.clear()
    chat.attachments.clear()
    chat.say("forgot the conversation" + (", kept the system message" if chat.session.system else ""))


def _regen(chat: Chat, argument: str) -> None:
    chat.regenerate()


def _undo(chat: Chat, argument: str) -> None:
    question = " ".join(chat.session.undo().split())
    chat.say(f"took back: {question[:60]}{'...' if len(question) > 60 else ''}")


def _set(chat: Chat, argument: str) -> None:
    name, _, value = argument.replace("=", " ").partition(" ")
    name, value = name.replace("-", "_"), value.strip()
    if not name:
        for setting in SETTINGS:
            chat.say(f"  {setting:<15} {_value(chat, setting)}")
        return
    name = next((s for s in SETTINGS if SETTINGS[s][0] == name), name)
    if name not in SETTINGS:
        near = get_close_matches(name, SETTINGS, 1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(SETTINGS)}"
        raise errors.ArgumentError(f"there is no setting {name!r}\nhint: {hint}")
    if value:
        chat.options = _changed(chat, name, value)
    chat.say(f"{name} is {_value(chat, name)}")


def _changed(chat: Chat, name: str, value: str) -> dict[str, object]:
    """The options with one setting changed, checked."""
    key, convert = SETTINGS[name]
    options = {k: v for k, v in chat.options.items() if k != key}
    if value in ("none", "default"):
        return options
    try:
        options[key] = convert(value)
    except (ValueError, ArgumentTypeError) as e:
        raise errors.ArgumentError(f"{name} cannot be {value!r}: {e}\nhint: none takes the default") from None
    return options


def _value(chat: Chat, setting: str) -> str:
    key = SETTINGS[setting][0]
    if key in chat.options:
        return str(chat.options[key])
    return {"seed": "new for each answer", "max_tokens": "to the end of the context"}.get(setting, str(getattr(Options(), key)))


def _system(chat: Chat, argument: str) -> None:
    if argument:
        chat.session.system = None if argument == "none" else argument
    text = chat.session.system
    chat.say("there is no system message" if text is None else f"system message: {text}")


def _show(chat: Chat, argument: str) -> None:
    info, session = chat.llm.info, chat.session
    rows = {"model": f"{info['name'] or info['arch']}, {count(info['n_params'])} parameters, {size(info['file_bytes'] or 0)}",
            "file": info["path"], "runs on": f"{info['level']}, {info['threads']} threads, KV cache {info['kv']}",
            "context": chat.gauge(), "messages": str(len(session.messages)), "system": session.system or "none",
            "settings": ", ".join(f"{s} {_value(chat, s)}" for s in SETTINGS)}
    for what, text in rows.items():
        chat.say(f"  {what:<9} {text}")


def _read(chat: Chat, argument: str) -> None:
    if not argument:
        chat.attachments.clear()
        chat.say("no file goes with your next message")
        return
    path = os.path.expanduser(argument)
    text = _text_of(path, argument)
    n = len(chat.llm.tokenize(text, add_special=False))
    waiting = sum(len(chat.llm.tokenize(t, add_special=False)) for _, t in chat.attachments)
    room = max(chat.llm.ctx - chat.used - waiting, 0)
    if n >= room:
        raise errors.ArgumentError(f"{argument} has {n:,} tokens, the context has room for {room:,}\n"
                                   "hint: /clear makes room, --ctx N starts with more")
    name = os.path.basename(path)
    chat.attachments.append((name, text))
    chat.say(f"{name}: {n:,} tokens go with your next message")


def _text_of(path: str, argument: str) -> str:
    try:
        if not os.path.isfile(path) and os.path.exists(path):
            raise errors.FileError(f"{argument} is not a file")
        with open(path, "rb") as f:
            data = f.read(MAX_FILE + 1)
    except OSError as e:
        if isinstance(e, errors.Error):
            raise
        raise errors.FileError(f"{argument}: {e.strerror}") from e
    if len(data) > MAX_FILE:
        raise errors.ArgumentError(f"{argument} has more than {size(MAX_FILE)}\nhint: read a part of it")
    if b"\0" in data:
        raise errors.ArgumentError(f"{argument} is not a text")
    return data.decode("utf-8", "replace").removeprefix("\ufeff")


def _save(chat: Chat, argument: str) -> None:
    path = os.path.expanduser(argument)
    if not argument:
        raise errors.ArgumentError("/save takes the name of a file")
    if os.path.exists(path) and not is_saved(path):
        raise errors.FileError(f"{argument} exists and is not a saved conversation\nhint: choose another name")
    chat.session.save(path)
    chat.say(f"saved {size(os.path.getsize(path))}; /load goes on from here, also another day")


def _load(chat: Chat, argument: str) -> None:
    if not argument:
        raise errors.ArgumentError("/load takes the name of a file")
    chat.session.load(os.path.expanduser(argument))
    chat.say(f"goes on with {len(chat.session.messages)} messages, {chat.gauge()}")


def _stats(chat: Chat, argument: str) -> None:
    if chat.last is None:
        raise errors.ArgumentError("there is no answer yet")
    reply, usage, t = chat.last, chat.last.usage, chat.last.timings
    chat.say(f"  answer    {summary(reply, chat.seed)}")
    chat.say(f"  prompt    {usage.prompt_tokens} tokens, {usage.cached_tokens} of them from the cache, {t.prompt_per_s:.0f} tokens/s")
    chat.say(f"  times     {t.queue_s + t.prompt_s:.2f} s to the first token, {t.predicted_s:.2f} s for the others")
    chat.say(f"  context   {chat.gauge()}")


def _exit(chat: Chat, argument: str) -> None:
    raise Leave


ALIASES = {"quit": "exit", "bye": "exit", "?": "help"}
COMMANDS = {
    "help": Command("", "this list", _help),
    "clear": Command("", "forget the conversation, but not the system message", _clear),
    "regen": Command("", "answer the last message again", _regen),
    "undo": Command("", "take the last message and its answer back", _undo),
    "set": Command("[NAME VALUE]", "show or change settings: temp, seed, max_tokens, ...", _set),
    "system": Command("[TEXT]", "show or change the system message; none removes it", _system),
    "show": Command("", "model, settings and context", _show),
    "read": Command("[FILE]", "add a file's text to your next message; without FILE: none", _read),
    "save": Command("FILE", "save the conversation", _save),
    "load": Command("FILE", "go on with a saved conversation", _load),
    "stats": Command("", "speed and size of the last answer", _stats),
    "exit": Command("", "leave", _exit),
}
