"""Speculation: whatever is guessed, every reply is that of plain decoding, bit for bit; and guesses are made only where they pay."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from conftest import model_path
from hypothesis import given, settings
from hypothesis import strategies as st

import pyllm
from pyllm.build import build
from pyllm.engine import MAX_DRAFTS, Choice, Engine
from pyllm.gguf import GGUF
from pyllm.sampling import Options
from pyllm.sampling import Sampler as PythonSampler
from pyllm.speculation import PRIOR, Curve, Guess, Mode, Rates, Speculation, Speculator

TINY = {"n_layers": 1, "n_embd": 64, "n_ff": 64, "heads": 2, "kv_heads": 1, "ctx": 256}
DEPTHS: list[Any] = [1, 2, 3, 7, MAX_DRAFTS, "auto", "lookup"]
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3},
    "default": {"seed": 4},
    "penalties": {"temperature": 0.7, "seed": 5, "repeat_penalty": 1.3, "presence_penalty": 0.4, "frequency_penalty": 0.2,
                  "dry_multiplier": 0.8, "repeat_last_n": 24},
    "xtc": {"seed": 6, "xtc_probability": 0.5, "top_k": 20, "typical_p": 0.9},
    "logprobs": {"seed": 7, "logprobs": 3},
    "stop": {"temperature": 0, "stop": ["w11", "w7 w"]},
    "short": {"seed": 8, "max_tokens": 2},
    "bias": {"temperature": 0, "logit_bias": {270: 9.0, 271: 8.0}},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A model, and its first layer as a model that drafts for it."""
    folder = tmp_path_factory.mktemp("speculation")
    for name, n_layers in (("target", 2), ("draft", 1)):
        (folder / f"{name}.gguf").write_bytes(tiny_gguf.llama("q8_0", **{**TINY, "n_layers": n_layers})[0])
    return [folder / "target.gguf", folder / "draft.gguf"]


@pytest.fixture(scope="module")
def llm(files: list[Path]) -> Iterator[pyllm.LLM]:
    with pyllm.LLM(files[0], draft=files[1], speculate="off") as llm:
        yield llm


@pytest.fixture(scope="module")
def twins(files: list[Path]) -> Iterator[pyllm.LLM]:
    """A model that drafts for itself."""
    with pyllm.LLM(files[0], draft=files[0]) as llm:
        yield llm


def prompt(i: int) -> list[int]:
    """Tokens some of which come again."""
    return [5 + (i * 31 + k * k % 11 * 7) % 290 for k in range(8 + i * 5 % 60)]


def same(a: pyllm.Reply, b: pyllm.Reply) -> bool:
    return (a.text, a.tokens, a.finish_reason, a.logprobs) == (b.text, b.tokens, b.finish_reason, b.logprobs)


# ---- the text ----

@pytest.mark.parametrize("case", CASES)
def test_every_depth_gives_the_same_reply(llm: pyllm.LLM, twins: pyllm.LLM, case: str) -> None:
    options = {"max_tokens": 48, **CASES[case]}
    accepted = 0
    for i in range(2):
        plain = llm.complete(prompt(i), **options)
        assert not plain.usage.drafted_tokens
        for depth in DEPTHS:
            for model in (llm, twins):
                reply = model.complete(prompt(i), speculate=depth, **options)
                assert same(reply, plain), (depth, model is twins)
                accepted += reply.usage.accepted_tokens
    assert accepted or options["max_tokens"] == 2


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_drafts_for_itself_is_always_right(twins: pyllm.LLM, case: str) -> None:
    """Also with penalties, which look at the tokens that were guessed before, and with noise, which is that of the place."""
    reply = twins.complete(prompt(3), speculate=4, **{"max_tokens": 48, **CASES[case]})
    usage = reply.usage
    ended = reply.finish_reason == "stop"           # what was guessed behind the end does not count
    assert usage.accepted_tokens == usage.drafted_tokens or (ended and usage.drafted_tokens - usage.accepted_tokens <= 4)
    assert usage.accepted_tokens >= (len(reply.tokens) - 2) // 5 * 4


def test_batches(files: list[Path], llm: pyllm.LLM) -> None:
    """Requests with and without guesses in the same steps, in a cache too small for all of them: they take turns."""
    asked = [(prompt(i), {"max_tokens": 40, "speculate": [None, *DEPTHS][i % 8], **list(CASES.values())[i % 7]}) for i in range(24)]
    want = [llm.complete(p, **{**options, "speculate": "off"}) for p, options in asked]
    with pyllm.LLM(files[0], ctx=256, draft=files[1], parallel=6, speculate=3) as other:
        streams = [other.stream_complete(p, **options) for p, options in asked]
        for stream, plain in zip(streams, want, strict=True):
            assert "".join(c.text for c in stream) == plain.text
            assert same(stream.reply, plain)
        assert other._driver.call(lambda: other._engine.free_pages()) == 256 // 16 + 6


@pytest.mark.parametrize("depth", [1, 5, "auto"])
def test_forms_and_processors_see_every_token(llm: pyllm.LLM, depth: Any) -> None:
    pytest.importorskip("llguidance")
    seen: list[list[tuple[int, ...]]] = []

    def processor(ids: Any, logits: Any) -> None:
        seen[-1].append(tuple(ids))
        logits[260 + len(ids) % 5] += 6

    for options in ({"regex": "(ab|ba){2,9}cc", "seed": 2}, {"logits_processor": processor, "seed": 3, "max_tokens": 30},
                    {"schema": {"enum": ["aaaaaaaaaa", "bbbbbbbbb"]}, "temperature": 0}):
        replies = []
        for speculate in ("off", depth):
            seen.append([])
            replies.append(llm.complete(prompt(2), **{"max_tokens": 60, **options, "speculate": speculate}))
        assert same(*replies) and seen[-1] == seen[-2]


def test_what_a_form_leaves_no_choice_about_is_guessed(smollm2: Path) -> None:
    pytest.importorskip("llguidance")
    properties = {"first_name": {"type": "string", "maxLength": 8}, "temperature_celsius": {"type": "integer"}}
    schema = {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}
    with pyllm.LLM(smollm2, ctx=512, speculate=4) as llm:
        for options in ({"temperature": 0}, {"temperature": 1.0, "seed": 2}):
            plain, guessed = (llm.chat("Describe somebody.", schema=schema, max_tokens=60, speculate=s, **options) for s in ("off", None))
            assert same(guessed, plain) and plain.parsed
            assert guessed.usage.accepted_tokens >= 4       # the names, which the draft by lookup cannot know


@pytest.mark.parametrize("depth", [4, MAX_DRAFTS])
def test_sliding_windows(files: list[Path], depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guesses that were wrong are taken back, also where that is behind the border of a page that has left the window."""
    def windowed(gguf: GGUF, ctx: int | None = None) -> tuple[str, Any]:
        tape, x = build(gguf, ctx)
        return re.sub(r"\bwindow=0\b", "window=20", tape), x

    monkeypatch.setattr("pyllm.llm.build", windowed)
    monkeypatch.setattr("pyllm.draft.build", windowed)
    with pyllm.LLM(files[0], draft=files[1]) as llm:
        assert llm._engine.windows == (20,)
        for case in ("greedy", "sampled"):
            plain = llm.complete(prompt(1), max_tokens=150, speculate="off", **CASES[case])
            assert same(llm.complete(prompt(1), max_tokens=150, speculate=depth, **CASES[case]), plain)


def test_leaving_early(twins: pyllm.LLM) -> None:
    """Streams that are left in the middle give everything back, the draft model's pages too; what they leave in the cache is right."""
    engines = (twins._engine, twins._driver._draft)
    for i in range(12):
        stream = twins.stream_complete(prompt(i), max_tokens=100, speculate=i % 5 + 1, temperature=0)
        for n, _ in enumerate(stream):
            if n == i % 4:
                break
        stream.close()
    threads = [threading.Thread(target=lambda i=i: twins.complete(prompt(i), max_tokens=9, speculate=5)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for engine in engines:
        assert engine is not None
        group = twins._driver.call(lambda engine=engine: (lambda g: (g.n_pages, g.n_free + g.n_idle))(engine.group(0)))
        assert group[0] == group[1]
    for i in range(12):
        assert same(twins.complete(prompt(i), max_tokens=30, speculate=6, temperature=0),
                    twins.complete(prompt(i), max_tokens=30, speculate="off", temperature=0))


def test_a_context_that_ends(llm: pyllm.LLM) -> None:
    for depth in (1, MAX_DRAFTS):
        a, b = (llm.complete(prompt(0), temperature=0, speculate=s) for s in ("off", depth))
        assert same(a, b) and a.usage.total_tokens == 256


def test_what_is_refused(files: list[Path], llm: pyllm.LLM, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    kv = tiny_gguf.metadata(**TINY) | tiny_gguf.vocabulary()
    kv["tokenizer.ggml.tokens"] = [*kv["tokenizer.ggml.tokens"][:-3], "x", "y", "z"]
    other.write_bytes(tiny_gguf.build(kv, tiny_gguf.tensors("q8_0", tiny_gguf.shapes(1, 64, 64, 2, 1)))[0])
    small = tmp_path / "small.gguf"
    small.write_bytes(tiny_gguf.llama("q8_0", n_vocab=280, **TINY)[0])
    for draft, why in ((other, "token 297 is 'x' there"), (small, "280 tokens, not 300")):
        with pytest.raises(pyllm.ArgumentError, match=why) as e:
            pyllm.LLM(files[0], draft=draft)
        assert "other.gguf has another vocabulary" in str(e.value) or "small.gguf has another vocabulary" in str(e.value)
        assert e.value.hint
    with pytest.raises(pyllm.FileError):
        pyllm.LLM(files[0], draft=tmp_path / "nothing.gguf")
    for wrong in (-1, MAX_DRAFTS + 1, "deep", True, 1.5):
        with pytest.raises(pyllm.ArgumentError, match="speculate is"):
            llm.complete([5], speculate=wrong)
        with pytest.raises(pyllm.ArgumentError, match="speculate is"):
            pyllm.LLM(files[0], speculate=wrong)


def test_a_vocabulary_that_is_padded(files: list[Path], llm: pyllm.LLM, tmp_path: Path) -> None:
    """The draft model has two tokens less: of those it guesses nothing, and texts that hold them it does not read."""
    path = tmp_path / "padded.gguf"
    path.write_bytes(tiny_gguf.llama("q8_0", n_vocab=298, **TINY)[0])
    with pyllm.LLM(files[0], draft=path, speculate=3) as other:
        for ids in ([5, 6, 7], [5, 299, 7]):
            reply = other.complete(ids, seed=1, max_tokens=40)
            assert same(reply, llm.complete(ids, seed=1, max_tokens=40))
            assert bool(reply.usage.drafted_tokens) == (299 not in (*ids, *reply.tokens) and 298 not in reply.tokens) or ids == [5, 6, 7]


def test_checked_tokens_have_their_exact_distribution(llm: pyllm.LLM) -> None:
    """Chi-square of the second token, which is checked against a guess, over 3,000 seeds and the four tokens that may come before it: the
    exact distribution is softmax over the four likeliest logits. A bias makes these the same ones for both models, so that guesses are
    right sometimes."""
    ids, n, bias = [5, 6, 7], 3000, np.zeros(300)
    bias[270:274] = 30
    options: dict[str, Any] = {"max_tokens": 3, "temperature": 1.0, "top_k": 4, "top_p": 1.0, "min_p": 0.0, "speculate": 1,
                               "logit_bias": {t: 30.0 for t in range(270, 274)}}
    counts: dict[int, dict[int, int]] = {}
    drafted = accepted = 0
    for at in range(0, n, 15):
        together = threading.Event()        # beside prompts nothing is guessed
        llm._driver.post(lambda go=together: go.wait(30))
        streams = [llm.stream_complete(ids, seed=seed, **options) for seed in range(at, at + 15)]
        together.set()
        for stream in streams:
            for _ in stream:
                pass
            tokens, usage = stream.reply.tokens, stream.reply.usage
            counts.setdefault(tokens[0], {}).setdefault(tokens[1], 0)
            counts[tokens[0]][tokens[1]] += 1
            drafted, accepted = drafted + usage.drafted_tokens, accepted + usage.accepted_tokens
    assert drafted > n / 2 and 0.1 * drafted < accepted < 0.9 * drafted
    chi, freedom = 0.0, 0
    for first, seconds in counts.items():
        logits = llm.logits([*ids, first])[-1] + bias
        kept = np.argsort(-logits, kind="stable")[:4]
        p = np.exp(logits[kept] - logits[kept].max())
        want = sum(seconds.values()) * p / p.sum()
        assert set(seconds) <= set(kept.tolist())
        chi += float(((np.array([seconds.get(int(t), 0) for t in kept]) - want) ** 2 / want).sum())
        freedom += 3
    assert freedom == 12 and chi < 32.91, counts        # p = 0.001


def test_a_draft_model_reads_long_prompts_between_steps(files: list[Path]) -> None:
    """No step of it is longer than what a newcomer may be kept waiting for; then it guesses."""
    with pyllm.LLM(files[0], ctx=1024, draft=files[0], speculate=4, parallel=4) as llm:
        draft, sizes = llm._driver._draft, list[int]()
        assert draft is not None
        run = draft.step
        draft.step = lambda rows: (sizes.append(sum(len(t) for _, t, _ in rows)), run(rows))[1]     # type: ignore[method-assign]
        prompts = [[5 + (k * 7 + i) % 290 for k in range(200)] for i in range(4)]
        usage = llm.complete(prompts[0], max_tokens=20).usage
        assert max(sizes) <= 256 and usage.drafted_tokens == usage.accepted_tokens > 10
        sizes.clear()
        assert all(r.usage.accepted_tokens > 5 for r in llm.generate_batch(prompts[1:], chat=False, max_tokens=40))
        assert max(sizes) <= 64


# ---- many choices at once ----

@pytest.fixture(scope="module")
def engine(files: list[Path]) -> Iterator[Engine]:
    with GGUF(files[0]) as gguf:
        engine = Engine(gguf.handle, build(gguf)[0], threads=3, kv="f16", n_positions=256, level=None)
    yield engine
    engine.close()


def sampler(llm: pyllm.LLM, options: dict[str, Any], history: list[int]) -> PythonSampler:
    made = PythonSampler(Options.make(options), llm.tokenizer, 300)
    made.accept(history)
    return made


def test_choices_are_those_of_one_call_each(llm: pyllm.LLM, engine: Engine) -> None:
    """Chains of rows with guesses that are right up to a place, masks and logprobs: the same tokens as one by one, and histories that go on
    the same way."""
    rng = np.random.default_rng(1)
    cases = [{k: v for k, v in case.items() if k not in ("stop", "max_tokens")} for case in CASES.values()]
    for _ in range(20):
        chains, alone, plans = [], [], []
        for case in cases:
            history, n = rng.integers(3, 300, 30).tolist(), int(rng.integers(0, 6))
            rows = rng.normal(0, 3, (n + 2, 300)).astype(np.float32)
            one = sampler(llm, case, history)
            tokens, tops = [], []
            for i in range(n + 2):
                choice = Choice(one, rows[i], 30 + i)
                engine.choose([choice])
                tokens += choice.tokens
                tops.append(one.logprob(0) if "logprobs" in case else None)
            wrong = int(rng.integers(0, n + 1))
            drafts = [t if i < wrong else (t + 1) % 300 for i, t in enumerate(tokens[:n])]
            chains.append(Choice(sampler(llm, case, history), rows[:n + 1], 30, drafts))
            alone.append((rows, tokens, tops))
            plans.append(min(wrong, n) + 1)
        engine.choose(chains)
        again = []
        for chain, (rows, tokens, tops), n in zip(chains, alone, plans, strict=True):
            assert chain.tokens == tokens[:n] and chain.error is None
            if tops[0] is not None:
                assert [chain.sampler.logprob(i) for i in range(n)] == tops[:n]
            again.append(Choice(chain.sampler, rows[n], 30 + n))
        engine.choose(again)
        assert [c.tokens for c in again] == [tokens[n:n + 1] for (_, tokens, _), n in zip(alone, plans, strict=True)]


def test_a_bad_row_ends_its_own_choice_only(llm: pyllm.LLM, engine: Engine) -> None:
    rows = np.zeros((3, 300), np.float32)
    rows[:, 9] = 5
    bad = rows.copy()
    bad[1, 4] = np.nan
    choices = [Choice(sampler(llm, {"temperature": 0}, [5]), x, 1, [9, 9]) for x in (rows, bad)]
    engine.choose(choices)
    assert choices[0].tokens == [9, 9, 9] and choices[0].error is None
    assert choices[1].tokens == [9] and isinstance(choices[1].error, pyllm.NonFiniteLogits)
    with pytest.raises(pyllm.ArgumentError, match="mask"):
        engine.choose([Choice(sampler(llm, {}, [5]), rows, 1, [9], mask=bytes(40))])


def test_histories_go_back(llm: pyllm.LLM, engine: Engine) -> None:
    x = np.zeros(300, np.float32)
    x[50] = 1
    one = sampler(llm, {"temperature": 0, "presence_penalty": 5.0}, [7])
    first, second = Choice(one, x, 1), Choice(one, x, 2)
    engine.choose([first])
    engine.choose([second])
    one.rewind(2)
    again = Choice(one, x, 1)
    engine.choose([again])
    assert first.tokens == again.tokens == [50] != second.tokens
    with pytest.raises(pyllm.ArgumentError, match="history of 2"):
        one.rewind(3)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(3, 5), min_size=1, max_size=60), st.integers(1, 12))
def test_looking_up(llm: pyllm.LLM, history: list[int], most: int) -> None:
    """Against the definition: the longest match of the last tokens, of at most 32, and of those the latest; what followed it, which may be
    itself."""
    tokens, match = sampler(llm, {}, history).lookup(most)
    best, at = 0, 0
    for end in range(len(history) - 1, 0, -1):
        n = 0
        while n < min(end, 32) and history[end - 1 - n] == history[-1 - n]:
            n += 1
        if n > best:
            best, at = n, end
    text = list(history)
    for i in range(most if best else 0):
        text.append(text[at + i])
    assert (tokens, match) == (text[len(history):], best)


@pytest.mark.parametrize("windows", [(20,), (0, 33)])
def test_sequences_can_be_cut_behind_a_window(files: list[Path], windows: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny_gguf.llama("q8_0", **{**TINY, "n_layers": len(windows)})[0])
    with GGUF(path) as gguf:
        left = iter(windows)
        tape = re.sub(r"\bwindow=0\b", lambda _: f"window={next(left)}", build(gguf)[0])
        engine = Engine(gguf.handle, tape, threads=1, kv="f16", n_positions=512, level=None, parallel=2)
    text = [5 + i * 37 % 290 for i in range(200)]
    a, b = engine.open_seq(), engine.open_seq()
    assert a is not None and b is not None
    for at in range(0, 200, 10):
        engine.step([(b, text[at:at + 10], 1)])
        want = engine.logits[0].copy()
        engine.step([(a, text[at:at + 9], 0)])
        engine.step([(a, text[at + 9:at + 10] + [7] * MAX_DRAFTS, 1)])
        assert engine.truncate(a, at + 10)
        engine.truncate(a, at + 9)
        engine.step([(a, text[at + 9:at + 10], 1)])
        assert np.array_equal(engine.logits[0], want)
    engine.close()


# ---- how much is guessed ----

class FakeTask:
    tokens, prompt, most = [1] * 10, 10, 200


class FakeGeneration:
    """As far as the choice of a depth looks at one."""

    task = FakeTask()

    def __init__(self, mode: Mode) -> None:
        self.speculation = Speculation(mode, Rates([0.5] * len(PRIOR), 50))


def depths(slope: float, chances: list[list[float]], spent: float = 0.0) -> list[int]:
    """With steps of 1 + slope * (rows - 1) seconds."""
    speculator = Speculator(None, 0, lambda t: False, lambda: 100.0)
    for m in range(1, 65):
        speculator.ran(m, 1 + slope * (m - 1))
    guesses = []
    for c in chances:
        guess = Guess(FakeGeneration(Mode(True, False, None)), 31)  # type: ignore[arg-type]
        for chance in c:
            guess.add(9, 0, chance / (guess.chances[-1] if guess.chances else 1))
        guesses.append(guess)
    speculator._choose_depths(guesses, len(chances), spent)
    return [len(g.tokens) for g in guesses]


def test_depths_follow_chances_and_costs() -> None:
    falling = [[0.8 ** k for k in range(1, 32)]]
    assert depths(0.0, falling) == [31] and depths(10.0, falling) == [0]
    assert depths(0.9, falling) == [0]          # a guess costs more than it may bring
    for slope in (0.05, 0.1, 0.2, 0.4):         # the best one, by trying all
        speeds = [sum(0.8 ** i for i in range(k + 1)) / (1 + slope * k) for k in range(32)]
        assert depths(slope, falling) == [int(np.argmax(speeds))]
    sure, doubtful = [0.95 ** k for k in range(1, 32)], [0.3 ** k for k in range(1, 32)]
    deep, shallow = depths(0.1, [sure, doubtful])
    assert deep > shallow and depths(0.1, [doubtful, sure]) == [shallow, deep]


def test_curves_learn() -> None:
    curve = Curve()
    assert curve.seconds(3) == 0 and not curve.knows(1)
    curve.observe(1, 1.0)
    assert curve.seconds(1) == 1 and curve.seconds(2) == pytest.approx(1 + Curve.SLOPE)
    curve.observe(5, 3.0)
    assert curve.seconds(3) == pytest.approx(2.0) and curve.seconds(9) == pytest.approx(5.0)
    for _ in range(60):
        curve.observe(5, 1.5)
    assert curve.seconds(5) == pytest.approx(1.5, rel=0.01) and curve.seconds(1) < 1    # the others became faster, too
    for _ in range(400):
        curve.observe(1, 1.0)
    assert not curve.knows(5)                   # one bad experience does not last for ever
    curve.observe(1, 1000.0)
    assert curve.seconds(1) < 1.3


def test_rates_learn() -> None:
    everybody = Rates([0.5] * len(PRIOR), 100)
    mine = Rates(everybody, 20)
    for _ in range(200):
        mine.add(3, True)
    assert mine[3] > 0.85 and mine[4] == 0.5 and everybody[3] == 0.5
    for _ in range(60):
        mine.add(3, False)
    assert mine[3] < 0.2
    everybody.add(4, False)
    assert mine[4] < 0.5


def test_speed_decides_in_a_running_model(llm: pyllm.LLM) -> None:
    """A text that repeats itself is guessed, and less so once rows are said to cost much."""
    ids = [5 + k % 7 for k in range(100)]
    ask = {"temperature": 0, "max_tokens": 60, "logit_bias": {t: 20.0 for t in range(5, 8)}}
    speculator = llm._driver.speculator
    free, dear = Curve(), Curve()
    for curve, slope in ((free, 0.0), (dear, 5.0)):
        for m in range(1, 65):
            curve.observe(m, 1 + slope * (m - 1))
        curve.observe = lambda rows, seconds: None      # type: ignore[method-assign]
    usages = []
    for curve in (free, dear):
        speculator._steps = curve
        usages.append(llm.complete(ids, speculate="lookup", **ask).usage)
    speculator._steps = Curve()
    assert usages[0].drafted_tokens > 30 and usages[1].drafted_tokens == 0


# ---- real models ----

def test_smollm2(smollm2: Path) -> None:
    text = "def add(a, b):\n    return a + b\n\ndef sub(a, b):\n"
    with pyllm.LLM(smollm2, ctx=512, draft=smollm2) as llm:
        for options in ({"temperature": 0}, {"temperature": 1.0, "seed": 1, "logprobs": 2}):
            plain = llm.complete(text, max_tokens=32, speculate="off", **options)
            for depth in (3, "lookup", "auto"):
                assert same(llm.complete(text, max_tokens=32, speculate=depth, **options), plain)
        usage = llm.complete(text, max_tokens=32, speculate=4, seed=3, temperature=1.0).usage
        assert usage.drafted_tokens == usage.accepted_tokens >= 20


@pytest.mark.models
def test_qwen_pair() -> None:
    ask = "Write a Python function that reverses the words of a text."
    with pyllm.LLM(model_path("qwen2.5-coder-1.5b"), ctx=512, draft=model_path("qwen2.5-coder-0.5b")) as llm:
        for options in ({"temperature": 0}, {"temperature": 1.0, "seed": 1}):
            plain = llm.chat(ask, max_tokens=48, speculate="off", **options)
            for depth in (1, 4, "auto", "lookup"):
                reply = llm.chat(ask, max_tokens=48, speculate=depth, **options)
                assert same(reply, plain)
                assert depth not in (1, 4) or reply.usage.accepted_tokens > 10


@pytest.mark.models
def test_gemma_with_windows() -> None:
    path = model_path("gemma3-270m")
    with pyllm.LLM(path, ctx=2048, draft=path) as llm:
        text = "The history of the sea is long. " * 90
        plain = llm.complete(text, max_tokens=60, speculate="off", seed=1)
        for depth in (3, "lookup"):
            assert same(llm.complete(text, max_tokens=60, speculate=depth, seed=1), plain)
