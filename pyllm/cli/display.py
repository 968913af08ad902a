"""Answers as they stream in: with Markdown (needs rich), or plain."""

from __future__ import annotations

import os
import shutil
import time
from importlib.util import find_spec
from typing import Protocol, TextIO

from ..replies import Chunk
from ._output import has_colour
from .markdown import Block, BlockSplitter
from .screen import Flow, Region, safe, wrap

INTERVAL = 0.03     # seconds between two drawings of a block that is being written
MAX_COLUMNS = 100   # longer lines are hard to read


class Display(Protocol):
    """Shows one answer."""

    def feed(self, chunk: Chunk) -> None: ...

    def finish(self) -> None:
        """The answer is over; the cursor stands at the beginning of an empty line."""


def dim(out: TextIO) -> tuple[str, str]:
    """What to write before and after text that is less important."""
    return ("\x1b[2m", "\x1b[0m") if has_colour(out) else ("", "")


class PlainDisplay:
    """Text as it comes; reasoning dim."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._last = ""     # the character written last
        self._thinking = False

    def feed(self, chunk: Chunk) -> None:
        before, after = dim(self._out)
        if chunk.reasoning:
            self._thinking = True
            self._write(f"{before}{safe(chunk.reasoning)}{after}", chunk.reasoning[-1])
        if chunk.text:
            if self._thinking:
                self._thinking = False
                self._write("\n\n", "\n")
            self._write(safe(chunk.text), chunk.text[-1])

    def finish(self) -> None:
        if self._last not in ("", "\n"):
            self._write("\n", "\n")

    def _write(self, text: str, last: str) -> None:
        self._out.write(text)
        self._out.flush()
        self._last = last


class MarkdownDisplay:
    """Finished blocks are rendered and final. The block that is being written stands below them as it is and is replaced when it is done;
    one that is taller than the terminal stays as it is."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._region = out, Region(out)
        self._size = shutil.get_terminal_size()
        self._columns = min(self._size.columns, MAX_COLUMNS) - 1
        self._splitter = BlockSplitter()
        self._thinking: Flow | None = None
        self._flow: Flow | None = None      # for the block that is too tall
        self._flowed = 0                    # characters of it that were written
        self._drawn = 0.0

    def feed(self, chunk: Chunk) -> None:
        if chunk.reasoning:
            self._thinking = self._thinking or Flow(self._region, self._columns, dim(self._out))
            self._thinking.feed(safe(chunk.reasoning))
        if chunk.text:
            self._end_thinking(more=True)
            for block in self._splitter.feed(safe(chunk.text)):
                self._show_done(block)
            if self._splitter.pending is not None and time.monotonic() - self._drawn >= INTERVAL:
                self._show_pending(self._splitter.pending)

    def finish(self) -> None:
        self._end_thinking(more=False)
        for block in self._splitter.finish():
            self._show_done(block)

    def _end_thinking(self, more: bool) -> None:
        if self._thinking is not None:
            self._thinking.end()
            self._thinking = None
            if more:
                self._region.commit([""])

    def _show_done(self, block: Block) -> None:
        if self._flow is not None:
            self._flow.feed(block.source[self._flowed:])
            self._flowed -= len(block.source) + 1       # what was written beyond it is the beginning of the next block
            if self._flowed <= 0:
                self._flow.end()
                self._flow, self._flowed = None, 0
            return
        from .rendering import render

        self._region.commit([""] * block.spaced + render(block.source, self._columns))
        self._drawn = 0.0

    def _show_pending(self, block: Block) -> None:
        self._drawn = time.monotonic()
        if self._flow is None:
            lines = [line.rstrip(" ") for line in wrap(block.source, self._columns)]
            if len(lines) < self._size.lines - 1 and shutil.get_terminal_size() == self._size:
                self._region.show([""] * block.spaced + lines)
                return
            *done, last = wrap(block.source, self._columns)
            self._region.commit([""] * block.spaced + done)
            self._flow, self._flowed = Flow(self._region, self._columns, text=last), len(block.source)
        self._flow.feed(block.source[self._flowed:])
        self._flowed = len(block.source)


def make_display(out: TextIO) -> Display:
    """For one answer on a terminal: plain if rich is missing or the terminal cannot move its cursor or show all characters."""
    able = find_spec("rich") is not None and os.environ.get("TERM", "dumb") != "dumb" and (out.encoding or "").lower() in ("utf-8", "utf8")
    return MarkdownDisplay(out) if able else PlainDisplay(out)
