"""Structure of the sources: layers, sizes, and what library code must not contain. Prints every breach; exit status 1 if there is one.

Layers of csrc: a file includes its own folder and the folders below it only. Layers of pyllm: a module imports at its top only modules of
its own or a lower rank. No function is longer than 150 lines, no written file than 800.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
C_LAYERS = ["base", "formats", "kernels", "ops", "engine"]
C_BESIDE = {"tokenizer": {"base", "formats"}}       # folders outside of the chain, and what they may include
ISA_FILES = ("csrc/base/cpu.c", "csrc/base/threads.c", "csrc/base/fpenv.c", "csrc/base/math.h", "csrc/kernels/")
PY_LAYERS = [
    {"bounds", "closing", "errors", "replies", "schemas", "thinking", "memory", "stores", "_ffi"},
    {"_core"},
    {"gguf", "hparams", "rope", "sampling", "tokenizer", "scheduler", "models", "limits", "weights", "prefix_cache"},
    {"structured", "toolcalls", "toolforms"},
    {"tools"},
    {"disk_cache", "pack_cache", "build", "cost", "hf", "hub", "lora", "ref"},
    {"engine", "chat", "catalogue", "describe", "generation", "batch", "infill", "loading", "saved_tape", "supported", "speculation",
     "draft"},
    {"dialogue"},
    {"driver", "embedding", "session"},
    {"llm"},
    {"perplexity", "selftest"},
    {"quantize"},
    {"server"},
    {"cli", "__pyinstaller"},
]
FORBIDDEN = (r"\b(abort|exit|_exit|_Exit|quick_exit|raise|kill|longjmp|assert|printf|vprintf|fprintf|puts|putchar|perror|system|popen|fork)"
             r"\s*\(")
MAX_FUNCTION, MAX_FILE = 150, 800


def main() -> int:
    breaches = [*c_layers(), *c_words(), *py_layers(), *sizes()]
    for breach in breaches:
        print(breach)
    return bool(breaches)


def c_files() -> list[Path]:
    return sorted(p for e in ("*.c", "*.h") for p in (ROOT / "csrc").rglob(e))


def rel(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def c_layers() -> Iterator[str]:
    for path in c_files():
        folder = path.relative_to(ROOT / "csrc").parts[0]
        if folder in ("pyllm.h", "api.c"):
            continue
        below = C_BESIDE.get(folder) or set(C_LAYERS[:C_LAYERS.index(folder)])
        for line, target in re.findall(r'(#include "([^"]+)")', path.read_text()):
            found = (path.parent / target).resolve().relative_to(ROOT / "csrc")
            if found.parts[0] not in (folder, "pyllm.h", *below):
                yield f"{rel(path)}: {line} goes up: {folder} may include {', '.join(sorted(below)) or 'nothing else'}"


def c_words() -> Iterator[str]:
    for path in c_files():
        text = re.sub(r'/\*.*?\*/|//[^\n]*|"(\\.|[^"\\])*"', " ", path.read_text(), flags=re.S)
        for word in re.findall(FORBIDDEN, text):
            yield f"{rel(path)}: {word}() is not for library code"
        if re.search(r"#\s*if.*\b__(x86_64|aarch64|AVX\w*|ARM\w*)__", text) and not rel(path).startswith(ISA_FILES):
            yield f"{rel(path)}: conditional on the instruction set outside of {', '.join(ISA_FILES)}"


def py_layers() -> Iterator[str]:
    rank = {name: i for i, names in enumerate(PY_LAYERS) for name in names}
    for path in sorted((ROOT / "pyllm").rglob("*.py")):
        name = path.relative_to(ROOT / "pyllm").parts[0].removesuffix(".py")
        if name in ("__init__", "__main__", "_ffi"):
            continue
        if name not in rank:
            yield f"{rel(path)}: give {name} a place in PY_LAYERS of tools/lint.py"
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.level:
                inside = node.level > 1 or path.parent == ROOT / "pyllm"
                targets = [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
                for target in targets if inside else []:
                    if rank.get(target, 0) > rank[name]:
                        yield f"{rel(path)}: imports {target}, which is above it"


def sizes() -> Iterator[str]:
    generated = {"csrc/tokenizer/nfc_tables.c", "csrc/tokenizer/unicode_tables.c", "csrc/formats/iq_tables.c"}
    sources = [p for p in c_files() if rel(p) not in generated]
    folders = ("pyllm", "models", "quantize", "tools", "tests")
    sources += [p for d in folders for e in ("*.c", "*.h", "*.py") for p in sorted((ROOT / d).rglob(e))]
    for path in sources:
        if path.name == "_ffi.py":
            continue
        lines = path.read_text().splitlines()
        if len(lines) > MAX_FILE:
            yield f"{rel(path)}: {len(lines)} lines"
        for start, end, name in functions(path, lines):
            if end - start + 1 > MAX_FUNCTION:
                yield f"{rel(path)}:{start}: {name} has {end - start + 1} lines"


def functions(path: Path, lines: list[str]) -> Iterator[tuple[int, int, str]]:
    """(first line, last line, name); C functions begin in column 0 and end with a brace there."""
    if path.suffix == ".py":
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.lineno, node.end_lineno or node.lineno, node.name
        return
    start = 0
    for i, line in enumerate(lines, 1):
        if re.match(r"[A-Za-z].*\)\s*\{$", line):
            start = i
        elif line == "}" and start:
            yield start, i, lines[start - 1].split("(")[0].split()[-1]
            start = 0


if __name__ == "__main__":
    sys.exit(main())
