"""Hostile arguments to every public call: always a pyllm.Error that says what is wrong, and the model goes on. NaN weights end only the
requests that meet them. Tokenizers are linear on any text."""

from __future__ import annotations

import math
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
import tok_oracle

import pyllm
from pyllm._core import lib
from pyllm.gguf import GGUF

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TINY = {"n_layers": 1, "n_embd": 32, "n_ff": 64, "heads": 2, "kv_heads": 1}
HUGE = 10 ** 30
NOT_WHOLE = [0, -1, HUGE, True, False, 1.5, "2", math.nan, math.inf, [], object()]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    path.write_bytes(tiny_gguf.llama("q8_0", **TINY)[0])
    return path


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[pyllm.LLM]:
    with pyllm.LLM(path, chat_template=TEMPLATE) as llm:
        want = llm.complete([5, 6], temperature=0, max_tokens=4).tokens
        yield llm
        assert llm.complete([5, 6], temperature=0, max_tokens=4).tokens == want


def refuses(call: Callable[[], Any], *words: str, kind: type[pyllm.Error] = pyllm.errors.ArgumentError) -> None:
    with pytest.raises(kind) as e:
        call()
    said = str(e.value)
    assert all(word in said for word in words), said
    assert len(said) < 400, "the message holds the whole argument"


# ---- loading ----

@pytest.mark.parametrize("spec", [5, 0, 5.0, True, "", "a\0b", "\ud800", [], {}, object()])
def test_paths(spec: Any) -> None:
    for call in (pyllm.LLM, pyllm.LLM.plan, pyllm.Tokenizer, GGUF):
        refuses(lambda call=call: call(spec), "is not a path")


def test_long_paths() -> None:
    for call in (pyllm.LLM, pyllm.LLM.plan, pyllm.Tokenizer, GGUF):
        with pytest.raises(pyllm.errors.FileError):
            call("x" * 5000)


@pytest.mark.parametrize("value", [*NOT_WHOLE, 1 << 25], ids=repr)
def test_ctx(path: Path, value: Any) -> None:
    refuses(lambda: pyllm.LLM(path, ctx=value), "ctx is", "16777216")
    refuses(lambda: pyllm.LLM.plan(path, ctx=value), "ctx is", "16777216")


@pytest.mark.parametrize("value", [*NOT_WHOLE, 2000], ids=repr)
def test_threads(path: Path, value: Any) -> None:
    refuses(lambda: pyllm.LLM(path, threads=value), "threads is", "1024")
    refuses(lambda: pyllm.LLM.plan(path, threads=value), "threads is", "1024")


@pytest.mark.parametrize("value", ["x", "", "F16", "f16\0", None, 5, b"f16", [], "\ud800"])
def test_kv(path: Path, value: Any) -> None:
    refuses(lambda: pyllm.LLM(path, kv=value), "kv type", "f32, f16, q8_0, q4_0")


@pytest.mark.parametrize("value", ["x", "", "ref\0", 5, b"ref", [], "\ud800"])
def test_level(path: Path, value: Any) -> None:
    refuses(lambda: pyllm.LLM(path, level=value), "CPU level", "ref")


@pytest.mark.parametrize("value", [5, b"x", [], object()])
def test_chat_template(path: Path, value: Any) -> None:
    refuses(lambda: pyllm.LLM(path, chat_template=value), "chat_template is")


def test_numpy_integers_are_integers(path: Path) -> None:
    with pyllm.LLM(path, ctx=np.int64(64), threads=np.int32(2)) as llm:      # type: ignore[arg-type]
        assert (llm.ctx, llm.threads) == (64, 2)
        assert len(llm.complete(np.array([5, 6]), max_tokens=np.int64(2), temperature=np.float32(0)).tokens) == 2      # type: ignore[arg-type]


# ---- options ----

NUMBERS = ["temperature", "top_p", "min_p", "typical_p", "top_n_sigma", "xtc_probability", "xtc_threshold", "repeat_penalty",
           "presence_penalty", "frequency_penalty", "dry_multiplier", "dry_base"]
INTEGERS = ["top_k", "repeat_last_n", "dry_allowed_length", "dry_last_n", "min_keep", "choice"]
OPTIONS: list[tuple[str, list[Any]]] = [
    ("max_tokens", [0, -1, True, False, 1.5, "3", math.nan, []]),
    ("stop", ["", ["a", ""], 5, [5], None, b"x", [b"x"], {"a": 1}, [None]]),
    ("seed", [-(1 << 64), 1 << 64, HUGE, True, 1.5, "1", []]),
    ("logprobs", [-1, 301, 1001, HUGE, True, 1.5, "1"]),
    ("order", ["q", "ee", "e" * 100, "\ud800", "é", "e\0k", 5, None, b"e"]),
    ("logit_bias", [{-1: 1.0}, {300: 1.0}, {HUGE: 1}, {"a": 1}, {1: "x"}, {1: None}, {1: math.nan}, {1: math.inf}, {1: 1e300},
                    {1: 10 ** 400}, {1.5: 1}, {None: 1}, 5, [(1, 2)]]),
    ("logits_processor", [5, "x", lambda a, b: 5, lambda a, b: b[:3], lambda a, b: "x", lambda a, b: object(),
                          lambda a, b: b.astype(complex)]),
    *((name, [math.nan, math.inf, 1e39, 10 ** 400, "hot", None, True, [], 1j]) for name in NUMBERS),
    *((name, [1 << 31, HUGE, -HUGE, 1.5, "x", None, True, math.nan]) for name in INTEGERS),
]


@pytest.mark.parametrize(("name", "value"), [pytest.param(name, v, id=f"{name}-{i}") for name, values in OPTIONS
                                             for i, v in enumerate(values)])
def test_options(llm: pyllm.LLM, name: str, value: Any) -> None:
    for call in (llm.complete, lambda prompt, **k: list(llm.stream_complete(prompt, **k)), lambda prompt, **k: llm.chat("w1", **k)):
        refuses(lambda call=call: call([5, 6], **{"max_tokens": 2, name: value}), name)


@pytest.mark.parametrize("options", [
    {"max_tokens": HUGE}, {"seed": -1}, {"seed": -(1 << 63)}, {"seed": (1 << 64) - 1}, {"temperature": -1}, {"top_k": 10 ** 9},
    {"stop": [f"s{i}" for i in range(10_000)]}, {"stop": "a" * 100_000}, {"stop": "\ud800"}, {"logprobs": 300}, {"logit_bias": {}},
    {"logit_bias": dict.fromkeys(range(299), -math.inf)}, {"top_p": 0}, {"typical_p": 0}, {"min_keep": 10 ** 9}, {"dry_multiplier": 1.0},
    {"choice": -1}, {"repeat_last_n": -1, "repeat_penalty": 1000},
], ids=lambda options: "-".join(options))
def test_extreme_options_run(llm: pyllm.LLM, options: dict[str, Any]) -> None:
    reply = llm.complete([5, 6], **{"max_tokens": 4, **options})
    assert reply.finish_reason in ("stop", "length") and 1 <= len(reply.tokens) <= llm.ctx


def test_all_tokens_banned(llm: pyllm.LLM) -> None:
    bias = dict.fromkeys(range(300), -math.inf)
    refuses(lambda: llm.complete([5, 6], logit_bias=bias), "banned", kind=pyllm.errors.NonFiniteLogits)


def test_a_processor_that_leaves(llm: pyllm.LLM) -> None:
    """Whatever a logits processor raises comes out of its own call, SystemExit included, and nobody else notices."""
    want = llm.complete([7, 8], temperature=0, max_tokens=20).tokens
    with ThreadPoolExecutor(4) as pool:
        others = [pool.submit(llm.complete, [7, 8], temperature=0, max_tokens=20) for _ in range(3)]
        for kind in (SystemExit, KeyboardInterrupt, GeneratorExit, ZeroDivisionError):
            def leave(ids: Any, logits: Any, kind: type[BaseException] = kind) -> Any:
                raise kind("mine")

            with pytest.raises(kind, match="mine"):
                llm.complete([5, 6], logits_processor=leave)
        assert [o.result().tokens for o in others] == [want] * 3


# ---- prompts and messages ----

@pytest.mark.parametrize("prompt", [[HUGE], [-1], [300], [1.5], ["a"], [None], None, 5, b"abc", bytearray(b"abc"), np.array([5.0]),
                                    np.array([[5]]), object(), []], ids=repr)
def test_prompts(llm: pyllm.LLM, prompt: Any) -> None:
    for call in (llm.complete, llm.stream_complete):
        refuses(lambda call=call: call(prompt))
    if isinstance(prompt, list) and not prompt:
        assert llm.logits(prompt).shape == (0, 300)
    else:
        refuses(lambda: llm.logits(prompt))


def test_prompts_that_do_not_fit(llm: pyllm.LLM) -> None:
    for call in (lambda: llm.complete("x" * 10_000), lambda: llm.complete([5] * 10_000), lambda: llm.logits([5] * 10_000),
                 lambda: llm.chat("x" * 10_000), lambda: llm.session().chat("x" * 10_000)):
        refuses(call, "128", kind=pyllm.errors.ContextOverflow)


@pytest.mark.parametrize("text", ["", "\ud800", "a\0b", "\udcff", "\U0010ffff", "\u202e", "\ufeff"], ids=repr)
def test_strange_texts_run(llm: pyllm.LLM, text: str) -> None:
    assert llm.complete(text, max_tokens=2).tokens and llm.chat(text, max_tokens=2).tokens
    with llm.session() as s:
        assert s.chat(text, max_tokens=2).tokens
    assert llm.detokenize(llm.tokenize(text), special=True)


def nested() -> list[Any]:
    inner: list[Any] = []
    inner.append(inner)
    return inner


@pytest.mark.parametrize("messages", [None, 5, b"x", [5], ["x"], {"role": "user", "content": "x"}, [[("role", "user")]], [],
                                      [{"role": "user", "content": object()}], [{"role": "user", "content": b"x"}],
                                      [{"role": "user", "content": nested()}]], ids=str)
def test_messages(llm: pyllm.LLM, messages: Any) -> None:
    for call in (llm.chat, llm.stream, llm.astream):
        refuses(lambda call=call: call(messages))


@pytest.mark.parametrize("messages", [None, 5, b"x", "x", [5], ["x"], {"role": "user"}, object()])
def test_sessions_begin_with_messages(llm: pyllm.LLM, messages: Any) -> None:
    refuses(lambda: llm.session(messages), "messages is")


@pytest.mark.parametrize("options", [{"tools": object()}, {"template_options": 5}, {"template_options": {5: 5}},
                                     {"template_options": {"messages": 5}}, {"tempratur": 1}], ids=str)
def test_template_options(llm: pyllm.LLM, options: dict[str, Any]) -> None:
    refuses(lambda: llm.chat("x", max_tokens=1, **options))


# ---- tokens ----

@pytest.mark.parametrize("token", [-1, 300, HUGE, 1.5, "a", None, [], object()])
def test_token_ids(llm: pyllm.LLM, token: Any) -> None:
    t = llm.tokenizer
    many = [lambda token: t.decode([token]), lambda token: llm.detokenize([5, token])]
    for call in (t.token_bytes, t.token_text, t.is_end, t.stream().feed, *many):
        refuses(lambda call=call: call(token), "token id")


@pytest.mark.parametrize("value", [None, 5, [], object()])
def test_texts(llm: pyllm.LLM, value: Any) -> None:
    refuses(lambda: llm.tokenize(value), "a text is")
    if value != []:
        refuses(lambda: llm.detokenize(value), "token ids")
        refuses(lambda: llm.tokenizer.ids_containing(value), "pieces")


# ---- the rest ----

@pytest.mark.parametrize("test", ["pp", "tg", "xx5", "pp-1", "ppx", "tg0", "", 5, None, b"pp5", "pp²"])
def test_bench_names(llm: pyllm.LLM, test: Any) -> None:
    refuses(lambda: llm.bench(test, reps=1), "test")


@pytest.mark.parametrize("value", [-1, 1.5, "x", None, HUGE, True])
def test_bench_numbers(llm: pyllm.LLM, value: Any) -> None:
    refuses(lambda: llm.bench("pp4", depth=value), "depth")
    refuses(lambda: llm.bench("pp4", reps=value), "reps")


@pytest.mark.parametrize("place", [None, 5, "a\0b", "\ud800", [], ""])
def test_session_paths(llm: pyllm.LLM, place: Any) -> None:
    with llm.session() as s:
        refuses(lambda: s.save(place), "is not a path")
        refuses(lambda: s.load(place), "is not a path")


def test_sessions_that_cannot_be_saved(llm: pyllm.LLM, tmp_path: Path) -> None:
    with llm.session() as s:
        refuses(lambda: s.save(tmp_path), kind=pyllm.errors.FileError)
        refuses(lambda: s.save(tmp_path / "no" / "where"), kind=pyllm.errors.FileError)
        refuses(lambda: s.load(tmp_path), kind=pyllm.errors.FileError)
        s.messages = [{"role": "user", "content": object()}]
        refuses(lambda: s.save(tmp_path / "talk"), "cannot be saved")
    assert list(tmp_path.iterdir()) == []


def test_a_stream_can_be_asked_again(llm: pyllm.LLM) -> None:
    """After its end it says the same; before, its reply is not there."""
    stream = llm.stream_complete([5, 6], max_tokens=3)
    refuses(lambda: stream.reply, "not ended")
    assert "".join(c.text for c in stream) == stream.reply.text
    assert list(stream) == []
    broken = llm.stream_complete([5, 6], logits_processor=lambda ids, logits: logits * np.float32("nan"))
    for _ in range(2):
        refuses(lambda: list(broken), kind=pyllm.errors.NonFiniteLogits)


def test_closed_models(path: Path, tmp_path: Path) -> None:
    llm = pyllm.LLM(path, chat_template=TEMPLATE)
    session = llm.session()
    stream = llm.stream("w1")
    llm.close()
    calls: list[Callable[[], Any]] = [
        lambda: llm.chat("x"), lambda: llm.complete("x"), lambda: llm.stream("x"), lambda: llm.astream("x"), lambda: llm.session(),
        llm.kernels, lambda: llm.logits([5]), lambda: llm.bench("pp4"), lambda: session.chat("x"), lambda: session.save(tmp_path / "x"),
        lambda: list(stream)]
    for call in calls:
        refuses(call, "closed", kind=pyllm.errors.Closed)
    session.close()
    assert llm.tokenize("w1") and llm.info["n_vocab"] == 300 and "tiny" in repr(llm)


def test_closed_files(path: Path) -> None:
    file = GGUF(path)
    refuses(lambda: file.read("missing"), "missing")
    file.close()
    for call in (lambda: file.read("output_norm.weight"), lambda: file.kv["general.name"], lambda: pyllm.Tokenizer(file)):
        refuses(call, "closed", kind=pyllm.errors.Closed)


# ---- weights that are not numbers ----

@pytest.fixture
def nan_rows(tmp_path: Path) -> Path:
    """Embeddings: NaN for token 270, infinite for 271."""
    tensors = []
    for name, kind, shape, data in tiny_gguf.tensors("f32", tiny_gguf.shapes(**TINY)):
        values = np.frombuffer(data, np.float32).copy()
        if name == "token_embd.weight":
            values.reshape(300, 32)[270] = np.nan
            values.reshape(300, 32)[271, 3] = np.inf
        tensors.append((name, kind, shape, values.tobytes()))
    (tmp_path / "nan.gguf").write_bytes(tiny_gguf.build(tiny_gguf.metadata(**TINY) | tiny_gguf.vocabulary(), tensors)[0])
    return tmp_path / "nan.gguf"


def test_nan_weights_end_only_their_request(nan_rows: Path) -> None:
    with pyllm.LLM(nan_rows) as llm:
        ban = {270: -math.inf, 271: -math.inf}
        prompts = [[5 + i, 6, 7] for i in range(6)]
        alone = [llm.complete(p, temperature=0, max_tokens=40, logit_bias=ban).tokens for p in prompts]
        rows = llm.logits(prompts[0])
        streams = [llm.stream_complete(p, temperature=0, max_tokens=40, logit_bias=ban) for p in prompts]
        for bad in ([270], [5, 271, 6], [5] * 30 + [270] + [6] * 30):
            refuses(lambda bad=bad: llm.complete(bad, max_tokens=3), "token id", kind=pyllm.errors.NonFiniteLogits)
        for stream, want in zip(streams, alone, strict=True):
            assert list(stream) and stream.reply.tokens == want
        # A sequence that was given back with NaN in its pages leaves nothing for the next.
        assert [llm.complete(p, temperature=0, max_tokens=40, logit_bias=ban).tokens for p in prompts] == alone
        assert np.array_equal(llm.logits(prompts[0]), rows)
        assert not np.isfinite(llm.logits([5, 270])[1]).any() and np.isfinite(llm.logits([5, 270])[0]).all()


# ---- angles ----

def test_sine_and_cosine_of_anything() -> None:
    """Below 2^51 a point of the unit circle; from there on, and for what is no number, NaN. The polynomials are within 2^-50 for any
    remainder below pi/2, so the point is within 2^-48 of the circle."""
    rng = np.random.default_rng(7)
    inside = [*(rng.uniform(-1, 1, 20_000) * 2.0 ** rng.uniform(-60, 51, 20_000)), 2.0 ** 51 - 1, 1 - 2.0 ** 51, 0.0]
    points = np.array([(lib.pyllm_math_cos(x), lib.pyllm_math_sin(x)) for x in inside])
    assert np.abs(np.hypot(*points.T) - 1).max() < 2.0 ** -48
    for x in (2.0 ** 51, 2.0 ** 63, 1e19, 1e300, math.inf, math.nan):
        assert all(math.isnan(f(y)) for f in (lib.pyllm_math_sin, lib.pyllm_math_cos) for y in (x, -x)), x


# ---- tokenizers ----

TEXTS: dict[str, str | bytes] = {
    "letter": "a", "letters": "abcdefgh", "spaces": " ", "newlines": "\n", "tabs and newlines": "\t\n", "digits": "7",
    "combining marks": "\u0301", "letter and mark": "a\u0301", "apostrophes": "'", "contractions": "'ll", "punctuation": "!", "han": "漢",
    "emoji": "👩‍👧", "space and letter": " a", "capitals": "Ab", "zeros": "\0", "invalid UTF-8": b"\xff", "cut UTF-8": b"\xe6\xbc",
    "surrogates": b"\xed\xa0\x80", "angle brackets": "<", "tags": "<|",
}
VOCABULARIES = sorted(f.name[:-8] for f in tok_oracle.VOCABS.glob("*.gguf.xz"))


def seconds(tokenizer: pyllm.Tokenizer, text: bytes) -> float:
    """CPU time, the better of two."""
    def once() -> float:
        start = time.process_time()
        tokenizer.encode(text)
        return time.process_time() - start
    return min(once() for _ in range(2))


@pytest.mark.parametrize("name", VOCABULARIES)
def test_tokenizers_are_linear(name: str, tmp_path: Path) -> None:
    """Twice the text takes less than three times as long, whatever it repeats. The ids are the text; older vocabularies lack the bytes that
    UTF-8 never has."""
    (tmp_path / "vocab.gguf").write_bytes(tok_oracle.vocabulary(name))
    tokenizer = pyllm.Tokenizer(tmp_path / "vocab.gguf")
    slow = {}
    for label, piece in TEXTS.items():
        unit = piece if isinstance(piece, bytes) else piece.encode()
        small = unit * ((1 << 16) // len(unit))
        one, two = seconds(tokenizer, small), seconds(tokenizer, 2 * small)
        if two > 3 * one + 0.01:
            slow[label] = (one, two)
        if isinstance(piece, str) and name not in ("bert-bge", "unigram"):      # these do not keep texts
            back = tokenizer.decode_bytes(tokenizer.encode(small, add_special=False), special=True)
            want = unicodedata.normalize("NFC", small.decode()).encode() if name == "qwen2" else small
            same = back.lstrip(b" ") == want.lstrip(b" ")       # apart from the assertion, which would look for the difference for hours
            assert same, label
    assert not slow


@pytest.mark.slow
@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_megabyte(name: str, tmp_path: Path) -> None:
    """1 MB of anything takes less than two seconds."""
    (tmp_path / "vocab.gguf").write_bytes(tok_oracle.vocabulary(name))
    tokenizer = pyllm.Tokenizer(tmp_path / "vocab.gguf")
    for label, piece in TEXTS.items():
        unit = piece if isinstance(piece, bytes) else piece.encode()
        assert seconds(tokenizer, unit * ((1 << 20) // len(unit))) < 2, label


def test_errors_are_short_and_printable(path: Path) -> None:
    """Messages go to terminals and logs as they are."""
    for call in (lambda: pyllm.LLM(path, kv="\x1b[31m" * 100), lambda: pyllm.LLM("\udcff"), lambda: pyllm.LLM(path, level="\x1b")):
        with pytest.raises(pyllm.Error) as e:
            call()
        assert str(e.value).encode(sys.getdefaultencoding(), "backslashreplace").isascii() and "\x1b" not in str(e.value)
