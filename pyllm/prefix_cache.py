"""Pages of finished and running requests, found again by the tokens that they hold.

A tree for every client: each node below the root is a page of 16 tokens, a tail one with fewer, which has nothing below it. A path from the
root spells the tokens from position 0 on. Lookups compare tokens; hashes only lead to them. Pages stay with the engine (pyllm.h, "pages"):
the tree keeps them, sequences share them, and those that no sequence holds go when room is needed, leaves first, longest unused first.

Layers with a sliding window keep their pages only where somebody may go on, at the end of a request and where `insert` is told to set a
mark: all the pages that the next token sees there. A hit goes to the deepest point at which every layer group is complete.

A page of recurrent steps is a state, which serves the token behind its last one and no other. It is kept as a window's pages are; what
others begin with stays beside them, and where there is nothing but states, paths that lead to none go.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from itertools import count, islice
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .engine import Engine

PAGE = 16
SIBLINGS = 64       # at most so many children are searched for one that shares a part of a page


class Node:
    """tokens: of its page; pages: number in each layer group, -1: none; marks: how many marks need the group's page; marked: is one."""

    __slots__ = ("children", "marked", "marks", "pages", "parent", "tails", "tokens", "used")

    def __init__(self, parent: Node | None, tokens: tuple[int, ...], pages: list[int]) -> None:
        self.parent, self.tokens, self.pages = parent, tokens, pages
        self.children: dict[tuple[int, ...], Node] = {}
        self.tails: list[Node] = []
        self.marks = [0] * len(pages)
        self.marked, self.used = False, 0


class Hit(NamedTuple):
    """n tokens in the pages of `path`, the last of which may be used in part; shared: tokens that some pages hold, complete or not."""

    n: int
    path: list[Node]
    shared: int


class PrefixCache:
    """Only the engine's thread uses it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._windows = engine.windows
        self._recurrent = engine.recurrent.index(True) if any(engine.recurrent) else None
        self._main = engine.windows.index(0) if 0 in engine.windows else 0
        self._roots: dict[str, Node] = {}
        self._kept = [set[int]() for _ in engine.windows]       # pages of the tree
        self._clock, self._order = count(1), count()
        self._leaves: list[tuple[int, int, Node]] = []     # heaps; entries that are no longer true are passed over
        self._marks: list[tuple[int, int, Node]] = []
        self.n_nodes = 0
        self.windowed = any(engine.windows)

    # ---- lookup ----

    def match(self, client: str, tokens: Sequence[int], limit: int, least: int = PAGE, parts: bool = True) -> Hit:
        """The longest beginning of tokens[:limit] that can be gone on from, of at least `least` tokens; without parts, of whole pages."""
        node, path = self._roots.get(client), list[Node]()
        best, depth, end, runs = 0, 0, list[Node](), [0] * len(self._windows)       # the hit: path[:depth] and end
        while node is not None:
            shared = len(path) * PAGE
            child = node.children.get(tuple(tokens[shared:shared + PAGE])) if shared + PAGE <= limit else None
            if parts and (child is None or self._recurrent is not None):
                part, n = self._part(node, tuple(tokens[shared:min(limit, shared + PAGE)]))
                if part is not None and shared + n >= least and self._complete(_extend(runs, part), len(path) + 1, shared + n):
                    best, depth, end = shared + n, len(path), [part]
            node = child
            if child is not None:
                path.append(child)
                runs = _extend(runs, child)
                if self._complete(runs, len(path), len(path) * PAGE):
                    best, depth, end = len(path) * PAGE, len(path), []
        return Hit(best, path[:depth] + end, len(path) * PAGE)

    def _complete(self, runs: list[int], depth: int, n: int) -> bool:
        """Whether the token at position n finds all the pages that it sees."""
        return all(runs[g] >= depth - first_page(w, n) for g, w in enumerate(self._windows))

    def _part(self, node: Node, tokens: tuple[int, ...]) -> tuple[Node | None, int]:
        """The child that shares most of the next tokens, and how many; of a state all."""
        best, most = None, 0
        if self._recurrent is not None:
            whole = [t for t in node.tails if t.tokens == tokens[:len(t.tokens)] and t.pages[self._recurrent] >= 0]
            best = max(whole, key=lambda t: len(t.tokens), default=None)
            return best, len(best.tokens) if best else 0
        for child in (*node.tails, *islice(reversed(node.children.values()), SIBLINGS)):
            n = common(child.tokens, tokens)
            if n > most:
                best, most = child, n
        return best, most

    def attach(self, seq: int, client: str, tokens: Sequence[int], limit: int, least: int = PAGE) -> Hit:
        """An empty sequence begins with what the cache has of tokens[:limit]."""
        hit = self.match(client, tokens, limit, least)
        self._touch(hit)
        if hit.n % PAGE and not self._has_free(1):          # room for the copy; it may cost a part of this very path
            self.make_room(1, 0)
            hit = self.match(client, tokens, limit, least)
            if hit.n % PAGE and not self._has_free(1):
                hit = self.match(client, tokens, limit, parts=False)
        if hit.n:
            self._engine.attach(seq, hit.n, self._lists(hit.path))
        return hit

    def idle_pages(self, hit: Hit) -> int:
        """Pages of a hit that no sequence holds."""
        return self._engine.count_idle(self._main, [node.pages[self._main] for node in hit.path])

    # ---- storing ----

    def insert(self, client: str, tokens: Sequence[int], seq: int, n: int, *, mark: bool, tail: bool = False) -> None:
        """Keeps what a sequence holds of tokens[:n], whole pages only or, with tail, the last part too; where the tree has it already, the
        sequence takes the tree's pages. mark: a later request may go on from here."""
        root = self._roots.get(client)
        if root is None:
            root = self._roots[client] = Node(None, (), [-1] * len(self._windows))
        path = [root]
        full = n // PAGE
        while len(path) <= full and (child := path[-1].children.get(tuple(tokens[(len(path) - 1) * PAGE:len(path) * PAGE]))) is not None:
            path.append(child)
        known = len(path) - 1
        if known:
            self._engine.adopt(seq, 0, self._lists(path[1:]))
        mine = self._engine.seq_pages(seq, known, -(-n // PAGE) - known)
        for at in range(known, full):
            path.append(self._add(path[-1], tuple(tokens[at * PAGE:(at + 1) * PAGE]), [pages[at - known] for pages in mine]))
        if tail and n % PAGE:
            path += self._add_tail(path[-1], tuple(tokens[full * PAGE:n]), [pages[-1] for pages in mine])
        now = next(self._clock)
        for node in path:
            node.used = now
        if mark and len(path) > 1:
            self._mark(path, seq, min(n, (len(path) - 1) * PAGE))
        self._offer(path[-1])
        self._prune(path[-1])

    def _add(self, parent: Node, tokens: tuple[int, ...], pages: list[int]) -> Node:
        """A new page; of windowed layers only marks keep theirs."""
        node = parent.children[tokens] = Node(parent, tokens, [-1 if w else p for w, p in zip(self._windows, pages, strict=True)])
        self._keep(node.pages)
        self.n_nodes += 1
        for t in self._shorter(parent, tokens):
            self._remove(t)
        return node

    def _shorter(self, parent: Node, tokens: tuple[int, ...]) -> list[Node]:
        """Tails that a page with these tokens makes useless."""
        return [t for t in parent.tails if (t.tokens == tokens if self._recurrent is not None else t.tokens == tokens[:len(t.tokens)])]

    def _add_tail(self, parent: Node, tokens: tuple[int, ...], pages: list[int]) -> list[Node]:
        """A page that is not full; nothing if there is one that begins with the same tokens, or if this is a part of a kept one (the
        sequence was cut)."""
        if any(p in kept for p, kept in zip(pages, self._kept, strict=True)):
            return []
        for other in (*parent.tails, *islice(reversed(parent.children.values()), SIBLINGS)):
            if (other.tokens if self._recurrent is not None else other.tokens[:len(tokens)]) == tokens and min(other.pages) >= 0:
                other.used = next(self._clock)
                return []
        shorter = self._shorter(parent, tokens)
        node = Node(parent, tokens, pages)
        self._keep(pages)
        parent.tails.append(node)
        self.n_nodes += 1
        for t in shorter:               # now that there is another one: a root without anything would go
            self._remove(t)
        return [node]

    def _mark(self, path: list[Node], seq: int, n: int) -> None:
        """Keeps the pages that the next token sees of windowed layers. path: the root, then the pages of the first n tokens."""
        node = path[-1]
        if node.marked or not self.windowed:
            return
        begin = min(first_page(w, n) for w in self._windows if w)
        mine = self._engine.seq_pages(seq, begin, len(path) - 1 - begin)
        needed = [(g, path[at + 1], mine[g][at - begin]) for g, w in enumerate(self._windows) if w
                  for at in range(first_page(w, n), len(path) - 1)]
        if any(seen.pages[g] < 0 and page < 0 for g, seen, page in needed):
            return                      # the sequence has gone on: the first of these pages is behind its window
        for g, seen, page in needed:
            if seen.pages[g] < 0:
                seen.pages[g] = page
                self._keep([page if k == g else -1 for k in range(len(self._windows))])
            seen.marks[g] += 1
        node.marked = True
        self._push(self._marks, node)

    # ---- giving back ----

    def make_room(self, n: int, states: int = 1) -> bool:
        """Gives pages up until n are free in every layer group, of recurrent ones `states`, one for each sequence of a step; False if there
        are not enough that no sequence holds."""
        return self.make_places([states if g == self._recurrent else n for g in range(len(self._windows))])

    def make_places(self, needs: Sequence[int]) -> bool:
        """As make_room, with a number for each group."""
        for g, (w, n) in enumerate(zip(self._windows, needs, strict=True)):
            while self._engine.group(g).n_free < n:
                if not (w and self._unmark_oldest()) and not self._evict():
                    return False
        return True

    def clear(self) -> None:
        """Forgets everything."""
        for root in self._roots.values():
            stack = [*root.children.values(), *root.tails]
            while stack:
                node = stack.pop()
                stack += [*node.children.values(), *node.tails]
                self._drop(node.pages)
        self._roots, self._leaves, self._marks, self.n_nodes = {}, [], [], 0

    def _evict(self) -> bool:
        """The leaf that was unused longest goes."""
        while (node := self._oldest(self._leaves)) is not None:
            page = node.pages[self._main]
            if node.children or node.tails or node.parent is None:
                continue
            if page >= 0 and not self._engine.count_idle(self._main, [page]):
                continue                # in use: it is offered again when its sequence ends
            self._remove(node)
            return True
        return False

    def _unmark_oldest(self) -> bool:
        node = self._oldest(self._marks)
        if node is not None:
            self._unmark(node)
            self._prune(node)
        return node is not None

    def _oldest(self, heap: list[tuple[int, int, Node]]) -> Node | None:
        """Takes the node that was used least lately off a heap whose entries may be out of date."""
        while heap:
            used, _, node = heapq.heappop(heap)
            if node.parent is None or (heap is self._marks and not node.marked):
                continue
            if node.used == used:
                return node
            self._push(heap, node)
        return None

    def _push(self, heap: list[tuple[int, int, Node]], node: Node) -> None:
        heapq.heappush(heap, (node.used, next(self._order), node))
        if len(heap) > 4 * self.n_nodes + 64:       # most are out of date; of a node's only the last can be true
            heap[:] = list({id(e[2]): e for e in sorted(heap, key=lambda e: e[1]) if e[2].parent is not None}.values())
            heapq.heapify(heap)

    def _remove(self, node: Node) -> None:
        """A leaf leaves the tree."""
        parent = node.parent
        assert parent is not None
        if node.marked:
            self._unmark(node)
        self._drop(node.pages)
        if len(node.tokens) == PAGE:
            del parent.children[node.tokens]
        else:
            parent.tails.remove(node)
        node.parent = None
        self.n_nodes -= 1
        if not parent.children and not parent.tails:
            self._offer(parent)

    def _prune(self, node: Node) -> None:
        """A leaf without pages leads nowhere: it goes, and so do those above that led to it alone."""
        while (parent := node.parent) is not None and not node.children and not node.tails and max(node.pages) < 0:
            self._remove(node)
            node = parent

    def _unmark(self, node: Node) -> None:
        node.marked = False
        depth, at = 0, node
        while at.parent is not None:
            at, depth = at.parent, depth + 1
        n = (depth - 1) * PAGE + len(node.tokens)
        at = node
        for i in range(depth - 1, -1, -1):
            assert at.parent is not None
            gone = [-1] * len(self._windows)
            for g, w in enumerate(self._windows):
                if w and i >= first_page(w, n):
                    at.marks[g] -= 1
                    if not at.marks[g]:
                        gone[g], at.pages[g] = at.pages[g], -1
            if any(p >= 0 for p in gone):
                self._drop(gone)
            at = at.parent

    # ---- small things ----

    def _offer(self, node: Node) -> None:
        """A leaf may be evicted from now on; a root without anything goes at once."""
        if node.parent is None:
            self._roots = {c: r for c, r in self._roots.items() if r.children or r.tails}
            return
        self._push(self._leaves, node)

    def _touch(self, hit: Hit) -> None:
        now = next(self._clock)
        for node in hit.path:
            node.used = now

    def _has_free(self, n: int) -> bool:
        """Of pages that are copied: states are not."""
        return all(self._engine.group(g).n_free >= n for g in range(len(self._windows)) if g != self._recurrent)

    def _lists(self, path: Sequence[Node]) -> list[list[int]]:
        return [[node.pages[g] for node in path] for g in range(len(self._windows))]

    def _keep(self, pages: list[int]) -> None:
        self._engine.keep([[p] for p in pages])
        for p, kept in zip(pages, self._kept, strict=True):
            kept.update({p} - {-1})

    def _drop(self, pages: list[int]) -> None:
        self._engine.drop([[p] for p in pages])
        for p, kept in zip(pages, self._kept, strict=True):
            kept.discard(p)


def _extend(runs: list[int], node: Node) -> list[int]:
    """runs: how many nodes at the end of a path have the group's page."""
    return [n + 1 if page >= 0 else 0 for n, page in zip(runs, node.pages, strict=True)]


def first_page(window: int, n: int) -> int:
    """The first page that a token at position n sees."""
    return max(n - window + 1, 0) // PAGE if window else 0


def common(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two lists have in common at their beginning."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle)
    return low


