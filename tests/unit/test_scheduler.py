"""The scheduler as a state machine with fake places: nothing leaks, nobody starves, and every task gets exactly its tokens in order."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm.prefix_cache import common
from pyllm.scheduler import PAGE, PATIENCE, Pace, Rows, Scheduler, Task, pages


@dataclass
class FakePlaces:
    """Sequences that hold token lists in pages of 16 out of a pool. What is released stays as idle pages until room is needed; who begins
    with the same tokens takes it over."""

    pages: int
    seqs: int
    held: dict[int, list[int]] = field(default_factory=dict)
    idle: list[list[int]] = field(default_factory=list)
    next_id: int = 0
    running: list[Task] = field(default_factory=list)
    opened: list[Task] = field(default_factory=list)

    def used(self) -> int:
        return sum(-(-len(t) // PAGE) for t in self.held.values())

    def free(self) -> int:
        return self.pages - self.used()

    def _found(self, task: Task) -> tuple[int, list[int]]:
        return max(((min(common(old, task.tokens), len(task.tokens) - 1) // PAGE * PAGE, old) for old in (*self.idle, *self.held.values())),
                   default=(0, []), key=lambda found: found[0])

    def cached(self, task: Task) -> tuple[int, int] | None:
        n, _ = self._found(task)
        for other in self.running:
            if other.pending > 1 and min(common(task.tokens, other.tokens), len(task.tokens) - 1) // PAGE * PAGE > max(n + 32, other.done):
                return None
        return n, n // PAGE

    def open(self, task: Task) -> bool:
        assert task.seq is None and task.done == 0
        if len(self.held) >= self.seqs:
            return False
        n, old = self._found(task)
        self.idle = [tokens for tokens in self.idle if tokens is not old]
        self.next_id += 1
        self.held[self.next_id] = task.tokens[:n]
        task.seq, task.done = self.next_id, n
        self.opened.append(task)
        return True

    def release(self, task: Task) -> None:
        if task.seq is not None:
            self.idle.append(self.held.pop(task.seq))
        task.seq, task.done = None, 0

    def step(self, rows: list[Rows]) -> None:
        for r in rows:
            assert r.task.seq is not None
            tokens = self.held[r.task.seq]
            assert len(tokens) == r.task.done
            tokens += r.task.tokens[r.task.done:r.task.done + r.n] + guesses(r)
        assert self.free() >= 0, "more pages than there are"
        while self.used() + sum(-(-len(t) // PAGE) for t in self.idle) > self.pages:
            self.idle.pop(0)


def following(tokens: list[int]) -> int:
    """The fake model: the next token depends on all tokens before it."""
    return hash(tuple(tokens)) % 1000


def guesses(r: Rows) -> list[int]:
    """For all the room that there is, right but for every third token of the text."""
    text = list(r.task.tokens)
    for _ in range(r.drafts):
        text.append(following(text) if len(text) % 3 else -1)
    return text[len(r.task.tokens):]


def make(n_pages: int, seqs: int, max_rows: int = 64, pace: Pace | None = None) -> tuple[FakePlaces, Scheduler]:
    places = FakePlaces(n_pages, seqs)
    scheduler = Scheduler(max_rows, seqs, places, pace)
    places.running = scheduler.running
    return places, scheduler


def run(places: FakePlaces, scheduler: Scheduler, seconds: float = 0.01) -> list[Rows]:
    """One step; tasks that have their tokens leave."""
    rows = scheduler.next_step()
    assert sum(r.n + r.drafts for r in rows) <= scheduler.max_rows and len({r.task for r in rows}) == len(rows)
    assert sum(r.want + r.drafts for r in rows) <= max(scheduler.max_logits, scheduler.max_tasks)
    assert len(scheduler.running) <= scheduler.max_tasks
    guessed = {r.task: guesses(r) for r in rows}
    for r in rows:
        assert r.drafts <= r.task.depth and (not r.drafts or r.task.pending == 1)
        assert r.n > 0 and r.want == (r.n == r.task.pending)
        assert not any(r.task.done < b < r.task.done + r.n for b in r.task.breaks), "a chunk goes over a break"
    places.step(rows)
    scheduler.advance(rows, seconds)
    for r in rows:
        if not r.want:
            continue
        r.task.tokens.append(following(r.task.tokens))
        for guess in guessed[r.task]:
            if r.task.tokens[-1] != guess:
                break
            r.task.done += 1
            r.task.tokens.append(following(r.task.tokens))
        assert len(r.task.tokens) <= r.task.most
        assert r.task.seq is not None
        del places.held[r.task.seq][r.task.done:]
        if len(r.task.tokens) == r.task.most:
            scheduler.remove(r.task)
            places.release(r.task)
    return rows


requests = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 150), st.integers(1, 60), st.integers(-1, 1), st.sampled_from("abc"),
                              st.integers(0, 3)), min_size=1, max_size=25)


@settings(max_examples=300, deadline=None)
@given(requests, st.integers(14, 60), st.integers(1, 6), st.integers(1, 64), st.integers(0, 10_000), st.booleans())
def test_every_request_ends_with_its_own_tokens(wanted: list[tuple[int, int, int, int, str, int]], n_pages: int, seqs: int, max_rows: int,
                                                chaos: int, slow: bool) -> None:
    """wanted: (step of arrival, prompt tokens, tokens to generate, priority, client, which prompt it shares its beginning with). Each fits
    the pool alone, as LLM makes sure."""
    places, scheduler = make(n_pages, seqs, max_rows)
    todo: dict[Task, list[int]] = {}
    arrivals = sorted(((at, [(family * 31 + k) % 1000 for k in range(prompt)] + [i], n, priority, client)
                       for i, (at, prompt, n, priority, client, family) in enumerate(wanted)), key=lambda a: a[0])
    ended: list[tuple[list[int], Task]] = []
    cancelled = 0
    for clock in range(100_000):
        while arrivals and arrivals[0][0] <= clock:
            _, prompt, n, priority, client = arrivals.pop(0)
            task = Task(list(prompt), len(prompt) + n, priority, client, depth=(len(prompt) + chaos) % 7,
                        breaks=set(range(48, 200, 48)) if chaos % 2 else set())
            todo[task] = prompt
            scheduler.add(task)
        if not todo and not arrivals:
            break
        if todo and (clock * 7919 + chaos) % 97 == 0:       # someone leaves
            task = list(todo)[(clock + chaos) % len(todo)]
            scheduler.remove(task)
            places.release(task)
            del todo[task]
            cancelled += 1
        rows = run(places, scheduler, 0.5 if slow else 0.001)
        assert rows or scheduler.idle, "work to do and no step"
        for task in [t for t in todo if len(t.tokens) == t.most]:
            ended.append((todo.pop(task), task))
    assert not todo and not arrivals, "a request starves"
    assert scheduler.idle and not places.held and places.free() == n_pages
    assert len(ended) + cancelled == len(wanted)
    for prompt, task in ended:
        expected = list(prompt)
        while len(expected) < task.most:
            expected.append(following(expected))
        assert task.tokens == expected


@settings(max_examples=50, deadline=None)
@given(requests, st.integers(14, 30))
def test_the_same_requests_run_the_same_way(wanted: list[tuple[int, int, int, int, str, int]], n_pages: int) -> None:
    def history() -> list[list[tuple[int, int]]]:
        places, scheduler = make(n_pages, 4)
        number = {}
        for i, (_, prompt, n, priority, client, family) in enumerate(wanted):
            task = Task([family * 31 + k for k in range(prompt)], prompt + n, priority, client, depth=i % 4)
            number[task] = i
            scheduler.add(task)
        steps = []
        while not scheduler.idle:
            assert len(steps) < 10_000
            steps.append([(number[r.task], r.n) for r in run(places, scheduler)])
        return steps

    assert history() == history()


def test_the_oldest_is_never_preempted() -> None:
    """With room for one, the first request runs to its end before the second gets anything but leftovers."""
    places, scheduler = make(4, 4)
    first, second = Task([*range(40)], 60), Task([*range(1, 41)], 60)
    scheduler.add(first)
    scheduler.add(second)
    for _ in range(20):
        assert any(r.task is first for r in run(places, scheduler))
    assert len(first.tokens) == 60


def test_a_preempted_task_goes_on_from_what_is_left_of_it() -> None:
    places, scheduler = make(16, 2)
    first, second = Task([*range(48)], 200), Task([*range(100, 148)], 210)
    scheduler.add(first)
    scheduler.add(second)
    for _ in range(500):
        run(places, scheduler)
        if places.opened.count(second) == 2:
            break
    assert first.most == len(first.tokens) and second.done >= PAGE


def test_decoding_goes_on_beside_a_long_prompt() -> None:
    """A prompt's row takes 1 ms, a decoding step 10 ms: chunks of 32 rows make steps of 42 ms, at first of what is known to be short."""
    places, scheduler = make(1000, 4, 512)
    chat, book = Task([1], 500), Task([*range(3000)], 3500)
    scheduler.add(chat)
    run(places, scheduler)
    for _ in range(30):
        run(places, scheduler, 0.01)
    scheduler.add(book)
    seconds = []
    while book.pending > 1:
        rows = scheduler.next_step()
        assert rows[0].task is chat and rows[0].n == 1
        seconds.append(0.01 + 0.001 * sum(r.n for r in rows if r.task is book))
        places.step(rows)
        scheduler.advance(rows, seconds[-1])
        chat.tokens.append(1)
    assert max(seconds) <= 0.0421 and len(seconds) <= 3 + 3000 // 32


@pytest.mark.parametrize(("stall", "step_s", "expected"), [(None, 0.01, 40), (None, 0.1, 100), (0.2, 0.1, 100), (0.0, 0.01, 16),
                                                           (1.0, 0.1, 900)])
def test_pace(stall: float | None, step_s: float, expected: int) -> None:
    pace = Pace(stall)
    assert pace.rows() == Pace.SMALLEST
    for _ in range(100):
        pace.observe(3, 0, step_s)
        pace.observe(3, 100, step_s + 0.1)
    assert abs(pace.rows() - max(expected * Pace.MARGIN, Pace.SMALLEST)) <= 1


def test_short_prompts_pass_a_long_one_that_gets_on() -> None:
    places, scheduler = make(1000, 4, 100)
    book, note = Task([*range(1000)], 1100), Task([*range(2000, 2060)], 2100)
    scheduler.add(book)
    scheduler.add(note)
    assert [(r.task, r.n) for r in run(places, scheduler)] == [(book, 50), (note, 50)]
    assert {(r.task, r.n) for r in run(places, scheduler)} == {(book, 90), (note, 10)}


def test_priorities() -> None:
    """A request of a higher priority takes a place; who was there goes on later, and is overtaken no more than PATIENCE times."""
    places, scheduler = make(1000, 1)
    low = Task([1, 2, 3], 3 + 40)
    scheduler.add(low)
    run(places, scheduler)
    overtakers = 0
    while len(low.tokens) < low.most:
        high = Task([5], 3, priority=1)
        scheduler.add(high)
        assert [r.task for r in run(places, scheduler)] == [high] or low.overtaken >= PATIENCE
        overtakers += 1
        while len(high.tokens) < high.most and len(low.tokens) < low.most:
            run(places, scheduler)
    assert overtakers <= PATIENCE + 1


def test_clients_share_evenly() -> None:
    """One client has filled all places when another one comes: from then on both have half of them, and nobody changes places again."""
    places, scheduler = make(1000, 8)
    many = [Task([i], 300, client="many") for i in range(20)]
    for task in many:
        scheduler.add(task)
    for _ in range(10):
        run(places, scheduler)
    few = [Task([100 + i], 300, client="few") for i in range(6)]
    for task in few:
        scheduler.add(task)
    for _ in range(100):
        rows = run(places, scheduler)
        assert sorted(r.task.client for r in rows) == ["few"] * 4 + ["many"] * 4
    assert len(places.opened) == 8 + 4      # no back and forth


def test_a_client_that_was_away_has_not_saved_up() -> None:
    places, scheduler = make(1000, 1)
    for i in range(3):
        scheduler.add(Task([i], 200, client="a"))
    for _ in range(300):
        run(places, scheduler)
    for i in range(10):
        scheduler.add(Task([50 + i], 20, client="b"))
    places.opened.clear()
    while not scheduler.idle:
        run(places, scheduler)
    clients = [t.client for t in places.opened]
    assert clients[:3].count("a") <= 1 and "a" in clients[:len(clients) - 1]


def test_who_shares_a_beginning_waits_for_it() -> None:
    """Eight requests with the same 320 tokens: these are computed once."""
    places, scheduler = make(1000, 8, 64)
    prefix = [*range(320)]
    tasks = [Task([*prefix, 1000 + i, 2000 + i], 330) for i in range(8)]
    for task in tasks:
        scheduler.add(task)
    computed = 0
    for _ in range(6):
        computed += sum(r.n for r in run(places, scheduler))
    assert computed == 320 + 8 * 2 and all(len(t.tokens) == 323 for t in tasks)


def test_growing_tasks_keep_newcomers_out() -> None:
    """Whoever joins has room for itself and for some of what the others are going to write."""
    places, scheduler = make(14, 4)
    for i in range(3):
        scheduler.add(Task([*range(100 * i, 100 * i + 40)], 100 * i + 500))
    run(places, scheduler)
    assert len(scheduler.running) == 1          # 3 pages, and 8 to grow: no 3 + 1 for the next
    assert pages(scheduler.running[0], 16) == 1


def test_guesses_share_what_is_left() -> None:
    """Nobody is guessed for beside prompts, nor beyond the end of a reply; pages and rows are shared evenly, and nobody gives up one."""
    places, scheduler = make(40, 5, 64)
    scheduler.max_tasks = 4
    tasks = [Task([i, i], 100, depth=31) for i in range(4)]
    for task in tasks:
        scheduler.add(task)
    assert [r.drafts for r in run(places, scheduler)] == [0] * 4
    assert [r.drafts for r in scheduler.next_step()] == [15] * 4
    scheduler.max_logits = 10
    assert [r.drafts for r in scheduler.next_step()] == [1, 1, 2, 2]
    scheduler.max_logits = 64
    places.pages = 5                # one is free, beside those of which everybody has 13 tokens left behind the next one
    scheduler.max_logits = 100
    assert [r.drafts for r in scheduler.next_step()] == [15, 13, 13, 13]
    scheduler.max_logits, places.pages, tasks[0].most = 64, 40, 5
    assert [r.drafts for r in scheduler.next_step()] == [1, 19, 20, 20]
    scheduler.max_tasks = 5
    scheduler.add(Task([*range(40)], 60))
    assert not any(r.drafts for r in scheduler.next_step())
