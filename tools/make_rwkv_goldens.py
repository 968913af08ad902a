"""Makes tests/golden/rwkv{5,6,7}.{json,npy}: tiny models with the shapes of published RWKV files, run token by token by
the `rwkv` package in float32; and, given rwkv.cpp's file tiny-rwkv-6v0-3m-Q5_1.bin, tests/golden/rwkv6-3m-q5_1.npy: what the package
makes of that file's weights after three bytes: a quotation mark, i and n.

    python tools/make_rwkv_goldens.py [FILE]    (needs torch, gguf and the rwkv package)

Weights come from tests/golden/write_gguf.py, as those of the other goldens do. Version 7 needs a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent.parent / "tests" / "golden"
_spec = importlib.util.spec_from_file_location("write_gguf", FOLDER / "write_gguf.py")
assert _spec and _spec.loader
write_gguf = importlib.util.module_from_spec(_spec)
sys.modules["write_gguf"] = write_gguf
_spec.loader.exec_module(write_gguf)

N_VOCAB, N, FF, HEADS, LAYERS, RANK, TOKENS = 256, 64, 96, 4, 3, 16, 40


def shapes(version: int) -> dict[str, list[int]]:
    found = {"emb.weight": [N_VOCAB, N], "head.weight": [N_VOCAB, N], "ln_out.weight": [N], "ln_out.bias": [N],
             "blocks.0.ln0.weight": [N], "blocks.0.ln0.bias": [N]}
    for i in range(LAYERS):
        att: dict[str, list[int]] = {f"{x}.weight": [N, N] for x in ("receptance", "key", "value", "output")}
        ffn: dict[str, list[int]] = {"key.weight": [FF, N], "value.weight": [N, FF]}
        if version < 7:
            ffn["receptance.weight"], att["gate.weight"] = [N, N], [N, N]
            att |= {"time_decay": [HEADS, N // HEADS] if version == 5 else [1, 1, N], "time_faaaa": [HEADS, N // HEADS]}
            mix, wanted = ("time_mix", "kvrg") if version == 5 else ("time_maa", "xwkvrg")
            att |= {f"{mix}_{x}": [1, 1, N] for x in wanted}
            ffn |= {f"{mix}_{x}": [1, 1, N] for x in "kr"}
        if version == 6:
            att |= {"time_maa_w1": [N, 5 * RANK], "time_maa_w2": [5, RANK, N], "time_decay_w1": [N, RANK], "time_decay_w2": [RANK, N]}
        if version == 7:
            ffn["x_k"] = [1, 1, N]
            att |= {f"x_{x}": [1, 1, N] for x in "rwkvag"} | {"k_k": [1, 1, N], "k_a": [1, 1, N], "r_k": [HEADS, N // HEADS]}
            for x in "wavg":
                att |= {f"{x}1": [N, RANK], f"{x}2": [RANK, N]} | ({f"{x}0": [1, 1, N]} if x != "g" else {})
        found |= {f"blocks.{i}.att.{name}": shape for name, shape in att.items()}
        found |= {f"blocks.{i}.ffn.{name}": shape for name, shape in ffn.items()}
        found |= {f"blocks.{i}.{ln}.{part}": [N] for ln in ("ln1", "ln2", "att.ln_x") for part in ("weight", "bias")}
    return found


def make(version: int) -> None:
    os.environ.update({"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "RWKV_V7_ON": str(int(version == 7))})
    from rwkv.model import RWKV

    name = f"rwkv{version}"
    ids = [(37 * i * i + 11 * i + 5) % N_VOCAB for i in range(TOKENS)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        weights = {key: torch.from_numpy(write_gguf.tensor(name, key, shape).copy()) for key, shape in shapes(version).items()}
        torch.save(weights, f"{path}.pth")
        model, state, rows = RWKV(model=str(path), strategy="cpu fp32"), None, list[Any]()
        for token in ids:
            logits, state = model.forward([token], state)
            rows.append(logits.numpy().copy())
    text = json.dumps({"hf_class": name, "config": {}, "shapes": shapes(version), "ids": ids, "ctx": None}, sort_keys=True)
    (FOLDER / f"{name}.json").write_text(text + "\n")
    np.save(FOLDER / f"{name}.npy", np.array(rows, np.float32))
    print(f"{name}: {len(rows)} rows, max |logit| {np.abs(rows).max():.2f}")


def make_dequantized(file: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    import convert_rwkv

    os.environ.update({"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "RWKV_V7_ON": "0"})
    from rwkv.model import RWKV

    weights = convert_rwkv.dequantized(file)
    weights |= {name: np.swapaxes(w, -1, -2) for name, w in weights.items() if convert_rwkv.PRODUCTS.search(name)}
    with tempfile.TemporaryDirectory() as folder:
        torch.save({name: torch.from_numpy(np.ascontiguousarray(w)) for name, w in weights.items()}, f"{folder}/model.pth")
        logits, _ = RWKV(model=f"{folder}/model", strategy="cpu fp32").forward(list(b'"in'), None)
    np.save(FOLDER / "rwkv6-3m-q5_1.npy", logits.numpy())


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1].isdigit():
        make(int(sys.argv[1]))
    elif sys.argv[1:]:
        make_dequantized(Path(sys.argv[1]))
    else:
        for one in (5, 6, 7):
            subprocess.run([sys.executable, __file__, str(one)], check=True)
