"""What generating calls return: frozen, typed values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from . import errors

if TYPE_CHECKING:
    from .generation import Generation

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Usage:
    """Token counts. cached_tokens of the prompt were already in the KV cache. drafted_tokens: guesses
    that were checked while the completion was written; accepted_tokens of them were right."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class Timings:
    """Seconds: waiting for a place, from the prompt's first step to the first token, from there to the last token."""

    queue_s: float
    prompt_s: float
    predicted_s: float
    prompt_per_s: float
    predicted_per_s: float

    @property
    def ttft_s(self) -> float:
        """From the call to the first token."""
        return self.queue_s + self.prompt_s


@dataclass(frozen=True)
class Logprob:
    """One chosen token: natural logarithm of its probability, and the most likely alternatives, best first."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class ToolCall:
    """A function that the model asks to be called. arguments: by name; text: the same as JSON, as the model wrote it; id: what the message
    with the result names."""

    id: str
    name: str
    arguments: dict[str, Any]
    text: str

    def to_openai(self) -> dict[str, Any]:
        """As OpenAI's API writes it."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.text}}


@dataclass(frozen=True)
class ToolDelta:
    """A piece of a call in a stream. The first one of call `index` has id and name, the others go on with the JSON of its arguments. A call
    that is broken off, or whose JSON has a mistake, is not among the reply's tool_calls in the end."""

    index: int
    id: str | None = None
    name: str | None = None
    arguments: str = ""


@dataclass(frozen=True)
class Chunk:
    """A piece of a streamed reply. reasoning is text inside the model's thinking marks; logprobs, if asked for, are those of the tokens
    since the piece before, which may show no text."""

    text: str = ""
    reasoning: str = ""
    logprobs: tuple[Logprob, ...] = field(default=(), repr=False)
    tool_calls: tuple[ToolDelta, ...] = ()

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Reply:
    """A finished reply. tokens holds every generated id, an ending token included; text does not show that one."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: FinishReason
    usage: Usage
    timings: Timings
    reasoning: str | None = None
    logprobs: tuple[Logprob, ...] = field(default=(), repr=False)
    schema: Any = field(default=None, repr=False, compare=False)
    tool_calls: tuple[ToolCall, ...] = ()

    @property
    def message(self) -> dict[str, Any]:
        """The reply as a message of the conversation."""
        return {"role": "assistant", "content": self.text, **({"reasoning_content": self.reasoning} if self.reasoning else {}),
                **({"tool_calls": [c.to_openai() for c in self.tool_calls]} if self.tool_calls else {})}

    @cached_property
    def parsed(self) -> Any:
        """The value of a reply that was asked for with a schema: in the type that was given as the schema, else as JSON has it. None
        without a schema and for a reply that was cut off. Raises ValueError where a type's own rules, which no schema expresses, refuse
        it."""
        if self.schema is None or self.finish_reason != "stop":
            return None
        from .schemas import parse

        return parse(self.schema, self.text)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Plan:
    """Bytes that loading a model takes."""

    weights: int
    kv: int
    activations: int
    ctx: int

    @property
    def total(self) -> int:
        return self.weights + self.kv + self.activations


class Stream:
    """Iterates over the Chunks of a reply; `reply` holds the whole once the iteration is over.

    Leaving early (break, close(), a context manager's end, garbage collection) cancels the request. Works with `for` and with
    `async for`; use one of them.
    """

    def __init__(self, generation: Generation, owner: object) -> None:
        self._generation, self._owner = generation, owner       # the model lives as long as its stream

    def __iter__(self) -> Iterator[Chunk]:
        try:
            yield from self._generation
        finally:
            self.close()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        try:
            async for chunk in self._generation.chunks_async():
                yield chunk
        finally:
            self.close()

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self._generation.n_prompt

    @property
    def reply(self) -> Reply:
        """The finished reply; ArgumentError while chunks are still to come."""
        if self._generation.reply is None:
            raise errors.ArgumentError("the stream has not ended\nhint: iterate to the end first")
        return self._generation.reply

    def cancel(self) -> None:
        """From any thread or a signal handler: the iteration ends soon, with what has been said until then."""
        self._generation.cancel()

    def close(self) -> None:
        self.cancel()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
