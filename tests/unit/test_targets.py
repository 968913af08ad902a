"""Types that are found for a target: files that meet it, that say so, and that an interrupted run ends with too."""

from __future__ import annotations

import hashlib
import json
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_gguf
from conftest import ROOT

from pyllm import LLM, errors
from pyllm.cli import main
from pyllm.engine import Engine
from pyllm.gguf import GGUF
from pyllm.perplexity import split
from pyllm.quantize import Options, Target, quantize, sensitivity
from pyllm.quantize.types import row_bytes, type_id

TEXT = (ROOT / "tests/data/text/ppl-kjv.en.txt").read_bytes()[:4000]        # 10 chunks
N_MATRICES = 9                  # of the tiny llama


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(tiny_gguf.llama("f32", ctx=512, n_layers=1)[0])
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "kjv.txt"
    path.write_bytes(TEXT)
    return path


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measurements of the tiny llama, made once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def home(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYLLM_HOME", str(cache))


def target(kind: str, value: float) -> Options:
    return Options(target=Target(kind, value, TEXT, "kjv.txt"))


def matrices(path: Path) -> dict[str, tuple[str, int]]:
    """Type and bytes of the matrices, by the gguf package."""
    return {t.name: (t.tensor_type.name.lower(), t.n_bytes) for t in gguf.GGUFReader(path).tensors if len(t.shape) > 1}


def test_size(model: Path, cache: Path, tmp_path: Path) -> None:
    """Two sizes: no matrix could have a better type in what is left of them."""
    found = []
    for limit in (500_000, 800_000):
        done = quantize(model, tmp_path / "out.gguf", target("size", limit), n_threads=2, verify=True)
        left = limit - done.n_bytes
        assert left >= 0 and done.n_bytes == (tmp_path / "out.gguf").stat().st_size
        (state,) = (cache / "sensitivity").glob("*.jsonl")
        measured = {name: value for line in state.read_text().splitlines()[1:] for name, value in json.loads(line).items()}
        types = matrices(tmp_path / "out.gguf")
        assert types.keys() == measured.keys() and len(types) == N_MATRICES
        for name, (kind, n) in types.items():
            assert kind == done.types[name]
            others = measured[name]["errors"]
            assert all(row_bytes(type_id(k), 256) * n // row_bytes(type_id(kind), 256) - n > left - 256
                       for k in others if others[k] < others[kind])
        found.append({kind for kind, _ in types.values()})
        with LLM(tmp_path / "out.gguf", ctx=64) as llm:
            assert len(llm.complete("In the", max_tokens=4).tokens) == 4
    assert len(found[0]) > 2 and found[0] != found[1]


def test_bits_and_receipt(model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    assert main(["quantize", str(model), str(out), "--target-bpw", "4.6", "--calibration", str(text), "--tensor-type", "blk.0.*_q=q8_0",
                 "--evaluate", str(text)]) == 0
    with GGUF(model) as g:
        n_params = sum(prod(t.shape) for t in g.tensors.values())
    reader = gguf.GGUFReader(out)
    bits = 8 * sum(int(t.n_bytes) for t in reader.tensors) / n_params
    assert 4.5 < bits <= 4.6
    values = {name: field.contents() for name, field in reader.fields.items()}
    digest = "sha256:" + hashlib.sha256(TEXT).hexdigest()
    assert values["pyllm.receipt.target"] == "--target-bpw 4.6" and "pyllm.receipt.mix" not in values
    assert values["pyllm.receipt.options"] == ["--tensor-type blk.0.*_q=q8_0"]
    assert (values["pyllm.receipt.calibration.text"], values["pyllm.receipt.calibration.text_checksum"]) == (text.name, digest)
    assert values["pyllm.receipt.tensors"] == [f"{t.name}={t.tensor_type.name.lower()}" for t in reader.tensors]
    assert (values["quantize.imatrix.dataset"], values["quantize.imatrix.chunks_count"]) == (text.name, 10)
    assert 0 < values["pyllm.receipt.evaluation.kld"] < 1
    types = matrices(out)
    assert types["blk.0.attn_q.weight"][0] == "q8_0"
    sizes = {kind: sum(n for k, n in types.values() if k == kind) for kind, _ in types.values()}
    assert values["general.file_type"] == {"iq4_xs": 30, "q4_k": 14, "iq3_s": 26, "q5_k": 16}[max(sizes, key=lambda k: sizes[k])]
    capsys.readouterr()
    assert main(["show", str(out)]) == 0
    assert "--target-bpw 4.6 --tensor-type blk.0.*_q=q8_0\n" in (shown := capsys.readouterr().out) and f"{text.name} ({digest})" in shown


def test_divergence_is_that_of_the_decoded_weights(model: Path, tmp_path: Path) -> None:
    """The file's weights, decoded and in float arithmetic, diverge by no more than was asked: measured by numpy on the same chunk."""
    plain, tight = (quantize(model, tmp_path / f"{kld}.gguf", target("kld", kld)) for kld in (0.05, 0.005))
    assert plain.n_bytes < tight.n_bytes
    quantize(plain.path, tmp_path / "decoded.gguf", "F32", allow_requantize=True)
    with LLM(model, ctx=512, kv="f32") as a, LLM(tmp_path / "decoded.gguf", ctx=512, kv="f32") as b:
        chunk = split(a, TEXT, 512)[0]
        p, q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in (llm.logits(chunk)[32:].astype(np.float64) for llm in (a, b)))
    kld = (np.exp(p) * (p - q)).sum(axis=1).mean()
    assert 0.04 < kld <= 0.05 * 1.0001


@pytest.mark.parametrize("lines", [0, 5, 9])
def test_an_interrupted_run_ends_with_the_same_file(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int) -> None:
    """Stopped after some matrices, its last line cut off; what was measured is not measured again."""
    want = quantize(model, tmp_path / "want.gguf", target("bpw", 4.5)).path.read_bytes()
    monkeypatch.setenv("PYLLM_HOME", str(tmp_path / "home"))
    runs: list[int] = []

    def stop(done: int, total: int) -> None:
        runs.append(total)
        if total == N_MATRICES and done == lines:
            raise KeyboardInterrupt

    out = tmp_path / "out.gguf"
    with pytest.raises(KeyboardInterrupt):
        quantize(model, out, target("bpw", 4.5), measuring=stop)
    assert not out.exists()
    (state,) = (tmp_path / "home/sensitivity").glob("*.jsonl")
    assert len(state.read_text().splitlines()) == 1 + lines
    if lines:
        with open(state, "r+b") as f:
            f.truncate(state.stat().st_size - 9)
        lines -= 1
    runs.clear()
    quantize(model, out, target("bpw", 4.5), measuring=lambda done, total: runs.append(total))
    assert runs == [N_MATRICES - lines] * (N_MATRICES - lines + 1)
    assert out.read_bytes() == want
    runs.clear()
    quantize(model, out, target("size", 600_000), measuring=lambda done, total: runs.append(total))
    assert not runs                                         # all is known


def test_dry_run_writes_no_model(model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quantize", str(model), str(tmp_path / "out.gguf"), "--target-size", "0.6MB", "--calibration", str(text)]
    assert main([*arguments, "--dry-run"]) == 0 and not list(tmp_path.iterdir())
    out = capsys.readouterr().out
    assert main(arguments) == 0
    assert f"({(tmp_path / 'out.gguf').stat().st_size} bytes)" in out
    for name, (kind, n) in matrices(tmp_path / "out.gguf").items():
        assert any(line.split()[0] == name and line.split()[-2:] == [kind.upper(), str(n)] for line in out.splitlines()[1:-2])


@pytest.mark.parametrize(("arguments", "status", "says"), [
    ([], 2, "give either TYPE or one of --target-size, --target-bpw, --target-kld"),
    (["Q4_K_M", "--target-bpw", "4", "--calibration", "T"], 2, "give either TYPE or"),
    (["--target-kld", "0.1", "--target-bpw", "4", "--calibration", "T"], 2, "give either TYPE or"),
    (["--target-bpw", "4"], 2, "a target needs a text"), (["Q4_K_M", "--calibration", "T"], 2, "belongs to a target"),
    (["--target-bpw", "4", "--calibration", "T", "--pure"], 2, "--pure is one type"),
    (["--target-bpw", "four", "--calibration", "T"], 2, "'four' is not a number above 0"),
    (["--target-kld", "0", "--calibration", "T"], 2, "'0' is not a number above 0"),
    (["--target-size", "2XB", "--calibration", "T"], 2, "'2XB' is not a size"),
    (["--target-size", "2i", "--calibration", "T"], 2, "'2i' is not a size"),
    (["--target-size", "10kB", "--calibration", "T"], 1, "the smallest types take"),
    (["--target-bpw", "2", "--calibration", "T"], 1, "the smallest types take"),
    (["--target-kld", "1e-12", "--calibration", "T"], 1, "cannot be reached"),
    (["--target-bpw", "4", "--calibration", "nothing"], 1, "--calibration takes the path"),
    (["--target-bpw", "4", "--calibration", "SHORT"], 1, "the text has 7 tokens, one chunk is 512")])
def test_what_cannot_be(model: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str],
                        status: int, says: str) -> None:
    (tmp_path / "short").write_text("abc")
    words = {"T": str(text), "SHORT": str(tmp_path / "short")}
    try:
        assert main(["quantize", str(model), str(tmp_path / "out.gguf"), *(words.get(a, a) for a in arguments)]) == status
    except SystemExit as e:
        assert e.code == status
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out.gguf").exists()


def test_what_cannot_be_measured(model: Path, tmp_path: Path) -> None:
    quantize(model, tmp_path / "q4.gguf", "Q4_K_M")
    with pytest.raises(errors.ArgumentError, match=r"is Q\d_K; a target needs a source in F32, F16, BF16, Q8_0"):
        quantize(tmp_path / "q4.gguf", tmp_path / "out.gguf", target("bpw", 3))
    with pytest.raises(errors.ArgumentError, match="either a mix or a target"):
        quantize(model, tmp_path / "out.gguf", Options())
    with pytest.raises(errors.ArgumentError, match="there is no target weight"):
        Target("weight", 3, b"", "")


def test_a_run_in_two_parts_gives_the_bits_of_a_whole_one(model: Path) -> None:
    """Cut before any step of the tape, with several batches of a sequence."""
    def logits(e: Engine, first: int, last: int, before: list[Any], after: list[Any]) -> list[np.ndarray]:
        seq, found = e.open_seq(), []
        assert seq is not None
        for tokens, b, a in zip(batches, before, after, strict=True):
            with e.part(first, last, b, a):
                n = e.step([(seq, tokens, min(len(tokens), 20))])
            found.append(e.logits[:n].copy())
        e.close_seq(seq)
        return found

    batches, nothing = [list(range(30)), list(range(40, 60)), [7]], [None] * 3
    with LLM(model, ctx=64, kv="f32") as llm:
        def check(e: Engine) -> None:
            want = logits(e, 0, e.n_steps, nothing, nothing)
            for step in range(1, e.n_steps):
                saved = [np.full(e.live(step) * len(b), np.nan, np.float32) for b in batches]
                logits(e, 0, step, nothing, saved)
                found = logits(e, step, e.n_steps, saved, nothing)
                assert all(np.array_equal(a, b) for a, b in zip(found, want, strict=True)), step
            with e.part(0, e.n_steps, None, None):
                pass
            for first, last in ((1, e.n_steps), (0, 1), (2, 2), (-1, 2), (0, e.n_steps + 1)):
                with pytest.raises(errors.ArgumentError, match="are no part of a tape"), e.part(first, last, None, None):
                    pass
            assert np.array_equal(logits(e, 0, e.n_steps, nothing, nothing)[1], want[1])

        llm.on_engine(check)


def test_types_are_measured_where_they_fit() -> None:
    assert sensitivity.fitting_types(640) == ["iq4_nl", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "f16"]
    assert sensitivity.fitting_types(256) == list(sensitivity.TYPES) and sensitivity.fitting_types(48) == ["f16"]
    assert all(row_bytes(type_id(kind), 256) for kind in sensitivity.TYPES)
