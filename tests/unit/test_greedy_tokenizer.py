"""RWKV's World tokenizer: the longest token at every place, with a small vocabulary against the obvious loop, with the real one against the
rwkv package."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny_gguf

import pyllm
from pyllm import errors

sys.path.insert(0, os.fspath(Path(__file__).parent))
from tok_texts import texts

WORDS = ["the", "there", "her", "here", "  ", "\n\n", "é", "日本", "日本語", "'s", "\\n", "\t\t", '"', "'\"", "ab", "abc", "abcdefgh"]


def write(path: Path, tokens: Sequence[bytes], kinds: Sequence[int]) -> pyllm.Tokenizer:
    kv = {"general.architecture": "rwkv7", "tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": [repr(t)[2:-1] for t in tokens],
          "tokenizer.ggml.token_type": list(kinds), "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 0}
    path.write_bytes(tiny_gguf.build(kv, [])[0])
    return pyllm.Tokenizer(path)


def longest(tokens: Sequence[bytes], text: bytes) -> list[int]:
    ids, at = [], 0
    by_bytes = {t: i for i, t in reversed(list(enumerate(tokens))) if i}
    while at < len(text):
        n = next(n for n in range(max(map(len, tokens)), 0, -1) if text[at:at + n] in by_bytes and at + n <= len(text))
        ids.append(by_bytes[text[at:at + n]])
        at += n
    return ids


def test_a_small_vocabulary(tmp_path: Path) -> None:
    tokens = [b"<s>", *(bytes([b]) for b in range(256)), *(w.encode() for w in WORDS), "日".encode()[:2], b"\xff\xfe\x00"]
    tokenizer = write(tmp_path / "vocab.gguf", tokens, [3] + [1] * (len(tokens) - 1))
    r = random.Random(random.randrange(1 << 32))
    for _ in range(300):
        text = b"".join(r.choice(tokens[1:]) for _ in range(r.randrange(40)))
        ids = tokenizer.encode(text, parse_special=False)
        assert ids == longest(tokens, text) and tokenizer.decode_bytes(ids) == text
    assert tokenizer.encode("<s>there") == [0, tokens.index(b"there")] and tokenizer.decode([0, 105], special=True) == "<s>h"
    assert tokenizer.encode("", add_special=True) == [] and tokenizer.is_end(0)


@pytest.mark.parametrize("tokens, said", [
    ([b"a"], "lacks single bytes"), ([bytes([b]) for b in range(255)], "lacks single bytes")])
def test_a_vocabulary_that_cannot_spell(tokens: list[bytes], said: str, tmp_path: Path) -> None:
    with pytest.raises(errors.FormatError, match=said):
        write(tmp_path / "vocab.gguf", tokens, [1] * len(tokens))


@pytest.mark.slow
def test_the_world_vocabulary(tmp_path: Path) -> None:
    """The ids of the rwkv package (pip install --no-deps rwkv) on 10,000 texts."""
    package = pytest.importorskip("rwkv.rwkv_tokenizer")
    sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
    import convert_rwkv

    path = Path(package.__file__).parent / "rwkv_vocab_v20230424.txt"
    kv = convert_rwkv.vocabulary(path, 65536)
    file = tmp_path / "world.gguf"
    file.write_bytes(tiny_gguf.build({"general.architecture": "rwkv7", **kv}, [])[0])
    tokenizer, theirs = pyllm.Tokenizer(file), package.TRIE_TOKENIZER(str(path))
    assert tokenizer.n_vocab == 65536
    for text in texts(random.randrange(1 << 32), 10_000):
        ids = tokenizer.encode(text, parse_special=False)
        assert ids == theirs.encode(text), repr(text)
        assert tokenizer.decode_bytes(ids) == text.encode()
