"""How far models stray from a reference: Kullback-Leibler divergence of their next-token distributions on a text, and their perplexities.

Reference and candidates run side by side, chunk by chunk, so nothing but a few rows of logits is ever held. Chunks and scored tokens are
those of pyllm.perplexity. For a scored position with reference distribution p and candidate q, over the whole vocabulary in float64,
KLD = sum p (ln p - ln q) nats: 0 is the same distribution.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pyllm import errors
from pyllm.llm import LLM
from pyllm.perplexity import split

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class Scores:
    """Of one model at every scored position, float64 [n]: kld from the reference (nats, of the reference itself 0), nll of the text's next
    token (nats), same: whether the likeliest token is the reference's."""

    kld: Floats
    nll: Floats
    same: NDArray[np.bool_]


@dataclass(frozen=True)
class Candidate:
    """What a model's scores amount to. kld: mean; kld_99: its 99th percentile; kld_max: the largest; top: share of positions with
    the
    reference's likeliest token; ratio: perplexity over the reference's, position by position, so that its error is much smaller than the
    two perplexities'."""

    perplexity: Estimate
    kld: Estimate
    kld_99: Estimate
    kld_max: float
    top: Estimate
    ratio: Estimate


@dataclass(frozen=True)
class Comparison:
    """perplexity: of the reference. n_tokens: scored positions of n_chunks chunks."""

    perplexity: Estimate
    candidates: list[Candidate]
    n_tokens: int
    n_chunks: int


def compare(reference: LLM, candidates: Sequence[LLM], text: str | bytes, ctx: int = 512, chunks: int | None = None) -> Comparison:
    """Over the whole text, or its first `chunks` chunks. Raises ArgumentError for a text shorter than a chunk, or models that read it as
    other tokens than the reference does."""
    return list(estimates(reference, candidates, text, ctx, chunks))[-1]


def estimates(reference: LLM, candidates: Sequence[LLM], text: str | bytes, ctx: int = 512,
              chunks: int | None = None) -> Iterator[Comparison]:
    """As compare, the estimates so far after every chunk."""
    models = [reference, *candidates]
    cut = split(reference, text, ctx)[:chunks]
    for llm in candidates:
        check_same_tokens(reference, llm, text, ctx, cut)
    parts: list[list[Scores]] = [[] for _ in models]
    for n, chunk in enumerate(cut, 1):
        for part, found in zip(parts, chunk_scores(models, chunk), strict=True):
            part.append(found)
        yield summary([join(part) for part in parts], n)


def check_same_tokens(reference: LLM, llm: LLM, text: str | bytes, ctx: int, cut: Sequence[Sequence[int]]) -> None:
    same = llm.info["n_vocab"] == reference.info["n_vocab"] and split(llm, text, ctx)[:len(cut)] == cut
    if not same:
        raise errors.ArgumentError(f"{llm.path} has another vocabulary than {reference.path}\n"
                                   "hint: only models with one tokenizer can be compared token by token")


def chunk_scores(models: Sequence[LLM], chunk: Sequence[int]) -> list[Scores]:
    """Of every model, the first of which is the reference, at the positions of the chunk's second half."""
    at = len(chunk) // 2
    rows: list[list[tuple[float, float, bool]]] = [[] for _ in models]
    for blocks in zip(*(llm.logit_blocks(chunk[:-1], start=at) for llm in models), strict=True):
        for i in range(len(blocks[0])):
            for found, scores in zip(rows, row_scores([b[i] for b in blocks], chunk[at + 1 + i]), strict=True):
                found.append(scores)
        at += len(blocks[0])
    return [Scores(np.array(kld), np.array(nll), np.array(same)) for kld, nll, same in (zip(*found, strict=True) for found in rows)]



def row_scores(logits: Sequence[NDArray[np.float32]], token: int) -> list[tuple[float, float,
bool]]:
    """(KLD from the first model, negative log-likelihood of the token, same likeliest token) of every model at one position. logits:
    [n_vocab] of each."""
    x = logits[0].astype(np.float64)
    x -= x.max()
    weight = np.exp(x)
    total = weight.sum()
    top, normal = int(logits[0].argmax()), float(np.log(total))
    found = [(0.0, normal - float(x[token]), True)]
    for other in logits[1:]:
        y = other.astype(np.float64)
        y -= y.max()
        its_normal, target = float(np.log(np.exp(y).sum())), float(y[token])
        np.subtract(x, y, out=y)
        kld = float(weight @ y) / float(total) + its_normal - normal
        found.append((max(kld, 0.0), its_normal - target, int(other.argmax()) == top))      # rounding may give -1e-16
    return found


def join(parts: Sequence[Scores]) -> Scores:
    return Scores(*(np.concatenate([getattr(p, field) for p in parts]) for field in ("kld", "nll", "same")))


# ---- estimates and their errors ----

def summary(scores: Sequence[Scores], n_chunks: int) -> Comparison:
    """scores: of the reference, then of every candidate."""
    reference = scores[0].nll
    return Comparison(_exp(mean(reference)), [_candidate(s, reference) for s in scores[1:]], len(reference), n_chunks)


def _candidate(s: Scores, reference: Floats) -> Candidate:
    return Candidate(_exp(mean(s.nll)), mean(s.kld), percentile(s.kld, 0.99), float(s.kld.max()), mean(s.same.astype(np.float64)),
                     _exp(mean(s.nll - reference)))


def mean(x: Floats) -> Estimate:
    """With the standard error of a mean of independent values."""
    return Estimate(float(x.mean()), float(x.std(ddof=1) / np.sqrt(len(x))))


def percentile(x: Floats, p: float) -> Estimate:
    """The smallest value that at least a share p of all do not exceed. Its error is half of the distance between the values one standard
    deviation of the binomial count, sqrt(n p (1 - p)) places, below and above it."""
    n, ordered = len(x), np.sort(x)
    place = int(np.ceil(n * p)) - 1
    spread = int(np.ceil(np.sqrt(n * p * (1 - p))))
    low, high = ordered[max(place - spread, 0)], ordered[min(place + spread, n - 1)]
    return Estimate(float(ordered[place]), float(high - low) / 2)


def _exp(e: Estimate) -> Estimate:
    value = float(np.exp(e.value))
    return Estimate(value, value * e.error)


# ---- the front ----

def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (size, divergence) pairs that no other one beats in both, by size."""
    best, front = float("inf"), []
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        if points[i][1] < best:
            best = points[i][1]
            front.append(i)
    return front


def plot(path: str | os.PathLike[str], names: Sequence[str], sizes: Sequence[int], found: Comparison) -> None:
    """A PNG of mean KLD, with its error, against the size of the files in bytes, and the Pareto front. Needs the extra `plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise errors.ArgumentError("a plot needs matplotlib\nhint: pip install 'pyllm[plot]'") from None
    from .writer import output_path, writing

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    scale, unit = (1e9, "GB") if max(sizes) >= 1e9 else (1e6, "MB")
    x, y = [s / scale for s in sizes], [c.kld.value for c in found.candidates]
    front = pareto(list(zip(x, y, strict=True)))
    axes.plot([x[i] for i in front], [y[i] for i in front], color="tab:orange", drawstyle="steps-post", label="Pareto front")
    axes.errorbar(x, y, yerr=[c.kld.error for c in found.candidates], fmt="o", color="tab:blue", capsize=3)
    for name, at in zip(names, zip(x, y, strict=True), strict=True):
        axes.annotate(name, at, xytext=(5, 5), textcoords="offset points", fontsize=8)
    if min(y) > 0:
        axes.set_yscale("log")
    axes.set_xlabel(f"file size, {unit}")
    axes.set_ylabel(f"mean KL divergence from the reference, nats ({found.n_tokens} tokens)")
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    out = output_path(path)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    with writing(out, 0):
        try:
            with open(temporary, "wb") as f:
                figure.savefig(f, format="png")
                f.flush()
                os.fsync(f.fileno())
            os.replace(temporary, out)
        finally:
            temporary.unlink(missing_ok=True)
