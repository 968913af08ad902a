"""Reasoning and answer come apart the same way wherever the text is cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyllm.thinking import ReasoningSplitter

CASES = [
    ("", "The answer.", "", "The answer."),
    ("", "  indented", "", "  indented"),
    ("", "<think>\nHm, 2\n\nis 2.\n</think>\n\nTwo.\n", "Hm, 2\n\nis 2.", "Two.\n"),
    ("", "\n<think></think>\nTwo.", "", "Two."),
    ("<|im_start|>assistant\n<think>\n", "Hm.</think>Two.", "Hm.", "Two."),
    ("<think>\n\n</think>\n\n", "Two <think>.", "", "Two <think>."),
    ("", "<thinking> aloud", "", "<thinking> aloud"),
    ("", "<think>a </thin b\n\n</think", "a </thin b\n\n</think", ""),
    ("", "<think>never done\n", "never done", ""),
    ("", "<thi", "", "<thi"),
    ("", "<think>a</think>b</think>", "a", "b</think>"),
]


@pytest.mark.parametrize(("prompt", "text", "reasoning", "answer"), CASES)
@given(data=st.data())
def test_any_cut(prompt: str, text: str, reasoning: str, answer: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    splitter = ReasoningSplitter(prompt)
    pieces = [splitter.feed(text[a:b]) for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)] + [splitter.finish()]
    assert ("".join(r for r, _ in pieces), "".join(a for _, a in pieces)) == (reasoning, answer)
