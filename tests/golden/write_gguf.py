"""Tiny models for tests: weights that follow from names alone, and their GGUF files through the maps in models/.

A golden is NAME.json (Hugging Face class, config, tensor shapes, token ids) and NAME.npy (the logits that transformers computes for
them). The weights are not stored: SHAKE-256 of golden and tensor name gives them, the same bits for the tool and for the tests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from pyllm import hf
from pyllm.models import families

FOLDER = Path(__file__).parent


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
    return sorted(path.stem for path in FOLDER.glob("*.npy"))


def load(name: str) -> Golden:
    return Golden(name=name, logits=np.load(FOLDER / f"{name}.npy"), **json.loads((FOLDER / f"{name}.json").read_text()))


def tensor(golden: str, name: str, shape: list[int]) -> NDArray[np.float32]:
    """Uniform values: matrices of variance 1/inputs, embeddings of 1/16, norms around what leaves the input's size."""
    n = int(np.prod(shape))
    bits = np.frombuffer(hashlib.shake_256(f"{golden}/{name}".encode()).digest(4 * n), "<u4")
    u = ((bits >> 8).astype(np.float32) * np.float32(2**-23) - np.float32(1)).reshape(shape)
    if "norm" in name:
        return np.float32(0.3) * u + np.float32(0 if golden.startswith("gemma") else 1)
    if len(shape) == 1:
        return np.float32(0.5) * u
    return np.float32((3.0 / (16 if "embed" in name else shape[1])) ** 0.5) * u


def write_gguf(path: Path, weights: Mapping[str, NDArray[np.float32]], config: Mapping[str, Any], hf_class: str) -> None:
    """An F32 GGUF of a checkpoint with a byte-fallback vocabulary."""
    arch = families()[hf_class]
    writer = gguf.GGUFWriter(path, arch.name)
    for key, value in hf.metadata(config, arch).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)]
        add(key, value)
    _add_vocabulary(writer, config["vocab_size"])
    for name, values in hf.tensors(weights.items(), config, arch):
        writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    words = size - 259      # after <unk>, <s>, </s> and the bytes
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *(f"\u2581w{i}" for i in range(words))])
    writer.add_token_scores([0.0] * 259 + [-float(i) for i in range(words)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * words)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
