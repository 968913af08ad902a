"""Who runs in the next step: a pure state machine over token counts, without any model behind it.

Continuous batching: every running task that has its prompt behind it adds one row; what is left of the row budget goes to prompt
chunks, oldest task first. Tasks are admitted in order of arrival when a sequence and pages for their tokens are free. When pages run
out, a waiting task that holds some (a session's next turn), else the youngest running task gives its pages back and waits; it is computed
again later, with identical results.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

PAGE = 16
_order = count()


@dataclass(eq=False)
class Task:
    """tokens: prompt, then what was generated. done of them are in the KV cache of sequence seq (None: it has no sequence)."""

    tokens: list[int]
    seq: int | None = None
    done: int = 0
    priority: int = 0
    client: str = ""
    arrival: int = field(default_factory=lambda: next(_order))

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.done


@dataclass(frozen=True)
class Rows:
    """n rows of a task's pending tokens; want: logits of the last one."""

    task: Task
    n: int
    want: bool


def _pages(task: Task, n: int) -> int:
    """Pages that n more tokens of a task need."""
    return -(-(task.done + n) // PAGE) - -(-task.done // PAGE)


class Scheduler:
    """open_seq() -> sequence id or None when all are taken; close_seq(id); free_pages() -> pages; evict() -> True if idle memory
    was given back and it is worth looking again."""

    def __init__(self, max_rows: int, open_seq: Callable[[], int | None], close_seq: Callable[[int], None],
                 free_pages: Callable[[], int], evict: Callable[[], bool] = lambda: False) -> None:
        self.max_rows = max_rows
        self.waiting: deque[Task] = deque()
        self.running: list[Task] = []
        self._open, self._close, self._free, self._evict = open_seq, close_seq, free_pages, evict

    def add(self, task: Task) -> None:
        self.waiting.append(task)

    def remove(self, task: Task) -> None:
        """Forgets a task; its sequence stays open and is the caller's."""
        if task in self.running:
            self.running.remove(task)
        elif task in self.waiting:
            self.waiting.remove(task)

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    def next_step(self) -> list[Rows]:
        """The rows of the next step; empty only if there is nothing to do."""
        self._admit()
        while True:
            rows = self._rows()
            if rows or not self.running:
                return rows
            if not self._evict():
                self.preempt()

    def advance(self, rows: list[Rows]) -> None:
        """The step ran."""
        for r in rows:
            r.task.done += r.n

    def _admit(self) -> None:
        while self.waiting:
            task = self.waiting[0]
            # the newcomer fits beside all that is already promised, so that it does not push out others straight away
            held = sum(_pages(t, t.pending) for t in self.running)
            if self.running and self._free() - held < _pages(task, task.pending) + 1 and not self._evict():
                return
            if task.seq is None:
                task.seq = self._open()
                if task.seq is None and not self._evict() and not self._reclaim():
                    return
                if task.seq is None:
                    continue
            self.running.append(self.waiting.popleft())
            self.running.sort(key=lambda t: t.arrival)

    def _rows(self) -> list[Rows]:
        rows: list[Rows] = []
        budget, free = self.max_rows, self._free()
        decoding = [t for t in self.running if t.pending == 1]
        for task in decoding:
            if budget == 0 or _pages(task, 1) > free:
                return [] if budget else rows
            rows.append(Rows(task, 1, True))
            budget -= 1
            free -= _pages(task, 1)
        for task in self.running:
            if task.pending <= 1 or budget == 0:
                continue
            n = min(task.pending, budget)
            while n and _pages(task, n) > free:
                n -= 1
            if n:
                rows.append(Rows(task, n, n == task.pending))
                budget -= n
                free -= _pages(task, n)
        return rows

    def preempt(self) -> bool:
        """A waiting task that kept a sequence gives it back, else the youngest running one, which then waits; False if nobody has any."""
        if self._reclaim():
            return True
        if not self.running:
            return False
        task = self.running.pop()
        self._strip(task)
        self.waiting.appendleft(task)
        return True

    def _reclaim(self) -> bool:
        """The last waiting task with a sequence of its session gives it back: what waits must not keep others from going on."""
        task = next((t for t in reversed(self.waiting) if t.seq is not None), None)
        if task is not None:
            self._strip(task)
        return task is not None

    def _strip(self, task: Task) -> None:
        if task.seq is not None:
            self._close(task.seq)
        task.seq, task.done = None, 0
