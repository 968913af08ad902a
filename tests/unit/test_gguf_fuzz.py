"""A damaged header: every changed byte and every truncation gives a pyllm.Error or a model that runs, soon and in little memory,
with the C core under AddressSanitizer and UBSan."""

from __future__ import annotations

import json
import platform
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_gguf


def model_file(folder: Path, tied: bool) -> tuple[Path, int]:
    """A model of one layer, with what real files have in their headers: about 9 KB."""
    sizes = {"n_layers": 1, "n_embd": 32, "n_ff": 64, "heads": 2, "kv_heads": 1}
    kv = tiny_gguf.metadata(**sizes) | tiny_gguf.vocabulary() | {
        "general.type": "model", "general.tags": ["text-generation", "tiny"], "general.file_type": 7, "general.quantization_version": 2,
        "llama.vocab_size": tiny_gguf.N_VOCAB, "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.chat_template": "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "general.alignment": 32,
    }
    data, header = tiny_gguf.build(kv, tiny_gguf.tensors("q8_0", tiny_gguf.shapes(**sizes, tied=tied)))
    (folder / "tiny.gguf").write_bytes(data)
    return folder / "tiny.gguf", header


@pytest.mark.parametrize("n", [pytest.param(0, marks=pytest.mark.slow, id="all"), pytest.param(500, id="sample")])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_damaged_headers(sanitized: Callable[[str], dict[str, str]], tmp_path: Path, tied: bool, n: int) -> None:
    environment = sanitized("address,undefined")
    path, header = model_file(tmp_path, tied)
    assert 8000 < header < 10_000
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    # Older sanitizer runtimes do not know addresses as random as newer kernels make them.
    command = ["setarch", platform.machine(), "-R", sys.executable, str(Path(__file__).with_name("fuzz_driver.py")), str(path), str(header),
               str(n), str(seed)]
    env = environment | {"ASAN_OPTIONS": environment["ASAN_OPTIONS"] + ":quarantine_size_mb=32"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=4000, cwd=tmp_path, check=False)
    last = path.with_name(path.name + ".damaged.case").read_text()
    assert done.returncode == 0, f"at {last}: {done.stderr[-6000:]}"
    assert not done.stderr
    found = json.loads(done.stdout)
    print({k: v for k, v in found.items() if k != "wrong"})
    assert not found["wrong"], "\n".join(found["wrong"][:20])
    assert found["cases"] == (n or 3 * header - path.read_bytes()[:header].count(255))
    assert found["seen"]["ran"] > 0.05 * found["cases"] and found["seen"]["FormatError"] > 0.2 * found["cases"]
