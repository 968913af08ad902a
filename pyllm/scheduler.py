"""Who runs in the next step: a pure state machine over token counts, without any model or clock behind it.

Continuous batching: every running task that has its prompt behind it adds one row; what is left of the row budget goes to prompt chunks.
Where others are decoding, a chunk is as long as `Pace` allows, so that nobody waits for it longer than a stated time.

Order: higher priorities first; within one, the client that has fewest places, then the one that has been given least; then arrival. A task
that needs a place takes it from one of a lower priority, or from a client with at least two places more than its own. When pages run out, a
task of the lowest priority gives its place back, of the client with most of them, the youngest. It waits and is computed again later, with
identical results. Nobody is overtaken more than PATIENCE times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

PAGE = 16
PATIENCE = 64       # after having been overtaken so often, a task is next
GROWTH = 128        # tokens that a task is expected to generate, as long as none has ended
DECODE_COST = 4     # what a decoded row counts for when a client's share is reckoned, in rows of a prompt
_order = count()


@dataclass(eq=False)
class Task:
    """tokens: the first `prompt` of them are the prompt, then comes what was generated, in the end at most `most`. done of them are in the
    KV cache of sequence seq (None: it has none). breaks: a prompt chunk ends at each of these positions. depth: tokens that it would like
    to have guessed and checked behind its next one."""

    tokens: list[int]
    most: int
    priority: int = 0
    client: str = ""
    depth: int = 0
    seq: int | None = None
    done: int = 0
    breaks: set[int] = field(default_factory=set)
    overtaken: int = 0
    arrival: int = field(default_factory=lambda: next(_order))
    prompt: int = field(init=False)

    def __post_init__(self) -> None:
        self.prompt = len(self.tokens)

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.done


@dataclass(frozen=True)
class Rows:
    """n rows of a task's pending tokens; want: logits of the last one; drafts: guesses that have room behind it, with logits of each."""

    task: Task
    n: int
    want: bool
    drafts: int = 0


class Places(Protocol):
    """What the tasks run on. Pages that a cache keeps and no sequence holds count as free."""

    def free(self) -> int:
        """Free pages."""

    def cached(self, task: Task) -> tuple[int, int] | None:
        """(tokens that `open` would find in the cache, free pages among theirs); None: wait, a running task computes them."""

    def open(self, task: Task) -> bool:
        """Gives a task its seq, with `done` tokens in it. False: there is none."""

    def release(self, task: Task) -> None:
        """Takes them back."""


class Pace:
    """How long a prompt chunk may be beside decoding tasks: a step with it takes at most `stall` seconds; None: 50 ms or twice the time
    of a step without it, whichever is more. Steps that have run tell how long the next will take."""

    SMALLEST = 16       # rows, of a chunk: a prompt always gets on
    MARGIN = 0.8        # of the time that a prompt's rows may take is what they are planned to take: steps differ

    def __init__(self, stall: float | None = None) -> None:
        self.stall = stall
        self.step_s = 0.0               # of a step that decodes only; 0: not known yet
        self.row_s = 0.0                # of a prompt's row on top of that

    def observe(self, decoding: int, prompt_rows: int, seconds: float) -> None:
        if not prompt_rows:
            self.step_s += (seconds - self.step_s) * (0.2 if self.step_s else 1)
        elif prompt_rows >= self.SMALLEST:
            row_s = max(seconds - (self.step_s if decoding else 0), 0) / prompt_rows
            self.row_s += (row_s - self.row_s) * (0.4 if self.row_s else 1)

    def rows(self) -> int:
        if not self.row_s:
            return self.SMALLEST
        limit = max(0.05, 2 * self.step_s) if self.stall is None else self.stall
        return max(int(self.MARGIN * (limit - self.step_s) / self.row_s), self.SMALLEST)


class Scheduler:
    """max_rows: of a step; max_tasks: that run at once; max_logits: rows of a step with logits, at least max_tasks."""

    def __init__(self, max_rows: int, max_tasks: int, places: Places, pace: Pace | None = None, max_logits: int = 64) -> None:
        self.max_rows, self.max_tasks, self.max_logits = max_rows, max_tasks, max_logits
        self.pace = pace or Pace()
        self.waiting: list[Task] = []
        self.running: list[Task] = []
        self._places = places
        self._growth = float(GROWTH)            # running mean of the tokens that tasks have generated
        self._given: dict[str, int] = {}        # client -> rows that it was given, a decoded one counting DECODE_COST
        self._stuck: int | None = None          # the free pages with which nobody could join; None: look again

    def add(self, task: Task) -> None:
        clients = {t.client for t in (*self.waiting, *self.running)}
        if task.client not in clients:          # it has not saved up what it did not use
            least = min((self._given[c] for c in clients), default=0)
            self._given = {c: n for c, n in self._given.items() if c in clients or n > least}
            self._given[task.client] = max(self._given.get(task.client, 0), least)
        self.waiting.append(task)
        self._stuck = None

    def remove(self, task: Task) -> None:
        """Forgets a task that ended; its place stays its own until the caller releases it."""
        self._growth += 0.1 * (len(task.tokens) - task.prompt - self._growth)
        if task in self.running:
            self.running.remove(task)
        elif task in self.waiting:
            self.waiting.remove(task)
        self._stuck = None

    @property
    def idle(self) -> bool:
        return not self.waiting and not self.running

    @property
    def growth(self) -> float:
        """Tokens that a task is expected to generate."""
        return self._growth

    def next_step(self) -> list[Rows]:
        """The rows of the next step; empty only if there is nothing to do, or if others than tasks hold the room."""
        self._admit()
        while True:
            rows = self._rows()
            if rows or not self.preempt():
                return rows

    def advance(self, rows: list[Rows], seconds: float) -> None:
        """The step ran, and took so long. What came of drafts is the caller's to add to a task's tokens and to its `done`."""
        prompt_rows = decoding = 0
        for r in rows:
            decodes = r.task.pending == 1
            decoding, prompt_rows = decoding + decodes, prompt_rows + (0 if decodes else r.n)
            self._given[r.task.client] += DECODE_COST if decodes else r.n
            r.task.done += r.n
        self.pace.observe(decoding, prompt_rows, seconds)

    def preempt(self) -> bool:
        """A running task gives its place back and waits; False if there is none."""
        last = self._last(self.running)
        if last is not None:
            self._stop(last)
        return last is not None

    def _stop(self, task: Task) -> None:
        self.running.remove(task)
        self._places.release(task)
        self.waiting.append(task)
        self._stuck = None

    # ---- admission ----

    def _admit(self) -> None:
        if self._stuck is not None and (len(self.running) >= self.max_tasks or self._places.free() <= self._stuck):
            return
        passed: list[Task] = []         # wait for what a running task computes
        while len(passed) < self.max_tasks and (task := self._first(passed)) is not None:
            full = len(self.running) >= self.max_tasks
            found = None if full else self._places.cached(task)
            if full or (found and not self._fits(task, *found)):
                if not self._displace(task):
                    self._stuck = self._places.free()
                    return
            elif found is None:
                passed.append(task)
            elif not self._places.open(task):
                return
            else:
                self.waiting.remove(task)
                self.running.append(task)
                for other in self.waiting:
                    other.overtaken += other.arrival < task.arrival and other.priority <= task.priority

    def _first(self, passed: Collection[Task]) -> Task | None:
        held = Counter(t.client for t in self.running)
        return min((t for t in self.waiting if t not in passed), default=None,
                   key=lambda t: (t.overtaken < PATIENCE, -t.priority, held[t.client], self._given[t.client], t.arrival))

    def _fits(self, task: Task, cached: int, free_cached: int) -> bool:
        """Whether it finds pages, beside what is promised to the others: it must not push out one of them soon. Everyone is expected to
        generate as much as others did; who has, a page more."""
        promised = 0
        for t in self.running:
            to_come = max(int(self._growth) - (len(t.tokens) - t.prompt), PAGE)
            promised += pages(t, min(t.pending + to_come, t.most - t.done))
        need = -(-len(task.tokens) // PAGE) - cached // PAGE + free_cached
        return not self.running or need + promised < self._places.free()

    def _displace(self, task: Task) -> bool:
        """Takes the place of a task that has less right to it."""
        held = Counter(t.client for t in self.running)
        last = self._last([t for t in self.running if t.overtaken < PATIENCE])
        if last is None or (last.priority, -held[last.client]) >= (task.priority, -held[task.client] - 1):
            return False
        last.overtaken += 1
        self._stop(last)
        return True

    def _last(self, tasks: list[Task]) -> Task | None:
        held = Counter(t.client for t in self.running)
        return min(tasks, key=lambda t: (t.priority, -held[t.client], -t.arrival), default=None)

    # ---- rows ----

    def _rows(self) -> list[Rows]:
        """Rows for every decoding task, then for prompts; none if pages are missing."""
        free = self._places.free()
        rows: list[Rows] = []
        for task in self.running:
            if task.pending == 1 and len(rows) < self.max_rows:
                free -= pages(task, 1)
                rows.append(Rows(task, 1, True))
        if free < 0:
            return []
        if len(rows) == len(self.running):
            return self._with_drafts(rows, free)
        budget = self.max_rows - len(rows)
        if rows:
            budget = min(budget, self.pace.rows())
        for task, share in self._shares(budget):
            n = min(task.pending, share, budget, *(b - task.done for b in task.breaks if b > task.done))
            n = min(n, free * PAGE + -task.done % PAGE)
            if n:
                rows.append(Rows(task, n, n == task.pending))
                budget -= n
                free -= pages(task, n)
        return rows

    def _with_drafts(self, rows: list[Rows], free: int) -> list[Rows]:
        """What is left of a step that only decodes, shared evenly; nobody gives up a page for it."""
        out = list[Rows]()
        for i, r in enumerate(rows):
            task, spare = r.task, (min(self.max_rows, self.max_logits) - len(rows) - sum(o.drafts for o in out)) // (len(rows) - i)
            n = max(min(task.depth, spare, task.most - len(task.tokens) - 1, free * PAGE + -(task.done + 1) % PAGE), 0)
            free -= pages(task, 1 + n) - pages(task, 1)
            out.append(Rows(task, 1, True, n))
        return out

    def _shares(self, budget: int) -> list[tuple[Task, int]]:
        """Half of the budget for the prompt whose turn it is, the other half for the shortest ones, what is left for it again."""
        prompts = sorted((t for t in self.running if t.pending > 1), key=lambda t: (-t.priority, self._given[t.client], t.arrival))
        if len(prompts) < 2:
            return [(t, budget) for t in prompts]
        first, *others = prompts
        others.sort(key=lambda t: t.pending)
        rest = max(budget - sum(t.pending for t in others), (budget + 1) // 2)
        return [(first, rest), *((t, budget) for t in others)]


def pages(task: Task, n: int) -> int:
    """Pages that n more tokens of a task need."""
    return -(-(task.done + n) // PAGE) - -(-task.done // PAGE)
