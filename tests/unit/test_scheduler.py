"""The scheduler as a state machine with a fake engine: nothing leaks, nobody starves, and every task gets exactly its tokens in order."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm.scheduler import PAGE, Rows, Scheduler, Task


@dataclass
class FakeEngine:
    """Sequences that hold token lists in pages of 16 out of a pool; sessions are idle holders that give way on evict()."""

    pages: int
    seqs: int
    sessions: int = 0
    held: dict[int, list[int]] = field(default_factory=dict)
    next_id: int = 0

    def open(self) -> int | None:
        if len(self.held) + self.sessions >= self.seqs:
            return None
        self.next_id += 1
        self.held[self.next_id] = []
        return self.next_id

    def close(self, seq: int) -> None:
        del self.held[seq]

    def free(self) -> int:
        return self.pages - self.sessions - sum(-(-len(t) // PAGE) for t in self.held.values())

    def evict(self) -> bool:
        if not self.sessions:
            return False
        self.sessions -= 1
        return True

    def step(self, rows: list[Rows]) -> None:
        for r in rows:
            assert r.task.seq is not None
            tokens = self.held[r.task.seq]
            assert len(tokens) == r.task.done
            tokens += r.task.tokens[r.task.done:r.task.done + r.n]
        assert self.free() >= 0, "more pages than there are"


def following(tokens: list[int]) -> int:
    """The fake model: the next token depends on all tokens before it."""
    return hash(tuple(tokens)) % 1000


requests = st.lists(st.tuples(st.integers(0, 30), st.integers(1, 150), st.integers(1, 60)), min_size=1, max_size=25)


@settings(max_examples=300, deadline=None)
@given(requests, st.integers(14, 60), st.integers(1, 6), st.integers(0, 4), st.integers(1, 64), st.integers(0, 10_000))
def test_every_request_ends_with_its_own_tokens(wanted: list[tuple[int, int, int]], pages: int, seqs: int, sessions: int, max_rows: int,
                                                chaos: int) -> None:
    """wanted: (step of arrival, prompt tokens, tokens to generate). Each fits the pool alone, as LLM makes sure."""
    engine = FakeEngine(pages, seqs, min(sessions, seqs, pages - 13))
    scheduler = Scheduler(max_rows, engine.open, engine.close, engine.free, engine.evict)
    todo: dict[Task, tuple[list[int], int]] = {}
    arrivals = sorted((at, [(i * 31 + k) % 1000 for k in range(prompt)], n) for i, (at, prompt, n) in enumerate(wanted))
    ended: list[tuple[list[int], list[int], int]] = []
    cancelled = 0
    for clock in range(100_000):
        while arrivals and arrivals[0][0] <= clock:
            _, prompt, n = arrivals.pop(0)
            task = Task(list(prompt))
            if len(todo) % 2 and engine.free() > 0 and (seq := engine.open()) is not None:     # a session's next turn: part is cached
                task.seq, task.done = seq, min(len(prompt) - 1, PAGE * engine.free())
                engine.held[seq] += prompt[:task.done]
            todo[task] = (prompt, n)
            scheduler.add(task)
        if not todo and not arrivals:
            break
        if todo and (clock * 7919 + chaos) % 97 == 0:       # someone leaves
            task = list(todo)[(clock + chaos) % len(todo)]
            scheduler.remove(task)
            if task.seq is not None:
                engine.close(task.seq)
            del todo[task]
            cancelled += 1
        rows = scheduler.next_step()
        assert rows or scheduler.idle, "work to do and no step"
        assert sum(r.n for r in rows) <= max_rows
        assert len({r.task for r in rows}) == len(rows)
        engine.step(rows)
        scheduler.advance(rows)
        for r in rows:
            assert r.want == (r.task.pending == 0)
            if not r.want:
                continue
            prompt, n = todo[r.task]
            r.task.tokens.append(following(r.task.tokens))
            if len(r.task.tokens) - len(prompt) == n:
                scheduler.remove(r.task)
                assert r.task.seq is not None
                engine.close(r.task.seq)
                ended.append((prompt, r.task.tokens, n))
                del todo[r.task]
    assert not todo and not arrivals, "a request starves"
    assert scheduler.idle and not engine.held
    assert len(ended) + cancelled == len(wanted)
    for prompt, tokens, n in ended:
        expected = list(prompt)
        for _ in range(n):
            expected.append(following(expected))
        assert tokens == expected


def test_a_waiting_turn_gives_its_room_to_who_runs() -> None:
    """The turn holds most of the pool while it waits; the request before it needs those pages."""
    engine = FakeEngine(pages=8, seqs=2)
    scheduler = Scheduler(64, engine.open, engine.close, engine.free)
    request = Task(list(range(100)))
    scheduler.add(request)
    first = scheduler.next_step()
    turn = Task(list(range(60)), seq=engine.open(), done=0)
    assert turn.seq is not None
    engine.held[turn.seq], turn.done = list(range(50)), 50
    scheduler.add(turn)
    engine.step(first)
    scheduler.advance(first)
    rows = scheduler.next_step()
    assert [r.task for r in rows] == [request] and request.done == 64 and turn.seq is None and turn.done == 0


def test_a_waiting_turn_gives_its_sequence_to_who_is_first() -> None:
    engine = FakeEngine(pages=100, seqs=1)
    scheduler = Scheduler(64, engine.open, engine.close, engine.free)
    request, turn = Task([1, 2, 3]), Task([1, 2, 3], seq=engine.open())
    scheduler.add(request)
    scheduler.add(turn)
    assert [r.task for r in scheduler.next_step()] == [request] and turn.seq is None


def test_the_oldest_is_never_preempted() -> None:
    """With room for one, the first request runs to its end before the second gets anything but leftovers."""
    engine = FakeEngine(pages=4, seqs=4)
    scheduler = Scheduler(64, engine.open, engine.close, engine.free)
    first, second = Task(list(range(40))), Task(list(range(40)))
    scheduler.add(first)
    scheduler.add(second)
    for _ in range(20):
        rows = scheduler.next_step()
        assert any(r.task is first for r in rows)
        engine.step(rows)
        scheduler.advance(rows)
        for r in rows:
            if r.want:
                r.task.tokens.append(1)
    assert first.done == 40 + 19


def test_decoding_goes_on_beside_a_long_prompt() -> None:
    engine = FakeEngine(pages=1000, seqs=4)
    scheduler = Scheduler(32, engine.open, engine.close, engine.free)
    chat, book = Task([1]), Task(list(range(1000)))
    scheduler.add(chat)
    scheduler.add(book)
    for _ in range(30):
        rows = scheduler.next_step()
        assert [(r.task, r.n) for r in rows] == [(chat, 1), (book, 31)]
        engine.step(rows)
        scheduler.advance(rows)
        chat.tokens.append(1)
