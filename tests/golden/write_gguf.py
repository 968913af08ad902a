"""Tiny models for tests: weights that follow from names alone, as Hugging Face checkpoints, and as the GGUF files that these become.

A golden is NAME.json (Hugging Face class, config, tensor shapes, token ids) and NAME.npy (the logits that transformers computes for
them; of encoders the last hidden states). The weights are not stored: SHAKE-256 of golden and tensor name gives them, the same bits for
the tool and for the tests.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = Path(__file__).parent
DTYPES = {"F32": "<f4", "F16": "<f2", "I32": "<i4", "U8": "u1"}      # of safetensors files, where numpy has the same


@dataclass(frozen=True)
class Golden:
    name: str
    hf_class: str
    config: dict[str, Any]
    shapes: dict[str, list[int]]
    ids: list[int]
    ctx: int | None         # context that the tape is written for
    logits: NDArray[np.float32]

    @property
    def weights(self) -> dict[str, NDArray[np.float32]]:
        return {name: tensor(self.name.partition(".")[0], name, shape) for name, shape in self.shapes.items()}


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.json"))      # a file of logits alone is no tiny model


def load(name: str) -> Golden:
    return Golden(name=name, logits=np.load(FOLDER / f"{name}.npy"), **json.loads((FOLDER / f"{name}.json").read_text()))


def tensor(golden: str, name: str, shape: list[int]) -> NDArray[np.float32]:
    """Uniform values: matrices of variance 1/inputs, embeddings of 1/16, norms around what leaves the input's size."""
    n = int(np.prod(shape))
    bits = np.frombuffer(hashlib.shake_256(f"{golden}/{name}".encode()).digest(4 * n), "<u4")
    u = ((bits >> 8).astype(np.float32) * np.float32(2**-23) - np.float32(1)).reshape(shape)
    rwkv_norm = golden.startswith("rwkv") and re.search(r"ln\w+\.\w+$", name)
    if "norm" in name or ".ln_" in name or "LayerNorm" in name or rwkv_norm:
        less_one = golden.startswith(("gemma", "nemotron", "qwen3next")) and ".linear_attn." not in name and golden != "gemma3n"
        return np.float32(0.3) * u + np.float32(0 if less_one or name.endswith("bias") else 1)
    if len(shape) == 1:
        return np.float32(0.5) * u
    return np.float32((3.0 / (16 if "embed" in name else shape[-1])) ** 0.5) * u


def write_gguf(path: Path, weights: Mapping[str, NDArray[np.float32]], config: Mapping[str, Any], hf_class: str) -> None:
    """An F32 GGUF of a checkpoint with a byte-fallback vocabulary, made by the converter; of RWKV's files by theirs."""
    if hf_class.startswith("rwkv"):
        sys.path.insert(0, str(FOLDER.parents[1] / "tools"))
        import convert_rwkv

        convert_rwkv.write(convert_rwkv.published(weights), path, hf_class, None, 4096, 64e-5)
        return
    from pyllm.quantize.convert import convert

    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), weights, config, hf_class)
        convert(folder, path, "F32", n_threads=1)


# ---- checkpoints ----

def write_checkpoint(folder: Path, weights: Mapping[str, NDArray[Any]], config: Mapping[str, Any], hf_class: str) -> None:
    folder.mkdir(exist_ok=True)
    write_safetensors(folder / "model.safetensors", {name: (dtype_of(w), w.shape, w.tobytes()) for name, w in weights.items()})
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [hf_class]}))
    (folder / "tokenizer.model").write_bytes(sentencepiece_model(config["vocab_size"]))


def dtype_of(values: NDArray[Any]) -> str:
    return next(name for name, code in DTYPES.items() if np.dtype(code) == values.dtype)


def write_safetensors(path: Path, tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    """tensors: name -> (dtype, shape, data)."""
    header, at = {}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors.values()))


def sentencepiece_model(size: int) -> bytes:
    """A sentencepiece BPE model, a protocol buffer: <unk>, <s>, </s>, all bytes, and words."""
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), *((f"<0x{b:02X}>", 0.0, 6) for b in range(256)),
              *((f"\u2581w{i}", -float(i), 1) for i in range(size - 259))]
    model = b"".join(_message(1, _message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + bytes([3 << 3, kind]))
                     for text, score, kind in pieces)
    return model + _message(2, bytes([3 << 3, 2]))


def _message(number: int, data: bytes) -> bytes:
    size = bytes([len(data)]) if len(data) < 128 else bytes([len(data) & 127 | 128, len(data) >> 7])
    return bytes([number << 3 | 2]) + size + data


# ---- adapters ----

RANK, ALPHA = 8, 16
ADAPTERS = {"one": 1.0, "two": 0.5}     # in force together, with these scales; tests/golden/lora has the logits of the merged models


def write_adapter(folder: Path, golden: Golden, adapter: str, dtype: str = "F32", **more: Any) -> None:
    """A PEFT folder with a LoRA of every linear layer of a golden's blocks. more: further entries of adapter_config.json."""
    folder.mkdir(exist_ok=True)
    tensors = {}
    modules = [name.removesuffix(".weight") for name, shape in golden.shapes.items() if ".layers." in name and len(shape) == 2]
    for module in modules:
        n_out, n_in = golden.shapes[f"{module}.weight"]
        for half, shape in (("A", (RANK, n_in)), ("B", (n_out, RANK))):
            name = f"base_model.model.{module}.lora_{half}.weight"
            tensors[name] = (dtype, shape, tensor(f"lora-{adapter}", name, list(shape)).astype(DTYPES[dtype]).tobytes())
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": golden.name, "r": RANK, "lora_alpha": ALPHA,
              "target_modules": sorted({m.rpartition(".")[2] for m in modules}), "bias": "none", "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(config | more))
