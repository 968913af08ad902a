"""A thread that does jobs in order, for a caller that may be interrupted.

KeyboardInterrupt can arrive between any two instructions of the main thread. In the queues and events of `threading` and
`concurrent.futures`, which are written in Python, that may leave a lock taken for ever, and the thread that wants it next hangs. So nothing
but SimpleQueue, which is written in C, stands between caller and thread here.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class Job(Generic[T]):
    """result() returns, once, what the call returned, or raises what it raised."""

    def __init__(self, call: Callable[[], T]) -> None:
        self._call: Callable[[], T] | None = call
        self._outcome: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def run(self) -> None:
        call, self._call = self._call, None         # what it holds is free once it is done
        assert call is not None
        try:
            self._outcome.put((call(), None))
        except BaseException as e:
            self._outcome.put((None, e))

    def result(self) -> T:
        value, e = self._outcome.get()
        if e is not None:
            raise e
        return cast(T, value)


class Worker:
    """One thread. Jobs that have not begun when the block is left never do; the one that has is waited for."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job[object] | None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._leaving, self._alive = False, True
        _thread.start_new_thread(self._run, ())

    def submit(self, call: Callable[[], T]) -> Job[T]:
        job = Job(call)
        self._jobs.put(job)                          # type: ignore[arg-type]
        return job

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving = True
        self._jobs.put(None)
        while self._alive:                           # an interrupt may swallow the message: so with a limit of time
            with suppress(Empty, KeyboardInterrupt):
                self._ended.get(timeout=0.1)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not self._leaving:
                job.run()
            del job                                  # not held while waiting for the next one
        self._alive = False
        self._ended.put(None)
