"""Published tokenizers, converted: ids are those of Hugging Face's library, or of tiktoken for files with ranks, on 10,000 texts each.

    python tools/fetch_tokenizers.py && pytest -m slow tests/unit/test_real_tokenizers.py
"""

from __future__ import annotations

import base64
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from test_convert_tokenizers import vocabulary_of, write
from tok_texts import texts

from pyllm import Tokenizer
from pyllm.catalogue import cache_dir
from pyllm.gguf import GGUF

# Family: the name that its rules have in GGUF files.
FAMILIES = {"llama3": "llama-bpe", "llama3_1": "llama-bpe", "qwen3": "qwen2", "gemma3": "default", "gemini": "default", "gpt4o": "gpt-4o",
            "gptoss": "gpt-4o", "gpt35turbo": "smaug-bpe", "deepseek_v3": "deepseek-v3", "deepseek_v4": "deepseek-v3", "llama2": "default"}


def fetched(name: str) -> Path:
    path = cache_dir() / "tokenizers" / name
    if not path.is_dir():
        pytest.skip(f"{path} is missing; fetch it with: python tools/fetch_tokenizers.py {name}")
    return path


def compare(ours: Callable[[str], list[int]], theirs: Callable[[str], list[int]]) -> None:
    seed = random.randrange(1 << 32)
    wrong = [text for text in texts(seed, 10_000) if ours(text) != theirs(text)]
    if wrong:
        short = min(wrong, key=len)
        pytest.fail(f"{len(wrong)} of 10,000 texts of seed {seed} differ; the shortest: {short!r}\n"
                    f"pyllm  {ours(short)}\noracle {theirs(short)}", pytrace=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_tokenizer_json(name: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer as HuggingFace

    for file in fetched(name).iterdir():
        shutil.copy(file, tmp_path)
    path = vocabulary_of(write(tmp_path))
    with GGUF(path) as file:
        assert file.kv["tokenizer.ggml.pre"] == FAMILIES[name]
    tokenizer, theirs = Tokenizer(path), HuggingFace.from_file(str(tmp_path / "tokenizer.json"))
    compare(lambda text: tokenizer.encode(text, add_special=False), lambda text: theirs.encode(text, add_special_tokens=False).ids)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["tekken_240718.json", "tekken_240911.json"])
def test_tekken(file: str, tmp_path: Path) -> None:
    tiktoken = pytest.importorskip("tiktoken", reason="pip install tiktoken")
    shutil.copy(fetched("tekken") / file, tmp_path / "tekken.json")
    table = json.loads((tmp_path / "tekken.json").read_bytes())
    n_special, size = table["config"]["default_num_special_tokens"], table["config"]["default_vocab_size"]
    ranks = {base64.b64decode(entry["token_bytes"]): entry["rank"] for entry in table["vocab"][:size - n_special]}
    theirs = tiktoken.Encoding("tekken", pat_str=table["config"]["pattern"], mergeable_ranks=ranks, special_tokens={})
    tokenizer = Tokenizer(vocabulary_of(write(tmp_path, config={"vocab_size": size})))
    assert [tokenizer.encode(t, add_special=False) for t in ("<s>", "[INST]", "<SPECIAL_999>")] == [[1], [3], [999]]
    compare(lambda text: tokenizer.encode(text, add_special=False, parse_special=False),
            lambda text: [n_special + i for i in theirs.encode(text, disallowed_special=())])
