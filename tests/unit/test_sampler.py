"""The sampling chain against an independent numpy version, written from the definitions that pyllm.h and the papers give.

The noise is a pure function of (seed, choice, position, token), so the numpy version names the very token that C must choose. A high
temperature makes the noise decide, so that over some positions every candidate that a filter left comes up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pyllm._core import ffi, lib

Floats = NDArray[np.float32]
ORDER = "edskypmxt"
OFF: dict[str, Any] = dict(seed=0, choice=0, top_k=0, temperature=1.0, top_p=1.0, min_p=0.0, typical_p=1.0, top_n_sigma=-1.0,
                           xtc_probability=0.0, xtc_threshold=0.1, penalty_last_n=64, repeat_penalty=1.0, frequency_penalty=0.0,
                           presence_penalty=0.0, dry_multiplier=0.0, dry_base=1.75, dry_allowed_length=2, dry_last_n=64,
                           min_keep=0, order="")


# ---- the library ----

class CallError(Exception):
    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Sampler:
    """One C sampler; parameters that are not named are off."""

    def __init__(self, n_vocab: int, bias: Mapping[int, float] | None = None, breakers: Sequence[int] = (), **parameters: Any) -> None:
        self.err, self.n_vocab = ffi.new("pyllm_error *"), n_vocab
        p, out = ffi.new("pyllm_sampling *"), ffi.new("pyllm_sampler **")
        for name, value in {**OFF, **parameters}.items():
            setattr(p, name, value.encode() if isinstance(value, str) else value)
        pairs = ffi.new("pyllm_logprob[]", list((bias or {}).items()))
        self.check(lib.pyllm_sampler_new(n_vocab, p, pairs, len(pairs), ffi.new("int32_t[]", list(breakers)), len(breakers),
                                         out, self.err))
        self.handle = ffi.gc(out[0], lib.pyllm_sampler_free)

    def check(self, code: int) -> None:
        if code:
            assert self.err.code == code
            raise CallError(code, ffi.string(self.err.message).decode())

    def accept(self, ids: Iterable[int]) -> None:
        a = ffi.new("int32_t[]", [int(i) for i in ids])
        self.check(lib.pyllm_sampler_accept(self.handle, a, len(a), self.err))

    def sample(self, logits: Floats, position: int = 0) -> int:
        return self.report(logits, position, None)[0]

    def report(self, logits: Floats, position: int, n_top: int | None) -> tuple[int, list[tuple[int, float]]]:
        """The token, and the n_top likeliest with their logprobs followed by the chosen one."""
        assert logits.dtype == np.float32 and len(logits) == self.n_vocab
        chosen = ffi.new("int32_t *", -99)
        top = ffi.NULL if n_top is None else ffi.new("pyllm_logprob[]", n_top + 1)
        self.check(lib.pyllm_sampler_sample(self.handle, ffi.from_buffer("float *", logits), ffi.NULL, position, chosen, top, n_top or 0,
                                            self.err))
        return chosen[0], [] if n_top is None else [(t.id, t.logprob) for t in top]


# ---- the definitions ----

def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's step from a state to its output."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def uniform(seed: int, choice: int, position: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    where = mix(mix(np.array([seed], np.uint64)) ^ np.uint64(position & (1 << 64) - 1))
    token = np.uint64((choice & 0xFFFFFFFF) << 32) | (ids & 0xFFFFFFFF).astype(np.uint64)
    return ((mix(where ^ token) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


@dataclass
class Chain:
    """Candidates (ids, f32 logits) and one method per letter of the order."""

    p: dict[str, Any]
    history: Sequence[int]
    breakers: Sequence[int]
    position: int
    ids: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    logits: Floats = field(default_factory=lambda: np.zeros(0, np.float32))

    def keep(self, index: NDArray[Any]) -> None:
        self.ids, self.logits = self.ids[index], self.logits[index]

    def best_first(self) -> NDArray[np.int64]:
        return np.lexsort((self.ids, -self.logits))

    def probabilities(self) -> NDArray[np.float64]:
        w = np.exp(self.logits.astype(np.float64) - self.logits.max())
        return w / w.sum()

    def at_least(self, n: int) -> int:
        return min(len(self.ids), max(n, self.p["min_keep"], 1))

    def last(self, n: int) -> Sequence[int]:
        return self.history if n < 0 else self.history[len(self.history) - min(n, len(self.history)):]

    def keep_above(self, least: float) -> None:
        self.keep(self.best_first())
        self.keep(np.arange(self.at_least(int((self.logits.astype(np.float64) >= least).sum()))))

    def e(self) -> None:
        seen = self.last(self.p["penalty_last_n"])
        f32 = np.float32
        for i in np.flatnonzero(np.isin(self.ids, seen)):
            count, repeat = list(seen).count(self.ids[i]), f32(self.p["repeat_penalty"])
            x = self.logits[i] * repeat if self.logits[i] <= 0 else self.logits[i] / repeat
            self.logits[i] = x - (f32(count) * f32(self.p["frequency_penalty"]) + f32(self.p["presence_penalty"]))

    def d(self) -> None:
        h, allowed = list(self.last(self.p["dry_last_n"])), self.p["dry_allowed_length"]
        longest: dict[int, int] = {}
        for j in range(1, len(h)):          # the history's end stood before h[j] too, for this many tokens:
            n = 0
            while n < j and h[j - 1 - n] == h[-1 - n] and h[-1 - n] not in self.breakers:
                n += 1
            longest[h[j]] = max(n, longest.get(h[j], 0))
        for i, token in enumerate(self.ids.tolist()):
            if token in longest and longest[token] >= allowed and token not in self.breakers:
                base = float(np.float32(self.p["dry_base"]))
                self.logits[i] -= np.float32(float(np.float32(self.p["dry_multiplier"])) * base ** (longest[token] - allowed))

    def s(self) -> None:
        if self.p["top_n_sigma"] > 0:
            x = self.logits[np.isfinite(self.logits)].astype(np.float64)
            self.keep_above(x.max() - self.p["top_n_sigma"] * x.std())

    def k(self) -> None:
        if self.p["top_k"] > 0:
            self.keep(self.best_first()[:self.at_least(self.p["top_k"])])

    def y(self) -> None:
        if self.p["typical_p"] < 1:
            p = self.probabilities()
            with np.errstate(divide="ignore"):
                surprise = -np.log(p)
            entropy = (p[p > 0] * surprise[p > 0]).sum()
            order = np.lexsort((self.ids, np.abs(surprise - entropy)))
            reached = int((np.cumsum(p[order]) < self.p["typical_p"]).sum()) + 1
            self.keep(order[:self.at_least(reached)])

    def p_(self) -> None:
        if self.p["top_p"] < 1:
            self.keep(self.best_first())
            reached = int((np.cumsum(self.probabilities()) < self.p["top_p"]).sum()) + 1
            self.keep(np.arange(self.at_least(reached)))

    def m(self) -> None:
        if self.p["min_p"] > 0:
            self.keep_above(float(self.logits.max()) + np.log(self.p["min_p"]))

    def x(self) -> None:
        if self.p["xtc_probability"] <= 0 or self.p["xtc_threshold"] > 0.5:
            return
        if uniform(self.p["seed"], self.p["choice"], self.position, np.array([-1]))[0] > self.p["xtc_probability"]:
            return
        self.keep(self.best_first())
        above = int((self.probabilities() >= self.p["xtc_threshold"]).sum())
        if above > 1 and len(self.ids) - above + 1 >= self.p["min_keep"]:
            self.keep(np.arange(above - 1, len(self.ids)))

    def t(self) -> None:
        if self.p["temperature"] > 0:
            self.logits = self.logits / np.float32(self.p["temperature"])

    def run(self) -> int:
        for letter in self.p["order"] or ORDER:
            if self.p["temperature"] > 0 or letter in "ed":
                getattr(self, {"p": "p_"}.get(letter, letter))()
        value = self.logits.astype(np.float64)
        if self.p["temperature"] > 0:
            value = value - np.log(-np.log(uniform(self.p["seed"], self.p["choice"], self.position, self.ids)))
        return int(self.ids[np.lexsort((self.ids, -value))[0]])


def expected(logits: Floats, position: int, history: Sequence[int] = (), bias: Mapping[int, float] | None = None,
             breakers: Sequence[int] = (), **parameters: Any) -> int:
    c = Chain({**OFF, **parameters}, list(history), list(breakers), position, np.arange(len(logits)), logits.copy())
    for token, b in (bias or {}).items():
        c.logits[token] += np.float32(b)
    return c.run()


# ---- random cases ----

def random_logits(rng: np.random.Generator, n: int) -> Floats:
    x = rng.normal(0, rng.choice([0.1, 1, 4]), n)
    if rng.random() < 0.4:
        x = np.round(x * 4) / 4             # many ties
    if rng.random() < 0.3 and n > 2:
        x[rng.permutation(n)[: rng.integers(1, n - 1)]] = -np.inf
    return x.astype(np.float32)


def random_filter(rng: np.random.Generator, letter: str, n: int) -> dict[str, Any]:
    f32 = lambda lo, hi: float(np.float32(rng.uniform(lo, hi)))  # noqa: E731
    last_n = lambda: int(rng.choice([-1, 0, 3, 20, 64]))  # noqa: E731
    make = {
        "e": lambda: dict(penalty_last_n=last_n(), repeat_penalty=f32(0.7, 2), frequency_penalty=f32(-1, 1), presence_penalty=f32(-1, 1)),
        "d": lambda: dict(dry_last_n=last_n(), dry_multiplier=f32(0.1, 3), dry_base=f32(1, 2), dry_allowed_length=int(rng.integers(0, 5))),
        "s": lambda: dict(top_n_sigma=f32(0.05, 3)),
        "k": lambda: dict(top_k=int(rng.integers(1, n + 3))),
        "y": lambda: dict(typical_p=f32(0, 1)),
        "p": lambda: dict(top_p=f32(0, 1)),
        "m": lambda: dict(min_p=f32(0, 1) ** 2),
        "x": lambda: dict(xtc_probability=f32(0.2, 1), xtc_threshold=f32(0, 0.55)),
        "t": lambda: dict(temperature=f32(0.1, 30)),
    }
    return make[letter]()


def compare(rng: np.random.Generator, n: int, letters: str, order: str, positions: int) -> None:
    p: dict[str, Any] = dict(seed=int(rng.integers(0, 1 << 63)), choice=int(rng.integers(0, 4)), order=order,
                             temperature=float(np.float32(rng.choice([0.0, 0.7, 1.0, 5.0, 40.0], p=[0.1, 0.2, 0.1, 0.2, 0.4]))),
                             min_keep=int(rng.choice([0, 1, 2, 5])))
    for letter in letters:
        p |= random_filter(rng, letter, n)
    history = rng.integers(0, min(n, int(rng.choice([2, 4, 50]))), int(rng.integers(0, 120))).tolist()
    bias = {int(i): float(np.float32(rng.choice([-np.inf, rng.normal(0, 3)]))) for i in rng.permutation(n)[: rng.integers(0, 3)]}
    breakers = rng.integers(0, min(n, int(rng.choice([4, 100]))), rng.integers(0, 3)).tolist()
    x = random_logits(rng, n)
    biased = x.copy()
    for i, b in bias.items():
        biased[i] += np.float32(b)
    if not np.isfinite(biased).any():
        return
    s = Sampler(n, bias, breakers, **p)
    half = len(history) // 2
    s.accept(history[:half])
    s.accept(history[half:])
    before = x.copy()
    for position in rng.integers(0, 1 << 40, positions).tolist():
        want = expected(x, position, history, bias, breakers, **p)
        assert s.sample(x, position) == want, f"{p=} {x=} {history=} {bias=} {breakers=} {position=}"
    assert np.array_equal(x, before), "the logits belong to the caller"


@pytest.mark.parametrize("letter", ORDER)
def test_each_filter_alone(letter: str) -> None:
    rng = np.random.default_rng([1, ord(letter)])
    for _ in range(150):
        compare(rng, int(rng.integers(1, 60)), letter, rng.choice(["", letter + "t", "t" + letter]) if letter != "t" else "", 20)


def test_the_whole_chain_in_any_order() -> None:
    rng = np.random.default_rng(2)
    for _ in range(1000):
        letters = "".join(rng.permutation(list(ORDER))[: rng.integers(1, 10)])
        compare(rng, int(rng.integers(2, 80)), letters, rng.choice(["", letters]), 12)


def test_large_vocabularies() -> None:
    """Where the best are found by bounds and selection instead of in one small list."""
    rng = np.random.default_rng(3)
    for letters in ("k", "kpm", "p", "pm", "y", "m", "s", "x", "t", "kyx"):
        compare(rng, int(rng.integers(30_000, 60_000)), letters, "", 6)
    x = np.sort(rng.normal(0, 3, 50_000).astype(np.float32))           # the best all in one block
    for k in (1, 2, 40, 999, 30_000):
        s = Sampler(len(x), seed=4, top_k=k, temperature=50.0)
        for position in range(8):
            assert s.sample(x, position) == expected(x, position, seed=4, top_k=k, temperature=50.0)


def test_the_oracle_knows_splitmix64() -> None:
    """First outputs for seed 0, as published with the generator."""
    gamma = 0x9E3779B97F4A7C15
    states = np.array([0, gamma, 2 * gamma % 2**64], np.uint64)
    assert [hex(v) for v in mix(states).tolist()] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


# ---- what the definitions above cannot show ----

def test_defaults_are_the_peers() -> None:
    p = ffi.new("pyllm_sampling *")
    lib.pyllm_sampling_defaults(p)
    want = {**OFF, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
    for name, value in want.items():
        got = getattr(p, name)
        assert ffi.string(got) == b"" if name == "order" else got == pytest.approx(value, rel=1e-6), name


# Upper 0.1 % points of chi-square by degrees of freedom.
CHI2 = {4: 18.467, 16: 39.252, 19: 43.820}


@pytest.mark.parametrize("what", ["position", "choice", "seed"])
def test_draws_have_the_distribution(what: str) -> None:
    x = np.random.default_rng(5).normal(0, 1.2, 20).astype(np.float32)
    temperature, draws = 0.7, 20_000
    count = np.zeros(20)
    fixed = Sampler(20, seed=6, temperature=temperature)
    for i in range(draws):
        s = fixed if what == "position" else Sampler(20, **{"seed": 7, "temperature": temperature, what: i})
        count[s.sample(x, i if what == "position" else 3)] += 1
    p = np.exp(x.astype(np.float64) / temperature)
    want = p / p.sum() * draws
    assert ((count - want) ** 2 / want).sum() < CHI2[19]


def test_draws_after_a_filter_are_renormalised() -> None:
    x = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.05], np.float32))
    s = Sampler(5, seed=8, top_p=0.8)
    count = np.bincount([s.sample(x, i) for i in range(20_000)], minlength=5)
    want = np.array([0.4, 0.3, 0.15]) / 0.85 * 20_000
    assert count[3:].sum() == 0
    assert ((count[:3] - want) ** 2 / want).sum() < 13.816             # 2 degrees of freedom


@pytest.mark.parametrize("pair", ["next position", "next choice", "next seed"])
def test_draws_are_independent(pair: str) -> None:
    """Pairs of neighbouring draws fill a 5 x 5 table as the product of its margins."""
    x = np.array([0.5, 0, -0.3, 0.2, 0.9], np.float32)
    step = {"next position": (1, 0, 0), "next choice": (0, 1, 0), "next seed": (0, 0, 1)}[pair]
    a, b = Sampler(5, seed=9), Sampler(5, seed=9 + step[2], choice=step[1])
    table = np.zeros((5, 5))
    for i in range(20_000):
        table[a.sample(x, 2 * i), b.sample(x, 2 * i + step[0])] += 1
    want = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    assert ((table - want) ** 2 / want).sum() < CHI2[16]


def test_a_draw_depends_on_nothing_but_its_place() -> None:
    rng = np.random.default_rng(10)
    rows = rng.normal(0, 2, (50, 300)).astype(np.float32)
    p = dict(seed=11, top_k=40, top_p=0.95, min_p=0.05, temperature=1.5)
    forward, backward = Sampler(300, **p), Sampler(300, **p)
    first = [forward.sample(rows[i], i) for i in range(50)]
    backward.accept([1, 2, 3])                                         # a history without penalties changes nothing
    assert [backward.sample(rows[i], i) for i in reversed(range(50))][::-1] == first
    assert [Sampler(300, **p).sample(rows[i], i) for i in range(50)] == first
    assert [forward.report(rows[i], i, 5)[0] for i in range(50)] == first


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_greedy_is_the_best_token(temperature: float) -> None:
    x = np.random.default_rng(12).normal(0, 1, 5000).astype(np.float32)
    x[[70, 4000, 4999]] = 9
    everything = dict(typical_p=0.1, xtc_probability=1.0, xtc_threshold=0.0, top_k=3, top_p=0.1, min_p=0.9, top_n_sigma=0.1)
    s = Sampler(5000, temperature=temperature, **everything)
    assert {s.sample(x, i) for i in range(20)} == {70}
    assert Sampler(5000, {70: -np.inf}, temperature=temperature).sample(x) == 4000
    s = Sampler(5000, temperature=temperature, repeat_penalty=1.5)
    s.accept([70, 4000])
    assert s.sample(x) == 4999


def test_tiny_temperature_is_greedy_too() -> None:
    x = np.random.default_rng(13).normal(0, 30, 1000).astype(np.float32)
    for t in (1e-3, 1e-20, 1e-38):
        assert {Sampler(1000, temperature=t, seed=i).sample(x, i) for i in range(10)} == {int(x.argmax())}


def test_ties_at_a_border_go_to_the_lower_id() -> None:
    x = np.zeros(1000, np.float32)
    for p in (dict(top_k=3), dict(top_p=0.0025)):
        s = Sampler(1000, seed=14, temperature=9.0, **p)
        assert {s.sample(x, i) for i in range(100)} == {0, 1, 2}


def test_dry_never_bans_and_reads_any_length() -> None:
    """A very long repetition costs a lot, but not so much that a token cannot be chosen when it is the only one left."""
    s = Sampler(4, {1: -np.inf, 2: -np.inf, 3: -np.inf}, dry_multiplier=1e6, dry_base=1e3, dry_last_n=-1)
    s.accept([0] * 5000)
    assert s.sample(np.zeros(4, np.float32)) == 0


def test_logprobs_are_the_untouched_distribution() -> None:
    rng = np.random.default_rng(15)
    for n, n_top in ((1, 0), (1, 1), (5, 5), (300, 7), (4000, 0), (50_000, 1), (151_936, 20), (3000, 1000)):
        x = random_logits(rng, n)
        x[0] = 1                                                       # never all banned
        s = Sampler(n, {0: 5.0}, repeat_penalty=1.7, temperature=3.0, top_k=40, min_p=0.01, seed=16)
        s.accept(rng.integers(0, n, 30))
        chosen, top = s.report(x, 17, n_top)
        wide = x.astype(np.float64)
        want = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
        assert [i for i, _ in top] == [*np.lexsort((np.arange(n), -wide))[:n_top].tolist(), chosen]
        got = np.array([v for _, v in top])
        assert np.array_equal(np.isneginf(got), np.isneginf(want[[i for i, _ in top]]))
        np.testing.assert_allclose(got, want[[i for i, _ in top]], atol=1e-5, rtol=0)
        assert chosen == s.sample(x, 17)


@pytest.mark.parametrize(("name", "value"), [
    ("temperature", np.nan), ("temperature", np.inf), ("top_k", -1), ("top_p", -0.1), ("top_p", 1.1), ("top_p", np.nan), ("min_p", 2),
    ("typical_p", -1), ("top_n_sigma", np.nan), ("xtc_probability", 1.5), ("xtc_threshold", -0.1), ("penalty_last_n", -2),
    ("repeat_penalty", 0), ("repeat_penalty", np.inf), ("frequency_penalty", np.nan), ("presence_penalty", 1e9), ("dry_multiplier", -1),
    ("dry_base", 0.5), ("dry_allowed_length", -1), ("dry_last_n", -5), ("min_keep", -1)])
def test_parameters_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(CallError, match=rf"^{name} is .*\nhint: it must be between") as e:
        Sampler(10, **{name: value})
    assert e.value.code == lib.PYLLM_ERR_ARG


@pytest.mark.parametrize(("order", "why"), [("kpk", '"kpk" has \'k\' twice'), ("kqp", 'no filter at "qp"'), ("ké", 'no filter at "é"')])
def test_wrong_orders_are_named(order: str, why: str) -> None:
    with pytest.raises(CallError, match=why) as e:
        Sampler(10, order=order)
    assert e.value.code == lib.PYLLM_ERR_ARG


def test_an_order_without_an_end_is_refused() -> None:
    p, out, err = ffi.new("pyllm_sampling *"), ffi.new("pyllm_sampler **"), ffi.new("pyllm_error *")
    lib.pyllm_sampling_defaults(p)
    ffi.buffer(p.order)[:] = b"k" * len(p.order)
    assert lib.pyllm_sampler_new(10, p, ffi.NULL, 0, ffi.NULL, 0, out, err) == lib.PYLLM_ERR_ARG
    assert out[0] == ffi.NULL and b"order is longer than 15 letters" in ffi.string(err.message)


def test_wrong_tokens_are_named() -> None:
    for bias in ({10: 0.0}, {-1: 0.0}):
        with pytest.raises(CallError, match=f"logit_bias of token {next(iter(bias))}\nhint: the vocabulary has tokens 0 to 9"):
            Sampler(10, bias)
    for value in (np.nan, np.inf):
        with pytest.raises(CallError, match="logit_bias of token 3 is"):
            Sampler(10, {3: value})
    with pytest.raises(CallError, match="a sampler of 0 tokens"):
        Sampler(0)
    s = Sampler(10, repeat_penalty=2.0)
    for token in (10, -1):
        with pytest.raises(CallError, match=f"token id {token} in the history"):
            s.accept([1, token])
    x = np.arange(10, dtype=np.float32)
    assert s.sample(x, 5) == expected(x, 5), "a refused call leaves the history alone"


def test_logits_that_are_no_numbers_are_named() -> None:
    x = np.zeros(100, np.float32)
    s = Sampler(100, {5: -np.inf}, temperature=1.0, top_k=5)
    for value, why in ((np.nan, "NaN"), (-np.nan, "NaN"), (np.inf, r"\+inf")):
        for at in (0, 5, 99):
            y = x.copy()
            y[at] = value
            with pytest.raises(CallError, match=f"non-finite logits at token id {at}: {why}") as e:
                s.sample(y)
            assert e.value.code == lib.PYLLM_ERR_ARG
    y = np.full(100, -np.inf, np.float32)
    y[5] = 0
    for temperature in (0.0, 1.0):                                     # only the banned token is left
        with pytest.raises(CallError, match="non-finite logits at every token id"):
            Sampler(100, {5: -np.inf}, temperature=temperature).sample(y)
    assert Sampler(100, temperature=1.0).sample(y) == 5
    assert s.sample(x, 1) == expected(x, 1, bias={5: -np.inf}, top_k=5), "an error leaves the sampler usable"


def test_n_top_out_of_range_is_refused() -> None:
    s, x = Sampler(10), np.zeros(10, np.float32)
    with pytest.raises(CallError, match="n_top is 11"):
        s.report(x, 0, 11)
    chosen = ffi.new("int32_t *")
    for n_top in (-1, 3):
        assert lib.pyllm_sampler_sample(s.handle, ffi.from_buffer("float *", x), ffi.NULL, 0, chosen, ffi.NULL, n_top,
                                        s.err) == lib.PYLLM_ERR_ARG
