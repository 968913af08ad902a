"""Many requests of one caller: a bounded number of them in flight, replies in the order in which they come."""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator, Iterable
from functools import partial
from typing import TYPE_CHECKING

from . import errors

if TYPE_CHECKING:
    from .generation import Generation
    from .replies import Reply

Start = Callable[[Callable[[], None]], "Generation"]


def run(starts: Iterable[Start], most: int) -> Generator[tuple[int, Reply | errors.Error]]:
    """(number of the request, its reply or the error that ended it), each once. A start takes a function that the request calls when it
    ends. At most `most` are in flight; when others fill the model's queue, it waits for its own. Leaving the iteration cancels them."""
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    flying: dict[int, Generation] = {}
    todo = enumerate(starts)
    held: tuple[int, Start] | None = None       # the queue was full when it was this one's turn
    try:
        while True:
            while len(flying) < most and (job := held or next(todo, None)) is not None:
                i, start = job
                held = None
                try:
                    flying[i] = start(partial(ended.put, i))
                except errors.Busy as e:
                    if flying:
                        held = job
                        break
                    yield i, e
                except errors.Error as e:
                    yield i, e
            if not flying:
                return
            i = _wait(ended, flying)
            yield i, _outcome(flying.pop(i))
    finally:
        for g in flying.values():
            g.cancel()


def _wait(ended: queue.SimpleQueue[int], flying: dict[int, Generation]) -> int:
    """The next that ends. In a forked child none ever does: raises ForkedProcess."""
    next(iter(flying.values())).check_fork()
    return ended.get()


def _outcome(g: Generation) -> Reply | errors.Error:
    try:
        return g.result()
    except errors.Closed:
        raise                                   # that is no matter of this request
    except errors.Error as e:
        return e
