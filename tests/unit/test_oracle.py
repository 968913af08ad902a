"""Real models against transformers in float32 on the same weights: tests/data/golden, made by tools/make_goldens.py's recipe.

Teacher-forced along prompt and golden continuation, the best token is the golden one at every position. Activations quantized to 8 bits
may swap two near equals: at most 3 times a prompt, when the golden token is second and less than 0.5 behind. Free-running greedy text
equals the golden text up to the first such place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import model_path

from pyllm import LLM

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
NAMES = ["smollm2", *(pytest.param(name, marks=pytest.mark.models) for name in ("gemma3-270m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b"))]
NEAR, NEAR_TIES = 0.5, 3


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[LLM, list[dict[str, Any]]]]:
    golden = json.loads((GOLDEN / f"{request.param}-greedy.json").read_text())
    with LLM(model_path(request.param), ctx=1024) as llm:
        yield llm, golden["results"]


def swaps(llm: LLM, prompt: list[int], golden: list[int]) -> list[int]:
    """Positions in golden where another token is ahead; fails where the rule forbids it."""
    logits = llm.logits(prompt + golden)[len(prompt) - 1:-1]
    found = []
    for i, (row, want) in enumerate(zip(logits, golden, strict=True)):
        first, second = (int(t) for t in np.argsort(-row, kind="stable")[:2])
        if first == want:
            continue
        gap = float(row[first] - row[want])
        assert second == want and gap < NEAR, f"position {i}: token {first} instead of {want}, gap {gap:.3f}"
        found.append(i)
    assert len(found) <= NEAR_TIES, found
    return found


def test_greedy_follows_the_golden(case: tuple[LLM, list[dict[str, Any]]]) -> None:
    llm, results = case
    assert len(results) >= 3
    for r in results:
        prompt, golden = r["prompt_ids"], r["new_ids"]
        first = next(iter(swaps(llm, prompt, golden)), len(golden))
        reply = llm.complete(prompt, temperature=0, max_tokens=len(golden))
        want = golden[:first]
        if want[-1:] == [llm.tokenizer.eos]:
            want.pop()
            assert reply.finish_reason == "stop"
        assert list(reply.tokens[:len(want)]) == want, r["prompt"]
        text = llm.detokenize(want)
        assert reply.text.startswith(text) and r["text"].startswith(text)


def test_prompt_text_gives_the_golden_ids(case: tuple[LLM, list[dict[str, Any]]]) -> None:
    llm, results = case
    for r in results:
        assert llm.tokenize(r["prompt"], add_special=r["kind"] == "raw") == r["prompt_ids"], r["prompt"]
        if r["kind"] == "chat":     # the golden's prompt is the rendered conversation; the question is behind the last "user" mark
            question = r["prompt"].rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
            assert llm.prompt_ids(question) == r["prompt_ids"]
