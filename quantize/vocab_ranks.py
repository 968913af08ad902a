"""Vocabularies of byte strings with ranks, as tiktoken and Mistral's tekken.json have them: byte-level BPE without a list of merges.

Tokens are joined by the rank of what they become, so each token longer than a byte has one pair that makes it: the two parts to which its
own bytes come by the tokens of lower rank.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from pyllm import errors

from . import pretokenizers
from .vocab_types import CONTROL, MAX_TOKENS, NORMAL, USER_DEFINED, Vocab

# Of tekken.json before version 7, which lists none: the first special tokens; the others are <SPECIAL_n>.
_FIRST_SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
                  "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]",
                  "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]")
_KINDS = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
# Printable Latin-1 characters stand for themselves in byte-level vocabularies, the other bytes for what follows from U+0100 on.
_PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_ALPHABET = dict(zip([*_PLAIN, *sorted({*range(256)} - {*_PLAIN})], map(chr, [*_PLAIN, *range(256, 324)]), strict=True))


def tekken(table: Mapping[str, Any], where: str, pre: str | None) -> Vocab:
    """The vocabulary of a parsed tekken.json. where: its path, for messages; pre: see vocab.fields."""
    config = table.get("config")
    sizes = [config.get(key) for key in ("default_vocab_size", "default_num_special_tokens")] if isinstance(config, dict) else [None]
    good = isinstance(table.get("vocab"), list) and all(type(n) is int and 0 < n <= MAX_TOKENS for n in sizes)
    if not isinstance(config, dict) or not good:
        _fail(where, "it has no sizes or no vocabulary")
    n_special = config["default_num_special_tokens"]
    words = [_bytes(entry, where) for entry in table["vocab"][:config["default_vocab_size"] - n_special]]
    special = [f"<SPECIAL_{i}>" for i in range(n_special)]
    types = [CONTROL] * n_special
    for i, token, control in _special(table.get("special_tokens"), n_special, where):
        special[i], types[i] = token, CONTROL if control else USER_DEFINED
    rules = {"type": "Split", "pattern": {"Regex": str(config.get("pattern"))}, "behavior": "Isolated"}
    name = pre or pretokenizers.recognise(rules, True, False, where)
    merges = [" ".join(map(_text, pair)) for pair in _merges(words, where)]
    ids = {token: i for i, token in enumerate(special)}
    return Vocab("gpt2", name, special + [_text(w) for w in words], types + [NORMAL] * len(words), merges=merges, adds_bos=True,
                 special={kind: ids[token] for kind, token in _KINDS.items() if token in ids})


def _fail(where: str, what: str) -> NoReturn:
    raise errors.FormatError(f"{where}: {what}\nhint: the file is damaged; download it again")


def _bytes(entry: Any, where: str) -> bytes:
    try:
        word = base64.b64decode(entry["token_bytes"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error):
        word = b""
    return word or _fail(where, f"the entry {entry!r} of the vocabulary has no bytes")


def _special(entries: Any, n: int, where: str) -> Iterator[tuple[int, str, bool]]:
    """(id, text, whether it is a control token)."""
    if entries is None:
        entries = [{"rank": i, "token_str": token} for i, token in enumerate(_FIRST_SPECIAL[:n])]
    for entry in entries if isinstance(entries, list) else _fail(where, "the special tokens are no list"):
        if not isinstance(entry, dict) or type(entry.get("rank")) is not int or not isinstance(entry.get("token_str"), str):
            _fail(where, f"the special token {entry!r} has no rank or text")
        if not 0 <= entry["rank"] < n:
            _fail(where, f"the special token {entry!r} is not one of {n}")
        yield entry["rank"], entry["token_str"], bool(entry.get("is_control", True))


def _text(word: bytes) -> str:
    return "".join(_ALPHABET[b] for b in word)


def _merges(words: list[bytes], where: str) -> Iterator[tuple[bytes, bytes]]:
    """The pair that makes each word of several bytes, by rank. words: by rank."""
    ranks: dict[bytes, int] = {}
    for i, word in enumerate(words):
        if len(word) > 1:
            parts = _parts(word, ranks)
            if len(parts) == 2:             # others cannot come about: only a text that is one of these words gives it
                yield parts[0], parts[1]
        ranks.setdefault(word, i)
    if not all(bytes([b]) in ranks for b in range(256)):
        _fail(where, "not every byte is a token")


def _parts(word: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """What a word's bytes are joined to by tokens that came before it, the lowest rank first."""
    parts = [word[i:i + 1] for i in range(len(word))]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], MAX_TOKENS))
        if parts[best] + parts[best + 1] not in ranks:
            break
        parts[best:best + 2] = [parts[best] + parts[best + 1]]
    return parts
