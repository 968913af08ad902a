"""Files that pyllm writes, in llama-cpp-python: it loads them, gives the same ids, follows the goldens by the rule of test_oracle.py, and
adds adapters as PEFT does. The peer is built by tools/bench_peers.py when it is first needed (10 to 20 minutes)."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import pytest
from conftest import ROOT, model_path
from numpy.typing import NDArray
from test_lora import Files
from test_oracle import GOLDEN, swaps

from pyllm import LLM
from pyllm.quantize import convert, quantize

pytestmark = pytest.mark.models
NAMES = ("smollm2", "gemma3-270m", "qwen2.5-coder-0.5b")

# Answers a line of JSON with a line: {"text"}: ids; {"ids", "adapters": [[path, scale], ...]}: a file with the logits [n, vocabulary].
PEER = r"""
import ctypes, json, sys
import numpy as np, llama_cpp as l
path, out, flash = sys.argv[1:]
params = l.llama_model_default_params()
params.use_extra_bufts = False      # its AMX kernels end the process on some machines
model = l.llama_model_load_from_file(path.encode(), params)
assert model, "does not load"
vocab = l.llama_model_get_vocab(model)
n_vocab = l.llama_vocab_n_tokens(vocab)
c = l.llama_context_default_params()
c.n_ctx = c.n_batch = c.n_ubatch = 512
c.n_threads = c.n_threads_batch = 2
c.type_k = c.type_v = 0
c.flash_attn_type = int(flash)
context = l.llama_init_from_model(model, c)
assert context
batch = l.llama_batch_init(512, 0, 1)
print("ready", flush=True)
for line in sys.stdin:
    case = json.loads(line)
    if "text" in case:
        text = case["text"].encode()
        ids = (l.llama_token * 512)()
        n = l.llama_tokenize(vocab, text, len(text), ids, 512, True, True)
        assert n >= 0
        print(json.dumps(list(ids[:n])), flush=True)
        continue
    loaded = [l.llama_adapter_lora_init(model, p.encode()) for p, _ in case["adapters"]]
    assert all(loaded), "an adapter does not load"
    if loaded:
        n = len(loaded)
        scales = (ctypes.c_float * n)(*[s for _, s in case["adapters"]])
        assert l.llama_set_adapters_lora(context, (l.llama_adapter_lora_p_ctypes * n)(*loaded), n, scales) == 0
    l.llama_memory_clear(l.llama_get_memory(context), True)
    ids = case["ids"]
    for i, token in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
    batch.n_tokens = len(ids)
    assert l.llama_decode(context, batch) == 0
    np.save(out, np.ctypeslib.as_array(l.llama_get_logits(context), (len(ids), n_vocab)))
    print("done", flush=True)
"""


class Peer:
    """llama-cpp-python with a file, in its own environment; keys and values in f32."""

    def __init__(self, python: str, model: Path, folder: Path, flash: bool = True) -> None:
        self._out = folder / "logits.npy"
        self._process = subprocess.Popen([python, "-I", "-c", PEER, str(model), str(self._out), str(int(flash))], text=True,
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert self._answer() == "ready"

    def logits(self, ids: list[int], adapters: Any = ()) -> NDArray[np.float32]:
        assert self._ask({"ids": ids, "adapters": [(str(path), scale) for path, scale in adapters]}) == "done"
        found: NDArray[np.float32] = np.load(self._out)
        return found

    def tokenize(self, text: str) -> list[int]:
        ids: list[int] = json.loads(self._ask({"text": text}))
        return ids

    def _ask(self, case: dict[str, Any]) -> str:
        assert self._process.stdin
        self._process.stdin.write(json.dumps(case) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="session")
def python() -> str:
    spec = importlib.util.spec_from_file_location("bench_peers", ROOT / "tools/bench_peers.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: str = module.peer_python("native")
    return found


@pytest.fixture(scope="module", params=NAMES)
def f16(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(name, F16 file that was converted from a checkpoint)"""
    folder = tmp_path_factory.mktemp("peer")
    checkpoints.from_gguf(model_path(request.param), folder / "checkpoint")
    convert(folder / "checkpoint", folder / "f16.gguf", n_threads=2)
    yield request.param, folder / "f16.gguf"
    for path in folder.rglob("*.*"):
        path.unlink()


@pytest.mark.parametrize("mix", ["F16", "Q8_0", "Q4_K_M"])
def test_peer_follows(f16: tuple[str, Path], mix: str, python: str, tmp_path: Path) -> None:
    """F16 and Q8_0 follow transformers' golden; of Q4_K_M, whose text is its own, the peer follows what pyllm says."""
    name, source = f16
    results = json.loads((GOLDEN / f"{name}-hf-greedy.json").read_text())["results"]
    path = source
    if mix != "F16":
        path = tmp_path / "quantized.gguf"
        quantize(source, path, mix, n_threads=2)
    with Peer(python, path, tmp_path) as peer, LLM(path, ctx=512, kv="f32") as llm:
        for r in results:
            assert peer.tokenize(r["prompt"]) == r["prompt_ids"]
            new = r["new_ids"]
            if mix == "Q4_K_M":
                new = list(llm.complete(r["prompt_ids"], temperature=0, max_tokens=len(new)).tokens)
            swaps(peer, r["prompt_ids"], new)       # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_peer_adds_adapters_as_peft_does(name: str, python: str, tmp_path: Path) -> None:
    """Two at once with their scales; phi3's joined matrices are not the peer's strength."""
    files = Files(name, tmp_path)
    with Peer(python, files.model, tmp_path, flash=False) as peer:
        plain = peer.logits(files.golden.ids)
        assert np.abs(plain - files.golden.logits).max() < 1e-3 * np.abs(files.golden.logits).max()
        assert files.worst(peer.logits(files.golden.ids, files.adapters)) < 1e-3
