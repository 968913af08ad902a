"""The prefix cache on engines with and without sliding windows and recurrent states: whatever is shared, copied, marked and evicted, logits
have the bits of a cold run, and every page is free, kept or held."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from conftest import model_path
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyllm
from pyllm.build import build
from pyllm.engine import Engine
from pyllm.gguf import GGUF
from pyllm.prefix_cache import PAGE, Node, PrefixCache, common, first_page

LENGTH = 200
STATE = -1          # in place of a window: a recurrence instead of attention
WINDOWS = {"all": (0,), "one": (0, 40), "two": (48, 0, 17), "no-global": (33,), "tiny": (1, 0), "recurrent": (STATE, STATE),
           "hybrid": (STATE, 0), "everything": (0, STATE, 33)}


def tokens_of(text: tuple[int, ...]) -> list[int]:
    """Texts that fork: text (a, b, c) has the tokens of a up to 37, of b up to 83, of c up to 128 and so on."""
    borders = [0, 37, 83, 128, 160, LENGTH]
    return [5 + (i * 31 + text[part] * 97) % 290 for part in range(len(text)) for i in range(borders[part], borders[part + 1])]


def with_window(line: str, windows: list[int]) -> str:
    """A tape's line; of attention with the layer's window, or in its place RWKV's recurrence over the queries."""
    found = re.search(r"attn (attn\d) in=(\w+),\S+ layer=(\d)", line)
    if found is None:
        return line
    layer = int(found[3])
    before, window = windows[:layer], windows[layer]
    if window != STATE:
        return line.replace(f"layer={layer}", f"layer={layer - before.count(STATE)}").replace("window=0", f"window={window}")
    vector = f"blk.{layer}.attn_norm.weight"
    return f"wkv {found[1]} in={found[2]},{found[2]},{found[2]} state={before.count(STATE)} heads=2 u={vector} w={vector}\n"


class Rig:
    """An engine whose layers have the given windows, a cache, and the logits of cold runs."""

    def __init__(self, windows: tuple[int, ...], folder: Path, n_positions: int = 352) -> None:
        path = folder / "tiny.gguf"
        path.write_bytes(tiny_gguf.llama("q8_0", n_layers=len(windows), n_embd=32, n_ff=32, heads=2, kv_heads=1, ctx=256)[0])
        self.gguf = GGUF(path)
        self.tape = "".join(with_window(line, list(windows)) for line in build(self.gguf)[0].splitlines(keepends=True))
        self.engine = self.new(n_positions)
        self.cache = PrefixCache(self.engine)
        self.cold = cache(self._cold)

    def new(self, n_positions: int) -> Engine:
        return Engine(self.gguf.handle, self.tape, threads=1, kv="f16", n_positions=n_positions, level=None, parallel=6)

    def _cold(self, text: tuple[int, ...]) -> np.ndarray:
        engine, rows = self.new(LENGTH), []
        tokens, seq = tokens_of(text), engine.open_seq()
        assert seq is not None
        for at in range(0, len(tokens), 50):
            n = engine.step([(seq, tokens[at:at + 50], len(tokens[at:at + 50]))])
            rows.append(engine.logits[:n].copy())
        engine.close()
        return np.concatenate(rows)

    def nodes(self) -> Iterator[Node]:
        stack = list(self.cache._roots.values())
        while stack:
            node = stack.pop()
            yield node
            stack += [*node.children.values(), *node.tails]

    def check(self, seqs: list[int]) -> None:
        """Every page is accounted for."""
        for g in range(len(self.engine.windows)):
            used = {p for s in seqs for p in self.engine.seq_pages(s, 0, -(-self.engine.length(s) // PAGE))[g] if p >= 0}
            listed = [node.pages[g] for node in self.nodes() if node.pages[g] >= 0]
            kept, counts = set(listed), self.engine.group(g)
            assert len(listed) == len(kept)
            assert (counts.n_free, counts.n_idle) == (counts.n_pages - len(kept | used), len(kept - used))
        assert sum(1 for _ in self.nodes()) - len(self.cache._roots) == self.cache.n_nodes


@pytest.fixture(scope="module", params=WINDOWS.values(), ids=WINDOWS.keys())
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    rig = Rig(request.param, tmp_path_factory.mktemp("cache"))
    yield rig
    rig.engine.close()
    rig.gguf.close()


@dataclass
class Live:
    seq: int
    text: tuple[int, ...]
    client: str
    done: int


texts = st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple)
operations = st.lists(st.one_of(
    st.tuples(st.just("start"), texts, st.sampled_from(["", "", "b"])),
    st.tuples(st.just("run"), st.integers(0, 5), st.integers(1, 60)),
    st.tuples(st.just("store"), st.integers(0, 5), st.booleans()),
    st.tuples(st.just("end"), st.integers(0, 5)),
    st.tuples(st.just("cut"), st.integers(0, 5), st.integers(0, LENGTH)),
    st.tuples(st.just("room"), st.integers(1, 12))), min_size=30, max_size=90)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(operations)
def test_bits_and_pages(rig: Rig, todo: list[tuple[Any, ...]]) -> None:
    live: list[Live] = []
    try:
        for what, *args in todo:
            one = live[args[0] % len(live)] if live and what in ("run", "store", "end", "cut") else None
            if what == "start" and len(live) < 6:
                start(rig, live, *args)
            elif what == "room":
                rig.cache.make_room(args[0])
            elif one is not None:
                change(rig, live, one, what, *args[1:])
            rig.check([s.seq for s in live])
    finally:
        for s in live:
            rig.engine.close_seq(s.seq)
        rig.cache.clear()
    rig.check([])


def start(rig: Rig, live: list[Live], text: tuple[int, ...], client: str) -> None:
    seq = rig.engine.open_seq()
    assert seq is not None
    tokens = tokens_of(text)
    hit = rig.cache.attach(seq, client, tokens, len(tokens) - 1)
    assert hit.n < len(tokens) and rig.engine.length(seq) == hit.n and (hit.n == 0 or hit.n >= PAGE)
    live.append(Live(seq, text, client, hit.n))


def change(rig: Rig, live: list[Live], s: Live, what: str, *args: Any) -> None:
    tokens = tokens_of(s.text)
    if what == "run":
        n = min(args[0], len(tokens) - s.done)
        if n and rig.cache.make_room(n // PAGE + 2, 1):
            rig.engine.step([(s.seq, tokens[s.done:s.done + n], n)])
            assert np.array_equal(rig.engine.logits[:n], rig.cold(s.text)[s.done:s.done + n])
            s.done += n
    elif what == "store" and s.done >= PAGE:
        rig.cache.insert(s.client, tokens, s.seq, s.done // PAGE * PAGE, mark=args[0])
    elif what == "cut" and args[0] <= s.done and rig.engine.truncate(s.seq, args[0]):
        s.done = args[0]
    elif what == "end":
        if s.done:
            rig.cache.insert(s.client, tokens, s.seq, s.done, mark=True, tail=True)
        rig.engine.close_seq(s.seq)
        live.remove(s)


def fill(rig: Rig, text: tuple[int, ...], client: str = "", marks: tuple[int, ...] = ()) -> int:
    """Runs a text through, with what the cache has of it, and stores it; returns how much that was."""
    seq = rig.engine.open_seq()
    assert seq is not None
    tokens = tokens_of(text)
    hit = rig.cache.attach(seq, client, tokens, len(tokens) - 1)
    at = hit.n
    for end in [*(m for m in marks if m > at), len(tokens)]:
        for begin in range(at, end, 60):
            part = tokens[begin:min(begin + 60, end)]
            assert rig.cache.make_room(5)
            rig.engine.step([(seq, part, len(part))])
            assert np.array_equal(rig.engine.logits[:len(part)], rig.cold(text)[begin:begin + len(part)])
        if end in marks:
            rig.cache.insert(client, tokens, seq, end, mark=True)
        at = end
    rig.cache.insert(client, tokens, seq, len(tokens), mark=True, tail=True)
    rig.engine.close_seq(seq)
    return hit.n


def test_hits_go_to_the_last_token(rig: Rig) -> None:
    """The same text again: all but the last token; a longer one: all of it; one that forks: up to the fork, or the last mark before it."""
    rig.cache.clear()
    windowed = any(rig.engine.windows)
    assert fill(rig, (0, 0, 0)) == 0
    again = fill(rig, (0, 0, 0))
    assert again == 127 or (windowed and again in (112, 0))
    assert fill(rig, (0, 0, 0, 0, 0)) == 128
    forked = fill(rig, (0, 0, 1), marks=(80,))
    assert forked == (83 if not windowed else 80 if 1 in rig.engine.windows else 0)
    assert fill(rig, (0, 0, 2)) in ((80, 83) if windowed else (83,))
    assert fill(rig, (0, 0, 0), client="other") == 0
    rig.cache.clear()


def test_a_longer_end_takes_the_place_of_a_shorter_one(rig: Rig) -> None:
    rig.cache.clear()
    tokens, seq = tokens_of((1, 1)), rig.engine.open_seq()
    assert seq is not None
    for at, end in ((0, 35), (35, 44), (44, 52)):
        rig.engine.step([(seq, tokens[at:end], 0)])
        rig.cache.insert("", tokens, seq, end, mark=True, tail=True)
        rig.check([seq])
    assert rig.cache.n_nodes == (6 if any(rig.engine.recurrent) else 4)         # a state is of no use to a shorter text
    rig.engine.close_seq(seq)
    assert rig.cache.match("", tokens, 52).n == 52
    rig.cache.clear()


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    rig = Rig((0,), tmp_path, n_positions=480)
    for first in (0, 1, 2):
        fill(rig, (first, first, first))         # 8 pages each
    assert fill(rig, (0, 0, 0)) == 127
    total = rig.engine.group(0).n_pages
    assert rig.cache.make_room(total - 16 - 3)
    left = [rig.cache.match("", tokens_of((first,) * 3), 128).n for first in (0, 1, 2)]
    assert left[0] == 128 and left[1] < 128 == left[2]
    assert rig.cache.make_room(total) and rig.cache.n_nodes == 0 and not rig.cache._roots
    rig.engine.close()


def test_windows_keep_few_pages(tmp_path: Path) -> None:
    """Of long texts with a mark every 40 tokens, a windowed layer keeps no more than its pool, and hits still come."""
    rig = Rig((0, 32), tmp_path, n_positions=4000)
    assert rig.engine.group(1).n_pages < 120 < rig.engine.group(0).n_pages
    for i in range(20):
        fill(rig, (i % 3, i % 2, i, i, i), marks=(32, 80, 128, 160))
        rig.check([])
    assert rig.cache.match("", tokens_of((1, 1, 19, 19, 19)), LENGTH).n == LENGTH
    assert rig.cache.match("", tokens_of((1, 1, 19, 2)), LENGTH).n == 128
    rig.engine.close()


def test_a_hit_without_a_page_for_its_copy(tmp_path: Path) -> None:
    """All pages are held: what is shared of a page cannot be copied, whole pages still can be shared."""
    rig = Rig((0,), tmp_path)
    fill(rig, (0, 1))                       # 83 tokens
    engine, hogs = rig.engine, list[int]()
    seq = engine.open_seq()
    assert seq is not None and rig.cache.attach(seq, "", tokens_of((0, 1)), 83).n == 83      # holds the path
    while engine.group(0).n_free:
        hogs += [] if hogs else [s for s in [engine.open_seq()] if s is not None]
        engine.step([(hogs[0], [7] * min(16 * engine.group(0).n_free, 32), 0)])
    other = engine.open_seq()
    assert other is not None and rig.cache.attach(other, "", tokens_of((0, 1)), 83).n == 80
    rig.check([seq, other, *hogs])
    engine.close()


def test_wrong_pages_are_refused(rig: Rig) -> None:
    rig.cache.clear()
    engine, groups = rig.engine, len(rig.engine.windows)
    seq, other = engine.open_seq(), engine.open_seq()
    assert seq is not None and other is not None
    engine.step([(seq, tokens_of((0,)), 0)])
    free = engine.group(0).n_free
    pages = engine.seq_pages(seq, 0, 3)
    for n, wrong in ((32, [[10 ** 6, 0]] * groups), (32, [[-2, 0]] * groups), (20, [[-1, -1]] * groups),
                     (16, [[engine.group(0).n_pages - 1]] * groups), (10 ** 6, [[0] * 62500] * groups)):
        with pytest.raises(pyllm.ArgumentError):
            engine.attach(other, n, wrong)
    one = [p[:1] for p in pages]
    for call in (lambda: engine.attach(seq, 16, one), lambda: engine.attach(77, 16, one), lambda: engine.seq_pages(seq, 1, 3),
                 lambda: engine.seq_pages(seq, -1, 1), lambda: engine.adopt(seq, 2, one), lambda: engine.keep([[10 ** 6]] * groups),
                 lambda: engine.drop([[-7]] * groups)):
        with pytest.raises(pyllm.ArgumentError):
            call()
    assert engine.length(other) == 0 and engine.group(0).n_free == free
    engine.close_seq(seq)
    engine.close_seq(other)
    rig.check([])


@pytest.mark.parametrize(("window", "n", "expected"), [(0, 500, 0), (1, 0, 0), (1, 16, 1), (17, 16, 0), (16, 16, 0), (32, 100, 4),
                                                       (512, 511, 0)])
def test_first_page(window: int, n: int, expected: int) -> None:
    assert first_page(window, n) == expected == min((p for p in range(n + 1) if not window or p > n - window), default=0) // PAGE


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40))
def test_common(a: list[int], b: list[int]) -> None:
    assert common(a, b) == next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


# ---- in use ----

def test_a_shared_prefix_is_computed_once(smollm2: Path) -> None:
    """Sixteen requests that come together with the same 400 tokens: one computes these, the others wait for it."""
    prefix = [5 + i * 7919 % 40000 for i in range(400)]
    prompts = [[*prefix, *range(100 * i + 7, 100 * i + 17)] for i in range(16)]
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 4}
    with pyllm.LLM(smollm2, ctx=4096) as llm:
        replies = llm.generate_batch(prompts, chat=False, **options)
        assert sorted(r.usage.cached_tokens for r in replies) == [0] + [400] * 15
        cold = [llm.complete(p, client=f"cold {i}", **options) for i, p in enumerate(prompts[:2])]
        assert [r.tokens for r in cold] == [r.tokens for r in replies[:2]] and not any(r.usage.cached_tokens for r in cold)


def test_half_of_the_pages(smollm2: Path) -> None:
    """Sixteen requests with half of the pages that they need: they give way to each other, and every text is the same."""
    prompts = [[5 + (i * 7919 + k * 104729) % 40000 for k in range(24)] for i in range(16)]
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 56, "logit_bias": {2: float("-inf"), 0: float("-inf")}}
    replies = []
    for ctx in (16 * 80, 16 * 40 - 256):           # 16 pages more are there for partial ones
        with pyllm.LLM(smollm2, ctx=ctx) as llm:
            replies.append(llm.generate_batch(prompts, chat=False, **options))
            assert llm._driver.call(lambda llm=llm: llm._engine.free_pages()) == ctx // PAGE + 16
    assert [r.tokens for r in replies[0]] == [r.tokens for r in replies[1]] and all(len(r.tokens) == 56 for r in replies[1])


@pytest.mark.models
def test_gemma_forks() -> None:
    """Prefixes of 2,000 tokens that fork at 700 and 1,300: the bits of cold runs, and the pages of windowed layers stay bounded."""
    base = [5 + i * 7919 % 200000 for i in range(2000)]
    forks = [base, base[:1300] + [7 + i * 31 % 90000 for i in range(700)], base[:700] + [9 + i * 37 % 80000 for i in range(1300)]]
    prompts = [[*f, 100 + i] for f in [*forks, *forks] for i in range(2)]
    with pyllm.LLM(model_path("gemma3-270m"), ctx=32768) as llm:
        group = llm._engine.windows.index(512)
        pool = llm._driver.call(lambda: llm._engine.group(group).n_pages)
        assert pool < 32768 // PAGE // 2
        warm, hits = [], []
        for p in prompts:
            reply = llm.complete(p, temperature=0, max_tokens=5, logprobs=3)
            warm.append((reply.tokens, reply.logprobs))
            hits.append(reply.usage.cached_tokens)
        assert hits == [0, 2000, 1024, 2000, 0] + [2000] * 7
        # marks: of three texts the ends of two answers each (a tail page and 32 of the window) and what is kept at 1,024 and at the forks
        assert pool - llm._driver.call(lambda: llm._engine.group(group).n_free) <= 3 * (2 + 33) + 3 * 33
        for i, (p, want) in enumerate(zip(prompts[:6], warm, strict=False)):
            reply = llm.complete(p, temperature=0, max_tokens=5, logprobs=3, client=f"cold {i}")
            assert reply.usage.cached_tokens == 0 and (reply.tokens, reply.logprobs) == want == warm[i + 6]
