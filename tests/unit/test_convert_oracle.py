"""Real models, converted: SmolLM2, Gemma and Qwen as Hugging Face checkpoints become F16 files that meet the teacher-forced rule of
test_oracle.py against transformers' own reading of the same checkpoint, and whose tokenizers are those of the original GGUF files."""

from __future__ import annotations

import json
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
import tok_texts
from conftest import ROOT, model_path
from test_oracle import GOLDEN, swaps

from pyllm import LLM, Tokenizer
from pyllm.gguf import GGUF
from pyllm.quantize.convert import convert

NAMES = ["smollm2", *(pytest.param(name, marks=pytest.mark.models) for name in ("gemma3-270m", "qwen2.5-coder-0.5b"))]


@pytest.fixture(scope="module", params=NAMES)
def converted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(name, F16 file)"""
    folder = tmp_path_factory.mktemp("hf")
    checkpoints.from_gguf(model_path(request.param), folder / "checkpoint")
    convert(folder / "checkpoint", folder / "f16.gguf", n_threads=2)
    return request.param, folder / "f16.gguf"


def test_greedy_follows_transformers(converted: tuple[str, Path]) -> None:
    name, path = converted
    golden = json.loads((GOLDEN / f"{name}-hf-greedy.json").read_text())["results"]
    assert len(golden) >= 3
    with LLM(path, ctx=512) as llm:
        for r in golden:
            swaps(llm, r["prompt_ids"], r["new_ids"])
            logits = llm.logits(r["prompt_ids"])[-1]
            top = {t["id"]: t["logit"] for t in r["first_step_top20"]}
            # What f16 weights, keys and values round off; 8-bit activations would show as ten times that.
            assert max(abs(logits[i] - x) for i, x in top.items()) < 2e-3 * max(map(abs, top.values()))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_checkpoints_that_transformers_writes(name: str, tmp_path: Path) -> None:
    """tools/make_checkpoint.py: shards, its config.json and its tokenizer.json. Needs the [oracle] extra."""
    library = pytest.importorskip("tokenizers")
    pytest.importorskip("transformers")
    folder, out = tmp_path / "checkpoint", tmp_path / "f16.gguf"
    command = [sys.executable, str(ROOT / "tools/make_checkpoint.py"), str(model_path(name)), str(folder), "--shard", "200MB"]
    subprocess.run(command, check=True, capture_output=True)
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    convert(folder, out, n_threads=2)
    with LLM(out, ctx=512) as llm:
        for r in json.loads((GOLDEN / f"{name}-hf-greedy.json").read_text())["results"]:
            swaps(llm, r["prompt_ids"], r["new_ids"])
        theirs = library.Tokenizer.from_file(str(folder / "tokenizer.json"))
        for text in tok_texts.texts(5, 200):
            assert llm.tokenizer.encode(text, add_special=False) == theirs.encode(text, add_special_tokens=False).ids, text


def test_tokenizer_is_the_original_one(converted: tuple[str, Path]) -> None:
    name, path = converted
    with GGUF(path) as ours, GGUF(model_path(name)) as theirs:
        for key in ("tokens", "token_type", "scores", "merges", "model", "pre"):
            a, b = (file.kv.get(f"tokenizer.ggml.{key}") for file in (ours, theirs))
            assert_equal(a, b, key)
        for key in ("bos", "eos", "unknown", "padding"):
            a, b = (file.kv.get(f"tokenizer.ggml.{key}_token_id") for file in (ours, theirs))
            assert a == b, key
        assert ours.kv.get("tokenizer.chat_template") == theirs.kv.get("tokenizer.chat_template")
    old, new = Tokenizer(model_path(name)), Tokenizer(path)
    for text in tok_texts.texts(4, 300):
        assert new.encode(text) == old.encode(text), text


def assert_equal(a: Any, b: Any, what: str) -> None:
    assert type(a) is type(b) and (a is None or len(a) == len(b)), what
    if isinstance(a, np.ndarray):
        np.testing.assert_array_equal(a, b, what)
    else:
        assert a == b, what


def test_vectors_of_hard_strings(converted: tuple[str, Path]) -> None:
    name, path = converted
    tokenizer = Tokenizer(path)
    vectors = json.loads((GOLDEN / "smollm2-tokenizer-vectors.json").read_text())
    assert len(vectors) == 14
    for v in vectors:
        if name == "smollm2":
            assert tokenizer.encode(v["text"], add_special=False) == v["hf_ids"], v["text"]
        kept = unicodedata.normalize("NFC", v["text"]) if name.startswith("qwen") else v["text"]        # as its tokenizer.json says
        assert tokenizer.decode(tokenizer.encode(v["text"], add_special=False), special=True) == kept
