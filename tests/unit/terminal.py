"""Terminals for tests: a real pseudo-terminal with a program in it, and what a screen would show of a text with escape sequences."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import time
import unicodedata
from pathlib import Path

ESCAPE = re.compile(r"\x1b(\[[\d;?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>])")
PATIENCE = 240      # seconds: a loaded machine may stop the program for a while


class Terminal:
    """`pyllm *arguments` in a terminal of 80 x 24. text is all that was shown, without escape sequences. Use as a context manager."""

    def __init__(self, *arguments: str, code: str = "from pyllm.cli import main; sys.exit(main(sys.argv[1:]))", **env: str) -> None:
        command = [sys.executable, "-c", f"import sys; {code}", *arguments]
        self.raw, self._read, self._status = "", 0, None
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(command[0], command, {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24",
                                            **env})

    @property
    def text(self) -> str:
        return ESCAPE.sub("", self.raw)

    def type(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    def wait(self, pattern: str, patience: float = PATIENCE) -> str:
        """What was shown since the last wait up to the end of the first match."""
        end = time.monotonic() + patience
        while not (match := re.search(pattern, self.text[self._read:], re.S)):
            assert self._more(end), f"{pattern!r} did not come: {self.text[self._read:]!r}"
        shown = self.text[self._read:self._read + match.end()]
        self._read += match.end()
        return shown

    def ask(self, line: str, pattern: str) -> str:
        self.type(line + "\r")
        return self.wait(pattern)

    def interrupt(self, pattern: str) -> str:
        """Ctrl-C at a prompt of readline. Python misses a signal between showing the prompt and waiting for keys, until the next one."""
        self.type("\x03")
        try:
            return self.wait(pattern, 30)
        except AssertionError:
            self.type("\x03")
            return self.wait(pattern)

    def exit_code(self) -> int:
        """Waits for the end."""
        while self._more(time.monotonic() + PATIENCE):
            pass
        return os.waitstatus_to_exitcode(self._wait())

    def _more(self, end: float) -> bool:
        """Reads what comes; False if nothing will."""
        if not select.select([self.fd], [], [], max(end - time.monotonic(), 0))[0]:
            return False
        try:
            data = os.read(self.fd, 1 << 16)
        except OSError:                 # the other side is closed
            return False
        if b"\x1b[6n" in data:          # where is the cursor? In the first row, so that there is room below
            os.write(self.fd, b"\x1b[1;1R")
        self.raw += data.decode("utf-8", "replace")
        return bool(data)

    def _wait(self) -> int:
        if self._status is None:
            self._status = os.waitpid(self.pid, 0)[1]
        return self._status

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self._wait()
        os.close(self.fd)


class Screen:
    """A terminal's rows: characters, line breaks, cursor up, erase to the end. Also takes the place of a stream."""

    encoding = "utf-8"

    def __init__(self, columns: int, rows: int) -> None:
        self._columns, self._height = columns, rows
        self._rows: list[list[str]] = [[]]
        self._row = self._column = 0

    def write(self, text: str) -> int:
        for piece in re.findall(r"\x1b\[[\d;]*[A-Za-z]|[^\x1b]", text):
            if piece[0] != "\x1b":
                self._put(piece)
            elif piece[-1] == "A":
                up = int(piece[2:-1])
                assert self._row - up >= len(self._rows) - self._height, "the cursor leaves the screen"
                self._row -= up
            elif piece[-1] == "J":
                del self._rows[self._row + 1:]
                del self._rows[self._row][self._column:]
            else:
                assert piece[-1] == "m", piece
        return len(text)

    def _put(self, char: str) -> None:
        if char == "\n":
            self._row, self._column = self._row + 1, 0
        elif char == "\r":
            self._column = 0
        elif unicodedata.combining(char):
            self._rows[self._row][self._column - 1] += char
        else:
            wide = 2 if unicodedata.east_asian_width(char) in "WF" else 1
            assert self._column + wide <= self._columns, "a line is longer than the screen is wide"
            cells = self._rows[self._row]
            cells.extend([" "] * (self._column - len(cells)))
            cells[self._column:self._column + wide] = [char, ""][:wide]
            self._column += wide
        if self._row == len(self._rows):
            self._rows.append([])

    def flush(self) -> None:
        """Everything is shown at once."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self._rows]


def history(folder: Path) -> list[str]:
    """Lines of prompt_toolkit's history file in a cache folder."""
    return [line[1:] for line in (folder / "history").read_text().splitlines() if line.startswith("+")]
