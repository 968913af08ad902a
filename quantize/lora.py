"""LoRA adapters of PEFT as GGUF files, in the layout of pyllm/lora.py, which llama.cpp has too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm import errors, hf
from pyllm._core import lib
from pyllm.models import stack_index

from . import folder, packed, pickles, pipeline, safetensors
from .checkpoint import CheckpointTensor, checked
from .fields import Field
from .quantizer import Result
from .source import TensorSource
from .stored import WeightFile
from .types import type_id

TYPES = ("F32", "F16", "BF16")
_PREFIX = "base_model.model."


class AdapterSource:
    """A PEFT folder (adapter_config.json, adapter_model.safetensors or .bin) as a Source. base: folder of the model that it was trained on,
    of which config.json alone is read; None: as adapter_config.json says, a folder or a repository in the hub's cache."""

    def __init__(self, path: str | os.PathLike[str], base: str | os.PathLike[str] | None = None) -> None:
        self._folder = folder.open_folder(path)
        self.name, self.files = self._folder.path.resolve().name, self._folder.files
        self._where = f"{self._folder.path}/adapter_config.json"
        self._file: WeightFile | None = None
        try:
            config = self._folder.json("adapter_config.json")
            if config is None:
                raise errors.FileError(f"{self._where} is missing\nhint: give the folder of a PEFT adapter")
            self._config = config
            self._check()
            self.arch, self._base = self._find_base(base)
            pairs = self._pairs()
            self.alpha = self._number("lora_alpha")
            self.tensors: list[TensorSource] = [t for name, pair in pairs.items() for t in self._tensors_of(name, pair["A"], pair["B"])]
        except BaseException:
            self.close()
            raise
        plain = {"general.architecture": self.arch.name, "general.type": "adapter", "general.name": self.name, "adapter.type": "lora",
                 "adapter.lora.alpha": self.alpha}
        self.metadata: Mapping[str, Field] = {key: Field.of(value) for key, value in plain.items()}

    def checksum(self) -> str:
        return "sha256:" + (self._file.checksum() if self._file else "")

    def close(self) -> None:
        self._folder.close()
        if self._file:
            self._file.close()

    def _check(self) -> None:
        """Refuses kinds of adapters that add something else than B A x."""
        c = self._config
        odd = [name for name in ("use_dora", "fan_in_fan_out", "lora_bias", "modules_to_save", "trainable_token_indices") if c.get(name)]
        if c.get("bias", "none") != "none":
            odd.append("bias")
        if c.get("peft_type") != "LORA" or odd:
            kind = f"{c.get('peft_type')!r}{' with ' if odd else ''}{', '.join(odd)}"
            raise errors.UnsupportedModel(f"{self._where}: adapters of type {kind} cannot be converted\nhint: plain LoRA can")

    def _find_base(self, base: str | os.PathLike[str] | None) -> tuple[Any, dict[str, Any]]:
        named = os.fspath(base) if base is not None else self._config.get("base_model_name_or_path")
        place = folder.local(named) if isinstance(named, str) else None
        config = folder.Folder(place).json("config.json") if place else None
        if config is None:
            raise errors.FileError(f"{self._where}: the base model {named!r} is not on this machine\n"
                                   "hint: give a folder with its config.json: --base FOLDER")
        arch = hf.find_family(config, f"{place}/config.json")
        return arch, hf.text_config(config, arch)

    def _pairs(self) -> dict[str, dict[str, packed.Plain]]:
        """A and B ("A", "B") of every module, by its name in the base checkpoint."""
        for name, read in (("adapter_model.safetensors", safetensors.read_header), ("adapter_model.bin", pickles.read_header)):
            if self._folder.has(name):
                self._file = WeightFile(self._folder.path / name)
                self.files.append(self._file.path)
                stored = read(self._file)
                break
        else:
            raise errors.FileError(f"{self._folder.path} has neither adapter_model.safetensors nor adapter_model.bin\n"
                                   "hint: give the folder of a PEFT adapter")
        found: dict[str, dict[str, packed.Plain]] = {}
        for name, tensor in stored.items():
            module, _, half = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".lora_")
            if half not in ("A", "B") or len(tensor.shape) != 2 or tensor.dtype not in ("F32", "F16", "BF16", "F64"):
                raise errors.UnsupportedModel(f"{self._file.path}: tensor {name} ({tensor.dtype} {list(tensor.shape)}) is no A or B of a "
                                              "linear layer\nhint: adapters of embeddings and other layers cannot be converted")
            found.setdefault(module, {})[half] = packed.Plain(tensor)
        lone = next((module for module, halves in found.items() if halves.keys() != {"A", "B"}), None)
        if lone is not None or not found:
            raise errors.FormatError(f"{self._file.path}: {f'{lone} lacks A or B' if lone else 'there is no adapter in it'}\n"
                                     "hint: the adapter is damaged; download it again")
        return found

    def _tensors_of(self, module: str, a: packed.Plain, b: packed.Plain) -> list[TensorSource]:
        name, *more = hf.gguf_names(f"{module}.weight", {}, self.arch, self._where)
        if more or stack_index(f"{module}.weight") is not None or self.arch.transposed(name):
            raise errors.UnsupportedModel(f"{self._where}: the adapter changes {module}, which cannot be adapted\n"
                                          "hint: train it on the attention and on dense feed-forward layers")
        rank = a.shape[0]
        if b.shape[1] != rank:
            raise errors.FormatError(f"{self._where}: {module} has A {list(a.shape)} and B {list(b.shape)}, whose ranks differ\n"
                                     "hint: the adapter is damaged; download it again")
        with checked(self._where):
            order = self.arch.row_order(name, b.shape[0], self._base)
            factor = self._scale(module, rank) / (self.alpha / rank)
        return [CheckpointTensor(f"{name}.lora_a", a, None, 0.0), Scaled(CheckpointTensor(f"{name}.lora_b", b, order, 0.0), factor)]

    def _scale(self, module: str, rank: int) -> float:
        """What PEFT multiplies B A x by: alpha / rank, with rank-stabilised LoRA alpha / sqrt(rank); alpha may differ between modules."""
        alpha = self.alpha
        patterns = self._config.get("alpha_pattern") or {}
        for pattern, value in patterns.items():
            if module == pattern or module.endswith("." + pattern):
                alpha = float(value)
        return alpha / rank ** 0.5 if self._config.get("use_rslora") else alpha / rank

    def _number(self, key: str) -> float:
        value = self._config.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e9:
            raise errors.FormatError(f"{self._where}: {key} is {value!r}\nhint: the file is damaged; download it again")
        return float(value)


class Scaled:
    """A tensor times a factor."""

    def __init__(self, tensor: CheckpointTensor, factor: float) -> None:
        self.name, self.dims, self.cost = tensor.name, tensor.dims, tensor.cost
        self.type_id = tensor.type_id if factor == 1 else -1
        self._tensor, self._factor = tensor, np.float32(factor)

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        values = self._tensor.read(begin, end)
        values *= self._factor
        return values

    def raw(self, begin: int, end: int) -> NDArray[np.uint8]:
        return self._tensor.raw(begin, end)


def is_adapter(path: str | os.PathLike[str]) -> bool:
    return (Path(path) / "adapter_config.json").is_file()


def convert_adapter(path: str | os.PathLike[str], out: str | os.PathLike[str], kind: str = "F16", *,
                    base: str | os.PathLike[str] | None = None, verify: bool = False) -> Result:
    """Writes the GGUF file of a PEFT folder. kind: F32, F16 or BF16; base: see AdapterSource. Raises as quantize() does."""
    if kind.upper() not in TYPES:
        raise errors.ArgumentError(f"an adapter cannot be {kind}\nhint: {', '.join(TYPES)}")
    source = AdapterSource(path, base)
    try:
        types = {t.name: type_id(kind) for t in source.tensors}
        written = pipeline.write(source, out, types, source.metadata, n_threads=lib.pyllm_threads_default(), verify=verify)
        return Result(written.path, written.n_bytes, dict.fromkeys(types, kind.lower()), source.checksum(), None, written.removed)
    finally:
        source.close()
