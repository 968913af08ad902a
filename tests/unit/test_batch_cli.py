"""pyllm batch: every request gets the server's answer under its custom_id, also when it was killed in between."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny_gguf

import pyllm
from pyllm import cli

TINY = {"n_layers": 1, "n_embd": 64, "n_ff": 64, "heads": 2, "kv_heads": 1, "ctx": 256}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("batch") / "tiny.gguf"
    path.write_bytes(tiny_gguf.llama("q8_0", **TINY)[0])
    return path


def request(i: int, **body: Any) -> dict[str, Any]:
    return {"custom_id": f"r{i}", "method": "POST", "url": "/v1/completions",
            "body": {"model": "any", "prompt": f"w{i % 7} w{i % 5}", "max_tokens": 5, "seed": i, "logprobs": 0, **body}}


def write(path: Path, requests: list[Any]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in requests))
    return path


def answers(path: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    assert all(line.keys() == {"id", "custom_id", "response", "error"} for line in lines)
    return {line["custom_id"]: line["response"] for line in lines}


def run(model: Path, *words: str) -> int:
    return cli.main(["batch", "-m", str(model), "--parallel", "3", *words])


def test_answers_and_errors(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [{**request(100), "method": "GET"}, {**request(101), "url": "/v1/models"}, request(102, prompt=5),
             {**request(103), "body": None}, request(104, prompt="w1 " * 300), request(105, stream=True), request(106, temperature="hot")]
    source = write(tmp_path / "in", [*(request(i) for i in range(20)), *wrong])
    assert run(model, str(source), str(tmp_path / "out")) == 1
    assert "20 answers and 7 errors" in capsys.readouterr().err
    got = answers(tmp_path / "out")
    with pyllm.LLM(model) as llm:
        for i in range(20):
            assert got[f"r{i}"]["status_code"] == 200
            want = llm.complete(f"w{i % 7} w{i % 5}", max_tokens=5, seed=i, temperature=1.0)
            assert got[f"r{i}"]["body"]["choices"][0]["finish_reason"] in ("length", "stop")
            assert got[f"r{i}"]["body"]["usage"]["prompt_tokens"] == want.usage.prompt_tokens
    for i in range(100, 107):
        assert got[f"r{i}"]["status_code"] == 400 and got[f"r{i}"]["body"]["error"]["message"]


def test_it_goes_on(model: Path, tmp_path: Path) -> None:
    """After any cut of the file of answers, the same command completes it, and asks nothing twice."""
    source, out = write(tmp_path / "in", [request(i) for i in range(8)]), tmp_path / "out"
    assert run(model, str(source), str(out)) == 0
    whole = out.read_bytes()
    want = {k: v["body"]["choices"] for k, v in answers(out).items()}
    for cut in (0, 5, len(whole) // 2, len(whole) - 1, len(whole)):
        out.write_bytes(whole[:cut])
        kept = whole[:whole[:cut].rfind(b"\n") + 1]
        assert run(model, str(source), str(out)) == 0
        assert out.read_bytes().startswith(kept) and {k: v["body"]["choices"] for k, v in answers(out).items()} == want


def test_killed(model: Path, tmp_path: Path) -> None:
    source, out = write(tmp_path / "in", [request(i, max_tokens=200) for i in range(300)]), tmp_path / "out"
    command = [sys.executable, "-m", "pyllm", "batch", "-m", str(model), "--parallel", "2", str(source), str(out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while (not out.exists() or out.stat().st_size < 3000) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = out.read_bytes()
    assert before and before.count(b"\n") < 300
    write(source, [request(i, max_tokens=200) for i in range(before.count(b"\n") + 5)])
    assert run(model, str(source), str(out)) == 0
    assert out.read_bytes().startswith(before[:before.rfind(b"\n") + 1])


@pytest.mark.parametrize(("lines", "words"), [
    ("{", "line 1"), ('{"custom_id": 5}', "line 1 is no request"), ("[]", "line 1 is no request"), ("[" * 100_000, "line 1"),
    ('{"custom_id": "a"}\n\n{"custom_id": "a"}', "line 3 has the custom_id of line 1")])
def test_wrong_files(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: str, words: str) -> None:
    (tmp_path / "in").write_text(lines)
    gc.collect()        # or what other tests left is finalized where the nested line has used up the stack
    assert run(model, str(tmp_path / "in"), str(tmp_path / "out")) == 1
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_other_files_are_not_touched(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in", [request(1)])
    for text in ("my notes\n", '{"custom_id": "a"}\n', "[]\n"):
        (tmp_path / "out").write_text(text)
        assert run(model, str(source), str(tmp_path / "out")) == 1
        assert "something else" in capsys.readouterr().err and (tmp_path / "out").read_text() == text
    assert run(model, str(source), str(source)) == 1
    assert run(model, str(tmp_path / "none"), str(tmp_path / "new")) == 1
    assert run(model, str(source), str(tmp_path / "no" / "folder")) == 1
