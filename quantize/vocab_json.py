"""Vocabularies out of tokenizer.json, the file of Hugging Face's tokenizers library: byte-level BPE, sentencepiece's BPE as it is
written there, whose scores follow from the order of the merges, WordPiece, and Unigram."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from pyllm import errors

from . import pretokenizers, vocab_unigram, vocab_wordpiece
from .vocab_types import ADDED_SCORE, BYTE, CONTROL, MAX_TOKENS, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED, Vocab

_HARMLESS = ("NFC",)        # normalizers that change no text in composed form


def is_byte_level(table: Mapping[str, Any]) -> bool:
    """Whether tokens are written in the alphabet of byte-level BPE."""
    return any(part.get("type") == "ByteLevel" for key in ("pre_tokenizer", "decoder") for part in _parts(table.get(key)))


def tells_all(table: Mapping[str, Any]) -> bool:
    """Whether this file is better than a sentencepiece model beside it."""
    model = table.get("model")
    return is_byte_level(table) or (isinstance(model, dict) and model.get("type") in ("WordPiece", "Unigram"))


def read(table: Mapping[str, Any], where: str, pre: str | None) -> Vocab:
    """The vocabulary of a parsed tokenizer.json. where: its path, for messages; pre: see vocab.fields."""
    model = table.get("model")
    kind = model.get("type", "BPE") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind not in ("BPE", "WordPiece", "Unigram"):
        raise errors.UnsupportedTokenizer(f"{where}: the tokenizer model {kind!r} cannot be converted\n"
                                          "hint: BPE, WordPiece and Unigram can; of others sentencepiece's tokenizer.model")
    added = _added(table, where)
    if kind == "Unigram":
        vocab = vocab_unigram.read(table, where)
    elif kind == "WordPiece":
        vocab = vocab_wordpiece.read(table, _tokens(model.get("vocab"), table, where), where)
    else:
        tokens = _tokens(model.get("vocab"), table, where)
        merges = list(_merges(model.get("merges"), where))
        vocab = (_byte_level(table, tokens, merges, where, pre) if is_byte_level(table) else _sentencepiece(table, tokens, merges, where))
    for token, special, index in added:
        vocab.put(index, token.replace(SPACE, " ") if vocab.model == "llama" and not special else token, special)
    first, last = _wrapped(table.get("post_processor"))
    vocab.adds_bos, vocab.adds_eos = first, last
    return vocab


def _fail(where: str, what: str) -> NoReturn:
    raise errors.FormatError(f"{where}: {what}\nhint: the file is damaged; download it again")


def _parts(rules: Any) -> Iterator[Mapping[str, Any]]:
    """A rule and those inside of it."""
    if isinstance(rules, dict):
        yield rules
        for key in ("pretokenizers", "decoders", "normalizers", "processors"):
            if isinstance(rules.get(key), list):
                for part in rules[key]:
                    yield from _parts(part)


def _tokens(words: Any, table: Mapping[str, Any], where: str) -> list[str]:
    """Texts by id; ids that nothing has get a text of their own."""
    if not isinstance(words, dict) or not words or not all(type(i) is int and 0 <= i < MAX_TOKENS for i in words.values()):
        _fail(where, "the vocabulary is no table of ids")
    tokens: list[str | None] = [None] * (max(words.values()) + 1)
    for word, i in words.items():
        try:
            word.encode()
        except UnicodeEncodeError:
            _fail(where, f"token {i} holds half a surrogate pair")
        tokens[i] = word
    return [f"[PAD{i}]" if word is None else word for i, word in enumerate(tokens)]


def _added(table: Mapping[str, Any], where: str) -> list[tuple[str, bool, int]]:
    found = []
    for entry in table.get("added_tokens") or []:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or type(entry.get("id")) is not int:
            _fail(where, f"the added token {entry!r} has no id or content")
        found.append((entry["content"], bool(entry.get("special")), entry["id"]))
    return sorted(found, key=lambda t: t[2])


def _merges(merges: Any, where: str) -> Iterator[tuple[str, str]]:
    """Pairs, which files have as such or as "left right"."""
    if not isinstance(merges, list):
        _fail(where, "there are no merges")
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(p, str) and p for p in pair):
            _fail(where, f"the merge {merge!r} is no pair")
        yield pair[0], pair[1]


def _types(tokens: list[str], ids: Mapping[str, int]) -> list[int]:
    return [NORMAL if token in ids else UNUSED for token in tokens]


def _byte_level(table: Mapping[str, Any], tokens: list[str], merges: list[tuple[str, str]], where: str, pre: str | None) -> Vocab:
    model = table["model"]
    for part in _parts(table.get("normalizer")):
        if part.get("type") not in ("Sequence", *_HARMLESS):
            raise errors.UnsupportedTokenizer(f"{where}: the normalizer {part.get('type')!r} cannot be converted\n"
                                              "hint: no tokenizer for GGUF files changes the text that way")
    if any(" " in part for pair in merges for part in pair):
        _fail(where, "a merge holds a space, which byte-level tokens never do")
    composes = any(part.get("type") == "NFC" for part in _parts(table.get("normalizer")))
    name = pre or pretokenizers.recognise(table.get("pre_tokenizer"), bool(model.get("ignore_merges")), composes, where)
    return Vocab("gpt2", name, tokens, _types(tokens, model["vocab"]), merges=[f"{left} {right}" for left, right in merges])


def _sentencepiece(table: Mapping[str, Any], tokens: list[str], merges: list[tuple[str, str]], where: str) -> Vocab:
    """Sentencepiece joins the pair whose result has the highest score, which here is the one of the lowest merge."""
    model = table["model"]
    rules = [*_parts(table.get("normalizer")), *_parts(table.get("pre_tokenizer"))]
    if not model.get("byte_fallback") or not any(SPACE in (rule.get("content"), rule.get("replacement")) for rule in rules):
        raise errors.UnsupportedTokenizer(f"{where}: this is neither byte-level BPE nor sentencepiece's\n"
                                          "hint: no tokenizer for GGUF files works that way")
    rank: dict[str, int] = {}
    for i, (left, right) in enumerate(merges):
        rank.setdefault(left + right, i)
    types = _types(tokens, model["vocab"])
    unknown = model["vocab"].get(model.get("unk_token"))
    for i, token in enumerate(tokens):
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[i] = BYTE
    if unknown is not None:
        types[unknown] = UNKNOWN
    scores = [-float(rank[token]) if token in rank else ADDED_SCORE if kind in (UNUSED, CONTROL, USER_DEFINED) else 0.0
              for token, kind in zip(tokens, types, strict=True)]
    prefix = any(rule.get("prepend") == SPACE or (rule.get("type") == "Metaspace" and rule.get("add_prefix_space", True)
                                                  and rule.get("prepend_scheme", "always") != "never") for rule in rules)
    return Vocab("llama", "default", tokens, types, scores=scores, special={} if unknown is None else {"unk": unknown},
                 more={"add_space_prefix": prefix})


def _wrapped(processor: Any) -> tuple[bool, bool]:
    """Whether the template puts a special token before a text, and behind it."""
    for part in _parts(processor):
        single = part.get("single")
        if part.get("type") == "TemplateProcessing" and isinstance(single, list) and single:
            return "SpecialToken" in single[0], "SpecialToken" in single[-1]
    return False, False
