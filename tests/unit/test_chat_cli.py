"""The conversation in the terminal: Markdown as it streams, commands, keys; on real pseudo-terminals with SmolLM2."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from terminal import ESCAPE, Screen, Terminal, history

import pyllm
from pyllm import Chunk
from pyllm.cli.chat import with_files
from pyllm.cli.commands import complete, parse_command
from pyllm.cli.display import MarkdownDisplay, PlainDisplay
from pyllm.cli.lines import is_open, unquoted
from pyllm.cli.markdown import Block, BlockSplitter
from pyllm.cli.rendering import render
from pyllm.cli.screen import Flow, Region, width, wrap

SAMPLE = """\
# Title
A paragraph with **bold** words that is long enough to be wrapped on a narrow terminal.
Its second line.
- one
- two
  - nested

    deeper
2) not nested, a list of its own

```python
def f():

    return "```"
```
~~~
tilde ``` inside
~~~
| a | b |
|---|---|
| 東京 | 🎉 |

> quote
***
Setext
---
1. first
2. second
  lazy
continuation
"""
PIECES = st.lists(st.sampled_from(["# a", "- b", "  - c", "1. d", "2. e", "", "", "```", "    f", "g", "---",
                                   "| h | i |", "|---|---|", "> j", "東京 🎉 e\u0301", "x" * 50, "`k` **l**"]), max_size=14).map("\n".join)


def split(text: str, cuts: list[int]) -> list[Block]:
    splitter = BlockSplitter()
    blocks = [b for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True) for b in splitter.feed(text[i:j])]
    return blocks + splitter.finish()


# ---- blocks ----

def test_blocks_of_the_sample() -> None:
    got = [(b.kind, b.source.split("\n")[0], b.spaced) for b in split(SAMPLE, [])]
    assert got == [("heading", "# Title", False), ("text", SAMPLE.split("\n")[1], True),
                   ("item", "- one", True), ("item", "- two", False), ("item", "2) not nested, a list of its own", False),
                   ("fence", "```python", True), ("fence", "~~~", True), ("text", "| a | b |", True), ("text", "> quote", True),
                   ("rule", "***", True), ("text", "Setext", True), ("item", "1. first", True), ("item", "2. second", False)]


@given(PIECES, st.data())
def test_blocks_do_not_depend_on_the_cuts(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    blocks = split(text, cuts)
    assert blocks == split(text, [])
    assert [line for b in blocks for line in b.source.split("\n") if line.strip()] == [line for line in text.split("\n") if line.strip()]


def test_an_open_block_is_pending() -> None:
    s = BlockSplitter()
    assert s.pending is None and s.feed("- one\n") == [] and s.pending == Block("- one", "item", False)
    assert s.feed("\nT") == [Block("- one", "item", False)] and s.pending == Block("T", "text", True)     # known before the line ends
    assert s.feed("ext\n") == [] and s.feed("\n") == [Block("Text", "text", True)] and s.pending is None


# ---- the screen ----

@given(st.text(st.sampled_from("ab é東🎉\u0301 \n"), max_size=80), st.integers(3, 20))
def test_wrapping(text: str, columns: int) -> None:
    lines = wrap(text, columns)
    assert all(sum(map(width, line.rstrip(" "))) <= columns for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())
    longer = wrap(text + "b a", columns)
    assert longer[:len(lines) - 1] == lines[:-1]


@given(st.lists(st.lists(st.text("ab", max_size=5), max_size=6), max_size=10))
def test_region(states: list[list[str]]) -> None:
    screen = Screen(10, 100)
    region = Region(screen)
    region.commit(["before"])
    for lines in states:
        region.show(lines)
        assert screen.lines == ["before", *(lines or [""])]
    region.commit(["end"])
    assert screen.lines == ["before", "end", ""]


@given(st.text("ab \n", max_size=60), st.data())
def test_flow(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    screen = Screen(10, 3)
    flow = Flow(Region(screen), 8)
    flow.feed(text[:cut])
    flow.feed(text[cut:])
    assert screen.lines == [line.rstrip() for line in wrap(text, 8)]


def shown(text: str, cuts: list[int], columns: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", str(rows))
    monkeypatch.setattr("pyllm.cli.display.INTERVAL", 0)      # every piece is drawn
    screen = Screen(columns, rows)
    display = MarkdownDisplay(screen)
    for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True):
        display.feed(Chunk(text[i:j]))
    display.finish()
    return screen.lines


@settings(deadline=None, max_examples=60)
@given(PIECES, st.data())
def test_what_is_left_on_the_screen(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=20)))
    with pytest.MonkeyPatch.context() as m:
        blocks = split(text, [])
        rendered = [line for b in blocks for line in [""] * b.spaced + render(b.source, 59)]
        assert shown(text, cuts, 60, 200, m) == [*(ESCAPE.sub("", line).rstrip() for line in rendered), ""]
        # on a low screen, blocks that are too tall stay as they were written: the marks differ, and the numbers of lists
        low, high = ([c for line in shown(text, cuts, 60, rows, m) for c in line if c.isalpha()] for rows in (6, 200))
        assert low == high


def test_sample_at_every_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    once = shown(SAMPLE, [], 60, 100, monkeypatch)
    assert shown(SAMPLE, list(range(1, len(SAMPLE))), 60, 100, monkeypatch) == once
    text = "\n".join(once)
    for piece in ("Title", " 1. first", " • one", '      return "```"', "  tilde ``` inside", " 東京  🎉", "▌ quote", "Setext"):
        assert piece in text
    assert "**" not in text and "~~~" not in text


def test_nothing_is_lost_in_rendering() -> None:
    text = "a <b>c</b> ![d](e) [f](g)\nh & i\n\n[j]: k\n\n<div>\nl\n</div>"
    plain = ESCAPE.sub("", "\n".join(render(text, 60)))
    assert " ".join(plain.split()) == "a <b>c</b> !d (e) f (g) h & i [j]: k <div> l </div>"


def test_reasoning_comes_before_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for display, want in ((MarkdownDisplay, ["Hm, well.", "", "Two.", ""]), (PlainDisplay, ["Hm, well.", "", "Two.", ""])):
        screen = Screen(80, 24)
        shows = display(screen)
        for chunk in (Chunk("", "Hm,"), Chunk("", " well."), Chunk("Tw"), Chunk("o.")):
            shows.feed(chunk)
        shows.finish()
        assert screen.lines == want


# ---- commands and lines ----

@pytest.mark.parametrize(("text", "command"), [
    ("/help", ("help", "")), ("/set temp 0.5", ("set", "temp 0.5")), ("/SYSTEM  Be\nkind. ", ("system", "Be\nkind.")), ("/?", ("?", "")),
    ("/usr/bin/x fails", None), (" /help", None), ("help", None), ("/", None), ("/set-up is wrong", None)])
def test_parse_command(text: str, command: tuple[str, str] | None) -> None:
    assert parse_command(text) == command


def test_completion(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "notes").mkdir()
    assert [c[0] for c in complete("/s")] == ["/set ", "/system ", "/show", "/save ", "/stats"]
    assert [c[:2] for c in complete("/set to")] == [("top_k ", 2), ("top_p ", 2)]
    assert [c[:2] for c in complete(f"/read {tmp_path}/no")] == [("notes/", 2), ("notes.txt", 2)]
    assert list(complete("hello /s")) == list(complete(f"/load {tmp_path}/no/x")) == list(complete("/undo x")) == []


def test_triple_quotes() -> None:
    assert is_open('"""') and is_open('"""a\nb') and is_open('""""') and not is_open('"""a"""') and not is_open('a"""')
    assert unquoted('"""\na\n\nb\n"""') == "a\n\nb" and unquoted(' a ""b"" ') == 'a ""b""'


def test_files_are_fenced() -> None:
    assert with_files("Why?", [("a.md", "```\nx\n```\n")]) == "Why?\n\na.md:\n````\n```\nx\n```\n````"


# ---- conversations ----

@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path


@pytest.fixture
def chat(folder: Path, smollm2: Path) -> Iterator[Terminal]:
    with Terminal("run", str(smollm2), "--ctx", "512", "--temp", "0", "-n", "12", PYLLM_HOME=str(folder / "cache")) as t:
        t.wait(">>>")
        yield t


def test_commands(chat: Terminal, folder: Path) -> None:
    (folder / "notes.txt").write_text("The secret word is heron.")
    assert "leave" in chat.ask("/help", "/exit.*>>>")
    assert "did you mean /regen?" in chat.ask("/regn", "hint:.*>>>")
    assert "there is no answer yet" in chat.ask("/stats", "error:.*>>>")
    for wrong in ("/regen", "/undo", "/set tmp 1", "/set temp hot", "/set temp -1", "/read /dev/zero", "/load missing", "/clear now"):
        assert "Traceback" not in chat.ask(wrong, "error:.*>>>")
    assert "temp is 0.5" in chat.ask("/set temp 0.5", "temp is.*>>>")
    assert "temp is 0.8" in chat.ask("/set temp none", "temp is.*>>>")
    chat.ask("/set temp 0", "temp is 0.*>>>")
    chat.ask("/system Answer briefly.", "system message: Answer briefly.*>>>")
    chat.ask(f"/read {folder}/notes.txt", "notes.txt: .*next message.*>>>")
    chat.ask("What is the secret word?", r"heron.*\d+ of 512 tokens \(\d+%\) · \d+ tokens/s")
    assert re.search(r"system +Answer briefly", chat.ask("/show", "settings.*>>>"))
    prompt = chat.ask("/stats", r"prompt +(\d+) tokens.*context.*>>>")
    assert int(re.findall(r"prompt +(\d+) tokens", prompt)[-1]) > 30              # the file went along
    chat.ask(f"/save {folder}/talk", "another day.*>>>")
    assert "is not a saved conversation" in chat.ask(f"/save {folder}/notes.txt", "error:.*>>>")
    chat.ask("/undo", "took back: What is the secret word.*>>>")
    chat.ask("/clear", "kept the system message.*>>>")
    chat.ask(f"/load {folder}/talk", "goes on with 3 messages.*>>>")
    chat.ask("/regen", "heron.*>>>")
    assert chat.ask("/exit", "/exit") and chat.exit_code() == 0
    with pyllm.LLM(ctx=512) as llm, llm.session() as s:
        s.load(folder / "talk")
        assert "heron" in s.messages[1]["content"] and s.messages[0] == {"role": "system", "content": "Answer briefly."}


def test_keys(chat: Terminal, folder: Path) -> None:
    chat.ask("/set max_tokens none", "max_tokens is.*>>>")
    chat.ask("Tell me a very long story about a whale.", "tokens/s|whale.\r\r\n[^\r]+")
    chat.type("\x03")
    assert "(stopped)" in chat.wait(r"\(stopped\).*>>>")
    said = re.findall(r"(\d+) tokens ·", chat.ask("/stats", r"context.*>>>"))
    assert 0 < int(said[0]) < 400                                                 # what was said is kept
    chat.type("half a line")
    chat.wait("half a line")
    chat.type("\x03")
    chat.wait("Ctrl-C again or Ctrl-D leaves.*>>>")
    chat.ask("/set max_tokens 3", "max_tokens is 3.*>>>")
    chat.type('one \\\rtwo\x1b\rthree')
    chat.wait("three")
    chat.type("\r")
    chat.wait(r"cut off.*>>>")
    chat.type('"""first\rsecond"""\r')
    chat.wait(r"cut off.*>>>")
    assert "took back: first second" in chat.ask("/undo", "took back.*>>>")
    assert "took back: one two three" in chat.ask("/undo", "took back.*>>>")
    chat.type("/und\t")
    chat.wait("/undo")
    chat.type("\r")
    chat.wait("took back: Tell me.*>>>")
    chat.type("\x04")
    assert chat.exit_code() == 0
    path = folder / "cache" / "history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = history(folder / "cache")
    assert "Tell me a very long story about a whale." in lines and lines[-1] == "/undo"


def test_a_full_context_loses_nothing(chat: Terminal) -> None:
    chat.ask("Say hi.", "cut off.*>>>")
    chat.ask(f"\x1b[200~{'word ' * 600}\x1b[201~", "error:.*the context holds 512.*hint: /undo or /clear makes room.*with more")
    chat.wait("word word")                                                        # the message is in the line again
    chat.type("\x03")
    chat.wait("leaves.*>>>")
    chat.ask("/undo", "took back: Say hi.*>>>")
    chat.type("\x03")
    chat.wait("leaves.*>>>")
    chat.type("\x03")
    assert chat.exit_code() == 130


def test_without_the_extra(smollm2: Path, tmp_path: Path) -> None:
    code = "sys.modules.update(rich=None, prompt_toolkit=None); from pyllm.cli import main; sys.exit(main(sys.argv[1:]))"
    with Terminal("run", str(smollm2), "--ctx", "512", "-n", "5", code=code, PYLLM_HOME=str(tmp_path), NO_COLOR="1") as t:
        t.wait(r"pip install 'pyllm\[chat\]'.*>>> ")
        t.ask("one \\\ntwo", r"\r\n\r\n>>> ")
        t.type('"""a\rb"""\r')
        t.wait(r"\r\n\r\n>>> ")
        assert "took back: a b" in t.ask("/undo", "took back.*>>> ")
        assert "took back: one two" in t.ask("/undo", "took back.*>>> ")
        t.interrupt("leaves.*>>> ")
        t.type("\x04")
        assert t.exit_code() == 0 and "\x1b[2m" not in t.raw
