"""Peak memory of a process that loads a model and generates: the file's bytes, the KV cache, and little else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
from conftest import model_path

CODE = """
import json, re, sys, pyllm
with pyllm.LLM(sys.argv[1], ctx=4096) as llm:
    reply = llm.complete("Once upon a time", temperature=0, max_tokens=64, logit_bias={llm.tokenizer.eos: float("-inf")})
    # Not getrusage: its peak is also the parent's, from between fork and exec.
    peak = int(re.search("VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
    print(json.dumps([len(reply.tokens), peak]))
"""


def kv_bytes(path: Path, ctx: int) -> int:
    """K and V in f16 of every layer, by the file's own metadata as the gguf package reads it."""
    fields = gguf.GGUFReader(path).fields
    arch = fields["general.architecture"].contents()
    layers, heads, kv_heads, width = (fields[f"{arch}.{key}"].contents() for key in (
        "block_count", "attention.head_count", "attention.head_count_kv", "embedding_length"))
    return int(layers * ctx * 2 * kv_heads * (width // heads) * 2)


@pytest.mark.parametrize("name", ["smollm2", pytest.param("qwen2.5-coder-1.5b", marks=pytest.mark.models)])
def test_peak_memory(name: str, tmp_path: Path) -> None:
    path = model_path(name)
    command = [sys.executable, "-c", CODE, str(path)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, timeout=300).stdout
    tokens, peak = json.loads(out)
    assert tokens == 64
    kv = kv_bytes(path, 4096)
    file = path.stat().st_size
    print(f"{name}: peak {peak / 1e6:.1f} MB, file {file / 1e6:.1f} MB, KV {kv / 1e6:.1f} MB")
    assert peak <= 1.04 * file + kv + 80e6
