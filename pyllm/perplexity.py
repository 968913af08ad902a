"""Perplexity: how well a model predicts a text. The lower the better, 1 is perfect.

The text is cut into chunks of ctx tokens, each of which the model sees alone. The second half of a chunk is scored, so that every scored
token has at least ctx / 2 tokens before it. Where the model starts texts with BOS, BOS replaces the first token of each chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import errors
from .llm import LLM


@dataclass(frozen=True)
class Perplexity:
    """value = exp(mean negative log-likelihood); error: its standard error; n_tokens: scored tokens of n_chunks chunks."""

    value: float
    error: float
    n_tokens: int
    n_chunks: int


def perplexity(llm: LLM, text: str | bytes, ctx: int = 512, chunks: int | None = None) -> Perplexity:
    """Over the whole text, or its first `chunks` chunks. Raises ArgumentError for a text shorter than a chunk."""
    return list(estimates(llm, text, ctx, chunks))[-1]


def estimates(llm: LLM, text: str | bytes, ctx: int = 512, chunks: int | None = None) -> Iterator[Perplexity]:
    """As perplexity, the estimate so far after every chunk."""
    cut = split(llm, text, ctx)[:chunks]
    scores: list[NDArray[np.float64]] = []
    for chunk in cut:
        scores.append(chunk_nll(llm, chunk))
        yield _summary(np.concatenate(scores), len(scores))


def split(llm: LLM, text: str | bytes, ctx: int) -> list[list[int]]:
    """The text's chunks of ctx tokens; what is left at the end is not used."""
    if ctx < 4:
        raise errors.ArgumentError(f"ctx is {ctx}, must be at least 4")
    if ctx > llm.ctx:
        raise errors.ContextOverflow(ctx, llm.ctx)
    tokenizer = llm.tokenizer
    ids = tokenizer.encode(text, parse_special=False)
    if len(ids) < ctx:
        raise errors.ArgumentError(f"the text has {len(ids)} tokens, one chunk is {ctx}\nhint: a longer text, or a smaller ctx")
    cut = [ids[at:at + ctx] for at in range(0, len(ids) - ctx + 1, ctx)]
    if tokenizer.bos is not None and tokenizer.encode("")[:1] == [tokenizer.bos]:
        for chunk in cut:
            chunk[0] = tokenizer.bos
    return cut


def chunk_nll(llm: LLM, chunk: Sequence[int]) -> NDArray[np.float64]:
    """Negative log-likelihoods, in nats, of the tokens in the second half of the chunk (the first of that half serves as context)."""
    at = len(chunk) // 2
    out: list[float] = []
    for block in llm.logit_blocks(chunk[:-1], start=at):
        out += [_nll(row, chunk[at + 1 + i]) for i, row in enumerate(block)]
        at += len(block)
    return np.array(out)


def _nll(logits: NDArray[np.float32], token: int) -> float:
    x = logits.astype(np.float64)
    x -= x.max()
    return float(np.log(np.exp(x).sum()) - x[token])


def _summary(nll: NDArray[np.float64], n_chunks: int) -> Perplexity:
    value = float(np.exp(nll.mean()))
    return Perplexity(value, float(value * nll.std(ddof=1) / np.sqrt(len(nll))), len(nll), n_chunks)
