"""Comparisons of models: every figure against numpy on the models' logits, and the plot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_gguf
from conftest import ROOT

from pyllm import LLM, errors
from pyllm.cli import main
from pyllm.perplexity import perplexity, split
from pyllm.quantize import compare, quantize

TEXT = ROOT / "tests/data/text/ppl-kjv.en.txt"
CTX, CHUNKS = 64, 3


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A tiny llama and two quantized copies."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "f32.gguf").write_bytes(tiny_gguf.llama("f32", seed=5)[0])
    for mix in ("Q8_0", "Q3_K_M"):
        quantize(folder / "f32.gguf", folder / f"{mix}.gguf", mix)
    return [folder / f"{name}.gguf" for name in ("f32", "Q8_0", "Q3_K_M")]


def log_softmax(llm: LLM, chunk: list[int]) -> np.ndarray:
    """[scored positions, n_vocab]."""
    x = llm.logits(chunk[:-1])[CTX // 2:].astype(np.float64)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def test_figures_are_those_of_the_logits(models: list[Path]) -> None:
    with LLM(models[0], ctx=CTX) as a, LLM(models[1], ctx=CTX) as b, LLM(models[2], ctx=CTX) as c:
        found = compare.compare(a, [b, c], TEXT.read_bytes(), CTX, CHUNKS)
        chunks = split(a, TEXT.read_bytes(), CTX)[:CHUNKS]
        p, *others = (np.concatenate([log_softmax(llm, chunk) for chunk in chunks]) for llm in (a, b, c))
        target = np.array([token for chunk in chunks for token in chunk[CTX // 2 + 1:]])
        alone = [perplexity(llm, TEXT.read_bytes(), CTX, CHUNKS) for llm in (a, b, c)]
    n, rows = len(target), np.arange(len(target))
    assert (found.n_tokens, found.n_chunks) == (n, CHUNKS) == (CHUNKS * 31, 3)
    assert np.isclose(found.perplexity.value, alone[0].value, rtol=1e-12)
    for candidate, q, own in zip(found.candidates, others, alone[1:], strict=True):
        kld = (np.exp(p) * (p - q)).sum(axis=1)
        assert np.isclose(candidate.kld.value, kld.mean(), rtol=1e-9)
        assert np.isclose(candidate.kld.error, kld.std(ddof=1) / np.sqrt(n), rtol=1e-9)
        assert np.isclose(candidate.kld_max, kld.max(), rtol=1e-9)
        assert np.isclose(candidate.kld_99.value, np.sort(kld)[int(np.ceil(0.99 * n)) - 1], rtol=1e-9)
        same = p.argmax(axis=1) == q.argmax(axis=1)
        assert candidate.top.value == same.mean()
        assert np.isclose(candidate.perplexity.value, own.value, rtol=1e-12)
        assert np.isclose(candidate.perplexity.error, own.error, rtol=1e-9)
        difference = (p - q)[rows, target]
        assert np.isclose(candidate.ratio.value, np.exp(difference.mean()), rtol=1e-9)
        assert np.isclose(candidate.ratio.error, candidate.ratio.value * difference.std(ddof=1) / np.sqrt(n), rtol=1e-9)
    assert found.candidates[0].kld.value < found.candidates[1].kld.value


def test_a_model_is_as_itself(models: list[Path]) -> None:
    with LLM(models[0], ctx=CTX) as a, LLM(models[0], ctx=CTX) as b:
        (same,) = compare.compare(a, [b], TEXT.read_bytes(), CTX, 1).candidates
    assert (same.kld.value, same.kld_max, same.top.value, same.ratio.value, same.ratio.error) == (0, 0, 1, 1, 0)


def test_other_vocabularies_are_refused(models: list[Path], tmp_path: Path) -> None:
    (tmp_path / "other.gguf").write_bytes(tiny_gguf.llama("f32", n_vocab=310)[0])
    with (LLM(models[0], ctx=CTX) as a, LLM(tmp_path / "other.gguf", ctx=CTX) as b,
          pytest.raises(errors.ArgumentError, match="another vocabulary")):
        compare.compare(a, [b], TEXT.read_bytes(), CTX, 1)


def test_front() -> None:
    assert compare.pareto([(3, 1.0), (1, 3.0), (2, 3.0), (2, 2.0), (4, 1.0), (5, 0.5)]) == [1, 3, 0, 5]


def test_command_and_plot(models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "front.png"
    arguments = ["compare", *map(str, models), "-f", str(TEXT), "--ctx", str(CTX), "--chunks", "2"]
    assert main([*arguments, "--json", "--plot", str(plot)]) == 0
    found = json.loads(capsys.readouterr().out)
    with LLM(models[0], ctx=CTX) as a, LLM(models[2], ctx=CTX) as c:
        want = compare.compare(a, [c], TEXT.read_bytes(), CTX, 2).candidates[0]
    assert found["candidates"][1]["kld"] == {"value": want.kld.value, "error": want.kld.error}
    assert [c["bytes"] for c in found["candidates"]] == [m.stat().st_size for m in models[1:]]
    from matplotlib.image import imread

    image = imread(plot)
    assert image.shape[0] > 400 and image.shape[1] > 600 and len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 20
    assert [p.name for p in tmp_path.iterdir()] == ["front.png"]                # nothing temporary is left
    before = models[1].read_bytes()
    assert main([*arguments, "--plot", str(models[1])]) == 1 and "is the input" in capsys.readouterr().err
    assert models[1].read_bytes() == before
    assert main(arguments) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["MODEL", "f32", "Q8_0", "Q3_K_M"]
