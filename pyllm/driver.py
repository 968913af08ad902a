"""The thread that runs an engine: it takes requests from any thread and shares every step among them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from . import errors
from .engine import MAX_ROWS, Choice, Engine
from .generation import Generation
from .prefix_cache import Hit, PrefixCache, common
from .scheduler import PAGE, Pace, Rows, Scheduler, Task, pages
from .speculation import Guess, Speculator

if TYPE_CHECKING:
    from .disk_cache import DiskCache

T = TypeVar("T")
CHECKPOINT = 1024   # tokens after which windowed layers keep what is needed to go on from there
WORTH_WAITING = 64  # tokens that a running request computes for another one too: from here on that one waits for them



@dataclass(eq=False)
class Checked:
    """A request whose tokens are being chosen: those of its guess were in the step, behind `done` others. row: of the logits, that of its
    next token, the first of them `first`. more: the next row counts, too."""

    guess: Guess
    first: int
    row: int
    done: int
    more: bool = False
    error: BaseException | None = None


class Driver:
    """Owns the engine's thread. It sleeps while there is nothing to do. parallel: requests that may run at once; max_waiting: others that
    may wait for their first step; stall_s: see scheduler.Pace. draft: a draft model, which shares the engine's flag for cancelling and is
    closed with it, and draft_ctx: see Speculator."""

    def __init__(self, engine: Engine, parallel: int, max_waiting: int, stall_s: float | None, is_end: Callable[[int], bool],
                 draft: Engine | None = None, draft_ctx: int = 0) -> None:
        self._engine, self.cache = engine, PrefixCache(engine)
        self.disk: DiskCache | None = None          # where conversations outlive the process
        self.turn = threading.Lock()                # of one who keeps sequences from call to call: two could wait for each other's
        self._max_waiting, self._n_waiting = max_waiting, 0
        self._last_end, self._end_gap = 0.0, 0.0    # when a request ended, and the running mean of seconds between two ends
        self._work = threading.Condition()
        self._jobs: list[Callable[[], None]] = []
        self._generations: dict[Task, Generation] = {}
        self._closing = self._free_engine = False
        self._pid = os.getpid()
        self._step_of: Generation | None = None     # the only request in the running step
        self._turned: float | None = None           # when the turn that runs now began; None while there is nothing to do
        self._scheduler = Scheduler(MAX_ROWS, parallel, self, Pace(stall_s), engine.max_logits)
        self._draft = draft
        self.speculator = Speculator(draft, draft_ctx, is_end, lambda: self._scheduler.growth)
        self._thread = threading.Thread(target=self._run, name="pyllm-engine", daemon=True)
        self._thread.start()

    def submit(self, g: Generation) -> None:
        """Raises Busy."""
        def add() -> None:
            self._generations[g.task] = g
            self._scheduler.add(g.task)
        self._refuse_processors()
        if self.forked:
            raise errors.ForkedProcess
        with self._work:
            if self._n_waiting >= self._max_waiting:
                raise errors.Busy(self._n_waiting, self._end_gap)
            self.post(add)
            self._n_waiting += 1

    def wait(self, g: Generation) -> None:
        """Returns when the engine has let go of a request; at once after a fork and on its own thread, where a collected object may end."""
        if not self.here and not self.forked:
            g.released.wait()

    def cancel(self, g: Generation) -> None:
        """Drops a request; a step that runs for it alone stops at the next tile. Does nothing once the model is closed or in a fork."""
        if self.forked:
            return
        with self._work:
            if self._closing:
                return
            if self._step_of is g:
                self._engine.cancel(True)
            self._jobs.append(lambda: self._drop(g))
            self._work.notify()

    def make_room(self, n_tokens: int, states: int = 1) -> bool:
        """On the engine's thread: frees pages for so many tokens, and recurrent states of so many sequences, at the cost of the cache, then
        of running requests; False if that is not enough."""
        while not self.cache.make_room(-(-n_tokens // PAGE), states):
            if not self._scheduler.preempt():
                return False
        return True

    def open_seq(self) -> int:
        """On the engine's thread: an empty sequence; a running request gives its own if there is no other. Raises CacheFull."""
        while (seq := self._engine.open_seq()) is None:
            if not self._scheduler.preempt():
                raise errors.CacheFull("all sequences are in use\nhint: wait for running requests")
        return seq

    def call(self, fn: Callable[[], T], undo: Callable[[T], None] | None = None) -> T:
        """Runs fn between two steps, on the engine's thread, and returns its result. When the wait is interrupted (Ctrl-C), fn does not
        run, or undo(result) follows it."""
        done = threading.Event()
        results: list[T] = []
        failure: list[BaseException] = []
        abandoned = False

        def job() -> None:
            try:
                if not abandoned:
                    results.append(fn())
            except BaseException as e:      # handed to the caller
                failure.append(e)
            done.set()

        def give_back() -> None:            # after job, whether that ran or not
            if results and undo is not None:
                undo(results[0])

        self._refuse_processors()
        self.post(job)
        try:
            done.wait()
        except BaseException:
            abandoned = True
            with suppress(errors.Error):
                self.post(give_back)
            raise
        if failure:
            raise failure[0]
        return results[0]

    def clear(self) -> None:
        """On the engine's thread: forgets all prefixes."""
        self.cache.clear()
        self.speculator.clear()

    def save(self) -> None:
        """Puts on disk what belongs there; not on the engine's thread, which that needs."""
        if self.disk is not None and self.here:
            self.disk.disable()
        elif self.disk is not None:
            with suppress(errors.Error):
                self.call(lambda: None)         # a reply may be read before its request has ended here
            self.disk.close()

    def leave_disk(self) -> None:
        """On the engine's thread: conversations are neither read from disk nor written any more."""
        if self.disk is not None:
            self.disk.disable()

    def close(self) -> None:
        """Ends every request with Closed, the thread, and then the engine. Returns when all is given back; on the engine's own thread (a
        logits processor closes the model, or drops its last reference) that happens after the return."""
        with self._work:
            self._closing = True
            self._free_engine = self.here
            self._engine.cancel(True)
            self._work.notify()
        if not self.here:
            self._thread.join()
            self._free()

    def _free(self) -> None:
        if self.disk is not None and not self.disk.end(self._free):
            return
        for engine in (self._draft, self._engine):
            if engine is not None:
                engine.close()

    @property
    def load(self) -> tuple[int, int, float]:
        """(requests in the running batch, requests that wait, seconds since the engine's thread last came by; 0 while it sleeps), from
        any thread."""
        turned = self._turned
        return len(self._scheduler.running), len(self._scheduler.waiting), 0.0 if turned is None else time.monotonic() - turned

    @property
    def forked(self) -> bool:
        """Whether this is a child process, where the engine's thread does not exist and its lock may be held for ever."""
        return self._pid != os.getpid()

    @property
    def here(self) -> bool:
        """Whether the caller is on the engine's thread."""
        return threading.current_thread() is self._thread

    def post(self, job: Callable[[], None]) -> None:
        """Runs job on the engine's thread, between two steps. Raises Closed or ForkedProcess."""
        if self.forked:
            raise errors.ForkedProcess
        with self._work:
            if self._closing:
                raise errors.Closed("the model is closed")
            self._jobs.append(job)
            self._work.notify()

    def _refuse_processors(self) -> None:
        """Whoever waits for the engine on its own thread would wait for ever."""
        if self.here and not self.forked:
            raise errors.ArgumentError("a logits processor called its own model\nhint: call the model from another thread, or before")

    # ---- what the scheduler asks for, on the engine's thread ----

    def free(self) -> int:
        return self._engine.free_pages()

    def cached(self, task: Task) -> tuple[int, int] | None:
        limit = len(task.tokens) - 1
        hit = self.cache.match(task.client, task.tokens, limit)
        for other in self._scheduler.running:
            if other.client == task.client and other.pending > 1:
                shared = common(task.tokens[:limit], other.tokens) // PAGE * PAGE
                if shared >= hit.n + WORTH_WAITING and shared > other.done:
                    other.breaks.add(shared)
                    return None
        return hit.n, self.cache.idle_pages(hit)

    def open(self, task: Task) -> bool:
        task.seq = self._engine.open_seq()
        if task.seq is None:
            return False
        limit, read = len(task.tokens) - 1, 0
        if self.disk is not None:
            known = self.cache.match(task.client, task.tokens, limit).n
            read = self.disk.restore(task.seq, task.client, task.tokens, known, self.cache.make_places)
        hit = Hit(read, [], read) if read else self.cache.attach(task.seq, task.client, task.tokens, limit)
        task.done = hit.n
        task.breaks.clear()
        if self.cache.windowed:
            task.breaks.update(range(CHECKPOINT, len(task.tokens), CHECKPOINT), {hit.shared})
            last = (len(task.tokens) - 1) // PAGE * PAGE        # for another answer: the state after a prompt's last token comes too late
            if last >= hit.n + WORTH_WAITING and any(self._engine.recurrent):
                task.breaks.add(last)
        self._generations[task].admit(hit.n)
        return True

    def release(self, task: Task) -> None:
        """What it has computed stays in the cache."""
        if task in self._generations:
            self.speculator.leave(self._generations[task])
        if task.seq is not None:
            if task.done:
                self.cache.insert(task.client, task.tokens, task.seq, task.done, mark=True, tail=True)
            self._engine.close_seq(task.seq)
        task.seq, task.done = None, 0

    # ---- the engine's thread ----

    def _run(self) -> None:
        reason: BaseException = errors.Closed("the model was closed while this request ran")
        try:
            while self._turn():
                pass
        except BaseException as e:      # a defect of ours: nobody may wait for ever because of it
            reason = e
        with self._work:
            self._closing = True
            jobs, self._jobs = self._jobs, []
        for job in jobs:
            job()
        for g in list(self._generations.values()):
            g.fail(reason)
            g.released.set()
        if self._free_engine:
            self._free()

    def _turn(self) -> bool:
        """What was asked for meanwhile, then one step; False once the engine closes."""
        with self._work:
            self._turned = time.monotonic()
            while not self._jobs and not self._closing and self._scheduler.idle:
                self._turned = None
                self._work.wait()
                self._turned = time.monotonic()
            if self._closing:
                return False
            jobs, self._jobs = self._jobs, []
        for job in jobs:
            job()
        rows = self._scheduler.next_step()
        if rows and self.cache.make_room(sum(pages(r.task, r.n) for r in rows), len(rows)):
            self._step(rows)
        elif rows:
            self._scheduler.preempt()
        elif not self._scheduler.idle:
            with self._work:            # all room is held by calls of `logits`, which end without a step of ours
                self._work.wait(0.002)
        return True

    def _step(self, rows: list[Rows]) -> None:
        generations = [self._generations[r.task] for r in rows]
        with self._work:
            self._n_waiting -= sum(g.begin() for g in generations)
            if self._closing:
                return
            self._step_of = generations[0] if len(rows) == 1 else None
            self._engine.cancel(self._step_of is not None and self._step_of.cancelled)
        try:
            guesses = self._guesses(rows)
            begin = time.perf_counter()
            self._engine.step([(r.task.seq, r.task.tokens[r.task.done:r.task.done + r.n] + guess.tokens,  # type: ignore[misc]
                                r.want + len(guess.tokens)) for r, guess in zip(rows, guesses, strict=True)])
        except errors.Error as e:
            for g in generations:
                self.speculator.settle(g, len(g.task.tokens))
                if not isinstance(e, errors.Cancelled):
                    self._end(g, e)
            return
        finally:
            with self._work:
                self._step_of = None
        seconds = time.perf_counter() - begin
        if all(r.n == r.task.pending == 1 for r in rows):
            self.speculator.ran(len(rows) + sum(len(guess.tokens) for guess in guesses), seconds)
        self._scheduler.advance(rows, seconds)
        at, choosing = 0, list[Checked]()
        for r, guess in zip(rows, guesses, strict=True):
            if r.n > 1:
                self._remember(r.task)
            if r.want:
                choosing.append(Checked(guess, at, at, r.task.done))
                at += 1 + len(guess.tokens)
        self._choose(choosing)

    def _guesses(self, rows: list[Rows]) -> list[Guess]:
        """For every one of the rows, as far as there are guesses and pages for them. Raises Cancelled."""
        guesses = {r.task: Guess(self._generations[r.task], 0) for r in rows}
        asked = []
        for r in rows:
            most = min(r.drafts, CHECKPOINT - r.task.done % CHECKPOINT - 1)
            if most > 0:
                asked.append((self._generations[r.task], most))
        if asked:
            found = {x.g.task: x for x in self.speculator.guess(asked, len(rows))}
            need = sum(pages(r.task, r.n + len(found[r.task].tokens)) if r.task in found else pages(r.task, r.n) for r in rows)
            if self.cache.make_room(need, len(rows)):
                guesses |= found
            else:
                for x in found.values():
                    self.speculator.settle(x.g, len(x.g.task.tokens))
        return [guesses[r.task] for r in rows]

    def _choose(self, choosing: list[Checked]) -> None:
        """The tokens of all requests, at once as far as they do not depend on one another."""
        todo = [c for c in choosing if not c.guess.g.cancelled]
        while todo:
            asked: list[tuple[Checked, Choice]] = []
            for c in todo:
                try:
                    asked.append((c, c.guess.g.choice(c.row, c.guess.tokens[c.row - c.first:], self._engine.logits_row)))
                except BaseException as e:      # a broken logits processor ends this request only
                    c.error = e
            self._engine.choose([choice for _, choice in asked])
            for c, choice in asked:
                self._take(c, choice)
            todo = [c for c, _ in asked if c.more]
        for c in choosing:
            self._settle(c)

    def _take(self, c: Checked, choice: Choice) -> None:
        g, n, left = c.guess.g, len(choice.tokens), c.guess.tokens[c.row - c.first:]
        right = common(choice.tokens, left)
        g.speculation.drafted += len(choice.drafts) or min(len(left), 1)
        g.speculation.accepted += right
        c.row += n
        try:
            g.take(choice)
        except BaseException as e:      # non-finite logits, or a form that takes too much work
            c.error = e
        c.more = not g.ended and c.error is None and not choice.drafts and right == n == 1

    def _settle(self, c: Checked) -> None:
        """Forgets what was guessed wrong; ends the request if it has ended."""
        g, task = c.guess.g, c.guess.g.task
        right = common(task.tokens[c.done:-1], c.guess.tokens)      # the last token is not computed yet
        task.done = c.done + right
        if c.guess.tokens:
            assert task.seq is not None
            self._engine.truncate(task.seq, task.done)
            self.speculator.checked(c.guess, common(task.tokens[c.done:], c.guess.tokens))
        self.speculator.settle(g, task.done)
        if c.error is not None or g.ended:
            self._end(g, c.error)
        elif task.done % CHECKPOINT == 0:
            self._remember(task)

    def _remember(self, task: Task) -> None:
        """Others may use what a prompt's chunk has computed."""
        assert task.seq is not None
        mark = task.done in task.breaks or task.done % CHECKPOINT == 0
        self.cache.insert(task.client, task.tokens, task.seq, task.done // PAGE * PAGE, mark=mark)

    def _drop(self, g: Generation) -> None:
        if not g.ended:
            g.end_cancelled()
        self._end(g, None)

    def _end(self, g: Generation, error: BaseException | None) -> None:
        if self._generations.pop(g.task, None) is None:
            return
        self._scheduler.remove(g.task)
        now = time.perf_counter()
        with self._work:
            self._n_waiting -= g.begin()
            self._end_gap += 0.2 * (now - max(self._last_end, g.started) - self._end_gap)
            self._last_end = now
        if error is not None:
            g.fail(error)
        self.speculator.leave(g)
        done = g.task.done
        self.release(g.task)
        if self.disk is not None:
            self.disk.ended(self, g.task.client, g.task.tokens, done)
        g.released.set()
