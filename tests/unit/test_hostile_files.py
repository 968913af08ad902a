"""Files that are well formed and mean harm: token ids outside of the vocabulary, names chosen to meet in one slot of a hash table, special
tokens chosen to make every look-up long."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf

import pyllm
from pyllm.gguf import GGUF

U8, I8, I16, U32, I32, U64, I64 = 0, 1, 3, 4, 5, 10, 11
FORMATS = {U8: "B", I8: "b", I16: "h", U32: "I", I32: "i", U64: "Q", I64: "q"}
USER, CONTROL = 4, 3


def vocabulary(texts: list[str], types: list[int], **more: Any) -> dict[str, Any]:
    """A sentencepiece vocabulary without words: all bytes as ids 3 to 258, then texts."""
    kv = tiny_gguf.vocabulary(259)
    kv["tokenizer.ggml.tokens"] += texts
    kv["tokenizer.ggml.scores"] += [0.0] * len(texts)
    kv["tokenizer.ggml.token_type"] += types
    return kv | {"tokenizer.ggml.add_space_prefix": False} | more


def written(path: Path, kv: dict[str, Any], tensors: list[tiny_gguf.Tensor] | None = None) -> Path:
    path.write_bytes(tiny_gguf.build(kv, tensors or [])[0])
    return path


def cpu_seconds(call: Callable[[], Any]) -> float:
    """The best of three."""
    def once() -> float:
        start = time.process_time()
        call()
        return time.process_time() - start
    return min(once() for _ in range(3))


# ---- ids ----

def with_id(path: Path, key: str, kind: int, value: int) -> Path:
    """The bytes-only vocabulary of 259 tokens with one more key, of any integer type."""
    mark = b"\xfe\xca\xad\xde"
    data, _ = tiny_gguf.build(vocabulary([], []) | {f"tokenizer.ggml.{key}": struct.unpack("<I", mark)[0]}, [])
    found = struct.pack("<I", U32) + mark
    assert data.count(found) == 1
    path.write_bytes(data.replace(found, struct.pack("<I" + FORMATS[kind], kind, value)))
    return path


@pytest.mark.parametrize("key", ["bos_token_id", "eos_token_id", "eot_token_id", "eom_token_id", "unknown_token_id", "padding_token_id"])
@pytest.mark.parametrize(("kind", "value"), [
    (I64, -(1 << 32) + 5), (I64, -(1 << 32) + (1 << 30)), (I64, -2), (I64, -(1 << 63)), (I64, 1 << 40), (U64, (1 << 63) + 5),
    (U64, (1 << 64) - (1 << 32) + 5), (U64, (1 << 32) + 5), (I32, -2), (I16, -2), (I8, -2), (U32, 259), (U32, 0xfffffffe)])
def test_ids_outside_of_the_vocabulary(tmp_path: Path, key: str, kind: int, value: int) -> None:
    with pytest.raises(pyllm.errors.FormatError, match=rf"tokenizer\.ggml\.{key} is not in the vocabulary"):
        pyllm.Tokenizer(with_id(tmp_path / "ids.gguf", key, kind, value))


@pytest.mark.parametrize(("kind", "value", "id"), [
    (U32, 0xffffffff, None), (I32, -1, None), (I64, -1, None), (I64, 0xffffffff, None), (I16, -1, None), (I8, -1, None), (I8, 5, 5),
    (U8, 200, 200), (I64, 258, 258), (U64, 258, 258)])
def test_ids_of_any_integer_type(tmp_path: Path, kind: int, value: int, id: int | None) -> None:
    assert pyllm.Tokenizer(with_id(tmp_path / "ids.gguf", "eos_token_id", kind, value)).eos == id


# ---- names that collide ----

def colliding(bits: int) -> list[str]:
    """2^bits names with one value of 32-bit FNV-1a, the usual hash of short strings: of every two blocks that lead to the same state either
    may stand at its place."""
    rng = np.random.default_rng(5)
    names, state = [""], np.uint32(2166136261)
    for _ in range(bits):
        blocks = rng.integers(97, 123, (1 << 18, 6), np.uint8)
        h = np.full(len(blocks), state)
        for column in blocks.T:
            h = (h ^ column) * np.uint32(16777619)
        order = np.argsort(h, kind="stable")
        same = np.nonzero(h[order][1:] == h[order][:-1])[0]
        pair = next((order[i], order[i + 1]) for i in same if bytes(blocks[order[i]]) != bytes(blocks[order[i + 1]]))
        state = h[pair[0]]
        names = [name + bytes(blocks[p]).decode() for name in names for p in pair]
    assert len(set(names)) == 1 << bits
    return names


@pytest.fixture(scope="module")
def names() -> tuple[list[str], list[str]]:
    """2^14 names that collide, and as many that do not: the same letters in another order."""
    rng = random.Random(5)
    bad = colliding(14)
    return bad, ["".join(rng.sample(name, len(name))) for name in bad]


@pytest.mark.parametrize("what", ["keys", "tensors", "tokens"])
def test_names_that_collide(what: str, names: tuple[list[str], list[str]], tmp_path: Path) -> None:
    """They take no longer than others. In a table of plain FNV-1a they took 50 times as long."""
    def opened(which: int) -> Callable[[], Any]:
        path = tmp_path / f"{which}.gguf"
        if what == "keys":
            written(path, dict.fromkeys(names[which], True))
        elif what == "tensors":
            written(path, {}, [(name, 0, (0,), b"") for name in names[which]])
        else:
            written(path, vocabulary(names[which], [1] * len(names[which])))
        return lambda: (pyllm.Tokenizer if what == "tokens" else GGUF)(path)

    bad, good = cpu_seconds(opened(0)), cpu_seconds(opened(1))
    assert bad < 3 * good + 0.02, (bad, good)


def test_merges_that_collide(tmp_path: Path) -> None:
    """Pairs of token ids whose product with 2^64 / golden ratio, the usual hash of numbers, falls into 127 of 65,536 slots."""
    letters = [a + b + c for a in "abcdefghijklmnop" for b in "abcdefghijklmnop" for c in "abcdefghijklmnop"]
    ids = np.arange(len(letters), dtype=np.uint64)
    slot = ((ids[:, None] << np.uint64(32) | ids) * np.uint64(0x9e3779b97f4a7c15)) >> np.uint64(32) & np.uint64((1 << 16) - 1)
    rng = np.random.default_rng(5)

    def opened(pairs: Any) -> Callable[[], Any]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf"
        texts = letters + [letters[a] + letters[b] for a, b in pairs]
        written(path, {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": texts,
                       "tokenizer.ggml.merges": [f"{letters[a]} {letters[b]}" for a, b in pairs]})
        return lambda: pyllm.Tokenizer(path)

    bad = np.argwhere(slot < 127)
    assert 1 << 14 < len(bad) < 1 << 15      # a table of 2^16
    good = np.stack(np.divmod(rng.choice(slot.size, len(bad), replace=False), len(letters)), axis=1)
    slow, fast = cpu_seconds(opened(bad)), cpu_seconds(opened(good))
    assert slow < 3 * fast + 0.02, (slow, fast)


@pytest.mark.parametrize("n", [2, 5000, 65_535])
def test_a_key_twice_in_a_file(n: int, tmp_path: Path) -> None:
    key = f"key {n - 1:06}"
    data, _ = tiny_gguf.build({f"key {i:06}": True for i in range(n)}, [])
    (tmp_path / "keys.gguf").write_bytes(data)
    assert len(GGUF(tmp_path / "keys.gguf").kv) == n
    (tmp_path / "keys.gguf").write_bytes(data.replace(key.encode(), b"key 000000"))
    with pytest.raises(pyllm.errors.FormatError, match="key key 000000 stands twice"):
        GGUF(tmp_path / "keys.gguf")


# ---- special tokens ----

def cut(text: str, texts: list[str], types: list[int], parse_special: bool) -> list[int]:
    """The definition: at every place the longest special token, the first of equal ones; control tokens if asked for."""
    first: dict[str, int] = {}
    for i, (t, kind) in enumerate(zip(texts, types, strict=True)):
        if t and (parse_special or kind == USER):
            first.setdefault(t, 259 + i)
    ids = []
    at = 0
    while at < len(text):
        best = max((t for t in first if text.startswith(t, at)), key=len, default="")
        ids.append(first[best] if best else 3 + ord(text[at]))
        at += len(best) or 1
    return ids


def test_special_tokens_are_cut_out_as_defined(tmp_path: Path) -> None:
    """Any set of them: beginnings of each other, equal ones, empty ones, with zero bytes."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)

    def word(longest: int) -> str:
        return "".join(rng.choice("ab\0") for _ in range(rng.randint(0, longest)))

    for case in range(150):
        texts = [word(rng.choice([2, 6])) for _ in range(rng.choice([0, 1, 2, 5, 30]))]
        types = [rng.choice([USER, CONTROL]) for _ in texts]
        tokenizer = pyllm.Tokenizer(written(tmp_path / "special.gguf", vocabulary(texts, types)))
        for parse_special in (False, True):
            text = "".join(rng.choice([*texts, word(3)]) for _ in range(40))
            got = tokenizer.encode(text, add_special=False, parse_special=parse_special)
            assert got == cut(text, texts, types, parse_special), (seed, case, texts, types, text)


@pytest.mark.parametrize("kind", [USER, CONTROL])
@pytest.mark.parametrize("end", ["b", ""], ids=["never whole", "nested"])
def test_a_special_token_of_every_length(kind: int, end: str, tmp_path: Path) -> None:
    """a, aa, aaa... or ab, aab, aaab... against a text of a: the work at a byte is bounded, and not by the sum of their lengths."""
    n = 1000
    hostile = pyllm.Tokenizer(written(tmp_path / "hostile.gguf", vocabulary(["a" * i + end for i in range(1, n)], [kind] * (n - 1))))
    plain = pyllm.Tokenizer(written(tmp_path / "plain.gguf", vocabulary(["c" * n], [kind])))
    text = ("a" * (n // 2) + "c") * 16
    slow, fast = (cpu_seconds(partial(t.encode, text, add_special=False, parse_special=False)) for t in (hostile, plain))
    assert slow < 20 * fast + 0.02, (slow, fast)


@pytest.mark.parametrize("kind", [USER, CONTROL])
def test_the_length_of_special_tokens(kind: int, tmp_path: Path) -> None:
    tokenizer = pyllm.Tokenizer(written(tmp_path / "a.gguf", vocabulary(["x" * 1024, "y" * 70_000], [kind, 1])))
    assert tokenizer.encode("y" + "x" * 1025, add_special=False) == [3 + ord("y"), 259, 3 + ord("x")]
    with pytest.raises(pyllm.errors.FormatError, match="special token of more than 1024 bytes"):
        pyllm.Tokenizer(written(tmp_path / "b.gguf", vocabulary(["x" * 1025], [kind])))
