"""Perplexity against float64 by hand, and against Hugging Face's numbers for SmolLM2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from pyllm import LLM, errors
from pyllm.perplexity import chunk_nll, estimates, perplexity, split

TEXTS = ROOT / "tests/data/text"
# transformers in float32 on the same GGUF's dequantized weights: ctx 512, 4 chunks, second half of each scored, no BOS.
HUGGING_FACE = {"ppl-brown.en": 28.306, "ppl-debian-handbook.en-US": 23.664, "ppl-debian-handbook.fr-FR": 26.856, "ppl-kjv.en": 4.810}


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[LLM]:
    with LLM(smollm2, ctx=512) as llm:
        yield llm


def test_chunks(llm: LLM) -> None:
    text = (TEXTS / "ppl-kjv.en.txt").read_bytes()
    ids = llm.tokenize(text.decode())
    chunks = split(llm, text, 100)
    assert len(chunks) == len(ids) // 100
    assert [i for c in chunks for i in c] == ids[:100 * len(chunks)]            # this model adds no BOS


def test_control_tokens_in_the_text_are_text(llm: LLM) -> None:
    assert 2 not in split(llm, "<|im_end|>" * 8, 32)[0]


def test_scores_are_log_softmax_of_the_logits(llm: LLM) -> None:
    chunk = split(llm, (TEXTS / "ppl-brown.en.txt").read_bytes(), 128)[0]
    logits = llm.logits(chunk).astype(np.float64)
    expected = [np.log(np.exp(logits[i]).sum()) - logits[i][chunk[i + 1]] for i in range(64, 127)]
    assert np.abs(chunk_nll(llm, chunk) - expected).max() < 1e-12 * np.abs(logits).max()


def test_blocks_of_logits_are_the_logits(llm: LLM) -> None:
    ids = llm.tokenize((TEXTS / "ppl-brown.en.txt").read_text())[:90]
    assert np.array_equal(np.concatenate(list(llm.logit_blocks(ids, start=11))), llm.logits(ids)[11:])


def test_estimates_end_in_the_result(llm: LLM) -> None:
    text = (TEXTS / "ppl-kjv.en.txt").read_text()
    seen = list(estimates(llm, text, ctx=64, chunks=3))
    assert [(e.n_chunks, e.n_tokens) for e in seen] == [(1, 31), (2, 62), (3, 93)]
    assert perplexity(llm, text, ctx=64, chunks=3) == seen[-1]
    nll = np.concatenate([chunk_nll(llm, c) for c in split(llm, text, 64)[:3]])
    assert seen[-1].value == np.exp(nll.mean())
    assert np.isclose(seen[-1].error, seen[-1].value * np.sqrt(((nll - nll.mean())**2).sum() / 92 / 93), rtol=1e-12)


@pytest.mark.parametrize(("text", "ctx", "error", "message"), [
    ("too short", 512, errors.ArgumentError, "the text has 2 tokens, one chunk is 512"), ("x" * 99, 3, errors.ArgumentError, "ctx is 3"),
    ("x", 513, errors.ContextOverflow, "513 tokens")])
def test_what_cannot_be_measured(llm: LLM, text: str, ctx: int, error: type[errors.Error], message: str) -> None:
    with pytest.raises(error, match=message):
        perplexity(llm, text, ctx)


@pytest.mark.slow
def test_smollm2_is_as_good_as_in_float32(llm: LLM) -> None:
    """Each text within 1 %, the mean of the four perplexities within 0.6 % of theirs: what 8-bit activations and a 16-bit cache may cost.
    How much of such a figure is luck: docs/numerics.md, section 2."""
    ours = {name: perplexity(llm, (TEXTS / f"{name}.txt").read_text(), chunks=4).value for name in HUGGING_FACE}
    for name, expected in HUGGING_FACE.items():
        assert abs(ours[name] / expected - 1) < 0.01, (name, ours[name])
    assert abs(np.mean(list(ours.values())) / np.mean(list(HUGGING_FACE.values())) - 1) < 0.006, ours
