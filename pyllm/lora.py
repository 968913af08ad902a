"""Low-rank adapters (LoRA, Hu et al., arXiv:2106.09685) beside a model: y = W x + scale * B (A x), computed at run time, so that quantized
weights stay as they are and several adapters can be in force at once.

An adapter's file is a GGUF with general.type "adapter" and, for every weight W [out, in] that it changes, W.lora_a [rank, in] and W.lora_b
[out, rank]; its own factor is adapter.lora.alpha / rank.
"""

from __future__ import annotations

import os
from math import isfinite
from typing import NoReturn

from . import errors
from .gguf import GGUF, Adapter


def attach(model: GGUF, path: str | os.PathLike[str], scale: float = 1.0) -> None:
    """Adds an adapter to an open model: its tensors, and what the tape's builder needs to know. scale: factor on all that it adds. Raises
    ArgumentError for a file that is no adapter or belongs to another model, FormatError for a damaged one."""
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not isfinite(scale):
        raise errors.ArgumentError(f"the scale of {os.fspath(path)!r} is {scale!r}, must be a number")
    with GGUF(path) as file:
        scales = _scales(file, model, float(scale))
    model.add(path, Adapter(f"lora{len(model.adapters)}:", scales))


def _scales(file: GGUF, model: GGUF, scale: float) -> dict[str, float]:
    """Factor by weight, of an adapter that fits the model."""
    if file.kv.get("general.type") != "adapter" or file.kv.get("adapter.type") != "lora":
        raise errors.ArgumentError(f"{file.path} is not a LoRA adapter\n"
                                   "hint: make one from a PEFT folder with: pyllm convert FOLDER OUT.gguf")
    if file.architecture != model.architecture:
        raise errors.ArgumentError(f"{file.path} is for models of architecture {file.architecture!r}, {model.path} is "
                                   f"{model.architecture!r}\nhint: an adapter fits the model that it was trained on")
    alpha = file.kv.get("adapter.lora.alpha")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not isfinite(alpha):
        _damaged(file, f"adapter.lora.alpha is {alpha!r}")
    found = {}
    for name in file.tensors:
        weight, _, half = name.rpartition(".lora_")
        if half not in ("a", "b") or not {f"{weight}.lora_a", f"{weight}.lora_b"} <= file.tensors.keys():
            _damaged(file, f"tensor {name} is not one of a pair")
        a, b = file.tensors[f"{weight}.lora_a"].shape, file.tensors[f"{weight}.lora_b"].shape
        base = model.tensors.get(weight)
        if base is None or len(a) != 2 or len(b) != 2 or a[1] != b[0] or base.shape != (a[0], b[1]):
            raise errors.ArgumentError(f"{file.path}: {weight} with A {list(a)} and B {list(b)} does not fit {model.path}, where it is "
                                       f"{'missing' if base is None else list(base.shape)}\n"
                                       "hint: an adapter fits the model that it was trained on")
        found[weight] = scale * (alpha / a[1])
    return found


def _damaged(file: GGUF, what: str) -> NoReturn:
    raise errors.FormatError(f"{file.path}: {what}\nhint: the file is damaged; convert the adapter again")
