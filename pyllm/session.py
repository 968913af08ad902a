"""A conversation: messages that grow turn by turn, and what the KV cache holds of them as a file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import reprlib
import struct
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import errors
from .dialogue import ask
from .gguf import file_path
from .replies import Reply, Stream

if TYPE_CHECKING:
    from .generation import Generation
    from .llm import LLM

_MAGIC = b"PYLLMCHAT1\n"


class Session:
    """messages is the conversation so far; chat and stream add a turn of the user and the answer. Only what is new in a turn is computed,
    as long as the model's prefix cache has the rest. One thread at a time; every call first ends an answer that is still being written."""

    def __init__(self, llm: LLM, messages: Sequence[Mapping[str, Any]] = ()) -> None:
        self._llm = llm
        self._tokens, self._client = list[int](), ""        # of the last turn, as the engine was given them
        if isinstance(messages, str) or not isinstance(messages, Sequence) or not all(isinstance(m, Mapping) for m in messages):
            raise errors.ArgumentError(f"messages is {reprlib.repr(messages)}, must be a list of messages\n"
                                       'hint: [{"role": "user", "content": "..."}]')
        self._generation: Generation | None = None
        self._stream: weakref.ref[SessionStream] | None = None      # a stream keeps its session, not the other way round
        self.messages: list[dict[str, Any]] = [dict(m) for m in messages]

    def chat(self, text: str, **options: Any) -> Reply:
        """The answer to the user's next message."""
        stream = self.stream(text, **options)
        for _ in stream:
            pass
        return stream.reply

    def stream(self, text: str, **options: Any) -> SessionStream:
        """As chat, piece by piece. The turn enters `messages` when the stream ends, also with what a cancelled one has said; an answer
        that fails, or is cancelled before its first word, leaves them as they were."""
        self._end_answer()
        return self._run([*self.messages, {"role": "user", "content": text}], options)

    def regenerate(self, **options: Any) -> SessionStream:
        """Another answer to the last message of the user."""
        self._end_answer()
        return self._run(self.messages[:self._last_question() + 1], options)

    def _run(self, messages: list[dict[str, Any]], options: Mapping[str, Any]) -> SessionStream:
        self._llm._check()
        text, asked = ask(self._llm.template, messages, options)
        g = self._llm._submit(self._llm.tokenize(text, add_special=False), asked)
        stream = SessionStream(self, g, messages)
        self._generation, self._stream = g, weakref.ref(stream)
        return stream

    def _end_answer(self) -> None:
        """Stops what is still being written; returns when the engine has let go of it."""
        stream = None if self._stream is None else self._stream()
        if stream is not None:
            stream.close()
        if self._generation is not None:
            self._generation.cancel()
            self._llm._driver.wait(self._generation)
            self._tokens = self._generation.task.tokens
            self._client = self._generation.task.client
            self._generation = None

    def _last_question(self) -> int:
        """Index of the last message of the user. Raises ArgumentError if there is none."""
        for i in range(len(self.messages) - 1, -1, -1):
            if self.messages[i].get("role") == "user":
                return i
        raise errors.ArgumentError("the conversation has no message of the user")

    def undo(self) -> str:
        """Takes the last turn (question and answer) back and returns the question. Raises ArgumentError if there is none."""
        self._end_answer()
        at = self._last_question()
        question: str = self.messages[at]["content"]
        self.messages = self.messages[:at]
        return question

    def clear(self) -> None:
        """Forgets everything but a system message."""
        self._end_answer()
        self.messages = [m for m in self.messages[:1] if m.get("role") == "system"]

    @property
    def system(self) -> str | None:
        """The system message; None: there is none."""
        first = self.messages[0] if self.messages else {}
        return first["content"] if first.get("role") == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        self._end_answer()
        rest = self.messages[self.system is not None:]
        self.messages = rest if text is None else [{"role": "system", "content": text}, *rest]

    @property
    def n_tokens(self) -> int:
        """Tokens that the conversation takes of the context."""
        return len(self._llm.prompt_ids(self.messages, add_generation_prompt=False)) if self.messages else 0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Messages and KV cache to a file (temporary name, synced, renamed)."""
        self._end_answer()
        self._llm._check()
        tokens, state = self._llm._driver.call(self._snapshot)
        try:
            head = json.dumps({"messages": self.messages, "tokens": tokens}).encode()
        except (TypeError, ValueError, RecursionError) as e:
            raise errors.ArgumentError(f"these messages cannot be saved: {e}") from None
        body = struct.pack("<QQ", len(head), len(state)) + head + state
        path = file_path(path)
        temporary = f"{path}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as f:
                f.write(_MAGIC + hashlib.sha256(body).digest() + body)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, path)
        except OSError as e:
            raise errors.FileError(f"the session cannot be saved to {path}: {e.strerror}") from e
        finally:
            with contextlib.suppress(OSError):      # gone, unless the writing failed
                os.unlink(temporary)

    def _snapshot(self) -> tuple[list[int], bytes]:
        """What the cache has of the conversation: tokens and a state."""
        driver, engine = self._llm._driver, self._llm._engine
        seq = driver.open_seq()
        try:
            n = driver.cache.attach(seq, self._client, self._tokens, len(self._tokens), least=1).n
            return self._tokens[:n], engine.save(seq) if n else b""
        finally:
            engine.close_seq(seq)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes on from a saved session; a damaged or foreign file raises StateError and changes nothing."""
        self._llm._check()
        path = file_path(path)
        head, state = _read(path)
        try:
            messages, tokens = _parse_head(head)
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise errors.StateError(f"{path} is damaged: {e}\nhint: start a new conversation") from None
        self._end_answer()
        self._llm._driver.call(lambda: self._restore(tokens, state))
        self.messages, self._tokens = messages, tokens

    def _restore(self, tokens: list[int], state: bytes) -> None:
        """Puts a state into the cache."""
        driver, engine = self._llm._driver, self._llm._engine
        seq = driver.open_seq()
        try:
            if state:
                driver.make_room(min(len(tokens), self._llm.ctx))
                engine.restore(seq, state)
            if engine.length(seq) != len(tokens):
                raise errors.StateError("the saved session's tokens do not fit its cache")
            if tokens:
                driver.cache.insert(self._client, tokens, seq, len(tokens), mark=True, tail=True)
        finally:
            engine.close_seq(seq)

    def close(self) -> None:
        """Ends an answer that is still being written."""
        self._end_answer()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def is_saved(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a saved session (by its first bytes)."""
    try:
        with open(path, "rb") as f:
            return f.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def _read(path: str | os.PathLike[str]) -> tuple[bytes, bytes]:
    """(head, state) of a saved session, checked. Only files that say what they are get read as a whole."""
    try:
        with open(path, "rb") as f:
            begin = f.read(len(_MAGIC) + 48)
            if not begin.startswith(_MAGIC) or len(begin) < len(_MAGIC) + 48:
                raise errors.StateError(f"{path} is not a saved session")
            n_head, n_state = struct.unpack("<QQ", begin[-16:])
            whole = os.fstat(f.fileno()).st_size == len(begin) + n_head + n_state
            head, state = (f.read(n_head), f.read(n_state)) if whole else (b"", b"")
    except OSError as e:
        if isinstance(e, errors.Error):
            raise
        raise errors.FileError(f"{path}: {e.strerror}") from e
    if not whole or hashlib.sha256(begin[-16:] + head + state).digest() != begin[len(_MAGIC):-16]:
        raise errors.StateError(f"{path} is damaged: its checksum does not match\nhint: start a new conversation")
    return head, state


def _parse_head(head: bytes) -> tuple[list[dict[str, Any]], list[int]]:
    """(messages, tokens) of a saved session; ValueError, KeyError or TypeError for anything else."""
    saved = json.loads(head)
    messages, tokens = saved["messages"], saved["tokens"]
    if not isinstance(messages, list) or not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
        raise ValueError("its messages are no list of messages")
    if not isinstance(tokens, list) or not all(type(t) is int for t in tokens):
        raise ValueError("its tokens are no list of ids")
    return messages, tokens


class SessionStream(Stream):
    """A Stream that writes its turn into the session's messages when it ends."""

    def __init__(self, session: Session, generation: Generation, messages: list[dict[str, Any]]) -> None:
        super().__init__(generation, session)
        self._session, self._messages = session, messages
        self._open = True

    def close(self) -> None:
        super().close()
        if not self._open:
            return
        self._session._llm._driver.wait(self._generation)
        self._open = False
        reply = self._generation.reply
        if reply is None or (reply.finish_reason == "cancelled" and not reply.text and not reply.reasoning and not reply.tool_calls):
            return
        answer: dict[str, Any] = {"role": "assistant", "content": reply.text}
        if reply.reasoning:
            answer["reasoning"] = reply.reasoning
        if reply.tool_calls:
            answer["tool_calls"] = [call.to_openai() for call in reply.tool_calls]
        self._session.messages = [*self._messages, answer]

    def __del__(self) -> None:
        self._generation.cancel()       # nobody has read it to an end: there is no turn to keep
