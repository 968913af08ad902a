"""Importance matrices that are measured: against float64 by numpy, and by the gguf package's reading of the file."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_gguf
from conftest import ROOT

from pyllm import LLM, ref
from pyllm.cli import main
from pyllm.gguf import GGUF
from pyllm.perplexity import split
from pyllm.quantize import imatrix, imatrix_file

TEXT = ROOT / "tests/data/text/ppl-kjv.en.txt"
CTX = 96


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(tiny_gguf.llama("f32", tied=True)[0])
    return path


def expected(model: Path, n_chunks: int) -> dict[str, np.ndarray]:
    """Sums of squares of every matrix's inputs, from the interpreter's values."""
    found: dict[str, np.ndarray] = {}
    with LLM(model, ctx=CTX) as llm, GGUF(model) as file:
        tape = llm.on_engine(lambda e: e.tape)
        for chunk in split(llm, TEXT.read_bytes(), CTX)[:n_chunks]:
            values = ref.values(tape, file.read, chunk)
            for op, _, *words in (line.split(" ") for line in tape.splitlines()):
                if op in ("linear", "gated"):
                    given = dict(word.split("=", 1) for word in words)
                    for name in given["w"].split(","):
                        found[name] = found.get(name, 0) + (values[given["in"]] ** 2).sum(axis=0)
    return found


def test_sums_are_those_of_the_interpreter(model: Path) -> None:
    """Over chunks of more than one step, also for the matrix of the logits, which is the embedding here."""
    with LLM(model, ctx=CTX, kv="f32") as llm:
        found = imatrix.compute(llm, TEXT.read_bytes(), "kjv", CTX, 3, output=True)
        plain = imatrix.compute(llm, TEXT.read_bytes(), "kjv", CTX, 3)
    want = expected(model, 3)
    assert found.sums.keys() == want.keys() and "token_embd.weight" in want
    assert plain.sums.keys() == want.keys() - {"token_embd.weight"}
    for name, sums in want.items():
        assert found.counts[name].tolist() == [3 * CTX]
        np.testing.assert_allclose(found.sums[name][0], sums, rtol=1e-4, atol=1e-6 * sums.mean())
    for name, sums in plain.sums.items():       # other steps: the sums are added in another order
        np.testing.assert_allclose(sums, found.sums[name], rtol=1e-5)


def test_command(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file: what compute() gives, by the gguf package and by the reader of the quantizer; the same bytes every time."""
    out = tmp_path / "m.gguf"
    arguments = ["imatrix", str(model), "-f", str(TEXT), "-o", str(out), "--ctx", str(CTX), "--chunks", "2"]
    assert main([*arguments, "--threads", "1"]) == 0
    assert capsys.readouterr().err.endswith(f"14 matrices, 2 chunks of {CTX} tokens\n")
    with LLM(model, ctx=CTX) as llm:
        want = imatrix.compute(llm, TEXT.read_bytes(), TEXT.name, CTX, 2)
    tensors = {t.name: t.data for t in gguf.GGUFReader(out).tensors}
    assert len(tensors) == 2 * len(want.sums) == 28
    with imatrix_file.read(out) as back, GGUF(model) as file:
        assert (back.datasets, back.chunks, len(back)) == ([TEXT.name], 2, 14)
        for name, sums in want.sums.items():
            np.testing.assert_array_equal(tensors[name + ".in_sum2"].ravel(), sums.ravel())
            np.testing.assert_array_equal(tensors[name + ".counts"].ravel(), want.counts[name])
            np.testing.assert_array_equal(back.weights(name, file.tensors[name].shape), sums / (2 * CTX))
    before = out.read_bytes()
    assert main([*arguments, "--threads", "2"]) == 0 and out.read_bytes() == before
    before_model = model.read_bytes()
    assert main([*arguments[:5], str(model)]) == 1 and "is the input" in capsys.readouterr().err
    assert model.read_bytes() == before_model
