"""Speculation: the next tokens of a sequence are guessed and then checked together, so that one pass over the weights may give several.

A guess counts if it is the model's own choice at its place. That choice depends on what comes before it and on noise that belongs to the
place, so every text is that of plain decoding, bit for bit, whatever is guessed. Guesses come from the form that a reply must have, where
that leaves no choice, from the text itself (what followed where its last tokens stood before), or from a draft model, which chooses with
the same parameters and the same noise.

What there is to decide is how many guesses are worth their time. Steps that have run tell what a row costs, guesses that were checked how
often those of their kind are right; the depth is the one from which most tokens a second are expected, down to none.
"""

from __future__ import annotations

import reprlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any

from . import errors
from .engine import MAX_DRAFTS, MAX_ROWS, Engine
from .prefix_cache import PrefixCache
from .scheduler import PAGE

if TYPE_CHECKING:
    from .generation import Generation

MATCHES = (1, 2, 3, 5, 9, 17)                       # tokens that match, from which on a looked-up guess is of the next kind
CHANCES = (0.0, 0.3, 0.5, 0.7, 0.85, 0.95)          # the draft model's probability from which on its guess is of the next kind
DRAFTED = len(MATCHES)                              # the first kind of the draft model's
ANY = DRAFTED + len(CHANCES)                        # all of these together
FORCED = ANY + 1                                    # what a form leaves no choice about
PRIOR = (0.05, 0.15, 0.3, 0.45, 0.6, 0.8, 0.2, 0.4, 0.55, 0.7, 0.85, 0.95, 0.75, 0.9)
NEAR = 16           # tokens that the draft model may be behind without asking whether catching up pays
CHUNK = 64          # tokens by which it catches up between two steps, for all requests together
ALONE = 256         # the same if there is one request only: who comes meanwhile waits for that


@dataclass(frozen=True)
class Mode:
    """Where guesses come from, and how many there are: depth None: as many as pay."""

    lookup: bool = False
    draft: bool = False
    depth: int | None = 0

    @property
    def most(self) -> int:
        return MAX_DRAFTS if self.depth is None else self.depth


def mode_of(value: Any, has_draft: bool) -> Mode:
    """Of the option `speculate`: "auto", "lookup", "off" or False, or a number of guesses. Raises ArgumentError."""
    if value == "auto":
        return Mode(True, has_draft, None)
    if value == "lookup":
        return Mode(True, False, None)
    if value is False or value == "off":
        return Mode()
    if isinstance(value, Integral) and not isinstance(value, bool) and 0 <= int(value) <= MAX_DRAFTS:
        return Mode(not has_draft, has_draft, int(value))
    raise errors.ArgumentError(f"speculate is {reprlib.repr(value)}, must be 'auto', 'lookup', 'off' or a number of tokens "
                               f"from 0 to {MAX_DRAFTS}")


class Curve:
    """Seconds of a step by the number of its rows, learnt from steps. What was not seen for AGE steps is forgotten, so that one step that
    had to wait for something else does not decide for ever."""

    SLOPE = 0.06        # of a step's time is what another row is taken to cost as long as nothing is known
    AGE = 256

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._seen: dict[int, int] = {}
        self._clock = 0

    def observe(self, rows: int, seconds: float) -> None:
        rows = rows if rows <= 64 else -(-rows // 64) * 64
        self._clock += 1
        self._seen[rows] = self._clock
        if self._clock % 16 == 0:
            for old in [m for m, seen in self._seen.items() if seen < self._clock - self.AGE]:
                del self._seconds[old], self._seen[old]
        if rows not in self._seconds:
            self._seconds[rows] = seconds
            return
        known = self._seconds[rows]
        seconds = min(max(seconds, known / 2), known * 2)           # the system was busy with something else
        self._seconds[rows] += 0.2 * (seconds - known)
        drift = (seconds / known) ** 0.05                           # what makes this step slower makes others slower: a longer context
        for other in self._seconds:
            if other != rows:
                self._seconds[other] *= drift

    def seconds(self, rows: int) -> float:
        """Of a step with so many rows; 0 as long as none has run."""
        known = self._seconds.get(rows)
        if known is not None or not self._seconds:
            return known or 0.0
        below, above = max((m for m in self._seconds if m < rows), default=0), min((m for m in self._seconds if m > rows), default=0)
        if below and above:
            share = (rows - below) / (above - below)
            return self._seconds[below] * (1 - share) + self._seconds[above] * share
        if above:
            return self._seconds[above] / (1 + self.SLOPE * (above - rows))
        first = min(self._seconds)
        slope = max((self._seconds[below] - self._seconds[first]) / (below - first), 0.0) if below > first else \
            self.SLOPE * self._seconds[below]
        return self._seconds[below] + slope * (rows - below)

    def knows(self, rows: int) -> bool:
        return rows in self._seconds


class Rates:
    """How often the guesses of each kind are right: running means that begin with those of `prior`."""

    WEIGHT = 6.0        # of the prior, in guesses

    def __init__(self, prior: Sequence[float] | Rates, memory: float) -> None:
        self._prior, self._keep = prior, 1 - 1 / memory
        self._n, self._right = [0.0] * len(PRIOR), [0.0] * len(PRIOR)

    def __getitem__(self, kind: int) -> float:
        return (self._right[kind] + self.WEIGHT * self._prior[kind]) / (self._n[kind] + self.WEIGHT)

    def add(self, kind: int, right: bool) -> None:
        self._n[kind] = self._n[kind] * self._keep + 1
        self._right[kind] = self._right[kind] * self._keep + right


@dataclass(eq=False)
class Speculation:
    """One request's. drafted, accepted: guesses that were checked, and that were right. seq: the draft model's sequence with the first
    `done` tokens of the request; off: the draft model cannot go on with it."""

    mode: Mode
    rates: Rates | None = None
    drafted: int = 0
    accepted: int = 0
    seq: int | None = None
    done: int = 0
    off: bool = False


@dataclass(eq=False)
class Guess:
    """What may follow one request's tokens, at most `most`. chances[i]: that all guesses up to i are right."""

    g: Generation
    most: int
    tokens: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)

    def add(self, token: int, kind: int, rate: float) -> None:
        self.tokens.append(token)
        self.kinds.append(kind)
        self.chances.append(rate * (self.chances[-1] if self.chances else 1.0))

    def cut(self, n: int) -> None:
        del self.tokens[n:], self.kinds[n:], self.chances[n:]


class Speculator:
    """Guesses for the requests of a step; only the engine's thread uses it. draft: the draft model, whose n_ctx first positions it may use;
    growth(): tokens that a request is expected to generate."""

    def __init__(self, draft: Engine | None, n_ctx: int, is_end: Callable[[int], bool], growth: Callable[[], float]) -> None:
        self._draft, self._n_ctx, self._is_end, self._growth = draft, n_ctx, is_end, growth
        self._cache = None if draft is None else PrefixCache(draft)
        self._rates = Rates(PRIOR, 500)
        self._steps, self._draft_steps = Curve(), Curve()

    def ran(self, rows: int, seconds: float) -> None:
        """A step that only decoded took so long."""
        self._steps.observe(rows, seconds)

    def guess(self, asked: Sequence[tuple[Generation, int]], base: int) -> list[Guess]:
        """Guesses for (request, most) pairs; base: requests of the step. Raises Cancelled."""
        guesses = [Guess(g, most) for g, most in asked]
        by_model: list[Guess] = []
        for guess in guesses:
            s = guess.g.speculation
            s.rates = s.rates or Rates(self._rates, 50)
            if s.mode.depth is None and not self._steps.knows(base):
                continue                    # a plain step tells what there is to gain
            for token in guess.g.forced()[:guess.most]:
                guess.add(token, FORCED, s.rates[FORCED])
            if s.mode.lookup and not guess.tokens:
                self._look_up(guess)
            if s.mode.draft and not s.off and (not guess.tokens or guess.chances[0] < s.rates[ANY]):
                guess.cut(0)
                by_model.append(guess)
        begin = time.perf_counter()
        if by_model:
            self._ask(by_model, base)
        self._choose_depths(guesses, base, time.perf_counter() - begin)
        return guesses

    def _ask(self, guesses: list[Guess], base: int) -> None:
        """Guesses of the draft model. What fails there costs nothing but them."""
        try:
            self._ask_model(guesses, base)
        except errors.Error as e:
            for x in guesses:
                x.g.rewind(len(x.tokens))
                self.settle(x.g, len(x.g.task.tokens))
                x.cut(0)
                x.g.speculation.off = not isinstance(e, errors.Cancelled)
            if isinstance(e, errors.Cancelled):
                raise
        for x in guesses:
            x.g.rewind(len(x.tokens))

    def _look_up(self, guess: Guess) -> None:
        rates = guess.g.speculation.rates
        assert rates is not None
        tokens, match = guess.g.lookup(guess.most)
        for i, token in enumerate(tokens):
            kind = sum(match + i >= least for least in MATCHES) - 1
            guess.add(token, kind, rates[kind])
            if self._is_end(token):
                break

    def _choose_depths(self, guesses: list[Guess], base: int, spent: float) -> None:
        """Cuts adaptive guesses to those that make most tokens a second, in a step of base rows and those of the others."""
        adaptive = [x for x in guesses if x.g.speculation.mode.depth is None and x.tokens]
        if not adaptive:
            return
        fixed = [x for x in guesses if x.g.speculation.mode.depth is not None]
        rows, tokens = base + sum(len(x.tokens) for x in fixed), base + sum(sum(x.chances) for x in fixed)
        best, depths, chosen = tokens / (self._steps.seconds(rows) + spent), dict.fromkeys(adaptive, 0), dict.fromkeys(adaptive, 0)
        for chance, x in sorted(((c, guess) for guess in adaptive for c in guess.chances), key=lambda pair: -pair[0]):
            rows, tokens = rows + 1, tokens + chance
            depths[x] += 1
            speed = tokens / (self._steps.seconds(rows) + spent)
            if speed > best:
                best, chosen = speed, dict(depths)
        for x, n in chosen.items():
            x.cut(n)

    # ---- the draft model ----

    def _ask_model(self, guesses: list[Guess], base: int) -> None:
        """Rounds of one token for each request, as long as that pays."""
        assert self._draft is not None
        active = self._caught_up([x for x in guesses if self._pays(x, len(guesses), base)], base)
        while active:
            self._round(active)
            rows, tokens = base + sum(len(x.tokens) for x in guesses), base + sum(sum(x.chances) for x in guesses)
            active = [x for x in active if not x.g.speculation.off and len(x.tokens) < x.most and not self._is_end(x.tokens[-1])
                      and (x.g.speculation.mode.depth is not None or self._goes_on(x, len(active), rows, tokens))]

    def _pays(self, x: Guess, n: int, base: int) -> bool:
        """Whether the draft model is worth its time for a request, and so is catching up with its text."""
        s, task = x.g.speculation, x.g.task
        if s.mode.depth is not None:
            return True
        assert s.rates is not None
        rate, plain = s.rates[ANY], base / self._steps.seconds(base)
        tokens, most = float(base), 0.0
        for k in range(1, x.most + 1):
            tokens += n * rate ** k
            most = max(most, tokens / (self._steps.seconds(base + n * k) + k * self._draft_steps.seconds(n)))
        lag = len(task.tokens) - s.done
        if lag <= NEAR:
            return most > plain
        written = len(task.tokens) - task.prompt
        to_come = min(max(self._growth() - written, written / 2, NEAR), task.most - len(task.tokens))
        return to_come * base * (1 / plain - 1 / most) > self._draft_steps.seconds(lag)

    def _goes_on(self, x: Guess, n: int, rows: int, tokens: float) -> bool:
        """Whether another round, or some, bring more tokens a second than the step has without them."""
        assert x.g.speculation.rates is not None
        rate, step = x.g.speculation.rates[ANY], self._steps.seconds(rows)
        round_s = self._draft_steps.seconds(n) / n
        speed, chance, gain = tokens / (step + len(x.tokens) * round_s * n), x.chances[-1], 0.0
        for k in range(1, x.most - len(x.tokens) + 1):
            chance *= rate
            gain += chance
            if gain > speed * (k * round_s + self._steps.seconds(rows + k) - step):
                return True
        return False

    def _caught_up(self, guesses: list[Guess], base: int) -> list[Guess]:
        """Those whose text the draft model has read but for what fits into the next step, after it has read some more."""
        assert self._draft is not None and self._cache is not None
        opened, need = list[Guess](), 0
        for x in guesses:
            if self._opened(x):
                need += -(-(len(x.g.task.tokens) + x.most) // PAGE) - x.g.speculation.done // PAGE
                if self._cache.make_room(need):
                    opened.append(x)
                else:                       # with some requests less there is room for all that they may come to
                    self._give_up(x)
                    need = sum(-(-(len(o.g.task.tokens) + o.most) // PAGE) - o.g.speculation.done // PAGE for o in opened)
        ready, room, budget = [], MAX_ROWS, CHUNK if base > 1 else ALONE
        for x in opened:
            s, n = x.g.speculation, len(x.g.task.tokens)
            if n - s.done > NEAR and budget:
                fed = min(n - s.done - 1, budget)
                self._feed(x, fed)
                budget -= fed
            if n - s.done <= min(NEAR, room):
                room -= n - s.done
                ready.append(x)
        return ready

    def _opened(self, x: Guess) -> bool:
        """Whether the draft model has a sequence for a request, whose text it can read."""
        assert self._draft is not None and self._cache is not None
        s, task = x.g.speculation, x.g.task
        if len(task.tokens) + x.most > self._n_ctx or max(task.tokens[s.done:]) >= self._draft.n_vocab:
            self._give_up(x)
        elif s.seq is None:
            s.seq = self._draft.open_seq()
            if s.seq is not None:
                s.done = self._cache.attach(s.seq, task.client, task.tokens, len(task.tokens) - 1).n
        return s.seq is not None

    def _give_up(self, x: Guess) -> None:
        x.g.speculation.off = True
        x.cut(0)
        self.leave(x.g)

    def _feed(self, x: Guess, n: int) -> None:
        assert self._draft is not None
        s = x.g.speculation
        assert s.seq is not None
        begin = time.perf_counter()
        self._draft.step([(s.seq, x.g.task.tokens[s.done:s.done + n], 0)])
        self._draft_steps.observe(n, time.perf_counter() - begin)
        s.done += n

    def _round(self, active: list[Guess]) -> None:
        """The draft model reads what it has not yet of each request, and chooses a token for it."""
        assert self._draft is not None
        rows = []
        for x in active:
            s, n = x.g.speculation, len(x.g.task.tokens)
            assert s.seq is not None
            rows.append((s.seq, x.g.task.tokens[s.done:] + x.tokens[max(s.done - n, 0):], 1))
        begin = time.perf_counter()
        self._draft.step(rows)
        choices = [x.g.guess(i, len(x.tokens)) for i, x in enumerate(active)]
        self._draft.choose(choices)
        self._draft_steps.observe(sum(len(tokens) for _, tokens, _ in rows), time.perf_counter() - begin)
        for x, (_, fed, _), choice in zip(active, rows, choices, strict=True):
            s = x.g.speculation
            assert s.rates is not None
            s.done += len(fed)
            if choice.error is not None:
                s.off = True
                continue
            kind = DRAFTED + sum(choice.sampler.chance() >= least for least in CHANCES) - 1
            x.add(choice.tokens[0], kind, s.rates[kind])

    # ---- what came of it ----

    def checked(self, x: Guess, accepted: int) -> None:
        """The first `accepted` guesses were right; those that were checked behind them were not. The request's tokens have grown."""
        s = x.g.speculation
        assert s.rates is not None
        for i, kind in enumerate(x.kinds[:accepted + 1]):
            for k in (kind, ANY) if DRAFTED <= kind < ANY else (kind,):
                s.rates.add(k, i < accepted)
                self._rates.add(k, i < accepted)

    def settle(self, g: Generation, right: int) -> None:
        """Of the request's tokens and what was guessed behind them, the first `right` stay; the draft model forgets the others."""
        s = g.speculation
        if s.seq is not None and s.done > right:
            assert self._draft is not None
            s.done = right if self._draft.truncate(s.seq, right) else 0
            if not s.done:
                self._draft.truncate(s.seq, 0)

    def leave(self, g: Generation) -> None:
        """The request has ended or given its place back; what the draft model has read stays in its cache."""
        s = g.speculation
        if s.seq is None:
            return
        assert self._draft is not None and self._cache is not None
        if s.done:
            self._cache.insert(g.task.client, g.task.tokens, s.seq, s.done, mark=True, tail=True)
        self._draft.close_seq(s.seq)
        s.seq, s.done = None, 0

    def clear(self) -> None:
        if self._cache is not None:
            self._cache.clear()
