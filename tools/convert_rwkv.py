"""Converts RWKV 5.2, 6 and 7 models to GGUF: from the .pth files that they are published as, or from rwkv.cpp's .bin files.

    python tools/convert_rwkv.py MODEL.pth|MODEL.bin OUT.gguf [--vocab rwkv_vocab_v20230424.txt] [--ctx 4096]

--vocab: the World vocabulary, one `ID LITERAL LENGTH` a line; without it the model reads bytes, as models of 256 tokens do. Float
weights are written as F32, quantized ones as they are; `pyllm quantize` makes them smaller. Names are GGUF's for rwkv6 and rwkv7; rwkv5,
which has none of its own, takes those of rwkv6.
"""

from __future__ import annotations

import argparse
import ast
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pyllm import errors
from pyllm.llm import RWKV_WORLD
from pyllm.models import families
from pyllm.quantize import pickles
from pyllm.quantize.fields import Field
from pyllm.quantize.packed import Plain
from pyllm.quantize.stored import WeightFile
from pyllm.quantize.types import block, row_bytes
from pyllm.quantize.writer import TensorSpec, Writer

BIN_MAGIC, BIN_TYPES = 0x67676d66, {0: 0, 1: 1, 2: 2, 3: 3, 7: 6, 8: 7, 9: 8}      # rwkv.cpp's tensor types to GGUF's
F32, F16 = 0, 1

PRODUCTS = re.compile(r"att\.(time_maa_w[12]|time_decay_w[12]|[wavg][12])$")        # the published files have these as [in, out]


class Tensor(NamedTuple):
    """dims: the contiguous one first; type: GGUF's id."""

    dims: tuple[int, ...]
    type: int
    data: bytes

    @staticmethod
    def of(values: NDArray[Any]) -> Tensor:
        return Tensor(values.shape[::-1], F32, np.ascontiguousarray(values, np.float32).tobytes())

    @property
    def values(self) -> NDArray[np.float32]:
        return np.frombuffer(self.data, np.float16 if self.type == F16 else np.float32).astype(np.float32).reshape(self.dims[::-1])


def read_bin(path: Path) -> dict[str, Tensor]:
    """rwkv.cpp's files: a header of six numbers, then for each tensor its dimensions, type and name, and its data."""
    data = path.read_bytes()
    magic, version = struct.unpack_from("<2I", data)
    if magic != BIN_MAGIC or version not in (100, 101):
        raise errors.FormatError(f"{path} is no model of rwkv.cpp")
    at, found = 24, {}
    while at < len(data):
        n_dims, n_name, kind = struct.unpack_from("<3I", data, at)
        dims = struct.unpack_from(f"<{n_dims}I", data, at + 12)
        at += 12 + 4 * n_dims
        name = data[at:at + n_name].decode()
        kind = BIN_TYPES[kind]
        size = row_bytes(kind, dims[0]) * int(np.prod(dims[1:], dtype=np.int64))
        found[name] = Tensor(dims, kind, data[at + n_name:at + n_name + size])
        at += n_name + size
    for name in [n for n in found if n.endswith("att.time_decay") and "blocks.0.att.time_maa_x" not in found]:
        found[name] = Tensor.of(np.log(-np.log(found[name].values.astype(np.float64))))     # of RWKV 5 it is kept as what states decay by
    return found


def dequantized(path: Path) -> dict[str, NDArray[np.float32]]:
    """The weights of one of rwkv.cpp's files as the gguf package reads their types: for tests."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    def values(t: Tensor) -> NDArray[np.float32]:
        return dequantize(np.frombuffer(t.data, np.uint8).reshape(*t.dims[:0:-1], -1), GGMLQuantizationType(t.type))

    return {name: t.values if block(t.type)[0] == 1 else values(t) for name, t in read_bin(path).items()}


def read_pth(path: Path) -> dict[str, Tensor]:
    """What PyTorch saved, without running anything in it."""
    file = WeightFile(path)
    try:
        return published({name: Plain(t).read(0, t.n_rows).reshape(t.shape) for name, t in pickles.read_header(file).items()})
    finally:
        file.close()


def published(weights: Mapping[str, NDArray[np.float32]]) -> dict[str, Tensor]:
    """Tensors in the form of GGUF from those of a published file."""
    found = {name: Tensor.of(np.swapaxes(w, -1, -2) if PRODUCTS.search(name) else w) for name, w in weights.items()}
    for i in range(sum(name.endswith(".ln1.weight") for name in found)):
        parts = [found.pop(f"blocks.{i}.att.x_{x}", None) for x in "rwkvag"]
        if parts[0]:
            found[f"blocks.{i}.att.x_rwkvag"] = Tensor.of(np.stack([p.values.reshape(1, -1) for p in parts if p]))
    return found


def shaped(name: str, values: NDArray[np.float32]) -> NDArray[np.float32]:
    """As readers of GGUF expect it: vectors have one dimension, those that are mixed by four."""
    if name.endswith("x_rwkvag"):
        return values.reshape(-1, 1, 1, values.shape[-1])
    if name.endswith("time_faaaa"):
        return values.reshape([n for n in values.shape if n > 1])
    return values.ravel() if name.endswith(("time_decay", "r_k")) or sum(n > 1 for n in values.shape) < 2 else values


def gguf_name(name: str, version: int) -> str:
    found = families()[f"rwkv{version}"].gguf_names(name)
    if not found:
        raise errors.UnsupportedModel(f"tensor {name} is not part of RWKV {version} as described in models/")
    return found[0]


def version_of(tensors: Mapping[str, Tensor]) -> int:
    return 7 if "blocks.0.att.x_rwkvag" in tensors else 6 if "blocks.0.att.time_maa_x" in tensors else 5


def metadata(tensors: Mapping[str, Tensor], version: int, ctx: int, group_eps: float) -> dict[str, Any]:
    """Hyperparameters from the shapes. Heads are what time_faaaa or r_k is cut into. group_eps: of the norm of version 5's heads, which
    rwkv.cpp computes with another one than the models were trained with."""
    cut = tensors["blocks.0.att.r_k" if version == 7 else "blocks.0.att.time_faaaa"].dims
    n_embd, n_heads = tensors["emb.weight"].dims[0], cut[1] if len(cut) < 3 else cut[2]
    found = {"context_length": ctx, "embedding_length": n_embd, "block_count": sum(name.endswith(".ln1.weight") for name in tensors),
             "feed_forward_length": tensors["blocks.0.ffn.key.weight"].dims[1], "attention.head_count": 0,
             "attention.layer_norm_epsilon": 1e-5, "wkv.head_size": n_embd // n_heads}
    if version == 5:
        found["attention.group_norm_epsilon"] = group_eps
    if version == 6:
        found |= {"rescale_every_n_layers": 0, "time_mix_extra_dim": tensors["blocks.0.att.time_maa_w1"].dims[1] // 5,
                  "time_decay_extra_dim": tensors["blocks.0.att.time_decay_w1"].dims[1]}
    if version == 7:
        found |= {f"attention.{name}_lora_rank": tensors[f"blocks.1.att.{x}1"].dims[1]
                  for name, x in (("decay", "w"), ("iclr", "a"), ("value_residual_mix", "v"), ("gate", "g"))}
    return {f"rwkv{version}.{key}": value for key, value in found.items()}


def vocabulary(path: Path | None, n: int) -> dict[str, Any]:
    """Tokens as Python writes bytes, which is how GGUF files have those of RWKV."""
    if path is None:
        tokens = [bytes([i]) for i in range(256)]
        kinds = [1] * 256
    else:
        tokens, kinds = [b"<s>"], [3]
        for line in path.read_text("utf-8").splitlines():
            literal = ast.literal_eval(line[line.index(" "):line.rindex(" ")].strip())
            tokens.append(literal.encode() if isinstance(literal, str) else literal)
            kinds.append(1)
    if len(tokens) > n:
        raise errors.ArgumentError(f"the vocabulary has {len(tokens)} tokens, the model {n}")
    texts = [repr(t)[2:-1] for t in tokens] + [f"[PAD{i}]" for i in range(len(tokens), n)]
    return {"tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": texts,
            "tokenizer.ggml.token_type": kinds + [5] * (n - len(tokens)), "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 0, "tokenizer.chat_template": RWKV_WORLD,
            **({"tokenizer.ggml.eot_token_id": tokens.index(b"\n\n")} if b"\n\n" in tokens else {})}


def main() -> None:
    parser = argparse.ArgumentParser(description="Converts RWKV models to GGUF.")
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocab", type=Path)
    parser.add_argument("--ctx", type=int, default=4096, help="tokens that it was trained for (default: 4096)")
    options = parser.parse_args()
    convert(options.model, options.out, options.vocab, options.ctx)


def convert(model: Path, out: Path, vocab: Path | None = None, ctx: int = 4096) -> None:
    if model.suffix == ".bin":
        write(read_bin(model), out, model.stem, vocab, ctx, 1e-5, [model])
    else:
        write(read_pth(model), out, model.stem, vocab, ctx, 64e-5, [model])


def write(tensors: Mapping[str, Tensor], out: Path, name: str, vocab: Path | None, ctx: int, group_eps: float,
          inputs: Sequence[Path] = ()) -> None:
    version = version_of(tensors)
    kv = {"general.architecture": f"rwkv{version}", "general.name": name, "general.type": "model",
          **metadata(tensors, version, ctx, group_eps), **vocabulary(vocab, tensors["emb.weight"].dims[1])}
    written = {gguf_name(key, version): t if block(t.type)[0] > 1 else Tensor.of(shaped(key, t.values)) for key, t in tensors.items()}
    for i in range(3):              # readers expect them in the first layer, too, where they are not used
        if version == 7 and f"blk.0.time_mix_v{i}.weight" not in written:
            written[f"blk.0.time_mix_v{i}.weight"] = written[f"blk.0.time_mix_a{i}.weight"]
    specs = [TensorSpec(name, t.dims, t.type) for name, t in written.items()]
    with Writer(out, {key: Field.of(value) for key, value in kv.items()}, specs, inputs) as writer:
        for t in written.values():
            writer.write(t.data)
        writer.commit()


if __name__ == "__main__":
    main()
