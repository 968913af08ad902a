"""Tokens of real vocabularies, against published vectors and against Hugging Face tokenizers and sentencepiece on random texts."""

from __future__ import annotations

import json
import os
import random
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import model_path

import pyllm

sys.path.insert(0, os.fspath(Path(__file__).parent))
import tok_oracle
from tok_texts import texts

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
VOCABULARIES = sorted(f.name[:-8] for f in tok_oracle.VOCABS.glob("*.gguf.xz"))
Unpack = Callable[..., Path]


@pytest.fixture(scope="session")
def unpack(tmp_path_factory: pytest.TempPathFactory) -> Unpack:
    """Path of a committed vocabulary, with another pre-tokenizer if asked for."""
    folder = tmp_path_factory.mktemp("vocabs")

    def one(name: str, pre: str | None = None) -> Path:
        path = folder / f"{name}-{pre or 'own'}.gguf"
        if not path.exists():
            data = tok_oracle.vocabulary(name)
            path.write_bytes(tok_oracle.with_pre(data, pre) if pre else data)
        return path

    return one


def vectors(name: str) -> list[tuple[str, list[int]]]:
    """Pairs of text and ids; the texts are the same for all families."""
    inputs = (tok_oracle.VOCABS / "vectors.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    outputs = (tok_oracle.VOCABS / f"{name}.out").read_text().split("\n")
    return [(text, [int(i) for i in ids.split()]) for text, ids in zip(inputs, outputs, strict=False)]


@pytest.mark.parametrize("name", [v for v in VOCABULARIES if v != "unigram"])
def test_published_vectors(name: str, unpack: Unpack) -> None:
    pairs = vectors(name)
    assert len(pairs) > 45
    tokenizer = pyllm.Tokenizer(unpack(name))
    for text, ids in pairs:
        assert tokenizer.encode(text, add_special=False, parse_special=False) == ids, repr(text)


def test_smollm2_vectors(smollm2: Path) -> None:
    tokenizer = pyllm.Tokenizer(smollm2)
    rows = json.loads((GOLDEN / "smollm2-tokenizer-vectors.json").read_text())
    assert len(rows) == 14
    for row in rows:
        assert tokenizer.encode(row["text"], add_special=False) == row["hf_ids"], repr(row["text"])


def compare(encode: Callable[[str], list[int]], oracle: Callable[[str], list[int]], seed: int, n: int) -> None:
    wrong = [t for t in texts(seed, n) if encode(t) != oracle(t)]
    if not wrong:
        return
    shortest = min(wrong, key=len)
    pytest.fail(f"{len(wrong)} of {n} texts of seed {seed} differ; the shortest: {shortest!r}\n"
                f"pyllm  {encode(shortest)}\noracle {oracle(shortest)}", pytrace=False)


def check_family(family: str, unpack: Unpack, seed: int, n: int) -> None:
    path = unpack(tok_oracle.FAMILIES[family], family)
    hf = tok_oracle.hf_bpe(tok_oracle.read_metadata(path.read_bytes()), family)
    tokenizer = pyllm.Tokenizer(path)
    compare(lambda t: tokenizer.encode(t, add_special=False), lambda t: list(hf.encode(t, add_special_tokens=False).ids), seed, n)


@pytest.mark.parametrize("family", tok_oracle.FAMILIES)
def test_byte_level_families(family: str, unpack: Unpack) -> None:
    check_family(family, unpack, random.randrange(1 << 32), 400)


@pytest.mark.slow
@pytest.mark.parametrize("family", tok_oracle.FAMILIES)
def test_byte_level_families_at_length(family: str, unpack: Unpack) -> None:
    check_family(family, unpack, random.randrange(1 << 32), 10_000)


def test_falcon_knows_the_punctuation_of_its_time(unpack: Unpack) -> None:
    """Every code point of today's punctuation, between a control character and a letter."""
    path = unpack("falcon")
    hf = tok_oracle.hf_bpe(tok_oracle.read_metadata(path.read_bytes()), "falcon")
    tokenizer = pyllm.Tokenizer(path)
    points = [c for c in range(0x80, 0x110000) if unicodedata.category(chr(c))[0] == "P"] + [0x166D, 0x111C9]
    wrong = [hex(c) for c in points if tokenizer.encode(t := f" \x11{chr(c)}a", add_special=False)
             != hf.encode(t, add_special_tokens=False).ids]
    assert len(points) > 700 and not wrong, wrong


def test_every_character_is_composed(unpack: Unpack) -> None:
    """Form C: each code point between others that it may join or pass, and long runs of marks in the wrong order."""
    path = unpack("qwen2")
    hf = tok_oracle.hf_bpe(tok_oracle.read_metadata(path.read_bytes()), "qwen2")
    tokenizer = pyllm.Tokenizer(path)
    assert tokenizer.encode("e\u0301") == tokenizer.encode("\u00e9") != tokenizer.encode("e")
    points = [*range(0x80, 0x3400), *range(0xA000, 0xD800, 5), *range(0xF900, 0x12000), *range(0x1D100, 0x1D200), *range(0x2F800, 0x2FA20)]
    for at in range(0, len(points), 32):
        text = "".join(f"a{chr(c)}\u0301{chr(c)}\u0323\u0300x{chr(c)}\u09be\u1161\u11a8" for c in points[at:at + 32])
        assert tokenizer.encode(text, add_special=False) == hf.encode(text, add_special_tokens=False).ids, hex(points[at])
    marks = "".join(chr(0x300 + i * 7 % 0x70) for i in range(3000))
    for text in ("a" + marks, marks, "\uac00" + marks + "\u11a8", "<|im_end|>\u0338 >\u0338"):
        assert tokenizer.encode(text) == hf.encode(text, add_special_tokens=False).ids


def test_a_long_run_of_marks_takes_no_longer(unpack: Unpack) -> None:
    tokenizer = pyllm.Tokenizer(unpack("qwen2"))
    text = "a" + "\u0315\u0316" * 100_000
    assert len(tokenizer.encode(text)) > 100_000        # would take minutes if marks were put in order one by one


def sentencepiece_oracle(meta: dict[str, Any]) -> Callable[[str], list[int]]:
    """Ids by sentencepiece. Where a space is put in front of texts, user-defined tokens are cut out first, as Hugging Face does, and
    what follows each is a text of its own; sentencepiece alone would put that space in front of a leading user-defined token."""
    sp = tok_oracle.sentencepiece_bpe(meta)
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    users = {t: i for i, t in enumerate(tokens) if types[i] == tok_oracle.USER}
    if not users or not meta.get("tokenizer.ggml.add_space_prefix", True):
        return lambda text: list(sp.encode(text))
    cut = re.compile("(" + "|".join(map(re.escape, sorted(users, key=len, reverse=True))) + ")")

    def encode(text: str) -> list[int]:
        return [i for part in cut.split(text) if part for i in ([users[part]] if part in users else sp.encode(part))]

    return encode


def check_sentencepiece(path: Path, meta: dict[str, Any], seed: int, n: int) -> None:
    tokenizer, oracle = pyllm.Tokenizer(path), sentencepiece_oracle(meta)
    compare(lambda t: tokenizer.encode(t, add_special=False, parse_special=False), oracle, seed, n)


SENTENCEPIECE = ["llama-spm", "phi-3"]


def check_vocabulary(name: str, unpack: Unpack, seed: int, n: int) -> None:
    path = unpack(name)
    check_sentencepiece(path, tok_oracle.read_metadata(path.read_bytes()), seed, n)


@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_sentencepiece(name: str, unpack: Unpack) -> None:
    check_vocabulary(name, unpack, random.randrange(1 << 32), 400)


@pytest.mark.slow
@pytest.mark.parametrize("name", SENTENCEPIECE)
def test_sentencepiece_at_length(name: str, unpack: Unpack) -> None:
    check_vocabulary(name, unpack, random.randrange(1 << 32), 10_000)


@pytest.mark.models
def test_gemma_is_sentencepiece() -> None:
    path = model_path("gemma3-270m")
    with path.open("rb") as f:
        meta = tok_oracle.read_metadata(f.read(64 << 20))
    check_sentencepiece(path, meta, random.randrange(1 << 32), 10_000)


def check_wordpiece(unpack: Unpack, seed: int, n: int) -> None:
    path = unpack("bert-bge")
    hf = tok_oracle.hf_wordpiece(tok_oracle.read_metadata(path.read_bytes()))
    tokenizer = pyllm.Tokenizer(path)
    compare(tokenizer.encode, lambda t: list(hf.encode(t).ids), seed, n)


def test_wordpiece(unpack: Unpack) -> None:
    check_wordpiece(unpack, random.randrange(1 << 32), 1000)


@pytest.mark.slow
def test_wordpiece_at_length(unpack: Unpack) -> None:
    check_wordpiece(unpack, random.randrange(1 << 32), 10_000)


def test_wordpiece_knows_every_character(unpack: Unpack) -> None:
    """What is dropped, split, lowered and stripped of marks, one code point after the other."""
    path = unpack("bert-bge")
    hf = tok_oracle.hf_wordpiece(tok_oracle.read_metadata(path.read_bytes()))
    tokenizer = pyllm.Tokenizer(path)
    points = [*range(0x3400), *range(0xA000, 0xD800, 7), *range(0xF900, 0x1F000), *range(0x2F800, 0x2FA20)]
    for at in range(0, len(points), 64):
        text = " ".join(f"ab{chr(c)}cd {chr(c)}" for c in points[at:at + 64])
        assert tokenizer.encode(text) == hf.encode(text).ids, hex(points[at])


def check_unigram(unpack: Unpack, seed: int, n: int) -> None:
    path = unpack("unigram")
    hf = tok_oracle.hf_unigram(tok_oracle.read_metadata(path.read_bytes()))
    tokenizer = pyllm.Tokenizer(path)
    compare(lambda t: tokenizer.encode(t, add_special=False), lambda t: list(hf.encode(t).ids), seed, n)


def test_unigram(unpack: Unpack) -> None:
    check_unigram(unpack, random.randrange(1 << 32), 1000)
    tokenizer = pyllm.Tokenizer(unpack("unigram"))
    assert tokenizer.encode("x")[-1] == tokenizer.eos == 2 and tokenizer.encode("x")[0] != tokenizer.bos     # T5's form, unless told
    assert tokenizer.decode(tokenizer.encode("the ｆull　width ﬁle")) == "the full width file"


@pytest.mark.slow
def test_unigram_at_length(unpack: Unpack) -> None:
    check_unigram(unpack, random.randrange(1 << 32), 10_000)


def test_unigram_knows_every_character(unpack: Unpack) -> None:
    """What the table of replacements makes of each code point, alone, in words and with a mark on it."""
    path = unpack("unigram")
    hf = tok_oracle.hf_unigram(tok_oracle.read_metadata(path.read_bytes()))
    tokenizer = pyllm.Tokenizer(path)
    points = [*range(0x3400), *range(0xA000, 0xD800, 7), *range(0xF900, 0x1F000), *range(0x2F800, 0x2FA20)]
    for at in range(0, len(points), 64):
        text = " ".join(f"ab{chr(c)}cd {chr(c)} {chr(c)}\u0301 a{chr(c)}" for c in points[at:at + 64])
        assert tokenizer.encode(text, add_special=False) == hf.encode(text).ids, hex(points[at])


def test_a_damaged_table_of_replacements(unpack: Unpack, tmp_path: Path) -> None:
    """Whatever its bytes say, texts are tokenized without harm."""
    data = unpack("unigram").read_bytes()
    meta = tok_oracle.read_metadata(data)
    at = data.index(bytes(meta["tokenizer.ggml.precompiled_charsmap"][:64]))
    n, r = len(meta["tokenizer.ggml.precompiled_charsmap"]), random.Random(3)
    for damage in range(12):
        noise = r.randbytes(n - 4) if damage % 2 else bytes(b ^ (r.random() < 0.01) for b in data[at + 4:at + n])
        (tmp_path / "x.gguf").write_bytes(data[:at + 4] + noise + data[at + n:])
        tokenizer = pyllm.Tokenizer(tmp_path / "x.gguf")
        assert all(0 <= i < tokenizer.n_vocab for text in texts(damage, 50) for i in tokenizer.encode(text))
    for size in (0, 3, n, 1 << 31, (1 << 32) - 4):
        (tmp_path / "x.gguf").write_bytes(data[:at] + size.to_bytes(4, "little") + data[at + 4:])
        with pytest.raises(pyllm.FormatError, match="precompiled_charsmap"):
            pyllm.Tokenizer(tmp_path / "x.gguf")
