"""Recognises how a tokenizer.json splits text before byte-level BPE, from its rules: the name that GGUF files know the same rules by.

A tokenizer.json describes a chain of splits. Here each becomes one canonical word or pattern, without differences of spelling that change
no match, and the chain is looked up in a table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import SequenceMatcher
from typing import Any

from pyllm import errors

# What tokenizer.json files write, and what it is here: the same matches, whatever the text.
_SPELLINGS = [
    ("?+", "?"), ("++", "+"), ("*+", "*"), (",3}+", ",3}"),                # possessive: nothing that follows could take characters back
    (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])", "{contraction}"),
    (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", "{contraction}"),
    (r"(?i:'[sdmt]|'ll|'ve|'re)", "{contraction}"),
    (r"'(?i:[sdmt]|ll|ve|re)", "{contraction}"),
    (r"\s+$|\s*[\r\n]|\s+(?!\S)|\s", "{spaces}"),
    (r"\s*[\r\n]+|\s+(?!\S)|\s+", "{spaces}"),
    (r"\s*[\r\n]|\s+(?!\S)|\s+", "{spaces}"),
    (r"[^\r\n\p{L}\p{N}]?", "{before}"),
    (r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", "{upper}"),
    (r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", "{lower}"),
]
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = r"{contraction}|{before}\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|{spaces}"
QWEN2 = LLAMA3.replace("{1,3}", "")
TEKKEN = r"{before}{upper}*{lower}+|{before}{upper}+{lower}*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|{spaces}"
GPT4O = (r"{before}{upper}*{lower}+{contraction}?|{before}{upper}+{lower}*{contraction}?|\p{N}{1,3}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|{spaces}")
DEEPSEEK3 = (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
             r"| ?[\p{P}\p{S}]+[\r\n]*|{spaces}")
_CJK_WIDE = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_LETTERS = "{deepseek letters}"


def recognise(rules: Any, ignore_merges: bool, composes: bool, where: str) -> str:
    """The value of tokenizer.ggml.pre for a tokenizer.json's "pre_tokenizer". composes: the text is brought to normalization form C before.
    Raises UnsupportedTokenizer, naming what is nearest."""
    chain = tuple(stage for stage in _stages(rules, where) if stage)
    names = _NAMES.get(chain)
    if names is not None:
        name = names[1] if ignore_merges and names[1] else names[0]
        return _COMPOSING.get(name, name) if composes else name
    near = max(_NAMES, key=lambda known: SequenceMatcher(None, " ".join(known), " ".join(chain), autojunk=False).ratio())
    raise errors.UnsupportedTokenizer(f"{where}: no family that is known splits text by {' then '.join(map(repr, chain)) or 'nothing'}\n"
                                      f"hint: the nearest is {_NAMES[near][0]}; --pre NAME takes a family's rules instead")


def _stages(rules: Any, where: str) -> list[str]:
    kind = rules.get("type") if isinstance(rules, Mapping) else None
    if kind == "Sequence" and isinstance(rules.get("pretokenizers"), list):
        return [stage for part in rules["pretokenizers"] for stage in _stages(part, where)]
    if kind == "ByteLevel" and not rules.get("add_prefix_space"):
        return [GPT2 if rules.get("use_regex", True) else ""]
    if kind == "Digits":
        return ["digit" if rules.get("individual_digits") else "digits"]
    if kind == "Punctuation" and rules.get("behavior") == "Contiguous":
        return ["punctuation"]
    if kind == "Split" and isinstance(rules.get("pattern"), Mapping):
        keeps_all = rules.get("behavior") == "Isolated" or (rules.get("behavior") == "Removed" and rules.get("invert"))
        pattern = rules["pattern"].get("Regex", rules["pattern"].get("String"))
        if keeps_all and isinstance(pattern, str):
            return [_canonical(pattern)]
    raise errors.UnsupportedTokenizer(f"{where}: the pre-tokenizer {rules!r} is not known\n"
                                      "hint: --pre NAME takes the rules of a family that is known, such as gpt-2, llama-bpe or qwen2")


def _canonical(pattern: str) -> str:
    pattern = re.sub(r"\\x\{([0-9a-fA-F]{1,5})\}", lambda m: chr(int(m[1], 16)), pattern)
    if pattern.startswith(r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ"):
        return _DEEPSEEK_LETTERS
    pattern = pattern.replace("\r", r"\r").replace("\n", r"\n")
    for spelling, word in _SPELLINGS:
        pattern = pattern.replace(spelling, word)
    return "digit" if pattern == r"\p{N}" else pattern


# Chain of splits -> name. Where words of the vocabulary may go before the merges (ignore_merges), its name is the second one.
_NAMES: dict[tuple[str, ...], tuple[str, str]] = {
    (GPT2,): ("gpt-2", ""),
    ("digit", GPT2): ("smollm", ""),
    (LLAMA3,): ("smaug-bpe", "llama-bpe"),
    (QWEN2,): ("hunyuan", ""),
    (TEKKEN,): ("tekken", "tekken"),
    (GPT4O,): ("gpt-4o", ""),
    ("punctuation", GPT2, "digits", "[0-9][0-9][0-9]"): ("falcon", ""),
    (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_WIDE, "digit"): ("deepseek-coder", ""),
    (r"[\r\n]", _DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", _CJK_WIDE, "digit"): ("deepseek-llm", ""),
    (r"\p{N}{1,3}", _CJK, _canonical(DEEPSEEK3)): ("deepseek-v3", ""),
}
# The same rules behind normalization form C, where there is a name for that; elsewhere it is left out, as other programs do.
_COMPOSING = {"gpt-2": "olmo", "smollm": "command-r", "hunyuan": "qwen2"}
