"""The last lines of the terminal: text wrapped by us, so that we know which rows it takes and can replace them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TextIO

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def safe(text: str) -> str:
    """Text of a model without the control characters that could drive the terminal; line breaks and tabs stay."""
    return _CONTROL.sub("", text)


@lru_cache(4096)
def width(char: str) -> int:
    """Columns that a character takes. For emoji of several characters the sum may be more than a terminal shows, never less."""
    if char == "\ufe0f":                # asks for the wide form of the character before it
        return 1
    if char != "\xad" and unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" or char >= "\U0001f000" else 1


def wrap(text: str, columns: int) -> list[str]:
    """Lines of at most `columns` columns (beside spaces at their end), broken at spaces where there are some. Text that is added later
    changes the last line only."""
    return [piece for line in text.expandtabs(4).split("\n") for piece in _wrap_line(line, columns)]


def _wrap_line(line: str, columns: int) -> list[str]:
    if len(line) <= columns and line.isascii():
        return [line]
    pieces, start, used, space, full = [], 0, 0, 0, False       # space: index behind the last space of this piece
    for i, char in enumerate(line):
        w = width(char)
        if char == " " and used + w > columns:      # not seen at the end of a row, and not the beginning of the next one
            space, full = i + 1, True
            continue
        while i > start and (full or used + w > columns):
            cut = space if space > start else i
            pieces.append(line[start:cut].rstrip(" "))
            start, full = cut, False
            used = sum(width(c) for c in line[start:i])
        used += w
        if char == " ":
            space = i + 1
    return [*pieces, line[start:]]


class Region:
    """The lines that may still change, at the end of what the terminal shows. Each must fit into one row."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._shown: list[str] = []

    def show(self, lines: Sequence[str]) -> None:
        """Replaces the lines; only from the first difference on is anything written."""
        self._write(self._change(lines))
        self._shown = list(lines)

    def commit(self, lines: Sequence[str]) -> None:
        """Replaces the lines for the last time; what comes next starts below them."""
        self._write(self._change(lines) + ("\n" if lines else ""))
        self._shown = []

    def _change(self, lines: Sequence[str]) -> str:
        old = self._shown
        if not old:
            return "\n".join(lines)
        same = 0
        while same < min(len(old), len(lines)) and old[same] == lines[same]:
            same += 1
        if same == len(old):
            return "".join(f"\n{line}" for line in lines[same:])
        if same == len(old) - 1 < len(lines) and lines[same].startswith(old[same]) and "\x1b" not in lines[same]:
            return lines[same][len(old[same]):] + "".join(f"\n{line}" for line in lines[same + 1:])
        if same == len(lines) > 0:          # nothing new: the cursor belongs at the end of the last line
            same -= 1
        up = len(old) - 1 - min(same, len(old) - 1)
        return (f"\x1b[{up}A" if up else "") + "\r\x1b[J" + "\n".join(lines[same:])

    def _write(self, text: str) -> None:
        if text:
            self._out.write(text)
            self._out.flush()


class Flow:
    """Text as it is, wrapped; every line but the last is final. style: what a line is wrapped in, such as an escape sequence for dim."""

    def __init__(self, region: Region, columns: int, style: tuple[str, str] = ("", ""), text: str = "") -> None:
        self._region, self._columns, self._style, self._text = region, columns, style, text

    def feed(self, text: str) -> None:
        *done, self._text = wrap(self._text + text, self._columns)
        if done:
            self._region.commit(self._styled(done))
        self._region.show(self._styled([self._text]))

    def end(self) -> None:
        self._region.commit(self._styled([self._text]) if self._text else [])
        self._text = ""

    def _styled(self, lines: list[str]) -> list[str]:
        before, after = self._style
        return [f"{before}{line.rstrip(' ')}{after}" if line.strip(" ") else "" for line in lines]
