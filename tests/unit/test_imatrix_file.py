"""Importance matrices from files: both formats, and what is wrong with them."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from pyllm import errors
from pyllm.quantize import imatrix_file, quantize

DIMS = {"blk.0.attn_q.weight": (256, 64), "blk.0.ffn_up_exps.weight": (256, 8, 3)}
RNG = np.random.default_rng(3)
SUMS = {"blk.0.attn_q.weight": RNG.lognormal(size=(1, 256)).astype(np.float32),
        "blk.0.ffn_up_exps.weight": RNG.lognormal(size=(3, 256)).astype(np.float32)}
COUNTS = {"blk.0.attn_q.weight": [40], "blk.0.ffn_up_exps.weight": [7, 0, 12]}


def gguf_file(path: Path, kv: dict[str, Any] | None = None, all_sums: Any = SUMS) -> Path:
    tensors: list[tiny_gguf.Tensor] = []
    for name, sums in all_sums.items():
        counts = np.array(COUNTS[name], np.float32)
        tensors += [(name + ".in_sum2", 0, sums.shape[::-1], sums.tobytes()), (name + ".counts", 0, (1, len(counts)), counts.tobytes())]
    known = {"general.type": "imatrix", "imatrix.datasets": ["a.txt", "b.txt"], "imatrix.chunk_count": 90, "imatrix.chunk_size": 512}
    path.write_bytes(tiny_gguf.build(known if kv is None else kv, tensors)[0])
    return path


def dat(calls: int = 5, tail: bytes = struct.pack("<ii", 33, 5) + b"c.txt") -> bytes:
    """The older format, whose sums are per call."""
    data = struct.pack("<i", len(SUMS))
    for name, sums in SUMS.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, sums.size) + sums.astype("<f4").tobytes()
    return data + tail


def test_gguf(tmp_path: Path) -> None:
    path = gguf_file(tmp_path / "m.gguf")
    with imatrix_file.read(path) as m:
        assert (m.name, m.datasets, m.chunks, len(m)) == ("m.gguf", ["a.txt", "b.txt"], 90, 2)
        assert m.checksum == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
        assert "blk.0.attn_q.weight" in m and m.weights("output.weight", (256, 10)) is None
        for name, dims in DIMS.items():
            found = m.weights(name, dims)
            assert found is not None and found.dtype == np.float32
            for row, sums, count in zip(found, SUMS[name], COUNTS[name], strict=True):
                np.testing.assert_array_equal(row, sums / np.float32(count) if count else np.ones(256, np.float32))
        with pytest.raises(errors.FormatError, match=r"attn_q.weight has 256 values, the model's needs 512\nhint: "):
            m.weights("blk.0.attn_q.weight", (512, 64))


@pytest.mark.parametrize("tail", [b"", struct.pack("<ii", 33, 5) + b"c.txt"])
def test_dat(tmp_path: Path, tail: bytes) -> None:
    (tmp_path / "m.dat").write_bytes(dat(tail=tail))
    with imatrix_file.read(tmp_path / "m.dat") as m:
        assert (m.datasets, m.chunks) == ((["c.txt"], 33) if tail else ([], 0))
        for name, dims in DIMS.items():
            np.testing.assert_array_equal(m.weights(name, dims), SUMS[name] / np.float32(5))
    (tmp_path / "m.dat").write_bytes(dat(calls=0))
    with imatrix_file.read(tmp_path / "m.dat") as m:
        np.testing.assert_array_equal(m.weights("blk.0.attn_q.weight", (256, 64)), np.ones((1, 256)))


@pytest.mark.shared
def test_file_of_llama_cpp(shared: Path) -> None:
    import gguf

    path = shared / "quants/tiny.imatrix.gguf"
    tensors = {t.name: t.data for t in gguf.GGUFReader(path).tensors}
    with imatrix_file.read(path) as m:
        assert (m.datasets, m.chunks, len(m)) == (["cal.txt"], 90, 14)
        for name in m.entries.sizes:
            sums, counts = tensors[name + ".in_sum2"].ravel(), tensors[name + ".counts"].ravel()
            found = m.weights(name, (len(sums), 8))
            np.testing.assert_array_equal(found, [sums / counts])


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_values_that_cannot_be(tmp_path: Path, value: float) -> None:
    sums = SUMS["blk.0.attn_q.weight"].copy()
    sums[0, 9] = value
    path = gguf_file(tmp_path / "m.gguf", all_sums=SUMS | {"blk.0.attn_q.weight": sums})
    model = tmp_path / "model.gguf"
    model.write_bytes(tiny_gguf.build(tiny_gguf.metadata(), [("blk.0.attn_q.weight", 0, (256, 2), bytes(2048))])[0])
    with pytest.raises(errors.FormatError, match="not all finite"):
        quantize(model, tmp_path / "out.gguf", "Q4_K_M", imatrix=path)
    assert not (tmp_path / "out.gguf").exists()


def test_files_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "m"
    for kv in {"general.type": "model"}, {"general.architecture": "llama"}:
        with pytest.raises(errors.FormatError, match="not an importance matrix"):
            imatrix_file.read(gguf_file(path, kv))
    tensor = ("a.weight.in_sum2", 0, (256, 2), bytes(2048))
    for tensors in [tensor], [tensor, ("a.weight.counts", 0, (1, 3), bytes(12))], [tensor, ("a.weight.counts", 1, (1, 2), bytes(4))]:
        path.write_bytes(tiny_gguf.build({"general.type": "imatrix"}, tensors)[0])
        with pytest.raises(errors.FormatError, match="no counts that fit"):
            imatrix_file.read(path)
    good = dat()
    for data in b"", b"text", bytes(400), b"\xff" * 400, good[:-1], good[:200], struct.pack("<i", 1 << 30) + good[4:], \
            good.replace(struct.pack("<i", 768), struct.pack("<i", -768)):
        path.write_bytes(data)
        with pytest.raises(errors.FormatError, match=r"is not an importance matrix, or a damaged one\nhint: "):
            imatrix_file.read(path)
    for missing in tmp_path / "nothing", tmp_path:
        with pytest.raises(errors.FileError):
            imatrix_file.read(missing)


def test_matrix_of_another_model(tmp_path: Path) -> None:
    path, model = gguf_file(tmp_path / "m.gguf"), tmp_path / "model.gguf"
    for layer, dims, says in ((7, (256, 2), "no entry for any tensor"), (0, (32, 2), "the model's needs 32")):
        name = f"blk.{layer}.attn_q.weight"
        data = bytes(4 * dims[0] * dims[1])
        model.write_bytes(tiny_gguf.build(tiny_gguf.metadata(), [(name, 0, dims, data)])[0])
        with pytest.raises(errors.Error, match=says):
            quantize(model, tmp_path / "out.gguf", "Q4_0", imatrix=path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "model.gguf"]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_dat(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Values, or a typed error; never more memory than the file has."""
    broken = bytearray(dat())
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    del broken[data.draw(st.integers(0, len(broken))):]
    path = tmp_path_factory.getbasetemp() / "damaged.dat"
    path.write_bytes(broken)
    try:
        with imatrix_file.read(path) as m:
            for name, n in m.entries.sizes.items():
                found = m.weights(name, (n, 4))
                assert found is not None and np.isfinite(found).all() and (found >= 0).all()
    except errors.Error:
        pass
