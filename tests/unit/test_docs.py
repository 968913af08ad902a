"""The documentation against the code: examples print what the page says, tables list what the sources define, links lead somewhere."""

from __future__ import annotations

import io
import re
import subprocess
from contextlib import redirect_stdout
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

import pyllm
from pyllm import errors
from pyllm.sampling import Options

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
KERNELS = ROOT / "csrc/kernels"


def page(name: str) -> str:
    return (ROOT / name).read_text()


def rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table whose header row begins with `| heading |`; backquotes and escaped bars are taken off."""
    found = re.search(rf"^\| {re.escape(heading)} \|.*\n\|[-|]+\|\n((?:\|.*\|\n)+)", text, re.M)
    assert found, f"no table of {heading!r}"
    return [[cell.strip().replace("`", "").replace("\0", "|") for cell in line.replace(r"\|", "\0").split("|")[1:-1]]
            for line in found[1].splitlines()]


# ---- examples ----

def examples(text: str) -> list[tuple[str, str | None]]:
    """(code, what it prints) of every Python block; None where no text block follows at once."""
    return [(m[1], m[2]) for m in re.finditer(r"^```python\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", text, re.M | re.S)]


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_examples_print_what_the_page_says(name: str, smollm2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {}
    for code, expected in examples(page(name)):
        out = io.StringIO()
        with redirect_stdout(out):
            exec(compile(code, name, "exec"), scope)
        assert out.getvalue() == (expected or ""), code
    for value in scope.values():
        if isinstance(value, pyllm.LLM):
            value.close()


def test_every_example_is_found() -> None:
    text = page("docs/guide.md")
    assert len(examples(text)) == text.count("```python") > 10


# ---- links and paths ----

@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_links_and_paths_exist(path: Path) -> None:
    text = path.read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    code = " ".join(re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)))
    named = re.findall(r"(?<![\w/.-])((?:csrc|docs|models|pyllm|tests|tools)/[\w./-]*\w\.(?:c|h|def|py|sh|md|json))\b", code)
    missing = [link for link in links if not (path.parent / link).exists()] + [n for n in named if not (ROOT / n).exists()]
    assert not missing


# ---- the guide's tables ----

def test_guide_lists_every_option_with_its_default() -> None:
    listed = {name: default for name, default, _ in rows(page("docs/guide.md"), "option")}
    assert listed == {f.name: repr(f.default).replace("'", '"') for f in fields(Options)}


def test_guide_lists_the_chain_in_the_samplers_order() -> None:
    order = "".join(letter for letter, _ in rows(page("docs/guide.md"), "letter"))
    assert f'memcpy(s->p.order, "{order}"' in page("csrc/engine/sampler.c")


def test_guide_lists_every_error() -> None:
    listed = {name: {b.strip() for b in bases.split(",") if b.strip()} for name, bases, _ in rows(page("docs/guide.md"), "error")}
    classes = {name: c for name, c in vars(errors).items() if isinstance(c, type) and issubclass(c, pyllm.Error) and c is not pyllm.Error}
    assert listed == {name: {b.__name__ for b in c.__bases__} - {"Error"} for name, c in classes.items()}


# ---- tape.md ----

def test_tape_lists_the_ops_with_their_parameters() -> None:
    ops = dict(re.findall(r'^OP\((\w+),.*"(.*)"\)', page("csrc/ops/ops.def"), re.M))
    listed = {row[0]: row[2] for row in rows(page("docs/tape.md"), "op")}
    assert sorted(listed) == sorted(ops)
    for name, parameters in ops.items():
        for key in re.findall(r"(\w+)\??:", parameters):
            assert re.search(rf"\b{key}\b", listed[name]), f"{name}: {key} is not described"


# ---- numerics.md ----

def types() -> dict[str, tuple[int, int]]:
    """Name -> (id, act) of every row of qtypes.def."""
    found = re.findall(r"^QTYPE\(\w+,\s*(\w+),\s*(\d+),\s*\d+,\s*\d+,\s*(\d+)\)", page("csrc/formats/qtypes.def"), re.M)
    return {name: (int(number), int(act)) for name, number, act in found}


def type_rows() -> list[list[str]]:
    text = page("docs/numerics.md")
    return rows(text, "type | act | n") + rows(text, "type | act | value")


def test_numerics_has_a_row_for_each_type() -> None:
    assert {row[0]: int(row[1]) for row in type_rows()} == {name: act for name, (_, act) in types().items()}


def test_numerics_bounds_are_those_of_the_decoders(tmp_path: Path) -> None:
    sources = [ROOT / "tests/kernels/type_bounds.c", ROOT / "csrc/base/math.c", *sorted((ROOT / "csrc/formats").glob("de*.c")),
               ROOT / "csrc/formats/qtypes.c", ROOT / "csrc/formats/iq_tables.c"]
    program = tmp_path / "type_bounds"
    subprocess.run(["cc", "-std=gnu11", "-O1", "-ffp-contract=off", "-o", str(program), *map(str, sources)], check=True, timeout=120)
    out = subprocess.run([str(program)], capture_output=True, text=True, check=True, timeout=60).stdout
    decoded = {name: [int(v) for v in values] for name, *values in map(str.split, out.splitlines())}
    for name, _, *cells in rows(page("docs/numerics.md"), "type | act | n"):
        n, q, sc, mn, isum, msum = map(int, cells[:6])
        assert decoded.pop(name) == [n, q, sc, mn]
        assert (isum, msum) == (sc * q * 127 * n, mn * 127 * n)
        assert isum < 2**31
    assert not decoded


def test_numerics_has_a_row_for_each_kernel_slot() -> None:
    table = re.search(r"typedef struct kernels \{(.*?)^\} kernels;", page("csrc/kernels/kernels.h"), re.S | re.M)
    assert table
    slots = set(re.findall(r"\*(\w+)(?:\[\w+\])?[,;]", re.sub(r"/\*.*?\*/|.*const char.*", "", table[1])))
    listed = {slot.strip() for row in rows(page("docs/numerics.md"), "kernel slot") for slot in row[0].split(",")}
    assert slots and slots == {s for s in listed if not s.startswith("act ")}


def test_numerics_has_a_row_for_each_op() -> None:
    ops = re.findall(r"^OP\((\w+),", page("csrc/ops/ops.def"), re.M)
    assert sorted(row[0] for row in rows(page("docs/numerics.md"), "op")) == sorted(ops)


def test_numerics_errors_are_not_exceeded(tmp_path: Path) -> None:
    """A part of the arguments that the page's figures were measured with (tools/math_error.c)."""
    program = tmp_path / "math_error"
    subprocess.run(["cc", "-std=gnu11", "-O2", "-march=native", "-ffp-contract=off", "-o", str(program), str(ROOT / "tools/math_error.c"),
                    str(ROOT / "csrc/base/math.c"), "-lm"], check=True, timeout=120)
    out = subprocess.run([str(program), str(7 * 997), "20000"], capture_output=True, text=True, check=True, timeout=60).stdout
    measured = {name: float(error) for name, error, *_ in map(str.split, out.splitlines())}
    claimed = {row[0]: float(row[2].split()[0]) for row in rows(page("docs/numerics.md"), "function")}
    assert measured.keys() == claimed.keys()
    assert all(0 < measured[name] <= claimed[name] for name in claimed), (measured, claimed)


# ---- changes ----

def test_changelog_names_every_checksum() -> None:
    """A checksum that changes is a line of the changelog."""
    text = page("CHANGELOG.md")
    sums = re.findall(r'"([0-9a-f]{64})"', page("tests/data/bit_identity.json"))
    assert sums and not [s for s in sums if s[:12] not in text]
