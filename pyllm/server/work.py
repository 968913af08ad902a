"""A request's generations: admitted while there is room, run on the engine, cancelled when their client leaves or their time is over."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from .. import errors
from ..llm import LLM
from ..replies import Chunk, Reply, Stream
from .failures import Refusal
from .limits import Bodies, Limits

if TYPE_CHECKING:
    from .metrics import Metrics
    from .models import Models, Served

Start = Callable[[LLM], Stream]
Event = tuple[int, Chunk | Reply]       # (which generation, a piece of it or all of it at its end)
PING_S = 15.0                           # a stream that has nothing to say for so long says that it lives


class Admission:
    """How many generations run or wait, and whether more may come."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.count, self.draining = 0, False
        self._ended: deque[float] = deque(maxlen=32)        # monotonic times

    def enter(self, n: int) -> None:
        if self.draining:
            raise Refusal(503, "the server is shutting down", kind="server_error", code="shutting_down", retry_s=5)
        if n > self._limits.queue:
            raise Refusal(400, f"the request asks for {n} generations, at most {self._limits.queue} are taken", code="too_many")
        if self.count + n > self._limits.queue:
            raise Refusal(429, f"{self.count} requests run or wait, at most {self._limits.queue} are taken", kind="rate_limit_error",
                          code="rate_limit_exceeded", retry_s=self.retry_s(n))
        self.count += n

    def leave(self) -> None:
        self.count -= 1
        self._ended.append(time.monotonic())

    def retry_s(self, n: int) -> int:
        """Seconds in which n generations should end, as fast as they ended lately."""
        if len(self._ended) < 2:
            return 1
        rate = (len(self._ended) - 1) / max(time.monotonic() - self._ended[0], 1e-3)
        return min(60, math.ceil(n / rate))


class Work:
    """What all requests share: limits, admission, models, metrics, and the jobs that run."""

    def __init__(self, models: Models, limits: Limits, metrics: Metrics, bodies: Bodies) -> None:
        self.models, self.limits, self.metrics, self.bodies = models, limits, metrics, bodies
        self.admission = Admission(limits)
        self.jobs: set[Job] = set()

    async def start(self, served: Served, starts: Sequence[Start]) -> Job:
        """Submits one generation per element of starts, all or none. Raises Refusal and errors.Error; the caller closes the job."""
        self.admission.enter(len(starts))
        job = Job(self, served, len(starts))
        try:
            llm = await job.open(self.models.lease(served))
            for start in starts:
                job.run(await run_in_threadpool(start, llm))
        except BaseException:
            await job.close()
            raise
        return job

    def stop_all(self) -> None:
        """Ends every job; clients hear that the server shuts down."""
        self.admission.draining = True
        for job in list(self.jobs):
            job.stop(Refusal(503, "the server is shutting down", kind="server_error", code="shutting_down", retry_s=5))


class Job:
    """The generations of one request. `events` or `replies`, then `close`."""

    def __init__(self, work: Work, served: Served, n: int) -> None:
        self.served, self.n = served, n
        self.llm: LLM                       # from the start on
        self._work, self._stack = work, AsyncExitStack()
        self._waiting = n                   # admitted generations that have no task yet
        self._streams: list[Stream] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._events: asyncio.Queue[Event | BaseException] = asyncio.Queue()
        self._timer = asyncio.get_running_loop().call_later(work.limits.request_s, self.stop, None)
        self._late = False
        work.jobs.add(self)

    async def open(self, lease: AbstractAsyncContextManager[LLM]) -> LLM:
        self.llm = await self._stack.enter_async_context(lease)
        return self.llm

    def run(self, stream: Stream) -> None:
        """Follows a stream that was submitted."""
        self._waiting -= 1
        self._streams.append(stream)
        self._tasks.append(asyncio.create_task(self._follow(len(self._tasks), stream)))
        if self._late:
            stream.cancel()

    async def _follow(self, i: int, stream: Stream) -> None:
        outcome = "error"
        try:
            async for chunk in stream:
                self._events.put_nowait((i, chunk))
            outcome = stream.reply.finish_reason
            self._events.put_nowait((i, stream.reply))
            self._work.metrics.generated(self.served.name, stream.reply)
        except errors.Error as e:
            self._events.put_nowait(e)
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            stream.close()
            self._work.admission.leave()
            self._work.metrics.ended(self.served.name, outcome)

    def stop(self, reason: Refusal | None) -> None:
        """Ends all generations; the client hears the reason, or without one gets what there is."""
        self._late = True
        if reason is not None:
            self._events.put_nowait(reason)
        for stream in self._streams:
            stream.cancel()

    async def events(self, ping: bool = False) -> AsyncIterator[Event | None]:
        """Pieces and replies as they come, until every generation has ended; None, if asked for, in long silences. Raises what ended
        one."""
        left = len(self._tasks)
        while left:
            try:
                event = await asyncio.wait_for(self._events.get(), PING_S if ping else None)
            except asyncio.TimeoutError:
                yield None
                continue
            if isinstance(event, BaseException):
                raise event
            left -= isinstance(event[1], Reply)
            yield event

    @property
    def prompt_tokens(self) -> int:
        """Of the first generation."""
        return self._streams[0].prompt_tokens

    async def replies(self) -> list[Reply]:
        done: dict[int, Reply] = {}
        async for event in self.events():
            if event is not None and isinstance(event[1], Reply):
                done[event[0]] = event[1]
        return [done[i] for i in range(len(done))]

    async def close(self) -> None:
        """Cancels what still runs and gives the model back. Safe to call twice."""
        self._timer.cancel()
        self._work.jobs.discard(self)
        for _ in range(self._waiting):
            self._work.admission.leave()
        self._waiting = 0
        for stream in self._streams:
            stream.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()


def client_of(request: Request) -> str:
    """Who asks, for an even share of the engine: the API key without its secret, else the address."""
    peer = request.client.host if request.client else ""
    return str(request.scope.get("pyllm.key") or peer)


@contextmanager
def watched(request: Request) -> Iterator[None]:
    """Raises ClientDisconnect inside when the client leaves. The request's body must have been read."""
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not left:
            raise
        if sys.version_info >= (3, 11):
            task.uncancel()
        raise ClientDisconnect from None
    finally:
        watcher.cancel()
