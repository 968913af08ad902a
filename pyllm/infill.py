"""Fill-in-the-middle: the tokens that mark what stands before a gap, what stands after it, and the gap itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .tokenizer import Tokenizer

# Metadata keys, newer name first, then the marks as vocabularies write them: files converted before the keys existed have only those.
_KEYS = (("fim_pre", "prefix"), ("fim_suf", "suffix"), ("fim_mid", "middle"))
_MARKS = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
    ("<PRE>", "<SUF>", "<MID>"),
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),
    ("<|fim_begin|>", "<|fim_hole|>", "<|fim_end|>"),
)


class InfillMarks(NamedTuple):
    prefix: int
    suffix: int
    middle: int

    def prompt(self, tokenizer: Tokenizer, before: str, after: str) -> list[int]:
        """Token ids that ask for what belongs between two texts. Marks that the texts themselves hold are text."""
        start = [] if tokenizer.bos is None or tokenizer.encode("")[:1] != [tokenizer.bos] else [tokenizer.bos]
        pieces = [tokenizer.encode(text, add_special=False, parse_special=False) for text in (before, after)]
        return [*start, self.prefix, *pieces[0], self.suffix, *pieces[1], self.middle]


def find_marks(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> InfillMarks | None:
    """The marks that a model was trained with, or None."""
    named = [next((metadata[key] for name in names if (key := f"tokenizer.ggml.{name}_token_id") in metadata), None) for names in _KEYS]
    if all(isinstance(token, int) and 0 <= token < tokenizer.n_vocab for token in named):
        return InfillMarks(*named)      # type: ignore[arg-type]
    for marks in _MARKS:
        ids = [tokenizer.encode(mark, add_special=False) for mark in marks]
        if all(len(i) == 1 and tokenizer.token_text(i[0]) == mark for i, mark in zip(ids, marks, strict=True)):
            return InfillMarks(*(i[0] for i in ids))
    return None
