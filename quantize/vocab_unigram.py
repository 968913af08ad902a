"""Unigram vocabularies (T5, XLM-R) out of a parsed tokenizer.json: scores, and the table by which texts are normalised."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pyllm import errors

from .vocab_types import BYTE, MAX_TOKENS, NORMAL, SPACE, UNKNOWN, Vocab

_HARMLESS = ("Sequence", "Precompiled", "Strip")        # and replacing runs of spaces: words are cut at white space anyway


def read(table: Mapping[str, Any], where: str) -> Vocab:
    """Raises FormatError, and UnsupportedTokenizer for rules other than sentencepiece's."""
    model = table["model"]
    pairs = model.get("vocab")
    good = isinstance(pairs, list) and 0 < len(pairs) <= MAX_TOKENS and all(
        isinstance(p, list) and len(p) == 2 and isinstance(p[0], str) and isinstance(p[1], int | float) for p in pairs)
    if not good:
        raise errors.FormatError(f"{where}: the vocabulary is no list of texts and scores\nhint: the file is damaged; download it again")
    _check_rules(table, where)
    tokens, types = [text for text, _ in pairs], [NORMAL] * len(pairs)
    unknown = model.get("unk_id")
    if type(unknown) is int and 0 <= unknown < len(tokens) and tokens[unknown].startswith("<"):
        types[unknown] = UNKNOWN
    for i, token in enumerate(tokens):
        if model.get("byte_fallback") and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types[i] = BYTE
    more: dict[str, Any] = {"add_space_prefix": True, "remove_extra_whitespaces": True}
    charsmap = _charsmap(table, where)
    if charsmap:
        more["precompiled_charsmap"] = np.frombuffer(charsmap, np.uint8)
    special = {"unk": unknown} if type(unknown) is int and 0 <= unknown < len(tokens) else {}
    return Vocab("t5", "default", tokens, types, scores=[float(score) for _, score in pairs], special=special, more=more)


def _check_rules(table: Mapping[str, Any], where: str) -> None:
    before = [rule for rule in _rules(table.get("pre_tokenizer"), "pretokenizers") if rule.get("type") != "Sequence"]
    marks = [rule for rule in before if rule.get("type") == "Metaspace"]
    other = [rule.get("type") for rule in before if rule.get("type") not in ("Metaspace", "WhitespaceSplit")]
    prefix = bool(marks) and marks[0].get("prepend_scheme", "always") == "always" and marks[0].get("add_prefix_space", True)
    other += [] if len(marks) == 1 and marks[0].get("replacement", SPACE) == SPACE and prefix else ["other marks for spaces"]
    for rule in _rules(table.get("normalizer"), "normalizers"):
        spaces = rule.get("type") == "Replace" and rule.get("pattern") == {"Regex": " {2,}"}
        other += [] if rule.get("type") in _HARMLESS or spaces else [rule.get("type")]
    if other:
        raise errors.UnsupportedTokenizer(f"{where}: Unigram with {other[0]} cannot be converted\n"
                                          "hint: no tokenizer for GGUF files works that way")


def _rules(rules: Any, inside: str) -> Iterator[Mapping[str, Any]]:
    if isinstance(rules, dict):
        yield rules
        for part in rules.get(inside) or []:
            yield from _rules(part, inside)


def _charsmap(table: Mapping[str, Any], where: str) -> bytes:
    rules = _rules(table.get("normalizer"), "normalizers")
    tables = [rule.get("precompiled_charsmap") for rule in rules if rule.get("type") == "Precompiled"]
    try:
        return base64.b64decode(tables[0] or "", validate=True) if tables else b""
    except (TypeError, ValueError, binascii.Error):
        raise errors.FormatError(f"{where}: precompiled_charsmap is not base64\nhint: the file is damaged; download it again") from None
