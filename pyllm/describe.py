"""What a GGUF file is, told from its header alone: for listings, for choosing, and for files that this build cannot run."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from . import stores
from .gguf import GGUF

RECEIPT = "pyllm.receipt."      # begins the keys of pyllm.quantize.receipt
# general.file_type: the mix that a quantizer was asked for, by the id that GGUF files carry.
FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L",
    14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS",
    23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
    36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0",
}


@dataclass(frozen=True)
class Description:
    """bytes: of the file or all files of a split set; mix: tensor type to (number of tensors, bytes), most bytes first; empty strings and
    None: the file does not say; receipt: what pyllm.quantize wrote about its making, the keys behind pyllm.receipt., and who wrote it."""

    path: str
    bytes: int
    name: str
    architecture: str
    n_params: int
    quantization: str
    mix: dict[str, tuple[int, int]]
    n_ctx_train: int | None
    has_template: bool
    license: str
    receipt: dict[str, Any]


def describe(path: str | os.PathLike[str]) -> Description:
    """Reads the header. Raises FileError or FormatError."""
    with GGUF(path) as gguf:
        mix = _mix(gguf)
        file_type: Any = gguf.kv.get("general.file_type")
        ctx = gguf.kv.get(f"{gguf.architecture}.context_length")
        return Description(
            path=str(path), bytes=sum(p.stat().st_size for p in stores.part_paths(Path(path)) if p.is_file()),
            name=_text(gguf, "general.name"), architecture=gguf.architecture, n_params=sum(prod(t.shape) for t in gguf.tensors.values()),
            quantization=FILE_TYPES.get(file_type if isinstance(file_type, int) else -1) or next(iter(mix), "").upper(),
            mix=mix, n_ctx_train=ctx if isinstance(ctx, int) else None, has_template=bool(_text(gguf, "tokenizer.chat_template")),
            license=_text(gguf, "general.license.name") or _text(gguf, "general.license"), receipt=_receipt(gguf))


def _mix(gguf: GGUF) -> dict[str, tuple[int, int]]:
    mix: dict[str, tuple[int, int]] = {}
    for t in gguf.tensors.values():
        n, size = mix.get(t.type, (0, 0))
        mix[t.type] = (n + 1, size + t.n_bytes)
    return dict(sorted(mix.items(), key=lambda item: -item[1][1]))


def _receipt(gguf: GGUF) -> dict[str, Any]:
    found = {key.removeprefix(RECEIPT): gguf.kv[key] for key in gguf.kv if key.startswith(RECEIPT)}
    imatrix = {key.removeprefix("quantize."): gguf.kv[key] for key in gguf.kv if key.startswith("quantize.imatrix.")}
    return {"quantized_by": _text(gguf, "general.quantized_by"), **found, **imatrix} if found else {}


def _text(gguf: GGUF, key: str) -> str:
    value: Any = gguf.kv.get(key, "")
    return value if isinstance(value, str) else ""
