"""A block of Markdown as lines for a terminal, by rich. This module needs the extra `chat`."""

from __future__ import annotations

import io
import re

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, HorizontalRule, ListItem, Markdown
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text
from rich.theme import Theme

# styles that can be read on light and dark terminals
_THEME = Theme({"markdown.code": "cyan", "markdown.block_quote": "italic", "markdown.link": "underline", "markdown.link_url": "dim",
                "markdown.item.number": "bold", "markdown.item.bullet": "bold",
                "markdown.table.border": "dim", "markdown.table.header": "bold"})
_END = re.compile(r"(?: |\x1b\[[\d;]*m)+$")


class _Heading(Heading):
    """At the left, at every level."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        text = self.text.copy()
        text.stylize("bold underline" if self.tag in ("h1", "h2") else "bold")
        yield text


class _CodeBlock(CodeBlock):
    """In the terminal's own colours, without a background, so that it can be read and copied anywhere."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip("\n")
        lines = Syntax(code, self.lexer_name, theme="ansi_dark", background_color="default", word_wrap=True)
        for line in console.render_lines(lines, options.update(width=max(options.max_width - 2, 1))):
            yield Segment("  ")
            yield from line
            yield Segment.line()


class _Rule(HorizontalRule):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text("─" * min(options.max_width, 40), style="dim")


class _Item(ListItem):
    """With the dot or bracket that numbers have."""

    def render_number(self, console: Console, options: ConsoleOptions, number: int, last_number: int) -> RenderResult:
        mark = f" {number}. "
        lines = console.render_lines(self.elements, options.update(width=max(options.max_width - len(mark), 1)), style=self.style)
        for i, line in enumerate(lines):
            yield Segment(" " * len(mark)) if i else Segment(mark, console.get_style("markdown.item.number", default="none"))
            yield from line
            yield Segment.line()


class _Markdown(Markdown):
    """Nothing of the text is lost: HTML and images are shown as written, line breaks stay, links show where they lead."""

    elements = {**Markdown.elements, "heading_open": _Heading, "fence": _CodeBlock, "code_block": _CodeBlock, "hr": _Rule,
                "list_item_open": _Item}

    def __init__(self, source: str) -> None:
        super().__init__("", hyperlinks=False)
        parser = MarkdownIt().enable("strikethrough").enable("table").disable(["html_block", "html_inline", "image", "reference"])
        self.markup, self.parsed = source, parser.parse(source)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"


def render(source: str, columns: int) -> list[str]:
    """Lines with escape sequences, without spaces at their ends. With NO_COLOR there are bold and italics, but no colours."""
    console = Console(file=io.StringIO(), force_terminal=True, width=columns, legacy_windows=False, highlight=False, theme=_THEME)
    with console.capture() as captured:
        console.print(_Markdown(source))
    lines = [_trimmed(line) for line in captured.get().split("\n")]
    full = [i for i, line in enumerate(lines) if line]
    return lines[full[0]:full[-1] + 1] if full else []


def _trimmed(line: str) -> str:
    cut = _END.sub("", line)
    return cut + ("\x1b[0m" if "\x1b" in cut else "")
