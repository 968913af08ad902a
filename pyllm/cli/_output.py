"""What every command prints with: sizes, tables, colour where it is welcome, and the progress bar of downloads.

Colour and bars go to terminals only; NO_COLOR and TERM=dumb turn colour off. Text out of model files passes through `clean` first: a
file must not be able to drive the terminal.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def note(text: str) -> None:
    """A line for people, on stderr: the answer on stdout stays clean."""
    print(text, file=sys.stderr, flush=True)


def show_warnings() -> None:
    """From now on the library's warnings are notes."""
    import logging

    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(f"warning: {clean(record.getMessage())}")

    logger = logging.getLogger("pyllm")
    if not any(type(h).__name__ == Notes.__name__ for h in logger.handlers):
        logger.addHandler(Notes(logging.WARNING))


def has_colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """The text in a style (bold, dim, red, green, yellow, cyan) if the stream (stdout) shows colour."""
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if has_colour(stream or sys.stdout) else text


def clean(text: str) -> str:
    """The text with control characters and broken UTF-8 written as escapes, on one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def size(n: float) -> str:
    """Bytes for people, in decimal units: 98.4 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 999.5:
            return f"{n:.0f} B" if unit == "B" else f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"


def count(n: int) -> str:
    """A number of parameters for people: 135 M, 1.54 B."""
    for unit, scale in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= 0.9995 * scale:
            return f"{n / scale:.3g} {unit}"
    return str(n)


def print_json(value: Any) -> None:
    """Standard JSON on stdout: what JSON cannot say (NaN, infinity) becomes null."""
    print(json.dumps(_json_value(value), indent=2))


def _json_value(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _json_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Columns two spaces apart under a bold head; right: columns that end at the same place."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    print(styled(table_line(head, widths, right), "bold"))
    for row in rows:
        print(table_line(row, widths, right))


def table_line(cells: Sequence[str], widths: Sequence[int], right: Sequence[int] = ()) -> str:
    padded = (c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True)))
    return "  ".join(padded).rstrip()


def confirm(question: str) -> bool:
    """Asks on the terminal; only y or yes is a yes."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


@contextmanager
def progress(label: str, unit: str = "MB") -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, if that is a terminal, for callbacks (done, in all), in bytes (unit MB) or in pieces that unit names:

        with progress("smollm2") as show:
            catalogue.resolve("smollm2", progress=show)

    Nothing appears before the first call. The last line stays.
    """
    bar = _Bar(label, unit, sys.stderr)
    try:
        yield bar.show
    finally:
        bar.end()


class _Bar:
    INTERVAL = 0.1      # seconds between two drawings

    def __init__(self, label: str, unit: str, stream: TextIO) -> None:
        self._label, self._unit, self._stream, self._wanted = label, unit, stream, stream.isatty()
        self._start = self._drawn = 0.0
        self._first = self._last = 0
        self._open = False

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self._open or done < self._last:     # a new file; `first` was there before: it says nothing about the rate
            self._start, self._first, self._open = now, done, True
        self._last = done
        if self._wanted and (now - self._drawn >= self.INTERVAL or done >= total):
            self._drawn = now
            line = bar_line(self._label, done, total, done - self._first, now - self._start, shutil.get_terminal_size().columns,
                            self._stream.encoding, self._unit)
            self._stream.write(f"\r{line}\x1b[K")
            self._stream.flush()

    def end(self) -> None:
        if self._wanted and self._open:
            self._stream.write("\n")
            self._stream.flush()


def bar_line(label: str, done: int, total: int, fresh: int, seconds: float, columns: int, encoding: str | None = "utf-8",
             unit: str = "MB") -> str:
    """One line of less than `columns` characters: label, bar, how much is done (bytes as megabytes with the rate of the `fresh` ones),
    time left."""
    rate = fresh / seconds if seconds > 0 else 0.0
    text = f"{done / 1e6:.1f}/{total / 1e6:.1f} MB  {rate / 1e6:.1f} MB/s" if unit == "MB" else f"{done}/{total} {unit}"
    if rate and done < total:
        left = math.ceil((total - done) / rate)
        text += f"  eta {left // 60}:{left % 60:02}"
    share = min(done / total, 1.0) if total else 1.0
    room = min(columns - len(label) - len(text) - 14, 40)
    if room < 4:
        return f"{label}  {text}"[:columns - 1]
    full, empty = ("━", "─") if (encoding or "").lower().replace("-", "") == "utf8" else ("#", ".")
    filled = int(share * room)
    return f"{label}  {full * filled}{empty * (room - filled)}  {share:4.0%}  {text}"
