"""Telling a model's reasoning from its answer: text between <think> and </think> at the beginning of a reply. The line breaks beside the
marks belong to neither."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


class ReasoningSplitter:
    """Text piece by piece -> (reasoning, answer) pieces. prompt_end: the prompt's last characters; some templates open the mark there."""

    def __init__(self, prompt_end: str) -> None:
        tail = prompt_end.rstrip()
        self._state = "reasoning" if tail.endswith(OPEN) else "start"
        self._held, self._begun = "", False

    def feed(self, text: str) -> tuple[str, str]:
        self._held += text
        reasoning = ""
        if self._state == "start":
            head = self._held.lstrip()
            if head.startswith(OPEN):
                self._state, self._held = "reasoning", head[len(OPEN):]
            elif OPEN.startswith(head):
                return "", ""
            else:
                self._state = "answer"
        if self._state == "reasoning":
            if not self._begun:
                self._held = self._held.lstrip("\n")
                self._begun = bool(self._held)
            at = self._held.find(CLOSE)
            if at < 0:
                reasoning = self._held[:self._certain()]
                self._held = self._held[len(reasoning):]
                return reasoning, ""
            reasoning, self._held = self._held[:at].rstrip("\n"), self._held[at + len(CLOSE):]
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
        mark = max((n for n in range(1, len(CLOSE)) if self._held.endswith(CLOSE[:n])), default=0)
        return len(self._held[:len(self._held) - mark].rstrip("\n"))

    def finish(self) -> tuple[str, str]:
        """What is still held back."""
        out, self._held = self._held, ""
        return (out.rstrip("\n"), "") if self._state == "reasoning" else ("", out)
