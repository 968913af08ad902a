#!/usr/bin/env python3
"""Cycles that llvm-mca estimates for the innermost matmul loops of the ARM levels, as the table of docs/arm.md.

    tools/arm_cycles.py [--cc "clang-19 --target=aarch64-linux-gnu"]       needs clang-19 and llvm-19

Of each tile function the innermost loop with the most dot products is cut out of the assembly. cycles / bound: what the simulated core
takes for one round of the loop over what its busiest resource needs (llvm-mca's Block RThroughput), the issue bound; then 8-bit
multiply-adds a cycle. There is no model of memory in it, and these are models of cores, not cores.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CORES = ("neoverse-n1", "neoverse-n2", "neoverse-v2", "cortex-a55", "cortex-a510")
FLAGS = ("-std=gnu11", "-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing", "-fPIC")
TYPES = ("q4_0", "q4_k", "q6_k", "q8_0")
LEVELS = (
    ("dotprod", "-march=armv8.2-a+dotprod", ("1", "4"), CORES),
    ("i8mm", "-march=armv8.2-a+dotprod+i8mm", ("pairs_4",), CORES[1:3] + CORES[4:]),
)
BRANCH = re.compile(r"^\s+(b\.?\w*|cbn?z|tbn?z)\s+(?:.*\s)?(\.?L\w+)\s*$")
PRODUCTS = {"sdot": 16, "smmla": 32}


def functions(assembly: str) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    name = ""
    for line in assembly.splitlines():
        if m := re.match(r"^([A-Za-z_]\w*):", line):
            name = m[1]
        out.setdefault(name, []).append(line)
    return out


def inner_loop(lines: list[str]) -> list[str]:
    """Instructions of the loop without loops in it that has the most products, its branch left out."""
    labels = {m[1]: i for i, line in enumerate(lines) if (m := re.match(r"^(\.?L\w+):", line))}
    loops = [(labels[m[2]], i) for i, line in enumerate(lines) if (m := BRANCH.match(line)) and labels.get(m[2], i) < i]
    inner = [(a, b) for a, b in loops if not any(a <= c and d <= b for c, d in loops if (c, d) != (a, b))]
    bodies = [[line for line in lines[a:b] if re.match(r"^\s+[a-z]", line) and not BRANCH.match(line)] for a, b in inner]
    return max(bodies, key=products)


def products(body: list[str]) -> int:
    return sum(PRODUCTS.get(line.split()[0], 0) for line in body)


def simulate(body: list[str], core: str) -> tuple[float, float]:
    """(cycles of a round, cycles that its busiest resource needs)"""
    text = ".arch armv8.6-a+dotprod+i8mm\n" + "\n".join(body) + "\n"
    out = subprocess.run(
        ["llvm-mca-19", "-mtriple=aarch64-linux-gnu", f"-mcpu={core}", "-iterations=100", "-instruction-info=0", "-resource-pressure=0"],
        input=text,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = {key: float(value) for key, value in re.findall(r"^([\w ]+):\s+([\d.]+)$", out, re.M)}
    return found["Total Cycles"] / 100, found["Block RThroughput"]


def main() -> int:
    parser = argparse.ArgumentParser(description="llvm-mca's cycles for the inner loops of the ARM matmuls.")
    parser.add_argument("--cc", default="clang-19 --target=aarch64-linux-gnu", help="the compiler")
    args = parser.parse_args()
    print("| level, rows | type | instructions | products | " + " | ".join(CORES) + " |\n|---" * 1 + "|---" * (3 + len(CORES)) + "|")
    with tempfile.TemporaryDirectory() as folder:
        for level, flag, tiles, cores in LEVELS:
            out = Path(folder) / "level.s"
            subprocess.run(
                [*shlex.split(args.cc), *FLAGS, flag, "-S", "-o", str(out), str(ROOT / f"csrc/kernels/arm/matmul_{level}.c")], check=True
            )
            code = functions(out.read_text())
            for kind in TYPES:
                for tile in tiles:
                    body = inner_loop(code[f"{kind}_{tile}"])
                    cells = []
                    for core in CORES:
                        cycles, bound = simulate(body, core) if core in cores else (0.0, 0.0)
                        cells.append(
                            f"{cycles:.0f} / {bound:.0f} = {cycles / bound:.2f}, {products(body) / cycles:.0f}" if cycles else ""
                        )
                    rows = tile.replace("pairs_4", "8")
                    print(f"| {level}, {rows} | {kind} | {len(body)} | {products(body)} | " + " | ".join(cells) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
