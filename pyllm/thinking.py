"""Telling a model's reasoning from its answer: text between two marks at the beginning of a reply. The line breaks beside the marks belong
to neither."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"
_MARKS = ((OPEN, CLOSE), ("[THINK]", "[/THINK]"), ("<|channel>thought", "<channel|>"))


def marks_of(source: str) -> tuple[str, str] | None:
    """The marks that a chat template's source names; None: its model does not think."""
    return next((marks for marks in _MARKS if marks[0] in source), None)


class ReasoningSplitter:
    """Text piece by piece -> (reasoning, answer) pieces. prompt_end: the prompt's last characters; some templates open the mark there."""

    def __init__(self, prompt_end: str, opens: str = OPEN, closes: str = CLOSE) -> None:
        self._opens, self._closes = opens, closes
        self._state = "reasoning" if prompt_end.rstrip().endswith(opens) else "start"
        self._held, self._begun = "", False

    @property
    def thinking(self) -> bool:
        """What comes next is reasoning for sure."""
        return self._state == "reasoning"

    def feed(self, text: str) -> tuple[str, str]:
        self._held += text
        reasoning = ""
        if self._state == "start":
            head = self._held.lstrip()
            if head.startswith(self._opens):
                self._state, self._held = "reasoning", head[len(self._opens):]
            elif self._opens.startswith(head):
                return "", ""
            else:
                self._state = "answer"
        if self._state == "reasoning":
            if not self._begun:
                self._held = self._held.lstrip("\n")
                self._begun = bool(self._held)
            at = self._held.find(self._closes)
            if at < 0:
                reasoning = self._held[:self._certain()]
                self._held = self._held[len(reasoning):]
                return reasoning, ""
            reasoning, self._held = self._held[:at].rstrip("\n"), self._held[at + len(self._closes):]
            self._state = "gap"
        if self._state == "gap":
            self._held = self._held.lstrip("\n")
            if not self._held:
                return reasoning, ""
            self._state = "answer"
        out, self._held = self._held, ""
        return reasoning, out

    def _certain(self) -> int:
        """Length of the held reasoning without what may be the beginning of its end: line breaks, then part of the mark."""
        mark = max((n for n in range(1, len(self._closes)) if self._held.endswith(self._closes[:n])), default=0)
        return len(self._held[:len(self._held) - mark].rstrip("\n"))

    def finish(self) -> tuple[str, str]:
        """What is still held back."""
        out, self._held = self._held, ""
        return (out.rstrip("\n"), "") if self._state == "reasoning" else ("", out)
