"""Weights of checkpoints as they are published: whole and sharded safetensors, PyTorch's .bin, 8-bit floats with scales, GPTQ. Each becomes
the tensors of an independent dequantization. Damaged and hostile files end in a typed error, leave nothing behind, and run nothing."""

from __future__ import annotations

import collections
import io
import json
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import bf16, goldens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch_files import Assembler, archive

from pyllm import errors
from pyllm.gguf import GGUF
from pyllm.quantize.convert import convert
from pyllm.quantize.pickles import read_header as read_pickle
from pyllm.quantize.safetensors import read_header
from pyllm.quantize.stored import WeightFile

Floats = NDArray[np.float32]
Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]      # (dtype, shape, data) by name
LLAMA = goldens.load("llama")


def plain(weights: dict[str, Floats]) -> Tensors:
    return {name: ("F32", w.shape, w.tobytes()) for name, w in weights.items()}


def folder(path: Path, tensors: Tensors | None = None, **config: Any) -> Path:
    """A checkpoint of the golden llama; tensors: instead of its own."""
    goldens.write_checkpoint(path, LLAMA.weights, LLAMA.config | config, LLAMA.hf_class)
    if tensors is not None:
        goldens.write_safetensors(path / "model.safetensors", tensors)
    return path


def converted(path: Path, kind: str = "F32") -> dict[str, Floats]:
    """Every tensor of a folder's GGUF file."""
    out = path.parent / f"{path.name}.gguf"
    convert(path, out, kind, n_threads=1, verify=True)
    with GGUF(out) as file:
        return {name: file.read(name) for name in file.tensors}


def assert_same(a: dict[str, Floats], b: dict[str, Floats]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], name)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Floats]:
    """The golden's own tensors in GGUF's order."""
    return converted(folder(tmp_path_factory.mktemp("plain") / "plain"))


# ---- containers ----

def test_shards(tmp_path: Path, wanted: dict[str, Floats]) -> None:
    path, tensors = folder(tmp_path / "sharded"), list(plain(LLAMA.weights).items())
    (path / "model.safetensors").unlink()
    places = {}
    for i in range(3):
        name, part = f"model-{i + 1:05}-of-00003.safetensors", dict(tensors[i::3])
        goldens.write_safetensors(path / name, part)
        places |= dict.fromkeys(part, name)
    index = path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    assert_same(converted(path), wanted)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"weight_map": {**places, "x": "model-00001-of-00003.safetensors"}}, "has no tensor"),
        ({"weight_map": {**places, "x": "../model.safetensors"}}, "no weight_map of file names"),
        ({"weight_map": {**places, "x": "/etc/passwd"}}, "no weight_map of file names"),
        ({"weight_map": {**places, "x": 5}}, "no weight_map of file names"), ({"weight_map": []}, "no weight_map"), ({}, "no weight_map"),
        ({"weight_map": {**places, "x": "gone.safetensors"}}, "No such file")]
    for table, says in bad:
        index.write_text(json.dumps(table))
        refused(path, says)


def refused(path: Path, says: str = "", kinds: tuple[type[errors.Error], ...] = (errors.Error,)) -> str:
    """The message with which a folder is refused; nothing is left in it or beside it."""
    before = sorted(p.name for p in (*path.iterdir(), *path.parent.iterdir()))
    with pytest.raises(kinds, match=says or None) as caught:
        convert(path, path.parent / "refused.gguf", "F16", n_threads=1)
    assert sorted(p.name for p in (*path.iterdir(), *path.parent.iterdir())) == before
    assert caught.value.hint
    return str(caught.value)


def test_types_of_floats(tmp_path: Path) -> None:
    """The GGUF file holds the values that the checkpoint's type can hold, F16 and BF16 files the same bits."""
    for kind in ("F16", "BF16", "F64"):
        tensors: Tensors = {}
        rounded = {}
        for name, w in LLAMA.weights.items():
            data = bf16(w) if kind == "BF16" else w.astype({"F16": "<f2", "F64": "<f8"}[kind]).tobytes()
            tensors[name] = (kind, w.shape, data)
            rounded[name] = (np.frombuffer(data, "<u2").astype("<u4") << 16).view("<f4").reshape(w.shape) if kind == "BF16" else \
                w.astype("<f2" if kind == "F16" else "<f4").astype(np.float32)
        want = converted(folder(tmp_path / f"{kind}-plain", plain(rounded)))
        path = folder(tmp_path / kind, tensors)
        assert_same(converted(path), want)
        if kind != "F64":
            assert_same(converted(path, kind), want)


# ---- 8-bit floats ----

def e4m3(code: int) -> float:
    """Sign, 4 bits of exponent (bias 7), 3 of fraction; no infinities. Source: the OCP specification of 8-bit floats."""
    sign, e, m = -1.0 if code & 128 else 1.0, code >> 3 & 15, code & 7
    return sign * (m / 8 * 2.0**-6 if e == 0 else (1 + m / 8) * 2.0 ** (e - 7))


def e5m2(code: int) -> float:
    sign, e, m = -1.0 if code & 128 else 1.0, code >> 2 & 31, code & 3
    return sign * (m / 4 * 2.0**-14 if e == 0 else (1 + m / 4) * 2.0 ** (e - 15))


def fp8(codes: NDArray[np.uint8], decode: Callable[[int], float]) -> Floats:
    return np.array([decode(c) for c in codes.ravel().tolist()], np.float32).reshape(codes.shape)


def is_linear(name: str) -> bool:
    return ".layers." in name and name.endswith("proj.weight")


# scales of a matrix [rows, width] in blocks of 16 x 24, a row, or the whole
SCALINGS: dict[str, Callable[[int, int], tuple[int, ...]]] = {
    "blocks": lambda rows, width: (-(-rows // 16), -(-width // 24)), "rows": lambda rows, width: (rows, 1), "one": lambda rows, width: (1,),
    "scalar": lambda rows, width: ()}


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("dtype", "decode", "most"), [("F8_E4M3", e4m3, 0x7e), ("F8_E5M2", e5m2, 0x7b)])
def test_fp8(tmp_path: Path, dtype: str, decode: Callable[[int], float], most: int, scaling: str) -> None:
    rng, tensors, values = np.random.default_rng(3), plain(LLAMA.weights), dict(LLAMA.weights)
    for name, (_, shape, _) in list(tensors.items()):
        if not is_linear(name):
            continue
        rows, width = shape
        codes = (rng.integers(0, most + 1, shape) | rng.integers(0, 2, shape) << 7).astype(np.uint8)
        scales = rng.uniform(1e-4, 1e-3, SCALINGS[scaling](rows, width)).astype(np.float32)
        spread = np.broadcast_to(scales.reshape(scales.shape + (1,) * (2 - scales.ndim)) if scaling != "blocks" else
                                 np.kron(scales, np.ones((16, 24), np.float32))[:rows, :width], shape)
        values[name] = fp8(codes, decode) * spread
        tensors[name] = (dtype, shape, codes.tobytes())
        tensors[f"{name}_scale_inv" if scaling == "blocks" else f"{name}_scale"] = ("F32", scales.shape, scales.tobytes())
        tensors[name.replace("weight", "input_scale")] = ("F32", (), bytes(4))       # of activations: no use here
    method = {"quant_method": "fp8", "weight_block_size": [16, 24]} if scaling == "blocks" else {"quant_method": "compressed-tensors"}
    path = folder(tmp_path / "fp8", tensors, quantization_config=method)
    assert_same(converted(path), converted(folder(tmp_path / "plain", plain(values))))


def test_fp8_without_scales_and_with_wrong_ones(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    rows, width = LLAMA.shapes[name]
    codes = np.random.default_rng(4).integers(0, 0x78, (rows, width)).astype(np.uint8)
    fine = plain(LLAMA.weights) | {name: ("F8_E4M3", (rows, width), codes.tobytes())}
    want = plain(LLAMA.weights | {name: fp8(codes, e4m3)})
    assert_same(converted(folder(tmp_path / "fp8", fine)), converted(folder(tmp_path / "plain", want)))
    for shape, dtype, says in (((rows, 2), "F32", "not one scale, one a row"), ((3,), "F32", "not one scale"),
                               ((rows, 1), "I32", "scales are floats")):
        scales = (dtype, shape, bytes(4 * int(np.prod(shape))))
        refused(folder(tmp_path / "bad", fine | {f"{name}_scale": scales}), says)
    for block in ([0, 16], [16], "16", [16.0, 16.0]):
        quantization = {"quant_method": "fp8", "weight_block_size": block}
        path = folder(tmp_path / "bad", fine | {f"{name}_scale_inv": ("F32", (1, 1), bytes(4))}, quantization_config=quantization)
        refused(path, "has scales for blocks of")


# ---- GPTQ ----

def pack(values: NDArray[np.int64], bits: int) -> NDArray[np.uint32]:
    """Each column's integers one after another, low bits first, as words: [n, columns] -> [n * bits / 32, columns]."""
    n, columns = values.shape
    words = []
    for column in values.T.tolist():
        number = sum(v << bits * i for i, v in enumerate(column))
        words.append([number >> 32 * i & 0xffffffff for i in range(n * bits // 32)])
    return np.array(words, np.uint32).reshape(columns, -1).T


def gptq(rng: np.random.Generator, stem: str, shape: tuple[int, int], bits: int, group: int, v2: bool, shuffled: bool) -> tuple[Tensors,
                                                                                                                                Floats]:
    """A matrix [out, in] as AutoGPTQ stores it, and what it stands for: (q - zero) * scale of the input's group."""
    n_out, n_in = shape
    size = group if group > 0 else n_in
    groups = -(-n_in // size)
    q, zeros = rng.integers(0, 1 << bits, (n_in, n_out)), rng.integers(1, 1 << bits, (groups, n_out))
    scales = rng.uniform(1e-3, 2e-2, (groups, n_out)).astype(np.float16)
    g_idx = np.arange(n_in) // size
    if shuffled:                        # act-order: inputs belong to groups in any order
        rng.shuffle(g_idx)
    values = (q - zeros[g_idx]).astype(np.float32) * scales[g_idx].astype(np.float32)
    stored = zeros - (0 if v2 else 1)
    parts: Tensors = {
        f"{stem}.qweight": ("I32", (n_in * bits // 32, n_out), np.ascontiguousarray(pack(q, bits)).tobytes()),
        f"{stem}.qzeros": ("I32", (groups, n_out * bits // 32), np.ascontiguousarray(pack(stored.T, bits).T).tobytes()),
        f"{stem}.scales": ("F16", (groups, n_out), scales.tobytes()), f"{stem}.g_idx": ("I32", (n_in,), g_idx.astype("<i4").tobytes())}
    return parts, np.ascontiguousarray(values.T)


def gptq_folder(path: Path, bits: int, group: int, v2: bool, shuffled: bool) -> tuple[Tensors, dict[str, Any], dict[str, Floats]]:
    rng, tensors, values = np.random.default_rng(bits), plain(LLAMA.weights), dict(LLAMA.weights)
    for name in [n for n in tensors if is_linear(n)]:
        rows, width = LLAMA.shapes[name]
        parts, values[name] = gptq(rng, name.removesuffix(".weight"), (rows, width), bits, group, v2, shuffled)
        del tensors[name]
        tensors |= parts
    quantization = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": shuffled, "sym": False,
                    **({"checkpoint_format": "gptq_v2"} if v2 else {})}
    return tensors, quantization, values


@pytest.mark.parametrize(("bits", "group", "v2", "shuffled"),
                         [(4, 32, False, False), (4, 16, True, True), (8, -1, False, False), (3, 32, False, True),
                          (2, 16, True, False)])
def test_gptq(tmp_path: Path, bits: int, group: int, v2: bool, shuffled: bool) -> None:
    tensors, quantization, values = gptq_folder(tmp_path, bits, group, v2, shuffled)
    path = folder(tmp_path / "gptq", tensors, quantization_config=quantization)
    want = converted(folder(tmp_path / "plain", plain(values)))
    assert_same(converted(path), want)
    if not shuffled:                    # older files have no g_idx
        lean = {name: t for name, t in tensors.items() if not name.endswith("g_idx")}
        assert_same(converted(folder(tmp_path / "lean", lean, quantization_config=quantization)), want)


def test_gptq_that_does_not_fit(tmp_path: Path) -> None:
    tensors, quantization, _ = gptq_folder(tmp_path, 4, 32, False, False)
    stem = "model.layers.0.mlp.up_proj"
    good = {kind: tensors[f"{stem}.{kind}"] for kind in ("qweight", "qzeros", "scales", "g_idx")}

    def with_part(kind: str, dtype: str, shape: tuple[int, ...]) -> Tensors:
        size = {"I32": 4, "F16": 2, "F32": 4, "I64": 8}[dtype]
        return tensors | {f"{stem}.{kind}": (dtype, shape, bytes(size * int(np.prod(shape))))}

    n_words, n_out = good["qweight"][1]
    bad: list[tuple[Tensors, dict[str, Any], str]] = [
        (with_part("qweight", "F32", (n_words, n_out)), {}, "not a matrix as GPTQ stores it"),
        (with_part("qweight", "I32", (n_words + 1, n_out)), {}, ""), (with_part("qzeros", "I32", (1, 1)), {}, "don't fit it"),
        (with_part("scales", "F16", (1, n_out)), {}, ""), (with_part("g_idx", "I32", (5,)), {}, "not the group of each"),
        ({n: t for n, t in tensors.items() if n != f"{stem}.scales"}, {}, "lacks its qzeros or scales"),
        (tensors, {"bits": 5}, "5 bits in groups"), (tensors, {"bits": "4"}, "bits in groups"),
        (tensors, {"group_size": "x"}, "in groups of 'x'"),
        (tensors, {"quant_method": "awq"}, "quantized by 'awq' cannot be read"), (tensors, {"quant_method": None}, "cannot be read")]
    beyond = np.frombuffer(good["g_idx"][2], "<i4").copy()
    beyond[3] = 1 << 20
    bad.append((tensors | {f"{stem}.g_idx": ("I32", good["g_idx"][1], beyond.tobytes())}, {}, "belongs to group 1048576"))
    for changed, config, says in bad:
        path = folder(tmp_path / "bad", changed, quantization_config=quantization | config)
        refused(path, says, (errors.FormatError, errors.UnsupportedModel))


# ---- safetensors that lie ----

def raw(header: Any, data: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(dtype: Any = "F32", shape: Any = (2, 2), span: Any = (0, 16)) -> dict[str, Any]:
    shape, span = (list(x) if isinstance(x, tuple) else x for x in (shape, span))
    return {"dtype": dtype, "shape": shape, "data_offsets": span}


DAMAGES = {
    "empty": b"", "seven bytes": bytes(7), "no header": bytes(8), "huge length": raw({}, size=(1 << 64) - 1),
    "negative length": raw({}, size=1 << 63),
    "length beyond the file": raw({}, size=3), "length beyond the format": raw(b" " * 9, size=100_000_001), "not JSON": raw(b"{]"),
    "a list": raw([]), "a text": raw(b'"x"'), "leading space": raw(b" {}"), "not UTF-8": raw(b'{"\xff": 1}'), "NUL bytes": raw(b"{}\0\0"),
    "deep": raw(b'{"a":' + b"[" * 200_000), "a long number": raw(b'{"a":' + b"9" * 10_000 + b"}"),
    "twice the same name": raw(b'{"a": %b, "a": %b}' % ((json.dumps(entry()).encode(),) * 2), bytes(16)),
    "no entry": raw({"a": 5}), "no dtype": raw({"a": {"shape": [2, 2], "data_offsets": [0, 16]}}, bytes(16)),
    "one word more": raw({"a": entry() | {"x": 1}}, bytes(16)),
    "unknown dtype": raw({"a": entry("F4", span=(0, 2))}, bytes(2)), "dtype a number": raw({"a": entry(5)}, bytes(16)),
    "dtype a list": raw({"a": entry(["F32"])}, bytes(16)),
    "wrong dtype": raw({"a": entry("F64")}, bytes(16)), "negative shape": raw({"a": entry(shape=(-2, -2))}, bytes(16)),
    "shape of floats": raw({"a": entry(shape=(2.0, 2.0))}, bytes(16)), "shape of bools": raw({"a": entry(shape=(True, 4))}, bytes(16)),
    "shape a number": raw({"a": entry(shape=4)}, bytes(16)), "shape that overflows": raw({"a": entry(shape=(1 << 32, 1 << 32))}, bytes(16)),
    "shape to zero by overflow": raw({"a": entry(shape=(1 << 61, 1 << 61, 16), span=(0, 0))}),
    "many dimensions": raw({"a": entry(shape=(1,) * 99, span=(0, 4))}, bytes(4)),
    "backwards": raw({"a": entry(span=(16, 0))}, bytes(16)), "beyond the data": raw({"a": entry(span=(8, 24))}, bytes(16)),
    "negative offset": raw({"a": entry(span=(-16, 0))}, bytes(16)),
    "huge offset": raw({"a": entry(span=(1 << 63, (1 << 63) + 16))}, bytes(16)),
    "three offsets": raw({"a": entry(span=(0, 8, 16))}, bytes(16)), "overlap": raw({"a": entry(), "b": entry(span=(8, 24))}, bytes(24)),
    "the same span twice": raw({"a": entry(), "b": entry()}, bytes(16)), "a hole": raw({"a": entry(span=(4, 20))}, bytes(20)),
    "a hole between": raw({"a": entry(), "b": entry(span=(20, 36))}, bytes(36)), "trailing data": raw({"a": entry()}, bytes(17)),
    "data cut short": raw({"a": entry()}, bytes(15)), "only trailing data": raw({}, bytes(1)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_safetensors(damage: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "bad")
    (path / "model.safetensors").write_bytes(DAMAGES[damage])
    says = refused(path, kinds=(errors.FormatError, errors.UnsupportedModel))
    assert "model.safetensors" in says


def test_safetensors_of_the_format(tmp_path: Path) -> None:
    """What the format allows: metadata, spaces behind the header, empty tensors, scalars, names of any letters."""
    header = {"__metadata__": {"format": "pt"},
              "ä\n": entry(), "empty": entry(shape=(0, 3), span=(16, 16)), "scalar": entry(shape=(), span=(16, 20))}
    (tmp_path / "a").write_bytes(raw(json.dumps(header).encode() + b"   ", bytes(20)))
    file = WeightFile(tmp_path / "a")
    found = read_header(file)
    assert {name: (t.dtype, t.shape, t.n_bytes) for name, t in found.items()} == {
        "ä\n": ("F32", (2, 2), 16), "empty": ("F32", (0, 3), 0), "scalar": ("F32", (), 4)}
    file.close()


def test_weights_that_are_no_floats_or_no_matrices(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    rows, width = LLAMA.shapes[name]
    for dtype, shape, size, says in (("I32", (rows, width), 4, "is I32, not floats"), ("U8", (rows, width), 1, "is U8, not floats"),
                                     ("F32", (rows, width, 1, 1), 4, "is no matrix and no vector"),
                                     ("F32", (0, width), 4, "is no matrix and no vector"),
                                     ("F32", (width, rows), 4, ""), ("F32", (rows - 1, width), 4, ""),
                                     ("F32", (), 4, "is no matrix and no vector")):
        refused(folder(tmp_path / "bad", plain(LLAMA.weights) | {name: (dtype, shape, bytes(size * int(np.prod(shape))))}), says)
    lacking = {n: t for n, t in plain(LLAMA.weights).items() if n != name}
    refused(folder(tmp_path / "bad", lacking), "ffn_up")
    refused(folder(tmp_path / "bad", lacking | {"model.layers.0.mlp.odd.weight": plain(LLAMA.weights)[name]}), "odd")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    broken = np.array(LLAMA.weights[name])
    broken[3, 5] = np.nan
    path = folder(tmp_path / "bad", plain(LLAMA.weights | {name: broken}))
    refused(path, r"tensor blk\.1\.ffn_down\.weight: row 3, column 5 is nan")


# ---- .bin files ----

def bin_folder(path: Path, pickled: bytes | None = None, data: dict[str, bytes] | None = None, **options: Any) -> Path:
    """The golden llama as pytorch_model.bin; pickled, data: instead of its own."""
    folder(path)
    (path / "model.safetensors").unlink()
    code, found = Assembler(), {}
    for i, (name, w) in enumerate(LLAMA.weights.items()):
        code.tensor(name, "FloatStorage", str(i), w.shape)
        found[str(i)] = w.tobytes()
    archive(path / "pytorch_model.bin", pickled if pickled is not None else code.done(), data if data is not None else found, **options)
    return path


def test_bin_files(tmp_path: Path, wanted: dict[str, Floats]) -> None:
    assert_same(converted(bin_folder(tmp_path / "bin")), wanted)
    assert_same(converted(bin_folder(tmp_path / "stem", stem="pytorch_model")), wanted)
    code, whole = Assembler(), b""
    for name, w in LLAMA.weights.items():       # all in one storage, one behind the other
        code.tensor(name, "FloatStorage", "0", w.shape, first=len(whole) // 4)
        whole += w.tobytes()
    assert_same(converted(bin_folder(tmp_path / "one", code.done(), {"0": whole})), wanted)


class Witness:
    """Unpickled, it would run a command that leaves a file."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def evil_pickles(command: str) -> Iterator[bytes]:
    text = command.encode()
    for protocol in range(6):
        yield pickle.dumps({"model.norm.weight": Witness(command)}, protocol)
        yield pickle.dumps(Witness(command), protocol)
    yield b"cos\nsystem\n(X" + struct.pack("<I", len(text)) + text + b"tR."
    yield b"\x80\x04\x8c\x02os\x8c\x06system\x93(\x8c" + bytes([len(text)]) + text + b"tR."
    yield b"(S'" + text + b"'\nios\nsystem\n."                                       # INST
    yield b"(cos\nsystem\nS'" + text + b"'\no."                                      # OBJ
    yield b"\x80\x02cos\nsystem\n(X" + struct.pack("<I", len(text)) + text + b"t\x81."    # NEWOBJ
    yield b"\x80\x02c__builtin__\neval\n(X\x04\x00\x00\x001 + 1tR."
    yield b"\x80\x02ctorch\nload\n(X\x01\x00\x00\x00xtR."
    yield b"\x80\x02ctorch._utils\n_rebuild_tensor\n)R."
    yield b"\x80\x02ccollections\nOrderedDict\n(X\x01\x00\x00\x00xtR."                # with arguments
    yield b"\x80\x02}(X\x01\x00\x00\x00xctorch\nFloatStorage\n)Ru."                   # a storage called
    yield b"\x80\x02ctorch.storage\nUntypedStorage\n)R."
    yield b"\x80\x02ctorch\nuint16\n)R."
    yield b"\x80\x02ctorch._utils os.system\nx\n."
    yield b"\x80\x04\x8c\x10torch._utils os.\x8c\x06system\x93."
    yield b"\x82\x01."                                                                # EXT1
    yield b"Pid\n."
    yield b"\x80\x05\x97."                                                            # NEXT_BUFFER


def test_code_in_pickles_is_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    command = f"touch '{mark}'"
    pickles = list(evil_pickles(command))
    assert len(pickles) == 29
    for i, code in enumerate(pickles):
        refused(bin_folder(tmp_path / f"evil{i}", code, {"0": bytes(64)}), r"pytorch_model\.bin", (errors.FormatError,))
    path = bin_folder(tmp_path / "raw")
    (path / "pytorch_model.bin").write_bytes(pickle.dumps(Witness(command)))     # as before the archives of PyTorch 1.6
    refused(path, "is not a zip archive", (errors.UnsupportedModel,))
    assert not mark.exists()
    pickle.loads(pickles[0])
    assert mark.exists()                # the pickles would have


NESTED = b"\x80\x02)" + b"\x85" * 100_000       # a tuple in a tuple in a tuple ...
DAMAGED_PICKLES = {
    "empty": b"", "no end": b"\x80\x02}", "nothing on the stack": b"\x80\x02.", "a list": b"\x80\x02).", "lost mark": b"\x80\x02t.",
    "lost memo": b"\x80\x02h\x07.",
    "opcode": b"\xff.", "cut": b"\x80\x02X\xff\xff\xff\x7fx", "half a surrogate": b"\x80\x02X\x02\x00\x00\x00\xff\xff.",
    "a key that is a table": b"\x80\x02}(}}u.",
    "nested key": b"\x80\x02}(" + NESTED[2:] + b"}u.", "nested name": NESTED + NESTED[2:] + b"\x93.",
    "nested storage": NESTED[:2000] + b"Q.", "table in itself": b"\x80\x02}q\x00(X\x01\x00\x00\x00xh\x00u.",
    "a long number": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "negative number": b"\x80\x02}(X\x01\x00\x00\x00xJ\xff\xff\xff\xffu.",
}


@pytest.mark.parametrize("damage", DAMAGED_PICKLES)
def test_damaged_pickles(damage: str, tmp_path: Path) -> None:
    refused(bin_folder(tmp_path / "bad", DAMAGED_PICKLES[damage], {}), kinds=(errors.FormatError,))


def one_tensor(**options: Any) -> bytes:
    code, given = Assembler(), {"storage": "FloatStorage", "key": "0", "shape": (2, 2)} | options
    code.tensor("x", **given)
    return code.done()


@pytest.mark.parametrize(("options", "says"), [
    ({"shape": (2, 3)}, "more than its data holds"), ({"first": 1}, "more than its data holds"),
    ({"storage": "DoubleStorage"}, "more than its data holds"),
    ({"key": "7"}, "has no data for tensor"), ({"key": "../version"}, "has no data for tensor"), ({"shape": (1 << 31, 1 << 31)},
                                                                                                  "more than its data holds"),
    ({"shape": (1 << 70,)}, "damaged pickle"), ({"shape": (-2, -2)}, "damaged pickle"), ({"first": -4}, "damaged pickle"),
    ({"shape": (1,) * 9}, "damaged pickle"),
    ({"strides": (1, 2)}, "does not lie row by row"), ({"strides": (0, 0)}, "does not lie row by row"),
    ({"strides": (2,)}, "damaged pickle"),
    ({"storage": "ComplexFloatStorage"}, "asks for 'torch.ComplexFloatStorage'"),
])
def test_tensors_that_lie(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    refused(bin_folder(tmp_path / "bad", one_tensor(**options), {"0": bytes(16)}), says, (errors.FormatError, errors.UnsupportedModel))


def test_archives_that_lie(tmp_path: Path) -> None:
    path = bin_folder(tmp_path / "bad", one_tensor(), {"0": bytes(16)}, compression=zipfile.ZIP_DEFLATED)
    refused(path, "no readable data.pkl")
    with zipfile.ZipFile(path / "pytorch_model.bin", "w") as z:
        z.writestr("a/data.pkl", one_tensor())
        z.writestr("b/data.pkl", one_tensor())
    refused(path, "no readable data.pkl")
    (path / "pytorch_model.bin").write_bytes(b"PK\x05\x06" + bytes(18))
    refused(path, "no readable data.pkl")
    path = bin_folder(tmp_path / "big")
    with zipfile.ZipFile(path / "pytorch_model.bin", "a") as z:
        z.writestr("archive/byteorder", "big")
    refused(path, "big-endian", (errors.UnsupportedModel,))


# ---- damage at random ----

@pytest.fixture(scope="module")
def victims(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, bytes]]:
    """(folder, the file to be damaged, its bytes)"""
    base = tmp_path_factory.mktemp("victims")
    found = {}
    for name, make, file in (("safetensors", folder, "model.safetensors"), ("bin", bin_folder, "pytorch_model.bin"),
                             ("config", folder, "config.json"),
                             ("tokenizer", folder, "tokenizer.model")):
        path = make(base / name)
        found[name] = path, path / file, (path / file).read_bytes()
    return found


@pytest.mark.parametrize("name", ["safetensors", "bin", "config", "tokenizer"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32))
def test_damage_at_random(name: str, victims: dict[str, tuple[Path, Path, bytes]], seed: int) -> None:
    """Bytes changed near the file's ends or anywhere, or a file cut short: a typed error and no file, or a file that reads back."""
    path, file, whole = victims[name]
    rng, broken = random.Random(seed), bytearray(whole)
    for _ in range(rng.randrange(3)):
        near = rng.randrange(min(len(whole), 4000))
        at = rng.choice([near, len(whole) - 1 - near, rng.randrange(len(whole))])
        broken[at] = rng.choice([0, 1, 255, broken[at] ^ 1 << rng.randrange(8), rng.randrange(256)])
    if rng.random() < 0.3:
        del broken[rng.randrange(len(broken)):]
    file.write_bytes(broken)
    out = path.parent / f"{name}.gguf"
    try:
        convert(path, out, "Q8_0", n_threads=1, verify=True)
    except errors.Error as e:
        assert e.hint and not list(path.parent.glob("*.part")) and not out.exists()
    else:
        with GGUF(out) as g:
            assert g.tensors
        out.unlink()
    finally:
        file.write_bytes(whole)


NUMBERS = [0,
           -1, 1, 7, 1 << 31, 1 << 62, 1 << 80, 0.5, -0.0, 1e308, float("nan"), float("inf"), True, None, "x", [], [1], {}, {"x": 1},
           [[]]]


@pytest.mark.parametrize("key", sorted(LLAMA.config))
def test_entries_of_the_config_that_do_not_fit(key: str, tmp_path: Path) -> None:
    path = folder(tmp_path / "bad")
    for value in NUMBERS:
        (path / "config.json").write_text(json.dumps({**LLAMA.config, "architectures": [LLAMA.hf_class], key: value}))
        try:
            convert(path, tmp_path / "out.gguf", "F16", n_threads=1)
        except errors.Error as e:
            assert e.hint and sorted(p.name for p in tmp_path.iterdir()) == ["bad"]
        else:
            (tmp_path / "out.gguf").unlink()


# ---- other libraries' files ----

@pytest.mark.slow
def test_files_that_torch_and_safetensors_write(tmp_path: Path, wanted: dict[str, Floats]) -> None:
    """Needs the [oracle] extra."""
    torch, library = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    tensors = {name: torch.from_numpy(w) for name, w in LLAMA.weights.items()}
    path = folder(tmp_path / "library")
    library.save_file(tensors, path / "model.safetensors", {"format": "pt"})
    assert_same(converted(path), wanted)
    (path / "model.safetensors").unlink()
    for content in (tensors, collections.OrderedDict(tensors), {name: torch.nn.Parameter(t) for name, t in tensors.items()}):
        torch.save(content, path / "pytorch_model.bin")
        assert_same(converted(path), wanted)
    for kind, name in ((torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.float8_e5m2, "F8_E5M2")):
        values = {n: t.to(kind) for n, t in tensors.items()}
        want = converted(folder(tmp_path / f"plain-{name}", plain({n: t.float().numpy() for n, t in values.items()})))
        torch.save(values, path / "pytorch_model.bin")
        assert_same(converted(path), want)
        library.save_file(values, tmp_path / "x")
        file = WeightFile(tmp_path / "x")
        assert {t.dtype for t in read_header(file).values()} == {name}
        file.close()
    buffer = io.BytesIO()
    torch.save({"x": tensors["lm_head.weight"].t()}, buffer)
    (tmp_path / "y").write_bytes(buffer.getvalue())
    file = WeightFile(tmp_path / "y")
    with pytest.raises(errors.UnsupportedModel, match="does not lie row by row"):
        read_pickle(file)
    file.close()
