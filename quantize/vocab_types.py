"""What every kind of tokenizer file becomes: tokens with types, scores or merges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyllm import errors

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)      # tokenizer.ggml.token_type, as in sentencepiece
SPACE = "\u2581"                           # what sentencepiece writes for a space
MAX_TOKENS = 1 << 24
ADDED_SCORE = -1000.0       # of tokens that no merge may make


@dataclass
class Vocab:
    """model, pre: values of tokenizer.ggml.model and .pre. special: ids by kind ("bos") that the file itself tells; more: further keys
    (without prefix)."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    adds_bos: bool = False
    adds_eos: bool = False
    special: dict[str, int] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    added: set[int] = field(default_factory=set)

    def append(self, token: str, kind: int) -> None:
        self.tokens.append(token)
        self.types.append(kind)
        if self.scores is not None:
            self.scores.append(ADDED_SCORE)

    def put(self, index: int, token: str, special: bool) -> None:
        """An added token; those that were never described between the last one and it are unused."""
        if not 0 <= index < MAX_TOKENS:
            raise errors.FormatError(f"the added token {token!r} has the id {index}\n"
                                     "hint: the tokenizer's files are damaged; download them again")
        while len(self.tokens) <= index:
            self.append(f"[PAD{len(self.tokens)}]", UNUSED)
        self.tokens[index] = token
        self.types[index] = CONTROL if special else USER_DEFINED
        self.added.add(index)

    def is_added(self, index: int) -> bool:
        return index in self.added or self.types[index] == UNUSED

    def pop(self) -> None:
        self.added.discard(len(self.tokens) - 1)
        self.tokens.pop()
        self.types.pop()
        if self.scores is not None:
            self.scores.pop()
