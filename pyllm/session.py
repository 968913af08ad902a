"""A conversation that keeps its KV cache: only the new turn is computed."""

from __future__ import annotations

import hashlib
import json
import os
import reprlib
import struct
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import errors
from .gguf import file_path
from .replies import Reply, Stream
from .sampling import Options

if TYPE_CHECKING:
    from .engine import Engine
    from .generation import Generation
    from .llm import LLM

_MAGIC = b"PYLLMCHAT1\n"


class Slot:
    """A sequence of the engine and the tokens that it holds; only the engine's thread touches them while a request runs."""

    def __init__(self) -> None:
        self.seq: int | None = None
        self.tokens: list[int] = []
        self.generation: Generation | None = None
        self.used = time.monotonic()

    @property
    def idle(self) -> bool:
        """Holds a sequence that no request is using."""
        g = self.generation
        return self.seq is not None if g is None else g.released.is_set() and g.task.seq is not None

    def settle(self) -> None:
        """Takes over what the last request left in the cache."""
        g = self.generation
        if g is not None and g.released.is_set():
            self.seq, self.tokens, self.generation = g.task.seq, g.task.tokens[:g.task.done], None
        self.used = time.monotonic()

    def resume(self, engine: Engine, ids: Sequence[int]) -> tuple[int | None, int]:
        """(sequence, tokens of ids that it holds): cuts the cache to the common beginning; the last token always runs again."""
        self.settle()
        if self.seq is None:
            return None, 0
        n = 0
        while n < min(len(ids) - 1, len(self.tokens)) and ids[n] == self.tokens[n]:
            n += 1
        if not engine.truncate(self.seq, n):
            n = 0
            engine.truncate(self.seq, 0)
        return self.seq, n

    def drop(self, engine: Engine) -> None:
        self.settle()
        if self.seq is not None:
            engine.close_seq(self.seq)
        self.seq, self.tokens = None, []


class Session:
    """messages is the conversation so far; chat and stream add a turn of the user and the answer. One thread at a time."""

    def __init__(self, llm: LLM, messages: Sequence[Mapping[str, Any]] = ()) -> None:
        self._llm, self._slot = llm, Slot()
        if isinstance(messages, str) or not isinstance(messages, Sequence) or not all(isinstance(m, Mapping) for m in messages):
            raise errors.ArgumentError(f"messages is {reprlib.repr(messages)}, must be a list of messages\n"
                                       'hint: [{"role": "user", "content": "..."}]')
        self.messages: list[dict[str, Any]] = [dict(m) for m in messages]
        llm._slots.add(self._slot)

    def chat(self, text: str, **options: Any) -> Reply:
        """The answer to the user's next message."""
        stream = self.stream(text, **options)
        for _ in stream:
            pass
        return stream.reply

    def stream(self, text: str, **options: Any) -> SessionStream:
        """As chat, piece by piece. The turn enters `messages` when the stream ends, also with what a cancelled one has said."""
        return self._run([*self.messages, {"role": "user", "content": text}], options)

    def regenerate(self, **options: Any) -> SessionStream:
        """Another answer to the last message of the user."""
        messages = list(self.messages)
        while messages and messages[-1]["role"] != "user":
            messages.pop()
        if not messages:
            raise errors.ArgumentError("there is no message to answer again")
        return self._run(messages, options)

    def _run(self, messages: list[dict[str, Any]], options: Mapping[str, Any]) -> SessionStream:
        self._llm._check()
        if self._slot.generation is not None and not self._slot.generation.released.is_set():
            self._slot.generation.cancel()
            self._slot.generation.released.wait()
        ids = self._llm.prompt_ids(messages)
        g = self._llm._submit(ids, Options.make(options), chat=True, slot=self._slot)
        self._slot.generation = g
        return SessionStream(self, g, messages)

    def undo(self) -> None:
        """Takes the last turn (question and answer) back."""
        while self.messages and self.messages.pop()["role"] != "user":
            pass

    def clear(self) -> None:
        """Forgets everything but a system message."""
        self.messages = [m for m in self.messages[:1] if m["role"] == "system"]

    @property
    def n_tokens(self) -> int:
        """Tokens in the KV cache."""
        g = self._slot.generation
        return len(g.task.tokens) if g is not None else len(self._slot.tokens)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Messages and KV cache to a file (temporary name, synced, renamed)."""
        llm, slot = self._llm, self._slot
        llm._check()

        def snapshot() -> tuple[list[int], bytes]:
            slot.settle()
            return slot.tokens, b"" if slot.seq is None else llm._engine.save(slot.seq)

        if slot.generation is not None:
            slot.generation.released.wait()
        tokens, state = llm._driver.call(snapshot)
        try:
            head = json.dumps({"messages": self.messages, "tokens": tokens}).encode()
        except (TypeError, ValueError, RecursionError) as e:
            raise errors.ArgumentError(f"these messages cannot be saved: {e}") from None
        path = file_path(path)
        temporary = f"{path}.{os.getpid()}.tmp"
        try:
            with open(temporary, "wb") as f:
                body = struct.pack("<QQ", len(head), len(state)) + head + state
                f.write(_MAGIC + hashlib.sha256(body).digest() + body)
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, path)
        except OSError as e:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise errors.FileError(f"the session cannot be saved to {path}: {e.strerror}") from e

    def load(self, path: str | os.PathLike[str]) -> None:
        """Goes on from a saved session; a damaged or foreign file raises StateError and changes nothing."""
        self._llm._check()
        path = file_path(path)
        try:
            with open(path, "rb") as f:
                data = f.read()
        except OSError as e:
            raise errors.FileError(f"{path}: {e.strerror}") from e
        start = len(_MAGIC) + 32
        begin = start + 16
        if not data.startswith(_MAGIC) or len(data) < begin:
            raise errors.StateError(f"{path} is not a saved session")
        head, state = struct.unpack_from("<QQ", data, start)
        if hashlib.sha256(data[start:]).digest() != data[len(_MAGIC):start] or len(data) != begin + head + state:
            raise errors.StateError(f"{path} is damaged: its checksum does not match\nhint: start a new conversation")
        try:
            messages, tokens = _parse_head(data[begin:begin + head])
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise errors.StateError(f"{path} is damaged: {e}\nhint: start a new conversation") from None
        self._llm._driver.call(lambda: self._restore(tokens, data[begin + head:]))
        self.messages = messages

    def _restore(self, tokens: list[int], state: bytes) -> None:
        llm, slot = self._llm, self._slot
        seq = llm._open_seq()
        try:
            if state:
                llm._engine.restore(seq, state)
            if llm._engine.length(seq) != len(tokens):
                raise errors.StateError("the saved session's tokens do not fit its cache")
        except errors.Error:
            llm._engine.close_seq(seq)
            raise
        slot.drop(llm._engine)
        slot.seq, slot.tokens = seq, tokens

    def close(self) -> None:
        """Gives the KV cache back."""
        slot, llm = self._slot, self._llm
        if llm._driver.forked:
            return
        if slot.generation is not None:
            slot.generation.cancel()
            slot.generation.released.wait()
        if not llm._closed:
            llm._driver.call(lambda: slot.drop(llm._engine))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _parse_head(head: bytes) -> tuple[list[dict[str, Any]], list[int]]:
    """(messages, tokens) of a saved session; ValueError, KeyError or TypeError for anything else."""
    saved = json.loads(head)
    messages, tokens = saved["messages"], saved["tokens"]
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ValueError("its messages are no list of messages")
    if not isinstance(tokens, list) or not all(type(t) is int for t in tokens):
        raise ValueError("its tokens are no list of ids")
    return messages, tokens


class SessionStream(Stream):
    """A Stream that writes its turn into the session's messages when it ends."""

    def __init__(self, session: Session, generation: Generation, messages: list[dict[str, Any]]) -> None:
        super().__init__(generation, session)
        self._session, self._messages = session, messages

    def close(self) -> None:
        super().close()
        g, messages = self._generation, self._messages
        if messages is None:
            return
        self._messages = None  # type: ignore[assignment]
        if self._session._llm._driver.forked:
            return
        g.released.wait(10)
        said = g.reply.text if g.reply is not None else ""
        self._session.messages = [*messages, {"role": "assistant", "content": said}]
