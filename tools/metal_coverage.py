#!/usr/bin/env python3
"""Writes the tables of docs/metal.md: which op and type the Metal backend runs, and that a test covers it. `--check`: only says whether
they are current (exit status 1 if not)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests/unit"))

import metal_cases  # noqa: E402

PAGE = ROOT / "docs/metal.md"
MARK = "<!-- tables of tools/metal_coverage.py -->\n"
# The kernels of an op; TYPE stands for the type of its matrix, KV and D for the cache's type and the largest head.
KERNELS = {
    "embed": ["embed_TYPE"], "linear": ["matvec_TYPE", "matmul_TYPE"], "gated": ["matvec_TYPE", "matmul_TYPE", "glu"], "angles": ["angles"],
    "norm": ["norm"], "layernorm": ["layernorm"], "rope": ["rope"],
    "attn": ["kv_store_KV", "attn_decode_KV_D", "attn_prefill_KV_D", "attn_merge"],
    "glu": ["glu"], "act": ["act"], "rows": ["rows"], "softcap": ["softcap"], "scale": ["scale"], "add": ["add"],
}


def tables() -> str:
    tested = {case.kernel for case in metal_cases.cases()}
    types = re.findall(r"^QTYPE\(\w+,\s*(\w+),\s*\d+,\s*\d+,\s*\d+,\s*[1-9]", (ROOT / "csrc/formats/qtypes.def").read_text(), re.M)
    ops = re.findall(r"^OP\((\w+),", (ROOT / "csrc/ops/ops.def").read_text(), re.M)
    listed = re.search(r"\} ops\[\] = \{(.*?)\};", (ROOT / "csrc/engine/metal_plan.c").read_text(), re.S)
    assert listed and set(re.findall(r'"(\w+)"', listed[1])) == set(KERNELS) <= set(ops), "metal_plan.c lists other ops than KERNELS"

    def cell(op: str, **names: str) -> str:
        needed = []
        for kernel in KERNELS.get(op, []):
            for key, name in names.items():
                kernel = re.sub(rf"_{key}\b", f"_{name}", re.sub(rf"_{key}_", f"_{name}_", kernel))
            needed.append(kernel)
        return "yes" if needed and set(needed) <= tested else "-"

    lines = ["| type | embed | linear | gated |", "|---|---|---|---|"]
    lines += [f"| {t} | " + " | ".join(cell(op, TYPE=t) for op in ("embed", "linear", "gated")) + " |" for t in types]
    lines += ["", "| op | tested | kernels |", "|---|---|---|"]
    lines += [f"| {op} | {cell(op, TYPE='f32', KV='f16', D='64')} | {', '.join(f'`{k}`' for k in KERNELS[op])} |"
              for op in ops if op in KERNELS]
    lines += ["| all others of `csrc/ops/ops.def` | - | |"]
    lines += ["", "| cache | heads up to 64 | up to 128 | up to 256 | more |", "|---|---|---|---|---|"]
    lines += [f"| {kv} | " + " | ".join(cell("attn", KV=kv, D=str(d)) for d in (64, 128, 256)) + " | - |" for kv in metal_cases.KV]
    return "\n".join(lines) + "\n"


def main() -> int:
    before, _, after = (part for part in PAGE.read_text().split(MARK))
    text = f"{before}{MARK}{tables()}{MARK}{after}"
    if "--check" in sys.argv:
        if text != PAGE.read_text():
            print("docs/metal.md is not current\nhint: run tools/metal_coverage.py", file=sys.stderr)
        return text != PAGE.read_text()
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
