"""The documentation against the code: examples print what the page says, tables list what the sources define, links lead somewhere."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import fields
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

import pyllm
from pyllm import cli, errors
from pyllm.cli import COMMANDS, bench, commands
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

def examples(text: str, language: str = "python") -> list[tuple[str, str | None]]:
    """(code, what it prints) of every block in a language; None where no text block follows at once."""
    return [(m[1], m[2]) for m in re.finditer(rf"^```{language}\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", text, re.M | re.S)]


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md", "docs/structured.md"])
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


# ---- cli.md ----

# command -> what is given to it, with --json, so that together the objects that it prints have all of their fields
JSON = {"run": ["smollm2 --temp 0 -n 1 Hi"], "list": [""], "models": ["olmo"], "show": ["smollm2"],
        "embed": ["smollm2 Hi", "smollm2 Hi Ho --similarity"], "tokenize": ["smollm2 Hi"],
        "bench": ["smollm2 -p 1 -n 1 -r 1 --profile"], "ppl": ["smollm2 --ctx 8 --chunks 1 -f tests/data/text/ppl-kjv.en.txt"],
        "compare": ["smollm2 smollm2 --ctx 8 --chunks 1 -f tests/data/text/ppl-kjv.en.txt"],
        "inspect": ["smollm2", "smollm2 --tape", "smollm2 --tape --cost"], "doctor": [""]}
Shell = Callable[[str], str]


def section(name: str) -> str:
    """What cli.md says below this heading, down to the next of its kind."""
    found = re.search(rf"^## {re.escape(name)}\n(.*?)(?=^## |\Z)", page("docs/cli.md"), re.M | re.S)
    assert found, f"cli.md has no section {name!r}"
    return found[1]


def listed_options(text: str) -> dict[str, str]:
    """Flags -> default of a table of options; nothing if there is none."""
    table = rows(text, "option") if "\n| option |" in text else []
    assert len({flags for flags, *_ in table}) == len(table)
    return {flags: default for flags, default, _ in table}


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"pyllm.cli.{COMMANDS[command][0]}").add(parser)
    return parser


def flags_of(action: argparse.Action) -> str:
    values = f"{{{','.join(action.choices)}}}" if action.choices else action.metavar
    return ", ".join(action.option_strings) + (f" {values}" if action.nargs != 0 else "")


def default_of(action: argparse.Action) -> str:
    """As the help says it, which must be what argparse or the sampler has."""
    if action.required or action.nargs == 0:
        return "required" if action.required else "off"
    found = re.search(r"\(default:? (.+)\)$", action.help or "")
    said = found[1].replace("`", "") if found else "none"
    value = getattr(Options(), action.dest, None) if action.default is None else action.default
    if isinstance(value, list):
        value = ",".join(map(str, value)) or None
    assert value is None or type(value)(said) == value
    return said


def options_of(command: str) -> list[argparse.Action]:
    return [a for a in parser_of(command)._actions if a.option_strings and a.dest != "help"]


@pytest.fixture(scope="module")
def shell(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """What a shell command prints, for a user who has the demo model and nothing else, in the root of the sources."""
    home = tmp_path_factory.mktemp("home")
    (home / ".cache/pyllm").mkdir(parents=True)
    (home / ".cache/pyllm" / smollm2.name).symlink_to(smollm2.resolve())
    (home / "tests").symlink_to(ROOT / "tests")
    env = {name: value for name, value in os.environ.items() if name not in variables_read()}
    env |= {"HOME": str(home), "PYTHON": sys.executable}

    @cache
    def output(command: str) -> str:
        done = subprocess.run(["sh", "-c", f'pyllm() {{ "$PYTHON" -m pyllm "$@"; }}\n{command}'], cwd=home, env=env, capture_output=True,
                              stdin=subprocess.DEVNULL, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout.replace(str(home), "/home/you")
    return output


def json_of(shell: Shell, command: str, arguments: str) -> Any:
    return json.loads(shell(f"pyllm {command} {arguments} --json"))


def variables_read() -> set[str]:
    """Environment variables that the installed code reads; each must be named where it is read, so that this finds it."""
    text = "\n".join(path.read_text() for pattern in ("pyllm/**/*.py", "models/**/*.py", "csrc/**/*.[ch]") for path in ROOT.glob(pattern))
    names = re.findall(r'(?:\benviron(?:\.get\(|\[)|\bgetenv\()"(\w+)"', text)
    assert len(names) + text.count("**os.environ") == len(re.findall(r"\b(?:os\.environ\b|getenv\()", text))
    return set(names)


def test_cli_has_a_section_for_every_command() -> None:
    text = page("docs/cli.md")
    assert [re.sub(r"\[(\w+)\]\(#\1\)", r"\1", name) for name, _ in rows(text, "command")] == list(COMMANDS)
    assert [name for name in re.findall(r"^## (\w+)$", text, re.M) if name in COMMANDS] == list(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_cli_lists_every_option_with_its_default(command: str) -> None:
    text = section(command)
    assert listed_options(text) == {flags_of(a): default_of(a) for a in options_of(command)}
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) <= set(parser_of(command)._option_string_actions)


def test_cli_lists_the_options_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    options = re.findall(r"^  (-.*?)(?:  |$)", capsys.readouterr().out, re.M)
    assert options and list(listed_options(page("docs/cli.md").partition("\n## ")[0])) == options


@pytest.mark.parametrize("command", COMMANDS)
def test_cli_shows_the_usage(command: str) -> None:
    words = [f"[{a.metavar}]" if a.nargs == "?" else str(a.metavar) for a in parser_of(command)._actions if not a.option_strings]
    required = [f"{a.option_strings[0]} {a.metavar}" for a in options_of(command) if a.required]
    usage = parser_of(command).usage or " ".join([f"pyllm {command}", *["[OPTIONS]"] * bool(options_of(command)), *required, *words])
    assert section(command).startswith(f"\n`{usage}`\n")


def test_cli_examples_are_valid() -> None:
    """Those that are not run as well."""
    for code, _ in examples(page("docs/cli.md"), "sh"):
        for line in code.splitlines():
            words = shlex.shlex(line[line.index("pyllm "):], posix=True, punctuation_chars=True)
            words.whitespace_split = True
            cli.parse(list(takewhile(lambda word: word not in ("|", "<", ">"), words))[1:])


@pytest.mark.parametrize("command", COMMANDS)
def test_cli_examples_print_what_the_page_says(command: str, shell: Shell) -> None:
    def steady(text: str) -> str:
        """Without the sizes that differ between machines: those of the memory plan, on the last lines of show."""
        head, memory, plan = text.partition("\nmemory ")
        return head + memory + re.sub(r"[\d.]+ [kMG]?B", "SIZE", plan)

    found = examples(section(command), "sh")
    assert found
    for code, expected in found:
        if expected is not None:
            assert steady(shell(code)) == steady(expected)


def test_every_command_with_json_is_in_the_table() -> None:
    assert list(JSON) == [c for c in COMMANDS if "--json" in parser_of(c)._option_string_actions]


@pytest.mark.parametrize("command", JSON)
def test_cli_lists_every_field(command: str, shell: Shell) -> None:
    printed: dict[str, Any] = {}
    for arguments in JSON[command]:
        value = json_of(shell, command, arguments)
        printed |= value[0] if isinstance(value, list) else value
    listed = [name for name, _ in rows(section(command), "field")]
    expected = []
    for name, value in printed.items():
        inner = value[0] if isinstance(value, list) else value
        below = list(inner) if any(n.startswith(f"{name}.") for n in listed) else []
        expected += [name] * (name in listed or not below) + [f"{name}.{key}" for key in below]
    assert listed == expected


def test_cli_lists_the_columns_of_bench() -> None:
    assert tuple(name for name, _ in rows(section("bench"), "column")) == bench.HEAD


def test_cli_lists_every_check_of_doctor(shell: Shell) -> None:
    listed = [name.strip() for cell, _ in rows(section("doctor"), "check") for name in cell.split(",")]
    assert listed == [check["name"] for check in json_of(shell, "doctor", *JSON["doctor"])["checks"]]


def test_cli_lists_the_commands_of_a_chat() -> None:
    table = dict(rows(section("run"), "command"))
    assert list(table) == [f"/{name} {c.argument}".rstrip() for name, c in commands.COMMANDS.items()]
    aliases = {f"/{alias}": name for alias, name in commands.ALIASES.items()}
    also = {alias: cell.split()[0][1:] for cell, about in table.items() for alias in re.findall(r"/[\w?]+", about.partition("also ")[2])}
    assert also == aliases


def test_cli_lists_the_settings_and_keys_of_a_chat() -> None:
    settings = re.search(r"^Settings: (.*?)\.", section("run"), re.M)
    assert settings and re.findall(r"`(\w+)`", settings[1]) == list(commands.SETTINGS)
    keys = " ".join(key for key, _ in rows(section("run"), "key"))
    assert all(key in keys for key in ('"""', "Alt-Enter", "\\", "Ctrl-C", "Ctrl-D", "Tab"))


def test_cli_lists_every_environment_variable() -> None:
    listed = [name for name, _ in rows(section("Environment"), "variable")]
    assert sorted(listed) == sorted(variables_read())
    of_the_hub = [name for name, _ in rows(section("Environment"), "variable of the hub")]
    assert set(of_the_hub) == set(re.findall(r"\bHF_\w+", page("pyllm/hub.py"))) - set(listed)


def test_cli_lists_every_exit_status() -> None:
    said = re.search(r"Exit codes: (.*)", cli.__doc__ or "")
    assert said and [status for status, _ in rows(section("Exit status"), "status")] == re.findall(r"\b(\d+) ", said[1])


def test_cli_links_to_its_own_headings() -> None:
    for name in ("docs/cli.md", "docs/guide.md"):
        for anchor in re.findall(r"\]\((?:cli\.md)?#([\w-]+)\)", page(name)):
            assert anchor in [heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)", page("docs/cli.md"), re.M)]


# ---- models.md ----

def test_the_page_of_models_is_current() -> None:
    made = subprocess.run([sys.executable, ROOT / "tools/make_models_page.py", "-"], capture_output=True, text=True, check=True).stdout
    assert page("docs/models.md") == made, "run: python tools/make_models_page.py"


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


# ---- CONTRIBUTING.md ----

def test_contributing_lists_every_marker() -> None:
    found = re.search(r"^markers = \[(.*)\]", page("pyproject.toml"), re.M)
    assert found
    listed = {name: command for name, _, command in rows(page("CONTRIBUTING.md"), "marker")}
    assert sorted(listed) == sorted(re.findall(r'"(\w+):', found[1]))
    assert all(re.search(rf'pytest -m "?{name}\b', command) for name, command in listed.items())


# ---- changes ----

def test_changelog_names_every_checksum() -> None:
    """A checksum that changes is a line of the changelog."""
    text = page("CHANGELOG.md")
    sums = re.findall(r'"([0-9a-f]{64})"', page("tests/data/bit_identity.json"))
    assert sums and not [s for s in sums if s[:12] not in text]


# ---- quantize.md, convert.md ----

def test_bits_of_the_mixes() -> None:
    """Those of the real shapes in tests/data/golden."""
    import lzma
    from math import prod

    from pyllm.quantize import recipes
    from pyllm.quantize.types import block, type_id

    case = json.loads(lzma.decompress((ROOT / "tests/data/golden/mixes.json.xz").read_bytes()))["qwen2.5-coder-1.5b"]
    n_weights = sum(map(prod, case["tensors"].values()))
    seen = set()
    for names, figures, _ in rows(page("docs/quantize.md"), "mix"):
        mixes, bits = names.split(", "), figures.split(", ")
        for mix, figure in zip(mixes, bits * (len(mixes) if len(bits) == 1 else 1), strict=True):
            types = recipes.plan(case["hparams"], case["tensors"], mix)
            n_bytes = sum(prod(case["tensors"][name]) // block(type_id(t))[0] * block(type_id(t))[1] for name, t in types.items())
            assert float(figure) == round(8 * n_bytes / n_weights, 2), mix
            seen.add(mix)
    assert len(seen) == 21


def test_no_encoder_is_worse_than_the_peers() -> None:
    """The committed table has every encoder, and no ratio above 1."""
    from test_encoders import TYPES

    listed = {name: list(map(float, ratios)) for name, *ratios in rows(page("docs/quantize.md"), "type")}
    assert tuple(listed) == TYPES and all(len(ratios) == 8 and max(ratios) <= 1 for ratios in listed.values())


def test_messages_of_the_converter_exist() -> None:
    source = " ".join(p.read_text() for p in [*ROOT.glob("quantize/*.py"), *ROOT.glob("pyllm/*.py"), *ROOT.glob("csrc/**/*.c")])
    source = re.sub(r'"\s*f?"', "", re.sub(r"\{[^{}]*\}|%lld|%g", "...", source))
    for message, _ in rows(page("docs/convert.md"), "message"):
        for part in re.split(r" / | \(.*\)$", message):
            for piece in filter(None, (p.strip(" ,") for p in part.split("..."))):
                assert piece in source, piece
