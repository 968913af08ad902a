#!/usr/bin/env python3
"""Writes the kernel table of docs/performance.md: runs the kernel bench (tools/kernel_test.sh native -- --bench), some minutes on an idle
machine, and puts its matmul lines between the page's marks.

    python tools/performance.py [FILE]      FILE: a bench's output to use instead of running it
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/performance.md"
BEGIN, END = "<!-- kernels -->\n", "<!-- /kernels -->\n"
LINE = re.compile(r"  (\w+) +1 row +([\d.]+) GB/s +(\d+) % +512 rows +([\d.]+) GMAC/s +(\d+) %$")


def main() -> None:
    text = Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else subprocess.run(
        ["sh", str(ROOT / "tools/kernel_test.sh"), "native", "--", "--bench"], capture_output=True, text=True, check=True).stdout
    level, levels = "", dict[str, dict[str, tuple[str, ...]]]()
    for line in text.splitlines():
        if found := LINE.match(line):
            levels.setdefault(level, {})[found[1]] = found.groups()[1:]
        elif re.fullmatch(r"\w+", line):
            level = line
    fast = [name for name in levels if name != "ref"]
    columns = ("1 row, GB/s", "of memory reads", "512 rows, GOP/s", "of peak")
    head = "| type | " + " | ".join(f"{name}: {column}" for name in fast for column in columns) + " |\n"
    table = head + "|---" * (1 + 4 * len(fast)) + "|\n"
    for kind in levels[fast[-1]]:
        cells = [cell for name in fast for cell in numbers(levels[name][kind])]
        table += f"| {kind} | " + " | ".join(cells) + " |\n"
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + BEGIN + table + END + rest.partition(END)[2])


def numbers(row: tuple[str, ...]) -> tuple[str, ...]:
    read, read_share, macs, peak_share = row
    return f"{float(read):.1f}", f"{read_share} %", f"{2 * float(macs):.0f}", f"{peak_share} %"


if __name__ == "__main__":
    main()
