"""Ending a reply in JSON before its token limit cuts it off: from some point on, only tokens that lead to the end quickly may come.

What closes strings, lists and objects goes before what continues them, and that before what opens new ones. The model still chooses among
the tokens that are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

MAX_STEPS = 600     # tokens of the shortest reply that is looked for


_BLANK, _DIGITS, _MARKS = frozenset(b" \t\r\n"), frozenset(b"0123456789"), frozenset(b"!#$%&'()*+,./:;<=>?@^_`|~")


class Closers:
    """Sets of tokens by what they do to a JSON text, as bits of a whole number. pieces: bytes of every token; ends: end tokens."""

    def __init__(self, pieces: Sequence[bytes], ends: Iterable[int]) -> None:
        ids: dict[bytes, list[int]] = {}
        for t, piece in enumerate(pieces):
            if piece:
                ids.setdefault(piece, []).append(t)

        def bits(found: Iterable[bytes]) -> int:
            out = bytearray(len(pieces) // 8 + 1)
            for piece in found:
                for t in ids.get(piece, ()):
                    out[t >> 3] |= 1 << (t & 7)
            return int.from_bytes(out, "little")

        self.ends = sum(1 << t for t in ends)
        self._letter, self._quote, self._at = bits([b"q"]), bits([b'"']), bits([b"@"])       # no word of JSON begins with q
        filled = [p for p in ids if p[0] not in _BLANK]
        self._tiers = (
            self._quote | bits(p for p in filled if p[0] in b"}]" and not p.strip(b"}]")), bits([b",", b":", b',"']),
            bits(p for p in filled if p[0] in _MARKS and _MARKS.issuperset(p)),                     # what ends digits in a pattern
            bits(p for p in filled if p[0] in _DIGITS and _DIGITS.issuperset(p) and p.strip(b"0")),     # after -0. zeros lead nowhere
            bits(p for p in filled if p[0] not in b"{["), bits([b"{", b"[", b"{}", b"[]"]), bits(filled))

    def best(self, mask: int) -> int:
        """Of the tokens of a mask those that bring the end nearer."""
        if mask & self.ends:
            return mask & self.ends
        if mask & self._letter:         # inside a string, where other signs mean nothing; an e-mail address goes on to its @
            return mask & self._quote or mask & self._at or mask
        return next((mask & tier for tier in self._tiers if mask & tier), mask)


def shortest(matcher: Any, mask: bytes, closers: Closers, pieces: Sequence[bytes]) -> int:
    """How many tokens, about, the shortest reply takes, the end token included. matcher is at the beginning, and there again afterwards."""
    n = 0
    while n < MAX_STEPS:
        best = closers.best(int.from_bytes(mask, "little"))
        if not best or best & closers.ends:
            break
        matcher.consume_token(_longest(best, pieces))
        n += 1
        if matcher.is_error() or matcher.is_stopped():
            break
        mask = matcher.compute_bitmask()
    matcher.reset()
    return n + 1


def _longest(mask: int, pieces: Sequence[bytes]) -> int:
    """The longest of the first tokens of a mask: names of properties come in few tokens."""
    found: list[int] = []
    while mask and len(found) < 32:
        lowest = mask & -mask
        found.append(lowest.bit_length() - 1)
        mask ^= lowest
    return max(found, key=lambda t: (len(pieces[t]), -t))
