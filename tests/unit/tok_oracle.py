"""Oracles for the tokenizer tests: Hugging Face tokenizers and sentencepiece models built from a GGUF's own vocabulary.

The pre-tokenizers and normalizers are written as the families' tokenizer.json files publish them.
"""

from __future__ import annotations

import lzma
import struct
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

VOCABS = Path(__file__).parents[1] / "data" / "vocabs"
UNKNOWN, CONTROL, USER = 2, 3, 4    # tokenizer.ggml.token_type
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
FOLDED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = FOLDED + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + SPACES
QWEN2 = LLAMA3.replace("{1,3}", "")
UPPER, LOWER, BEFORE = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"[^\r\n\p{L}\p{N}]?"
TEKKEN = rf"{BEFORE}{UPPER}*{LOWER}+|{BEFORE}{UPPER}+{LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"
GPT4O = (rf"{BEFORE}{UPPER}*{LOWER}+{FOLDED}?|{BEFORE}{UPPER}+{LOWER}*{FOLDED}?"
         rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}")
DEEPSEEK3 = (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
             r"| ?[\p{P}\p{S}]+[\r\n]*|" + SPACES)
# The letters of deepseek-llm: first and last code point of each range of its published list.
DEEPSEEK_LETTERS = (
    "41-5a 61-7a b5 c0-d6 d8-f6 f8-1ba 1bc-1bf 1c4-293 295-2af 370-373 376-377 37b-37d 37f 386 388-38a 38c 38e-3a1 3a3-3f5 3f7-481 "
    "48a-52f 531-556 10a0-10c5 13a0-13f5 13f8-13fd 1c90-1cba 1cbd-1cbf 1d00-1d2b 1d6b-1d77 1d79-1d9a 1e00-1f15 1f18-1f1d 1f20-1f45 "
    "1f48-1f4d 1f50-1f57 1f59 1f5b 1f5d 1f5f-1f7d 1f80-1fb4 1fb6-1fbc 1fbe 1fc2-1fc4 1fc6-1fcc 1fd0-1fd3 1fd6-1fdb 1fe0-1fec 1ff2-1ff4 "
    "1ff6-1ffc 2102 2107 210a-2113 2115 2119-211d 2124 2126 2128 212a-212d 212f-2134 2139 213c-213f 2145-2149 214e 2183-2184 2c00-2c7b "
    "2c7e-2ce4 2ceb-2cee 2cf2-2cf3 a640-a66d a680-a69b a722-a76f a771-a787 a78b-a78e ab70-abbf fb00-fb06 fb13-fb17 ff21-ff3a ff41-ff5a "
    "10400-1044f 104b0-104d3 104d8-104fb 10c80-10cb2 10cc0-10cf2 118a0-118df 1e900-1e943")


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


def _byte_level(use_regex: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _letters() -> str:
    return "".join(r"\x{" + r.replace("-", r"}-\x{") + "}" for r in DEEPSEEK_LETTERS.split())


def _stages(family: str) -> list[pre_tokenizers.PreTokenizer]:
    if family in ("gpt-2", "mpt"):
        return [_byte_level(True)]
    if family in ("smollm", "starcoder", "refact", "command-r"):
        return [pre_tokenizers.Digits(individual_digits=True), _byte_level(True)]
    if family == "falcon":
        return [pre_tokenizers.Punctuation("contiguous"), _byte_level(True), pre_tokenizers.Digits(individual_digits=False),
                _split("[0-9][0-9][0-9]")]
    if family == "deepseek-llm":
        parts = [r"[\r\n]", rf"\s?[{_letters()}]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-\ud7ff]+"]
        return [*map(_split, parts), pre_tokenizers.Digits(individual_digits=True), _byte_level(False)]
    if family == "deepseek-coder":
        parts = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+"]
        return [*map(_split, parts), pre_tokenizers.Digits(individual_digits=True), _byte_level(False)]
    if family == "deepseek-v3":
        return [*map(_split, [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK3]), _byte_level(False)]
    pattern = {"llama-bpe": LLAMA3, "qwen2": QWEN2, "tekken": TEKKEN, "gpt-4o": GPT4O}[family]
    return [_split(pattern), _byte_level(False)]


COMPOSED = ("qwen2", "mpt", "command-r")        # families that compose a text before they split it
# Family: the vocabulary it is tested with. Its own where there is one, else one whose tokens cross the places where it splits.
FAMILIES = {
    "gpt-2": "gpt-2", "llama-bpe": "llama-bpe", "qwen2": "qwen2", "deepseek-coder": "deepseek-coder", "falcon": "falcon",
    "starcoder": "starcoder", "smollm": "gpt-2", "refact": "gpt-2", "command-r": "gpt-2", "mpt": "falcon", "deepseek-llm": "llama-bpe",
    "deepseek-v3": "llama-bpe", "tekken": "llama-bpe", "gpt-4o": "llama-bpe",
}


def vocabulary(name: str) -> bytes:
    return lzma.decompress((VOCABS / f"{name}.gguf.xz").read_bytes())


def _string(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def with_pre(data: bytes, pre: str) -> bytes:
    """The same vocabulary file with another tokenizer.ggml.pre (there are no tensors whose place could change)."""
    key = _string("tokenizer.ggml.pre") + struct.pack("<I", 8)
    at = data.index(key) + len(key)
    (old,) = struct.unpack_from("<Q", data, at)
    return data[:at] + _string(pre) + data[at + 8 + old:]


def read_metadata(data: bytes) -> dict[str, Any]:
    """Keys and values of a GGUF, by a reader that shares nothing with pyllm's."""
    return read_header(data)[0]


def read_header(data: bytes) -> tuple[dict[str, Any], dict[str, tuple[int, list[int], int]]]:
    """Metadata, and by tensor name (type id, sizes with the contiguous one first, place of the data in the file)."""
    at = 24

    def take(fmt: str) -> Any:
        nonlocal at
        at += struct.calcsize(fmt)
        return struct.unpack_from("<" + fmt, data, at - struct.calcsize(fmt))[0]

    def text() -> str:
        nonlocal at
        n = take("Q")
        at += n
        return data[at - n:at].decode("utf-8", "surrogateescape")

    def value(kind: int) -> Any:
        nonlocal at
        if kind == 8:
            return text()
        if kind != 9:
            return take(SCALARS[kind])
        item, n = take("I"), take("Q")
        if item in (8, 9):
            return [value(item) for _ in range(n)]
        fmt = f"<{n}{SCALARS[item]}"
        at += struct.calcsize(fmt)
        return list(struct.unpack_from(fmt, data, at - struct.calcsize(fmt)))

    magic, version, n_tensors, n = struct.unpack_from("<4sIQQ", data)
    assert magic == b"GGUF" and version in (2, 3)
    found = {}
    for _ in range(n):
        key = text()
        found[key] = value(take("I"))
    tensors = {}
    for _ in range(n_tensors):
        name, shape = text(), [take("Q") for _ in range(take("I"))]
        tensors[name] = (take("I"), shape, take("Q"))
    begin = -(-at // (align := found.get("general.alignment", 32))) * align
    return found, {name: (kind, shape, begin + offset) for name, (kind, shape, offset) in tensors.items()}


def hf_bpe(meta: dict[str, Any], family: str) -> Tokenizer:
    """Byte-level BPE of these tokens and merges behind the family's pre-tokenizer."""
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    vocab: dict[str, int] = {}
    for i, token in enumerate(tokens):
        vocab.setdefault(token, i)
    merges = []
    for merge in meta["tokenizer.ggml.merges"]:
        left, right = merge.split(" ", 1) if merge[0] != " " else (" " + (s := merge[1:].split(" ", 1))[0], s[1])
        if left in vocab and right in vocab and left + right in vocab:
            merges.append((left, right))
    hf = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=family in ("llama-bpe", "tekken")))
    if family in COMPOSED:
        hf.normalizer = normalizers.NFC()
    hf.pre_tokenizer = pre_tokenizers.Sequence(_stages(family))
    hf.decoder = decoders.ByteLevel()
    hf.add_special_tokens([AddedToken(t, special=True, normalized=False)
                           for t, kind in zip(tokens, types, strict=True) if kind in (CONTROL, USER)])
    return hf


def hf_wordpiece(meta: dict[str, Any], lowercase: bool = True, strip_accents: bool | None = None) -> Tokenizer:
    """BERT's tokenizer of these tokens, as its tokenizer.json has it."""
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    special = [t for t, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    vocab: dict[str, int] = {}
    for i, token in enumerate(tokens):
        plain = types[i] == CONTROL or token.startswith("[unused")
        vocab.setdefault(token if plain else token[1:] if token[0] == "\u2581" else "##" + token, i)
    hf = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    hf.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    hf.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    hf.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    hf.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]",
                                                      special_tokens=[(t, vocab[t]) for t in ("[CLS]", "[SEP]")])
    return hf


def hf_unigram(meta: dict[str, Any]) -> Tokenizer:
    """The tokenizer of T5 and XLM-R with these tokens, scores and replacements, as tokenizer.json files have it."""
    tokens, types = meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"]
    pairs = list(zip(tokens, meta["tokenizer.ggml.scores"], strict=True))
    hf = Tokenizer(models.Unigram(pairs, meta["tokenizer.ggml.unknown_token_id"], False))
    hf.normalizer = normalizers.Precompiled(bytes(meta["tokenizer.ggml.precompiled_charsmap"]))
    hf.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")])
    hf.add_special_tokens([AddedToken(t, special=True, normalized=False)
                           for t, kind in zip(tokens, types, strict=True) if kind in (UNKNOWN, CONTROL)])
    return hf


def _varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _integer(number: int, n: int) -> bytes:
    return _varint(number << 3) + _varint(n)


def sentencepiece_bpe(meta: dict[str, Any]) -> sentencepiece.SentencePieceProcessor:
    """The sentencepiece model (a protobuf message, written by hand) of these tokens and scores, without normalization.

    GGUF files of some models hold runs of spaces literally; sentencepiece writes every space as U+2581.
    """
    types, scores = meta["tokenizer.ggml.token_type"], meta["tokenizer.ggml.scores"]
    model, unknown = b"", meta.get("tokenizer.ggml.unknown_token_id", 0)
    pieces = []
    for i, token in enumerate(meta["tokenizer.ggml.tokens"]):
        kind = 2 if i == unknown else 3 if types[i] == 2 else types[i]
        piece = token.encode("utf-8", "surrogateescape").replace(b" ", b"\xe2\x96\x81")
        pieces.append(_field(1, _field(1, piece) + b"\x15" + struct.pack("<f", scores[i]) + _integer(3, kind)))
    model = b"".join(pieces)
    bpe, byte_fallback = _integer(3, 2), _integer(35, 1)
    model += _field(2, bpe + byte_fallback + _integer(40, unknown))
    prefix = meta.get("tokenizer.ggml.add_space_prefix", True)
    model += _field(3, _field(1, b"identity") + _integer(3, int(prefix)) + _integer(4, 0) + _integer(5, 1))
    return sentencepiece.SentencePieceProcessor(model_proto=model)
