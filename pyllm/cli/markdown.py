"""Markdown as it streams in, cut into blocks that can each be rendered once and never change again."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$")
_ITEM = re.compile(r"( {0,3})([-*+]|\d{1,9}[.)])(?: +|$)")
# what may follow a line of a paragraph without an empty line between (CommonMark)
_INTERRUPTING_ITEM = re.compile(r" {0,3}([-*+]|1[.)]) +\S")
_HEADING = re.compile(r" {0,3}#{1,6}(\s|$)")
_RULE = re.compile(r" {0,3}([-*_])[ \t]*(\1[ \t]*){2,}$")


@dataclass(frozen=True)
class Block:
    """kind: fence, item (one of a list's first level, with all that is nested in it), heading, rule or text (paragraph, table, quote, ...).
    spaced: an empty line belongs between it and the block before."""

    source: str
    kind: str
    spaced: bool


class BlockSplitter:
    """feed() text in pieces of any size; finished blocks come out. `pending` is the block that is still being written."""

    def __init__(self) -> None:
        self._done: list[Block] = []
        self._lines: list[str] = []     # of the pending block
        self._partial = ""              # the line that is being written
        self._kind = ""                 # of the pending block; "" when there is none
        self._blank = False             # an empty line came after the pending (or else the last) block's lines
        self._blank_before = False      # an empty line came before the pending block
        self._fence = ""
        self._indent = 0
        self._last = ""                 # kind of the last finished block

    def feed(self, text: str) -> list[Block]:
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self._line(line)
        if self._kind == "item" and self._blank and self._partial.strip() and not self._continues_item(self._partial):
            self._end()                 # no need to wait for the rest of the line
        done, self._done = self._done, []
        return done

    @property
    def pending(self) -> Block | None:
        """What is not finished yet, None if nothing is. It may turn out to be another kind, or two blocks."""
        source = "\n".join([*self._lines, *[""] * (self._blank and bool(self._lines) and bool(self._partial)), self._partial])
        kind = self._kind or ("item" if _ITEM.match(self._partial) else "text")
        return Block(source.rstrip("\n"), kind, self._spaced(kind)) if source.strip() else None

    def finish(self) -> list[Block]:
        """The text is over: what is left."""
        if self._partial:
            self._line(self._partial)
        self._partial = ""
        self._end()
        done, self._done = self._done, []
        return done

    def _line(self, line: str) -> None:
        if self._kind == "fence":
            self._lines.append(line)
            close = _FENCE.match(line)
            if close and close[1].startswith(self._fence) and not close[2].strip():
                self._end()
        elif not line.strip():
            if self._kind != "item":    # an item goes on when the next line is indented
                self._end()
            self._blank = True
        elif self._continues_item(line):
            if self._blank:
                self._lines.append("")
                self._blank = False
            self._lines.append(line)
        else:
            self._start_or_add(line)

    def _continues_item(self, line: str) -> bool:
        if self._kind != "item":
            return False
        indent = len(line) - len(line.lstrip(" \t"))
        if indent >= self._indent + 2 or line.startswith("\t"):
            return True
        return not self._blank and not _ITEM.match(line) and self._opening(line) == "text"     # a lazy line of its paragraph

    def _start_or_add(self, line: str) -> None:
        kind = self._opening(line)
        paragraph = self._kind == "text" and not self._blank
        setext = paragraph and kind == "rule" and set(line.strip()) == {"-"}
        if paragraph and (kind == "text" or setext or (kind == "item" and not _INTERRUPTING_ITEM.match(line))):
            self._lines.append(line)
            return
        self._end()
        self._kind, self._lines, self._blank_before, self._blank = kind, [line], self._blank, False
        if kind == "fence":
            match = _FENCE.match(line)
            self._fence = match[1] if match else ""
        elif kind == "item":
            match = _ITEM.match(line)
            self._indent = len(match[1]) if match else 0
        elif kind in ("heading", "rule"):
            self._end()

    def _opening(self, line: str) -> str:
        """The kind of block that a line begins."""
        fence = _FENCE.match(line)
        if fence and not (fence[1][0] == "`" and "`" in fence[2]):
            return "fence"
        for kind, pattern in (("heading", _HEADING), ("rule", _RULE), ("item", _ITEM)):
            if pattern.match(line):
                return kind
        return "text"

    def _spaced(self, kind: str) -> bool:
        blank = self._blank_before if self._lines else self._blank
        return bool(self._last) and (blank or not kind == self._last == "item")

    def _end(self) -> None:
        if not self._kind:
            return
        self._done.append(Block("\n".join(self._lines), self._kind, self._spaced(self._kind)))
        self._last, self._kind, self._lines = self._kind, "", []
