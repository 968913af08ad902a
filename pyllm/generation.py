"""One request on its way through the engine: sampling, text, stop strings, and delivery to the thread or task that waits for it."""

from __future__ import annotations

import os
import queue
import reprlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from . import errors
from .engine import Choice
from .replies import Chunk, FinishReason, Logprob, Reply, Timings, ToolDelta, Usage
from .sampling import Options, Sampler
from .scheduler import Task
from .speculation import Mode, Speculation
from .tokenizer import StreamDecoder, Tokenizer

if TYPE_CHECKING:
    from .dialogue import Reading
    from .sampling import LogitsProcessor


class StopFilter:
    """Passes text through until one of the stop strings appears; holds back what may be the beginning of one."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops, self._held = stops, ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """Text that is safe to show. After a stop string nothing more comes."""
        if not self._stops or self.stopped:
            return "" if self.stopped else text
        self._held += text
        found = [at for at in (self._held.find(s) for s in self._stops) if at >= 0]
        if found:
            self.stopped = True
            out, self._held = self._held[:min(found)], ""
            return out
        keep = max((n for s in self._stops for n in range(1, min(len(s), len(self._held) + 1)) if self._held.endswith(s[:n])), default=0)
        out, self._held = self._held[:len(self._held) - keep], self._held[len(self._held) - keep:]
        return out

    def finish(self) -> str:
        out, self._held = self._held, ""
        return "" if self.stopped else out


class Generation:
    """Driver side: `choice` and `take` per step, `fail`. Consumer side: iteration, `cancel`, `reply`."""

    def __init__(self, prompt: list[int], options: Options, tokenizer: Tokenizer, sampler: Sampler, ctx: int,
                 on_cancel: Callable[[Generation], None], *, reading: Reading, mode: Mode,
                 on_end: Callable[[], None] | None = None) -> None:
        limit = ctx - len(prompt)
        self._limit = limit if options.max_tokens is None else min(limit, options.max_tokens)
        self.task = Task(list(prompt), len(prompt) + self._limit, options.priority, options.client)
        self.task.depth, self.speculation = mode.most, Speculation(mode)
        self.n_prompt, self.cached = len(prompt), 0
        self.cancelled = self.ended = False
        self.released = threading.Event()       # the engine holds nothing of it any more
        self.reply: Reply | None = None
        self._options, self._tokenizer, self._sampler, self._on_cancel, self._on_end = options, tokenizer, sampler, on_cancel, on_end
        self._decoder, self._stop = StreamDecoder(tokenizer, reading.shown), StopFilter(options.stops)
        self._splitter, self._constraint, self._tools = reading.splitter, reading.constraint, reading.tools
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._logprobs: list[Logprob] = []
        self._n_told = 0                # of them are in chunks
        self._events: queue.SimpleQueue[Chunk | BaseException | None] = queue.SimpleQueue()
        self._wake: Callable[[], None] | None = None
        self.started, self._pid = time.perf_counter(), os.getpid()
        self._begun = self._first = 0.0
        sampler.accept(prompt)

    # ---- driver side ----

    def admit(self, cached: int) -> None:
        """It has a place, with so many tokens of the prompt in it, for the first time or again."""
        if not self._begun:
            self.cached = cached

    def begin(self) -> bool:
        """Its next step is about to run; whether that is the first."""
        first = not self._begun
        self._begun = self._begun or time.perf_counter()
        return first

    def choice(self, row: int, drafts: Sequence[int], logits_row: Callable[[int], Any]) -> Choice:
        """How the next token is chosen from a row of the engine's logits, and those behind it. With a form to follow or a logits processor
        the next one only: what may come after that depends on it."""
        at = len(self.task.tokens)
        if self._options.logits_processor is not None:
            return Choice(self._sampler, self._processed(self._options.logits_processor, logits_row(row)), at, mask=self._mask())
        if self._constraint is not None:
            return Choice(self._sampler, row, at, mask=self._mask())
        return Choice(self._sampler, row, at, drafts)

    def guess(self, row: int, ahead: int) -> Choice:
        """How a draft model, of whose logits this is a row, guesses the token that comes after `ahead` others."""
        return Choice(self._sampler, row, len(self.task.tokens) + ahead, guess=True)

    def forced(self) -> list[int]:
        """Tokens that the form leaves no choice about, as far as texts are cut into tokens the usual way."""
        return [] if self._constraint is None else self._constraint.forced()

    def lookup(self, most: int) -> tuple[list[int], int]:
        """(guesses from the text so far, tokens that they are founded on)."""
        return self._sampler.lookup(most)

    def rewind(self, n: int) -> None:
        """The last n choices were guesses."""
        if n:
            self._sampler.rewind(n)

    def _mask(self) -> bytes | None:
        left = self._limit - (len(self.task.tokens) - self.n_prompt)
        return None if self._constraint is None else self._constraint.mask(left)

    def take(self, choice: Choice) -> None:
        """The tokens that were chosen; ends the request where it has to end. Raises the choice's error."""
        for i, token in enumerate(choice.tokens):
            self._take(token, i)
            if self.ended:
                return
        if choice.error is not None:
            raise choice.error

    def _take(self, token: int, i: int) -> None:
        """The i-th token of a choice."""
        self._first = self._first or time.perf_counter()
        self.task.tokens.append(token)
        if self._options.logprobs is not None:
            value, top = self._sampler.logprob(i)
            self._logprobs.append(Logprob(token, value, top))
        if self._tokenizer.is_end(token):
            self._finish("stop")
            return
        if self._constraint is not None:
            self._constraint.accept(token)
        self._show(self._stop.feed(self._decoder.feed(token)))
        if self._stop.stopped or (self._constraint is not None and self._constraint.complete):
            self._finish("stop")
        elif len(self.task.tokens) - self.n_prompt >= self._limit:
            self._finish("length")

    def _processed(self, processor: LogitsProcessor, logits: Any) -> Any:
        import numpy as np

        mine = np.frombuffer(logits, np.float32).copy()
        shape = mine.shape
        changed = processor(tuple(self.task.tokens), mine)
        if changed is None:
            return mine
        try:
            raw = np.asarray(changed)
            if raw.dtype.kind not in "fiu":
                raise TypeError(f"values of type {raw.dtype}")
            out = np.ascontiguousarray(raw, np.float32)
        except (TypeError, ValueError) as e:
            raise errors.ArgumentError(f"logits_processor returned {reprlib.repr(changed)}, not logits: {e}") from None
        if out.shape != shape:
            raise errors.ArgumentError(f"logits_processor returned shape {out.shape}, not {shape}")
        return out

    def fail(self, error: BaseException) -> None:
        if not self.ended:
            self.ended = True
            self._end(error)

    def finish_full(self) -> None:
        """The prompt fills the context: an empty reply, without a step."""
        self._finish("length")
        self.released.set()

    def end_cancelled(self) -> None:
        if not self.ended:
            self._finish("cancelled")

    def _finish(self, reason: FinishReason) -> None:
        self.ended = True
        if reason != "cancelled" and not self._stop.stopped:
            self._show(self._stop.feed(self._decoder.finish()) + self._stop.finish())
        self._tell(*(("", "") if self._splitter is None else self._splitter.finish()), last=True)
        if self._n_told < len(self._logprobs):
            self._put(Chunk(logprobs=self._untold()))
        now = time.perf_counter()
        n = len(self.task.tokens) - self.n_prompt
        begun, first = self._begun or now, self._first or now
        prompt_s, predicted_s = first - begun, now - first
        self.reply = Reply(
            text="".join(self._text), tokens=tuple(self.task.tokens[self.n_prompt:]), finish_reason=reason,
            usage=Usage(self.n_prompt, n, self.cached, self.speculation.drafted, self.speculation.accepted),
            timings=Timings(begun - self.started, prompt_s, predicted_s, (self.n_prompt - self.cached) / prompt_s if prompt_s else 0.0,
                            (n - 1) / predicted_s if n > 1 and predicted_s else 0.0),
            reasoning="".join(self._reasoning) if self._reasoning else None, logprobs=tuple(self._logprobs), schema=self._options.schema,
            tool_calls=tuple(self._tools.calls) if self._tools is not None else ())
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        self._put(error)
        if self._on_end is not None:
            self._on_end()

    def _show(self, text: str) -> None:
        if text:
            self._tell(*(("", text) if self._splitter is None else self._splitter.feed(text)))

    def _tell(self, reasoning: str, text: str, last: bool = False) -> None:
        """Reasoning and an answer, in which there may be calls of tools, to the consumer."""
        deltas: tuple[ToolDelta, ...] = ()
        if self._tools is not None:
            text, deltas = self._tools.feed(text)
            if last:
                rest, more = self._tools.finish()
                text, deltas = text + rest, deltas + more
        if reasoning or text or deltas:
            self._text.append(text)
            if reasoning:
                self._reasoning.append(reasoning)
            self._put(Chunk(text, reasoning, self._untold(), deltas))

    def _untold(self) -> tuple[Logprob, ...]:
        """Logprobs of the tokens since the chunk before."""
        told, self._n_told = self._n_told, len(self._logprobs)
        return tuple(self._logprobs[told:])

    def _put(self, event: Chunk | BaseException | None) -> None:
        self._events.put(event)
        wake = self._wake
        if wake is not None:
            wake()

    # ---- consumer side ----

    def cancel(self) -> None:
        """Returns at once; the engine drops the request before or during its next step."""
        if not self.ended and not self.cancelled:
            self.cancelled = True
            self._on_cancel(self)

    def check_fork(self) -> None:
        """In a forked child nothing will ever come: raises ForkedProcess."""
        if self._pid != os.getpid():
            raise errors.ForkedProcess

    def _chunk(self, event: Chunk | BaseException | None) -> Chunk | None:
        """The chunk, or None at the end; raises the error that ended the request. Whoever asks again hears the same."""
        if not isinstance(event, Chunk):
            self._events.put(event)
        if isinstance(event, BaseException):
            raise event
        return event

    def __iter__(self) -> Iterator[Chunk]:
        while True:
            self.check_fork()
            chunk = self._chunk(self._events.get())
            if chunk is None:
                return
            yield chunk

    async def chunks_async(self) -> AsyncIterator[Chunk]:
        import asyncio

        self.check_fork()
        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            try:
                loop.call_soon_threadsafe(ready.set)
            except RuntimeError:        # the loop is closed: nobody waits any more
                self.cancel()

        self._wake = wake
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                await ready.wait()
                ready.clear()
                continue
            chunk = self._chunk(event)
            if chunk is None:
                return
            yield chunk

    def result(self) -> Reply:
        """Waits for the end; cancels the request when the wait is interrupted (Ctrl-C)."""
        try:
            for _ in self:
                pass
        finally:
            self.cancel()
        assert self.reply is not None
        return self.reply

    async def result_async(self) -> Reply:
        try:
            async for _ in self.chunks_async():
                pass
        finally:
            self.cancel()
        assert self.reply is not None
        return self.reply
