"""A Hugging Face checkpoint as a source of GGUF tensors and metadata. What a family's checkpoints are like is said in models/."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from math import prod
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyllm import build, errors, hf, hparams
from pyllm.engine import plan_bytes
from pyllm.gguf import GGUF
from pyllm.models import stack_index

from . import modelcard, packed, sentences, vocab
from .fields import Field
from .folder import open_folder
from .source import TensorSource, n_rows
from .writer import TensorSpec, write_outline

_F32, _F16 = 0, 1


class Checkpoint:
    """A folder with config.json, weights and tokenizer files; a Source. Use it as a context manager or call close().

    Everything is checked before the first tensor is read: files, names, hyperparameters, shapes, and that the family's forward pass finds
    what it needs. name: general.name instead of the checkpoint's own; pre: the pre-tokenizer's name instead of the one that is recognised;
    vocab_only: no weights are read and none are given. Raises FileError, FormatError, UnsupportedModel, UnsupportedTokenizer.
    """

    def __init__(self, path: str | os.PathLike[str], *, name: str | None = None, pre: str | None = None, vocab_only: bool = False) -> None:
        self._folder = open_folder(path)
        self.name = self._folder.path.resolve().name
        self.files = self._folder.files
        try:
            where = f"{self._folder.path}/config.json"
            config = self._folder.json("config.json")
            if config is None:
                raise errors.FileError(f"{where} is missing\nhint: give the folder of a complete Hugging Face checkpoint")
            self.arch = hf.find_family(config, where)
            self.config = hf.text_config(config, self.arch)
            self.tensors: list[TensorSource] = [] if vocab_only else self._tensors(where)
            self.metadata: Mapping[str, Field] = self._metadata(where, name, pre)
            if not vocab_only:
                self._try_out()
        except BaseException:
            self.close()
            raise

    def _try_out(self) -> None:
        """Refuses what could not run: the header is written to a file whose data is a hole, and planned as any model is."""
        specs = [TensorSpec(t.name, t.dims, _F16 if len(t.dims) > 1 else _F32) for t in self.tensors]
        metadata = {key: field for key, field in self.metadata.items() if not key.startswith("tokenizer.")}
        given = {t.name: t.raw(0, 1).tobytes() for t in self.tensors if isinstance(t, Given)}
        with TemporaryDirectory(prefix="pyllm-") as folder:
            path = os.path.join(folder, "outline.gguf")
            try:
                write_outline(path, metadata, specs, given)
                with GGUF(path) as gguf:
                    plan_bytes(gguf, build.tape_text(gguf), threads=1, kv="f16", n_positions=16, parallel=1)
            except errors.Error as e:
                raise type(e)(str(e).replace(path, str(self._folder.path))) from e

    def checksum(self) -> str:
        """"sha256:" and the SHA-256 of the weight file; of several, that of their digests in order (in hexadecimal)."""
        digests = [file.checksum() for file in self._folder.weight_files]
        return "sha256:" + (digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest())

    def close(self) -> None:
        self._folder.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tensors(self, where: str) -> list[TensorSource]:
        stored = {name: part for name, part in self._folder.weights().items() if not self.arch.ignores(name)}
        stored |= sentences.dense(self._folder)
        weights = packed.weights(stored, self.config, self._folder.path)
        found: dict[str, TensorSource] = {}
        stacks: dict[str, dict[int, CheckpointTensor]] = {}
        for hf_name, weight in weights.items():
            for name in hf.gguf_names(hf_name, self.config, self.arch, str(self._folder.path)):
                entry = stack_index(hf_name)
                if name in found or (entry is not None and entry in stacks.get(name, {})):
                    raise errors.FormatError(f"{self._folder.path}: two tensors are {name}, one of them {hf_name}\n"
                                             "hint: the checkpoint is damaged; download it again")
                if not 1 <= len(weight.shape) <= 3 or not prod(weight.shape):
                    raise errors.FormatError(f"{self._folder.path}: tensor {hf_name} has the shape {list(weight.shape)}, which is no "
                                             "matrix and no vector\nhint: the checkpoint is damaged; download it again")
                part: packed.Weight = weight
                with checked(where):
                    heads = self.arch.heads(name, self.config)
                if heads:
                    part = packed.Heads(weight, *heads)
                with checked(where):
                    shape = self.arch.shape(name, part.shape, self.config)
                if shape != part.shape:
                    part = packed.Reshaped(part, shape)
                if self.arch.transposed(name) and not isinstance(weight, packed.MXFP4):
                    part = packed.Transposed(part)
                with checked(where):
                    order = self.arch.row_order(name, part.shape[-1 if by_element(name, part.shape) else -2], self.config)
                tensor = CheckpointTensor(name, part, order, self.arch.offset(name), self.arch.change(name))
                if entry is None:
                    found[name] = tensor
                else:
                    stacks.setdefault(name, {})[entry] = tensor
        found.update((name, Stack(name, parts, str(self._folder.path))) for name, parts in stacks.items())
        with checked(where):
            factors = hf.rope_tensors(self.config)
        for name, values in factors.items():
            found[name] = Given(name, np.array([values], np.float32))
        return list(found.values())

    def _metadata(self, where: str, name: str | None, pre: str | None) -> dict[str, Field]:
        with checked(where):
            keys = hf.metadata(self.config, self.arch)
            keys |= {f"{self.arch.name}.{key}": value for key, value in sentences.fields(self._folder).items()}
        rows = next((t.dims[1] for t in self.tensors if t.name == "token_embd.weight" and len(t.dims) == 2), None)
        if rows is None and type(self.config.get("vocab_size")) is int:
            rows = self.config["vocab_size"]
        hparams.read(keys, self.arch, where, n_vocab=rows or 0, n_ctx=None)
        n_params = sum(prod(t.dims) for t in self.tensors)
        card = modelcard.fields(self._folder, self.config, name, n_params)
        plain = {"general.architecture": self.arch.name, **card, **({f"{self.arch.name}.vocab_size": rows} if rows else {}), **keys}
        return {key: Field.of(value) for key, value in plain.items()} | vocab.fields(self._folder, self.config, rows, pre)


class checked:
    """Around what computes with the values of a config.json: an entry that is missing or no number becomes a FormatError."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: object) -> None:
        if isinstance(e, (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)) and not isinstance(e, errors.Error):
            what = f"the entry {e} is missing" if isinstance(e, KeyError) else f"an entry has a value that does not fit ({e})"
            raise errors.FormatError(f"{self._where}: {what}\nhint: the file is damaged or of a variant that is not known") from e


def by_element(name: str, shape: tuple[int, ...]) -> bool:
    """Whether the order of a tensor is that of its elements: of vectors, and of the biases of a stack."""
    return len(shape) == 1 or name.endswith(".bias")


class CheckpointTensor:
    """A weight under its GGUF name, with its rows in GGUF's order. order: the rows wanted, of each matrix of a stack; change: what becomes
    of its values. Stacks of one row are the kernels of convolutions, which GGUF has without the dimension between."""

    def __init__(self, name: str, weight: packed.Weight, order: NDArray[np.intp] | None, offset: float,
                 change: Callable[[NDArray[np.float32]], NDArray[np.float32]] | None = None) -> None:
        shape = weight.shape if len(weight.shape) < 3 or weight.shape[1] > 1 else (weight.shape[0], weight.shape[2])
        self._elements = by_element(name, shape)
        if order is not None:
            shape = (*shape[:-1], len(order)) if self._elements else (*shape[:-2], len(order), shape[-1])
        self.name, self.dims, self.cost = name, tuple(reversed(shape)), weight.cost
        self.type_id = weight.type_id if not offset and change is None else -1
        self._weight, self._order, self._offset, self._change = weight, order, np.float32(offset), change

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self._in_order(self._weight.read, begin, end)
        if self._offset:
            values += self._offset
        return values if self._change is None else self._change(values)

    def raw(self, begin: int, end: int) -> NDArray[np.uint8]:
        data: NDArray[np.uint8] = self._in_order(self._weight.raw, begin, end)
        return data

    def _in_order(self, read: Any, begin: int, end: int) -> Any:
        order = self._order
        if order is None or begin == end:
            return read(begin, end)
        if self._elements:
            values = read(begin, end).reshape(end - begin, self._weight.shape[-1], -1)
            return np.ascontiguousarray(values[:, order]).reshape(end - begin, -1)
        rows = np.arange(begin, end)
        wanted = rows // len(order) * self._weight.shape[-2] + order[rows % len(order)]
        first = int(wanted.min())                   # they lie close together: within the heads that begin and end touch
        return read(first, int(wanted.max()) + 1)[wanted - first]


class Stack:
    """Tensors of one shape, one after the other: the experts of a layer."""

    def __init__(self, name: str, parts: Mapping[int, CheckpointTensor], where: str) -> None:
        self._parts = [parts[i] for i in sorted(parts)]
        first = self._parts[0]
        if sorted(parts) != list(range(len(parts))) or any(p.dims != first.dims for p in self._parts):
            raise errors.FormatError(f"{where}: the {len(parts)} tensors of {name} are not numbered from 0 or differ in shape\n"
                                     "hint: the checkpoint is incomplete; download it again")
        self.name, self.dims, self.cost = name, (*first.dims, len(parts)), sum(p.cost for p in self._parts)
        self.type_id = first.type_id if all(p.type_id == first.type_id for p in self._parts) else -1
        self._rows = n_rows(first.dims)

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        return np.concatenate([part.read(a, b) for part, a, b in self._spans(begin, end)])

    def raw(self, begin: int, end: int) -> NDArray[np.uint8]:
        return np.concatenate([part.raw(a, b) for part, a, b in self._spans(begin, end)])

    def _spans(self, begin: int, end: int) -> Iterator[tuple[CheckpointTensor, int, int]]:
        """The parts that rows [begin, end) lie in, and which of their rows; for no rows the first part."""
        for i in range(begin // self._rows, max(-(-end // self._rows), begin // self._rows + 1)):
            at = i * self._rows
            yield self._parts[min(i, len(self._parts) - 1)], max(begin - at, 0), min(end - at, self._rows)


class Given:
    """A small tensor that is not read from anywhere: one row of f32."""

    def __init__(self, name: str, values: NDArray[np.float32]) -> None:
        self.name, self.dims, self.type_id, self.cost = name, (values.shape[1],), _F32, values.nbytes
        self._values = values

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        return np.array(self._values[begin:end])

    def raw(self, begin: int, end: int) -> NDArray[np.uint8]:
        return self.read(begin, end).view(np.uint8)
