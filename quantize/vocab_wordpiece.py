"""WordPiece vocabularies (BERT) out of a parsed tokenizer.json. GGUF marks the tokens that begin a word, not those that go on with one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyllm import errors

from .vocab_types import NORMAL, SPACE, Vocab

_PUBLISHED = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}


def read(table: Mapping[str, Any], tokens: list[str], where: str) -> Vocab:
    """tokens: texts by id, as the file has them. Raises UnsupportedTokenizer for rules other than BERT's."""
    model, normalizer = table["model"], table.get("normalizer") or {}
    before = table.get("pre_tokenizer") or {}
    other = [f"{key} {model[key]!r}" for key, usual in _PUBLISHED.items() if model.get(key, usual) != usual]
    other += [f"a {rules.get('type')} in place of a {usual}"
              for rules, usual in ((normalizer, "BertNormalizer"), (before, "BertPreTokenizer")) if rules.get("type") != usual]
    other += [f"{key} off" for key in ("clean_text", "handle_chinese_chars") if not normalizer.get(key, True)]
    if other:
        raise errors.UnsupportedTokenizer(f"{where}: WordPiece with {other[0]} cannot be converted\n"
                                          "hint: no tokenizer for GGUF files works that way")
    lower, strip = bool(normalizer.get("lowercase", True)), normalizer.get("strip_accents")
    more: dict[str, Any] = {"token_type_count": 2}
    if not lower:
        more["normalizer.lowercase"] = False
    if strip is not None and bool(strip) != lower:
        more["normalizer.strip_accents"] = bool(strip)
    unknown = model["vocab"].get(model.get("unk_token", "[UNK]"))
    written = [token[2:] if token.startswith("##") else SPACE + token for token in tokens]
    return Vocab("bert", "default", written, [NORMAL] * len(written), special={} if unknown is None else {"unk": unknown}, more=more)
