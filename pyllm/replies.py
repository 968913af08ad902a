"""What generating calls return: frozen, typed values."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from . import errors

if TYPE_CHECKING:
    from .generation import Generation

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True)
class Usage:
    """Token counts. cached_tokens of the prompt were already in the KV cache."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

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
class Chunk:
    """A piece of a streamed reply. reasoning is text inside the model's thinking marks; logprobs, if asked for, are those of the tokens
    since the piece before, which may show no text."""

    text: str = ""
    reasoning: str = ""
    logprobs: tuple[Logprob, ...] = field(default=(), repr=False)

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
