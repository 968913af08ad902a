"""A checkpoint's weights as rows of floats, however they are stored: plain, as 8-bit or 4-bit floats with scales, or as GPTQ's packed
integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from pyllm import errors
from pyllm.gguf import dequantize

from .stored import DTYPES, FLOATS, Stored, widen
from .types import type_id

# What goes with a stored weight and is read with it, or is of no use here (scales of activations and of the KV cache).
_COMPANIONS = ("weight_scale", "weight_scale_inv", "scales", "qzeros", "g_idx", "input_scale", "activation_scale", "output_scale",
               "k_scale", "v_scale", "rotary_emb.inv_freq")
_MXFP4 = type_id("mxfp4")
_READABLE = ("fp8", "fbgemm_fp8", "gptq", "compressed-tensors", "mxfp4")


class Weight(Protocol):
    """A weight [n_rows, width] (vectors: one row). type_id: the GGUF type of raw(); -1: it has none and raw() is never called.
    cost: bytes that reading all of it moves."""

    shape: tuple[int, ...]
    type_id: int
    cost: int

    @property
    def parts(self) -> list[Stored]:
        """What it is read from, the largest first."""
        ...

    def read(self, begin: int, end: int) -> NDArray[np.float32]: ...
    def raw(self, begin: int, end: int) -> NDArray[np.uint8]: ...


class Plain:
    """F64, F32, F16 or BF16, or 8-bit floats without scales."""

    def __init__(self, stored: Stored) -> None:
        self.stored, self.shape, self.cost = stored, stored.shape, stored.n_bytes
        self.type_id = DTYPES[stored.dtype][1] if stored.dtype != "F64" else -1

    @property
    def parts(self) -> list[Stored]:
        return [self.stored]

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        return widen(self.stored.rows(begin, end), self.stored.dtype)

    def raw(self, begin: int, end: int) -> NDArray[np.uint8]:
        return self.stored.rows(begin, end).view(np.uint8)


class Scaled:
    """8-bit floats times scales: one for all, one a row, or one for every block of rows and columns."""

    type_id = -1

    def __init__(self, stored: Stored, scales: Stored, block: tuple[int, int]) -> None:
        if len(stored.shape) != 2:
            _fail(stored, f"is of shape {list(stored.shape)}, where scales go with matrices")
        self.stored, self.cost = stored, stored.n_bytes + scales.n_bytes
        self.shape: tuple[int, ...] = stored.shape
        self._scales = scales
        rows, width = stored.shape
        shape = scales.shape + (1,) * (2 - len(scales.shape))
        tiles = (-(-rows // block[0]), -(-width // block[1]))
        if shape == (1, 1):
            self._block = (max(rows, 1), max(width, 1))
        elif shape == (rows, 1):
            self._block = (1, max(width, 1))
        elif shape == tiles:
            self._block = block
        else:
            _fail(scales, f"is of shape {list(scales.shape)}: not one scale, one a row, or one for each of {tiles} blocks of {block}")

    @property
    def parts(self) -> list[Stored]:
        return [self.stored, self._scales]

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        values = widen(self.stored.rows(begin, end), self.stored.dtype)
        scales = widen(self._scales.rows(0, self._scales.n_rows), self._scales.dtype)
        height, width = self._block
        scales = scales.reshape(-1, -(-self.stored.width // width))[np.arange(begin, end) // height]
        for i in range(scales.shape[1]):
            values[:, i * width:(i + 1) * width] *= scales[:, i:i + 1]
        return values

    def raw(self, begin: int, end: int) -> NDArray[np.uint8]:
        raise NotImplementedError


class GPTQ:
    """GPTQ (Frantar et al., arXiv:2210.17323) as AutoGPTQ stores a matrix [out, in] of `bits`-bit integers, each group of inputs g with a
    scale and a zero point for every output: w[o, i] = (q[i, o] - z[g, o]) * scales[g, o], g = g_idx[i].

    qweight int32 [in * bits / 32, out]: the integers of a column one after another, low bits first, across words. qzeros int32
    [groups, out * bits / 32]: zero points the same way along a row, each stored as one less (modulo 2^bits) unless the format is gptq_v2.
    """

    type_id = -1

    def __init__(self, parts: Mapping[str, Stored], bits: int, group_size: int, zero_offset: int) -> None:
        self._q, self._z, self._scales, self._g_idx = parts["qweight"], parts["qzeros"], parts["scales"], parts.get("g_idx")
        self._bits, self._offset = bits, zero_offset
        for part in (self._q, self._z, self._scales):
            if len(part.shape) != 2 or part.dtype not in (("I32", "U32") if part is not self._scales else FLOATS):
                _fail(part, f"is {part.dtype} {list(part.shape)}, not a matrix as GPTQ stores it")
        words, n_out = self._q.shape
        self.shape: tuple[int, ...] = (n_out, words * 32 // bits)
        groups = self._scales.shape[0]
        if words * 32 % bits or n_out * bits % 32 or self._scales.shape != (groups, n_out) or self._z.shape != (groups, n_out * bits // 32):
            _fail(self._q, f"has the shape {list(self._q.shape)} of {bits}-bit integers; its scales {list(self._scales.shape)} and zero "
                           f"points {list(self._z.shape)} don't fit it")
        self._groups = self._group_of(self.shape[1], groups, group_size)
        self.cost = sum(p.n_bytes for p in self.parts)

    def _group_of(self, n_in: int, groups: int, group_size: int) -> NDArray[np.intp]:
        size = group_size if group_size > 0 else n_in
        found = np.arange(n_in) // size
        if self._g_idx is not None:
            if self._g_idx.shape != (n_in,) or self._g_idx.dtype not in ("I32", "I64"):
                _fail(self._g_idx, f"is {self._g_idx.dtype} {list(self._g_idx.shape)}, not the group of each of {n_in} inputs")
            found = self._g_idx.whole().astype(np.intp)
        if found.size and not 0 <= found.min() <= found.max() < groups:
            _fail(self._scales, f"has {groups} groups, and an input belongs to group {found.max()}")
        return found

    @property
    def parts(self) -> list[Stored]:
        return [self._q, self._scales, self._z, *([self._g_idx] if self._g_idx else [])]

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        bits = self._bits
        words = begin * bits // 32, -(-end * bits // 32)
        zeros = _unpack(self._z.columns(*words).astype(np.uint32).T, bits, begin * bits - words[0] * 32, end - begin)
        zeros = (zeros + np.uint32(self._offset)) & np.uint32((1 << bits) - 1)
        scales = widen(self._scales.columns(begin, end), self._scales.dtype)
        q = _unpack(self._q.columns(begin, end).astype(np.uint32), bits, 0, self.shape[1]).view(np.int32)
        q -= zeros.T.view(np.int32)[self._groups]
        values = q.astype(np.float32)
        values *= scales[self._groups]
        return np.ascontiguousarray(values.T)

    def raw(self, begin: int, end: int) -> NDArray[np.uint8]:
        raise NotImplementedError


class MXFP4:
    """4-bit floats with an 8-bit exponent for each 32, as gpt-oss's checkpoints have them: blocks u8 [..., rows, n, 16], of which each byte
    has two neighbours, the first in its low half; scales u8 [..., rows, n]. GGUF pairs values i and i + 16 of a block instead."""

    type_id = _MXFP4

    def __init__(self, blocks: Stored, scales: Stored) -> None:
        if len(blocks.shape) < 3 or blocks.shape[-1] != 16 or scales.shape != blocks.shape[:-1] or scales.dtype != "U8":
            _fail(blocks, f"is of shape {list(blocks.shape)} with scales {scales.dtype} {list(scales.shape)}: not blocks of 16 bytes")
        self._blocks, self._scales = blocks, scales
        self.shape: tuple[int, ...] = (*blocks.shape[:-2], blocks.shape[-2] * 32)
        self.cost = blocks.n_bytes + scales.n_bytes

    @property
    def parts(self) -> list[Stored]:
        return [self._blocks, self._scales]

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        return dequantize(self.type_id, self.raw(begin, end), (end - begin, self.shape[-1]))

    def raw(self, begin: int, end: int) -> NDArray[np.uint8]:
        n = self.shape[-1] // 32
        data = self._blocks.rows(begin * n, end * n)
        codes = np.stack([data & 15, data >> 4], axis=-1).reshape(len(data), 32)
        out = np.empty((len(data), 17), np.uint8)
        out[:, 0] = self._scales.rows(begin, end).ravel()
        out[:, 1:] = codes[:, :16] | codes[:, 16:] << 4
        return out.reshape(end - begin, -1)


class Heads:
    """Rows [begin, end) of each of n equal parts of a matrix, as a stack [n, end - begin, in]."""

    def __init__(self, weight: Weight, n: int, begin: int, end: int) -> None:
        part, over = divmod(weight.shape[0], n) if n > 0 else (0, 1)
        if len(weight.shape) != 2 or over or not 0 <= begin < end <= part:
            _fail(weight.parts[0], f"of shape {list(weight.shape)} is not {n} heads of at least {end} rows")
        self.shape: tuple[int, ...] = (n, end - begin, weight.shape[1])
        self.type_id, self.cost = weight.type_id, weight.cost * (end - begin) // part
        self._weight, self._part, self._begin = weight, part, begin

    @property
    def parts(self) -> list[Stored]:
        return self._weight.parts

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        return np.concatenate(list(self._pieces(self._weight.read, begin, end)))

    def raw(self, begin: int, end: int) -> NDArray[np.uint8]:
        return np.concatenate(list(self._pieces(self._weight.raw, begin, end)))

    def _pieces(self, read: Callable[[int, int], NDArray[Any]], begin: int, end: int) -> Iterator[NDArray[Any]]:
        n = self.shape[1]
        if begin == end:
            yield read(0, 0)
        while begin < end:
            head, row = divmod(begin, n)
            stop = min(end, (head + 1) * n)
            at = head * self._part + self._begin + row
            yield read(at, at + stop - begin)
            begin = stop


class Reshaped:
    """The same values in another shape; small tensors, which are read whole."""

    def __init__(self, weight: Weight, shape: tuple[int, ...]) -> None:
        self._weight, self.shape, self.type_id, self.cost = weight, shape, -1, weight.cost

    @property
    def parts(self) -> list[Stored]:
        return self._weight.parts

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        whole = self._weight.read(0, prod(self._weight.shape[:-1]))
        return np.ascontiguousarray(whole.reshape(-1, self.shape[-1])[begin:end])

    def raw(self, begin: int, end: int) -> NDArray[np.uint8]:
        raise NotImplementedError


class Transposed:
    """A weight that is stored as [..., in, out]. The matrix that was read last is kept until its last row was asked for."""

    type_id = -1

    def __init__(self, weight: Weight) -> None:
        if len(weight.shape) < 2:
            raise errors.FormatError(f"{weight.parts[0].file.path}: tensor {weight.parts[0].name!r} is no matrix\n"
                                     "hint: the checkpoint is damaged; download it again")
        *stack, n_in, n_out = weight.shape
        self.shape: tuple[int, ...] = (*stack, n_out, n_in)
        self.cost = weight.cost
        self._weight = weight
        self._held: tuple[int, NDArray[np.float32]] | None = None

    @property
    def parts(self) -> list[Stored]:
        return self._weight.parts

    def read(self, begin: int, end: int) -> NDArray[np.float32]:
        n_out, n_in = self.shape[-2:]
        pieces = []
        for i in range(begin // n_out, -(-end // n_out)):
            if self._held is None or self._held[0] != i:
                self._held = i, self._weight.read(i * n_in, (i + 1) * n_in)
            pieces.append(self._held[1][:, max(begin - i * n_out, 0):end - i * n_out].T)
        if end % n_out == 0:
            self._held = None
        return np.concatenate(pieces) if pieces else np.empty((0, n_in), np.float32)

    def raw(self, begin: int, end: int) -> NDArray[np.uint8]:
        raise NotImplementedError


def _unpack(words: NDArray[np.uint32], bits: int, first: int, n: int) -> NDArray[np.uint32]:
    """n integers of every column of words [w, columns], from bit `first` on: [n, columns]."""
    at = first + np.arange(n) * bits
    low, shift = at // 32, (at % 32).astype(np.uint32)[:, None]
    values: NDArray[np.uint32] = words[low] >> shift
    across = np.flatnonzero(shift[:, 0] + bits > 32)
    if across.size:
        values[across] |= words[low[across] + 1] << (32 - shift[across])
    values &= np.uint32((1 << bits) - 1)
    return values


def weights(stored: Mapping[str, Stored], config: Mapping[str, Any], path: Path) -> dict[str, Weight]:
    """A checkpoint's weights by name, what belongs together as one. Raises UnsupportedModel for forms that cannot be read."""
    quantization = config.get("quantization_config") or config.get("compression_config") or {}
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if quantization and method not in _READABLE:
        raise errors.UnsupportedModel(f"{path}: weights quantized by {method!r} cannot be read\n"
                                      "hint: fp8 with scales and gptq can; better, convert the original checkpoint")
    found: dict[str, Weight] = {}
    for name, tensor in stored.items():
        stem, _, kind = name.rpartition(".")
        if name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in stored:
            found[name.removesuffix("_blocks")] = MXFP4(tensor, stored[f"{name.removesuffix('_blocks')}_scales"])
        elif name.endswith("_scales") and f"{name.removesuffix('_scales')}_blocks" in stored:
            continue
        elif kind == "qweight":
            found[f"{stem}.weight"] = _gptq(stored, stem, quantization)
        elif name.endswith(tuple("." + c for c in _COMPANIONS)):
            continue
        elif tensor.dtype not in FLOATS:
            raise errors.UnsupportedModel(f"{tensor.file.path}: tensor {name!r} is {tensor.dtype}, not floats\n"
                                          "hint: the checkpoint is quantized in a form that cannot be read; convert the original")
        else:
            found[name] = _float(stored, tensor, quantization)
    return found


def _float(stored: Mapping[str, Stored], tensor: Stored, quantization: Mapping[str, Any]) -> Weight:
    scales = stored.get(f"{tensor.name}_scale_inv") or stored.get(f"{tensor.name}_scale")
    if scales is None or not tensor.dtype.startswith("F8"):
        return Plain(tensor)
    if scales.dtype not in FLOATS:
        _fail(scales, f"is {scales.dtype}: scales are floats")
    block = quantization.get("weight_block_size") or [128, 128]
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
        _fail(tensor, f"has scales for blocks of {block!r}")
    return Scaled(tensor, scales, (block[0], block[1]))


def _gptq(stored: Mapping[str, Stored], stem: str, quantization: Mapping[str, Any]) -> GPTQ:
    parts = {kind: stored[f"{stem}.{kind}"] for kind in ("qweight", "qzeros", "scales", "g_idx") if f"{stem}.{kind}" in stored}
    if quantization.get("quant_method") != "gptq":
        _fail(parts["qweight"], "is packed, but config.json does not say that it is gptq")
    if not {"qzeros", "scales"} <= parts.keys():
        _fail(parts["qweight"], "lacks its qzeros or scales")
    bits, group_size = quantization.get("bits"), quantization.get("group_size", -1)
    if type(bits) is not int or bits not in (2, 3, 4, 8) or type(group_size) is not int:
        raise errors.UnsupportedModel(f"{parts['qweight'].file.path}: gptq with {bits!r} bits in groups of {group_size!r} cannot be read\n"
                                      "hint: 2, 3, 4 and 8 bits can")
    return GPTQ(parts, bits, group_size, 0 if quantization.get("checkpoint_format") == "gptq_v2" else 1)


def _fail(tensor: Stored, what: str) -> NoReturn:
    raise errors.FormatError(f"{tensor.file.path}: tensor {tensor.name!r} {what}\n"
                             "hint: the checkpoint is damaged or of a form that is not known")
