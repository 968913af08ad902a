"""The knapsack of types against all choices there are."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm import errors
from pyllm.quantize import knapsack

OPTIONS = st.lists(st.tuples(st.integers(1, 40), st.floats(0, 9, allow_subnormal=False)), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(st.lists(OPTIONS, min_size=1, max_size=6), st.integers(1, 200))
def test_no_choice_is_better(items: list[list[tuple[int, float]]], budget: int) -> None:
    fitting = [c for c in product(*items) if sum(size for size, _ in c) <= budget]
    if not fitting:
        with pytest.raises(errors.ArgumentError, match="the smallest choice takes"):
            knapsack.solve(items, budget)
        return
    chosen = [options[i] for options, i in zip(items, knapsack.solve(items, budget), strict=True)]
    assert sum(size for size, _ in chosen) <= budget
    best = min(sum(cost for _, cost in c) for c in fitting)
    assert sum(cost for _, cost in chosen) <= best + 1e-9 * max(best, 1)


def test_many_items_are_within_the_bound_of_the_relaxation() -> None:
    """As of a large model: 300 matrices of 12 types. For any price of a byte, the least of cost + price * size, less price * budget, is a
    bound from below."""
    rng = np.random.default_rng(1)
    sizes = (rng.integers(1, 400, 300)[:, None] * 10_000 * np.array([2.6, 3.4, 4.2, 4.5, 5, 5.5, 6, 6.5, 8.5, 9, 12, 16])).astype(np.int64)
    costs = rng.lognormal(0, 2, (300, 1)) * np.exp2(-1.9 * np.arange(12)) * rng.lognormal(0, 0.2, (300, 12))
    budget = int(sizes.min(axis=1).sum() * 1.7)
    chosen = knapsack.solve([list(zip(map(int, s), map(float, c), strict=True)) for s, c in zip(sizes, costs, strict=True)], budget)
    rows = np.arange(300)
    assert sizes[rows, chosen].sum() <= budget
    bound = max((costs + price * sizes).min(axis=1).sum() - price * budget for price in np.geomspace(1e-12, 1e-3, 2000))
    assert bound <= costs[rows, chosen].sum() < bound * 1.0005
