"""Tapes for hosts without Python: the text of a tape, and in comment lines what plain chats have around their messages.

A host has no Jinja. What a chat template puts before, between and after messages is found by rendering chats whose messages can be told
from the rest, and holds if chats of one to three turns, with and without a system message, come out as the template writes them.
docs/tape.md has the lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from .errors import Error
from .gguf import GGUF

Render = Callable[[Sequence[Mapping[str, str]]], str]
SYSTEM, QUESTIONS, ANSWERS = "Zqsystemzq.", ("Zqfirstzq?", "Zqsecondzq?", "Zqthirdzq?"), ("Zqonezq.", "Zqtwozq.")


def saved_tape(gguf: GGUF, ctx: int | None = None) -> str:
    """The tape of a file with the lines of its chat template, or with one that says why there are none."""
    from .build import tape_text

    first, rest = tape_text(gguf, ctx).split("\n", 1)
    try:
        lines = [f"# chat {name} {_escaped(text)}".rstrip() for name, text in chat_pieces(_renderer(gguf)).items()]
    except Error as e:
        lines = [f"# no chat: {_escaped(str(e).splitlines()[0])}"]
    return "\n".join([first, *lines, rest])


def chat_pieces(render: Render) -> dict[str, str]:
    """Texts by name: start, before the first question; system and system_end, around a system message; reply, after the last question;
    answer and answer_end, around answers that are over. Raises Error if a template's chats are not made of these."""
    chat = [_message("user", QUESTIONS[0]), _message("assistant", ANSWERS[0]), _message("user", QUESTIONS[1])]
    start, answer, answer_end, reply = _around(render(chat), [m["content"] for m in chat])
    pieces = {"start": start, "answer": answer, "answer_end": answer_end, "reply": reply}
    try:
        system, system_end, _ = _around(render([_message("system", SYSTEM), chat[0]]), [SYSTEM, QUESTIONS[0]])
        pieces |= {"system": system, "system_end": system_end}
    except Error:
        pass  # templates may refuse system messages
    for messages in _samples("system" in pieces):
        if render(messages) != prompt(pieces, messages):
            raise Error(f"the chat template does more than to put texts around messages: it differs for {len(messages)} messages")
    return pieces


def prompt(pieces: Mapping[str, str], messages: Sequence[Mapping[str, str]]) -> str:
    """What a host makes of the pieces."""
    text, before = "", pieces["start"]
    for message in messages:
        if message["role"] == "system":
            text, before = pieces["system"] + message["content"], pieces["system_end"]
        elif message["role"] == "user":
            text, before = text + before + message["content"], ""
        else:
            text, before = text + pieces["answer"] + message["content"], pieces["answer_end"]
    return text + pieces["reply"]


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _samples(with_system: bool) -> list[list[dict[str, str]]]:
    """Chats of one to three turns; contents that templates may trip over."""
    contents = ["Hi", "Yes: {{ x }} 'q' \"r\"\nand more", "Où?", "1 + 1 = 2", "<b>x</b>"]
    roles = ["user", "assistant"]
    plain = [[_message(roles[i % 2], contents[i]) for i in range(n)] for n in (1, 3, 5)]
    return plain + ([[_message("system", "Be brief."), *chat] for chat in plain] if with_system else [])


def _around(text: str, contents: Sequence[str]) -> list[str]:
    """The parts of text that contents leave, one more than there are of them."""
    parts = []
    for content in contents:
        part, found, text = text.partition(content)
        if not found or content in text:
            raise Error("the chat template leaves a message out, repeats or changes it")
        parts.append(part)
    return [*parts, text]


def _renderer(gguf: GGUF) -> Render:
    from .chat import ChatTemplate
    from .tokenizer import Tokenizer

    source = gguf.kv.get("tokenizer.chat_template")
    if not isinstance(source, str) or not source:
        raise Error("the file has no chat template")
    tokenizer = Tokenizer(gguf)
    template = ChatTemplate(source, *(tokenizer.token_text(t) if t is not None else "" for t in (tokenizer.bos, tokenizer.eos)))
    return lambda messages: template.render(messages)


def _escaped(text: str) -> str:
    r"""On one line, in ASCII: \\ for a backslash, \n, and \xNN for other bytes that are not printable and for a space at the end."""

    def one(byte: int) -> str:
        return {92: "\\\\", 10: "\\n"}.get(byte) or (chr(byte) if 32 <= byte < 127 else f"\\x{byte:02x}")

    out = "".join(map(one, text.encode()))
    return out[:-1] + "\\x20" if out.endswith(" ") else out
