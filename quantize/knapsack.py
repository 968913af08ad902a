"""The multiple-choice knapsack: one option for each item, total size within a budget, least total cost.

Lagrangian relaxation gives a lower bound, and a greedy solution an upper one. An option whose reduced cost exceeds the gap between the two
can
be in no better solution; what remains is little, and dynamic programming over the Pareto-optimal (size, cost) pairs solves it. Source: the
usual method for this problem (Kellerer, Pferschy, Pisinger: Knapsack Problems, chapter 11).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pyllm import errors

Option = tuple[int, float]      # size, cost
_MAX_STATES = 100_000           # pairs kept after an item; more are thinned, and the result is then only nearly the best


@dataclass(frozen=True)
class _Item:
    """The options that can be of use, sizes ascending, costs descending; index: their places in the caller's list."""

    index: NDArray[np.int64]
    size: NDArray[np.int64]
    cost: NDArray[np.float64]


def solve(items: Sequence[Sequence[Option]], budget: int) -> list[int]:
    """The index of the chosen option of every item. Raises ArgumentError if even the smallest options do not fit."""
    pareto = [_pareto(options) for options in items]
    least = int(sum(item.size[0] for item in pareto))
    if least > budget:
        raise errors.ArgumentError(f"the smallest choice takes {least} bytes, more than {budget}\nhint: a larger target")
    chosen, slope = _greedy(pareto, budget)
    chosen = _improve(pareto, budget, chosen, slope)
    return [int(item.index[k]) for item, k in zip(pareto, chosen, strict=True)]


def _pareto(options: Sequence[Option]) -> _Item:
    kept: list[int] = []
    for i in sorted(range(len(options)), key=lambda i: options[i]):
        if not kept or options[i][1] < options[kept[-1]][1]:
            kept.append(i)
    return _Item(np.array(kept), np.array([options[i][0] for i in kept], np.int64), np.array([options[i][1] for i in kept], np.float64))


def _hull(item: _Item) -> list[int]:
    """Options on the lower convex hull of (size, cost)."""
    kept: list[int] = []
    for k in range(len(item.size)):
        while len(kept) > 1 and _slope(item, kept[-1], k) >= _slope(item, kept[-2], kept[-1]):
            kept.pop()
        kept.append(k)
    return kept


def _slope(item: _Item, a: int, b: int) -> float:
    """Cost saved for each byte more."""
    return float(item.cost[a] - item.cost[b]) / float(item.size[b] - item.size[a])


def _greedy(items: Sequence[_Item], budget: int) -> tuple[list[int], float]:
    """(options, slope): steps along the hulls in the order of what they save, while they fit; the slope of the first that does not."""
    chosen, room = [0] * len(items), budget - int(sum(item.size[0] for item in items))
    hulls = [_hull(item) for item in items]
    steps = sorted(((_slope(item, a, b), t, a, b) for t, (item, hull) in enumerate(zip(items, hulls, strict=True))
                    for a, b in pairwise(hull)), key=lambda s: (-s[0], s[1], s[2]))
    broken = 0.0
    for slope, t, a, b in steps:
        size = int(items[t].size[b] - items[t].size[a])
        if chosen[t] == a and size <= room:         # past the first that does not fit, smaller ones fill up what is left
            chosen[t], room = b, room - size
        else:
            broken = broken or slope
    return chosen, broken


def _improve(items: Sequence[_Item], budget: int, chosen: list[int], slope: float) -> list[int]:
    """The best choice, by dynamic programming over what the bounds leave."""
    reduced = [item.cost + slope * item.size for item in items]
    base = [float(r.min()) for r in reduced]
    upper = float(sum(item.cost[k] for item, k in zip(items, chosen, strict=True)))
    gap = upper - (sum(base) - slope * budget)
    if gap <= 0:
        return chosen
    kept = [np.flatnonzero(r - b <= gap) for r, b in zip(reduced, base, strict=True)]
    size, loss = np.zeros(1, np.int64), np.zeros(1)             # loss: cost + slope * size - base, of the items so far
    trail: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    rest = int(sum(item.size[k].min() for item, k in zip(items, kept, strict=True)))
    for item, r, b, options in zip(items, reduced, base, kept, strict=True):
        rest -= int(item.size[options].min())
        sizes = (size[:, None] + item.size[options]).reshape(-1)
        losses = (loss[:, None] + (r[options] - b)).reshape(-1)
        usable = np.flatnonzero((losses <= gap) & (sizes + rest <= budget))
        best = usable[_front(sizes[usable], losses[usable] - slope * sizes[usable])]
        if len(best) > _MAX_STATES:
            best = best[np.linspace(0, len(best) - 1, _MAX_STATES).astype(np.int64)]
        trail.append((best // len(options), options[best % len(options)]))
        size, loss = sizes[best], losses[best]
    if not len(size):               # rounding alone made the gap
        return chosen
    at = int((loss - slope * size).argmin())
    found = []
    for parents, options in reversed(trail):
        found.append(int(options[at]))
        at = int(parents[at])
    found.reverse()
    cost = float(sum(item.cost[k] for item, k in zip(items, found, strict=True)))
    return found if cost < upper else chosen


def _front(size: NDArray[np.int64], cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Places of the pairs that no other one beats, by size."""
    order = np.lexsort((cost, size))
    lowest = np.minimum.accumulate(cost[order])
    keep = np.ones(len(order), bool)
    keep[1:] = cost[order][1:] < lowest[:-1]
    return order[keep]
