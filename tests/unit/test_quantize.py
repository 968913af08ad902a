"""pyllm quantize: recipes against llama.cpp's choices, and what is in the files: read by the gguf package, run by pyllm, encoded again."""

from __future__ import annotations

import hashlib
import json
import lzma
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import format_oracle
import gguf
import numpy as np
import pytest
import tiny_gguf
from hypothesis import given, settings
from hypothesis import strategies as st
from test_oracle import swaps

import pyllm
from pyllm import _core, errors
from pyllm.cli import main
from pyllm.gguf import GGUF
from pyllm.quantize import Options, pipeline, plan_file, quantize, recipes
from pyllm.quantize.compare import compare
from pyllm.quantize.fields import Field
from pyllm.quantize.source import GGUFSource
from pyllm.quantize.types import type_id

GOLDEN = json.loads(lzma.decompress((Path(__file__).parents[1] / "data/golden/mixes.json.xz").read_bytes()))
MIXES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q5_1", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_S", "Q6_K", "IQ4_XS")


# ---- recipes ----

@pytest.mark.parametrize("model", GOLDEN)
def test_plan_is_the_golden_for_every_tensor_and_mix(model: str) -> None:
    case = GOLDEN[model]
    assert len(case["mixes"]) == 30
    for mix, types in case["mixes"].items():
        assert list(recipes.plan(case["hparams"], case["tensors"], mix).values()) == [t.lower() for t in types], mix


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["plain", "imatrix"])
def test_plan_is_what_quantized_files_have(shared: Path, folder: str) -> None:
    """Files that llama.cpp's quantizer made, with an importance matrix too."""
    with GGUFSource(shared / "quants/tiny-f32.gguf") as source:
        facts, dims = recipes.hparams(source.metadata), {t.name: t.dims for t in source.tensors}
    seen = 0
    for path in sorted((shared / "quants" / folder).glob("*.gguf")):
        mix = path.stem.removeprefix("tiny-")
        if mix in ("Q1_0", "Q2_0"):             # not among the mixes
            continue
        found = recipes.choose(facts, dims, Options(mix, imatrix=folder == "imatrix"))
        with GGUF(path) as made:
            assert found == {name: t.type for name, t in made.tensors.items()}, mix
            assert made.kv["general.file_type"] == recipes.MIXES[mix].file_type
        seen += 1
    assert seen == {"plain": 14, "imatrix": 32}[folder]


def test_options_stand_above_the_mix() -> None:
    facts, dims = {"arch": "llama", "block_count": 2, "head_count": 4, "head_count_kv": 2, "expert_count": 0}, tiny_gguf.shapes()

    def chosen(**options: Any) -> dict[str, str]:
        return recipes.choose(facts, dims, Options("Q4_K_M", **options))

    plain = chosen()
    assert chosen(tensor_types=[(r"blk\.1\.ffn", "q8_0"), ("ffn_up", "Q2_K")]) == plain | {
        "blk.1.ffn_gate.weight": "q8_0", "blk.1.ffn_down.weight": "q8_0", "blk.0.ffn_up.weight": "q2_k", "blk.1.ffn_up.weight": "q2_k"}
    assert chosen(output_type="q4_0", token_embedding_type="q5_0") == plain | {"output.weight": "q4_0", "token_embd.weight": "q5_0"}
    pure = chosen(pure=True, tensor_types=[("output", "q8_0")])
    assert {name: kind for name, kind in pure.items() if kind not in ("f32", "q4_k")} == {
        "output.weight": "q8_0", **{f"blk.{i}.attn_output.weight": "q8_0" for i in (0, 1)}}
    tied = {n: d for n, d in dims.items() if n != "output.weight"}
    assert recipes.choose(facts, tied, Options("Q4_K_M", output_type="q5_1"))["token_embd.weight"] == "q5_1"
    both = Options("Q4_K_M", output_type="q5_1", token_embedding_type="q8_0")
    assert recipes.choose(facts, tied, both)["token_embd.weight"] == "q8_0"
    narrow = {"blk.0.ffn_up.weight": (96, 8), "blk.0.ffn_down.weight": (50, 8)}         # rows of no whole blocks
    assert recipes.choose(facts, narrow, Options("F16", tensor_types=[("ffn", "q6_k")])) == dict(zip(narrow, ("q8_0", "f16"), strict=True))
    for options, says in ({"tensor_types": [("ffn_up", "q5_9")]}, "did you mean Q5_K?"), ({"output_type": "nothing"}, "no tensor type"), \
            ({"tensor_types": [("(", "q8_0")]}, "not a regular expression"), ({"tensor_types": [("norm", "q8_0")]}, "no tensor that is"):
        with pytest.raises(errors.ArgumentError, match=says.replace("?", r"\?")):
            chosen(**options)
    with pytest.raises(errors.ArgumentError, match="did you mean Q4_K_S"):
        recipes.plan(facts, dims, "Q4_K_X")
    assert recipes.find_mix("q4_k") == "Q4_K_M"


# ---- files ----

@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama in F16."""
    path = tmp_path_factory.mktemp("source") / "tiny-F16.gguf"
    path.write_bytes(tiny_gguf.llama("f16")[0])
    return path


def tensor_data(path: Path) -> dict[str, tuple[tuple[int, ...], str, bytes]]:
    """By the gguf package: sizes (contiguous first), type, data of every tensor."""
    return {t.name: (tuple(int(n) for n in t.shape), t.tensor_type.name.lower(), t.data.tobytes()) for t in gguf.GGUFReader(path).tensors}


def rows_of(source: Path, name: str) -> Any:
    with GGUF(source) as g:
        values = g.read(name)
    return values.reshape(-1, values.shape[-1])


@pytest.mark.parametrize("mix", MIXES)
def test_file_holds_what_the_recipe_says(source: Path, tmp_path: Path, mix: str) -> None:
    """Sizes, order, types; every tensor encoded again, alone, at once and by one thread; kept tensors byte for byte; and pyllm runs it."""
    out = tmp_path / "out.gguf"
    result = quantize(source, out, mix, n_threads=2, verify=True)
    before, after, plan = tensor_data(source), tensor_data(out), plan_file(source, mix)
    assert list(after) == list(before) and result.types == plan.types == {name: kind for name, (_, kind, _) in after.items()}
    assert result.n_bytes == plan.n_bytes == out.stat().st_size and result.path == out
    for name, (dims, kind, data) in after.items():
        assert dims == before[name][0]
        if kind == before[name][1]:
            assert data == before[name][2]
        else:
            rows = rows_of(source, name)
            assert data == _core.quantize(type_id(kind), rows).tobytes(), name
            back = format_oracle.decode(kind, np.frombuffer(data, np.uint8).reshape(-1, _core.lib.pyllm_type_bytes(type_id(kind))))
            assert np.square(back.reshape(rows.shape) - rows).sum() < 0.15 * np.square(rows).sum(), name        # 2 bits: some 10 %
    with pyllm.LLM(out, ctx=64) as llm:
        assert np.isfinite(llm.logits([1, 270, 280, 290])).all()


def test_floats_are_rounded_as_numpy_does(source: Path, tmp_path: Path) -> None:
    f32 = tmp_path / "f32.gguf"
    f32.write_bytes(tiny_gguf.llama("f32")[0])
    quantize(f32, tmp_path / "f16.gguf", "F16")
    for name, (_, kind, data) in tensor_data(tmp_path / "f16.gguf").items():
        rows = rows_of(f32, name)
        assert data == (rows if kind == "f32" else rows.astype("<f2")).tobytes()
    quantize(tmp_path / "f16.gguf", tmp_path / "back.gguf", "F32")
    assert {n: d[2] for n, d in tensor_data(tmp_path / "back.gguf").items()} == {
        n: rows_of(tmp_path / "f16.gguf", n).tobytes() for n in tensor_data(f32)}


def test_bytes_depend_on_no_threads_and_no_slabs(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []
    for threads, slab in (1, pipeline.SLAB), (2, 256), (5, 7000), (3, 1):
        monkeypatch.setattr(pipeline, "SLAB", slab)
        files.append(tmp_path / f"{threads}.gguf")
        quantize(source, files[-1], "Q4_K_M", n_threads=threads)
    assert len({f.read_bytes() for f in files}) == 1


def test_progress_adds_up(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "SLAB", 3000)
    seen: list[tuple[int, int]] = []
    quantize(source, tmp_path / "out.gguf", "Q8_0", progress=lambda *p: seen.append(p))
    assert len(seen) > 100 and [d for d, _ in seen] == sorted(d for d, _ in seen) and len({t for _, t in seen}) == 1
    assert seen[-1][0] == seen[-1][1] == sum(len(d) for _, _, d in tensor_data(source).values())


def test_metadata_keeps_its_order(source: Path, tmp_path: Path) -> None:
    """Keys that were there stay in place, file_type with its new value; new ones come last."""
    out = tmp_path / "out.gguf"
    quantize(source, out, "Q5_K_M")
    with GGUFSource(source) as a, GGUFSource(out) as b:
        assert list(b.metadata)[:len(a.metadata)] == list(a.metadata)
        assert all(a.metadata[k].encode() == b.metadata[k].encode() for k in a.metadata)
        values = {k: f.value for k, f in b.metadata.items()}
    assert (values["general.file_type"], values["general.quantization_version"]) == (17, 2)
    assert values["general.quantized_by"] == f"pyllm {pyllm.__version__}"
    assert (values["pyllm.receipt.mix"], values["pyllm.receipt.options"]) == ("Q5_K_M", [])
    assert values["pyllm.receipt.tensors"] == [f"{n}={kind}" for n, (_, kind, _) in tensor_data(out).items()]
    assert values["pyllm.receipt.source.name"] == source.name
    assert values["pyllm.receipt.source.checksum"] == "sha256:" + hashlib.sha256(source.read_bytes()).hexdigest()
    again = tmp_path / "again.gguf"
    quantize(out, again, "Q8_0", allow_requantize=True)
    with GGUFSource(again) as c:
        assert list(c.metadata) == list(b.metadata)         # whose receipt came last, too
        assert c.metadata["pyllm.receipt.source.name"].value == "out.gguf" and c.metadata["general.file_type"].value == 7


@settings(max_examples=60, deadline=None)
@given(st.one_of(
    st.builds(Field, st.just("string"), st.text(st.characters(codec="utf-8"))), st.builds(Field, st.just("bool"), st.booleans()),
    st.builds(Field, st.just("i64"), st.integers(-1 << 63, (1 << 63) - 1)), st.builds(Field, st.just("f64"), st.floats(allow_nan=False)),
    st.builds(Field, st.just("string"), st.lists(st.text(max_size=9)), st.just(True)),
    st.builds(Field, st.just("u8"), st.lists(st.integers(0, 255)), st.just(True)),
    st.builds(Field, st.just("i16"), st.lists(st.integers(-1 << 15, (1 << 15) - 1)), st.just(True))))
def test_any_field_comes_back(tmp_path_factory: pytest.TempPathFactory, field: Field) -> None:
    from pyllm.quantize.writer import Writer

    path = tmp_path_factory.getbasetemp() / "fields.gguf"
    with Writer(path, {"general.architecture": Field.of("x"), "key": field}, []) as w:
        w.commit()
    with GGUFSource(path) as back:
        found = back.metadata["key"]
    assert (found.kind, found.is_array, found.encode()) == (field.kind, field.is_array, field.encode())


def test_values_have_their_usual_types() -> None:
    kinds = {True: "bool", 3: "u32", -3: "i32", 1 << 40: "u64", -1 << 40: "i64", 0.5: "f32", "x": "string"}
    assert {v: Field.of(v).kind for v in kinds} == kinds
    assert [Field.of(v).kind for v in ([1], [0.5], ["x"], [True], np.zeros(2, np.uint16), np.zeros(2, np.int64))] == [
        "i32", "f32", "string", "bool", "u16", "i64"]
    with pytest.raises(errors.ArgumentError):
        Field.of(object())


# ---- what a source may be ----

def with_experts(path: Path, n_expert: int = 3) -> dict[str, Any]:
    """A model with stacks of matrices, and their values."""
    rng = np.random.default_rng(5)
    shapes = {"ffn_up_exps": (n_expert, 40, 256), "ffn_down_exps": (n_expert, 256, 64), "ffn_gate_inp": (n_expert, 256)}
    values = {f"blk.0.{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    kv = tiny_gguf.metadata(n_layers=1) | {"llama.expert_count": n_expert}
    path.write_bytes(tiny_gguf.build(kv, [(n, 0, v.shape[::-1], v.tobytes()) for n, v in values.items()])[0])
    return values


def write_imatrix(path: Path, entries: dict[str, tuple[Any, Any]]) -> Path:
    w = gguf.GGUFWriter(path, "imatrix", use_temp_file=False)
    w.add_type("imatrix")
    w.add_array("imatrix.datasets", ["text.txt"])
    w.add_uint32("imatrix.chunk_count", 7)
    for name, (sums, counts) in entries.items():
        w.add_tensor(name + ".in_sum2", np.asarray(sums, np.float32))
        w.add_tensor(name + ".counts", np.asarray(counts, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def test_experts_have_weights_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """[in, out, experts]: every matrix with its own importances, also where a slab ends inside of one; one that saw no input: without."""
    monkeypatch.setattr(pipeline, "SLAB", 256 * 30)
    values = with_experts(tmp_path / "in.gguf")
    name, rng = "blk.0.ffn_up_exps.weight", np.random.default_rng(6)
    sums, counts = rng.lognormal(size=(3, 256)).astype(np.float32), np.array([[4], [0], [9]], np.float32)
    matrix = write_imatrix(tmp_path / "m.gguf", {name: (sums, counts)})
    result = quantize(tmp_path / "in.gguf", tmp_path / "out.gguf", "Q4_K_S", imatrix=matrix)
    assert result.types == {name: "q4_k", "blk.0.ffn_down_exps.weight": "q5_0", "blk.0.ffn_gate_inp.weight": "f32"}
    found = tensor_data(tmp_path / "out.gguf")
    weights = [sums[0] / 4, None, sums[2] / 9]
    want = b"".join(_core.quantize(type_id("q4_k"), m, w).tobytes() for m, w in zip(values[name], weights, strict=True))
    assert found[name][2] == want
    assert want != b"".join(_core.quantize(type_id("q4_k"), m).tobytes() for m in values[name])
    down = values["blk.0.ffn_down_exps.weight"].reshape(-1, 64)
    assert found["blk.0.ffn_down_exps.weight"][2] == _core.quantize(type_id("q5_0"), down).tobytes()
    assert found["blk.0.ffn_gate_inp.weight"][2] == values["blk.0.ffn_gate_inp.weight"].tobytes()
    with GGUF(tmp_path / "out.gguf") as g:
        assert [g.kv[f"quantize.imatrix.{k}"] for k in ("file", "dataset", "entries_count", "chunks_count")] == ["m.gguf", "text.txt", 1, 7]
        assert g.kv["pyllm.receipt.imatrix.checksum"] == "sha256:" + hashlib.sha256(matrix.read_bytes()).hexdigest()


def split_in_two(source: Path, folder: Path) -> list[Path]:
    kv, found = tiny_gguf.metadata() | tiny_gguf.vocabulary(), tiny_gguf.tensors("f16", tiny_gguf.shapes())
    paths = [folder / f"tiny-{i:05}-of-00002.gguf" for i in (1, 2)]
    for i, (path, part) in enumerate(zip(paths, (found[:7], found[7:]), strict=True)):
        keys = {"split.no": i, "split.count": 2, "split.tensors.count": len(found)}
        data = tiny_gguf.build(kv | keys if i == 0 else keys, part)[0]
        path.write_bytes(data)
    return paths


def test_split_set_becomes_one_file(source: Path, tmp_path: Path) -> None:
    parts = split_in_two(source, tmp_path)
    whole, out = tmp_path / "whole.gguf", tmp_path / "out.gguf"
    quantize(source, whole, "Q4_K_M")
    result = quantize(parts[0], out, "Q4_K_M", verify=True)
    assert tensor_data(out) == tensor_data(whole)
    digests = "".join(hashlib.sha256(p.read_bytes()).hexdigest() for p in parts)
    assert result.checksum == "sha256:" + hashlib.sha256(digests.encode()).hexdigest()
    with GGUF(out) as g:
        assert not [k for k in g.kv if k.startswith("split.")]
    for part in parts:
        with pytest.raises(errors.ArgumentError, match="is the input"):
            quantize(parts[0], part, "Q4_K_M")


def test_requantizing_is_asked_for(source: Path, tmp_path: Path) -> None:
    q8, q4, out = (tmp_path / n for n in ("q8.gguf", "q4.gguf", "out.gguf"))
    quantize(source, q8, "Q8_0")
    quantize(q8, q4, "Q4_0")                    # fine enough to start from
    with pytest.raises(errors.ArgumentError, match=r"Q4_0 already.*\nhint: .*--allow-requantize"):
        quantize(q4, out, "Q8_0")
    assert not out.exists()
    quantize(q4, out, "Q8_0", allow_requantize=True)
    for name, (_, kind, data) in tensor_data(out).items():
        if kind == "q8_0":
            assert data == _core.quantize(type_id(kind), rows_of(q4, name)).tobytes()
    same = tmp_path / "same.gguf"
    quantize(q4, same, "Q4_0")                  # nothing to encode: needs no leave
    assert tensor_data(same) == tensor_data(q4)


def test_sources_that_cannot_be(source: Path, tmp_path: Path) -> None:
    vocab, bad, out = tmp_path / "vocab.gguf", tmp_path / "bad.gguf", tmp_path / "out.gguf"
    vocab.write_bytes(tiny_gguf.build(tiny_gguf.metadata() | tiny_gguf.vocabulary(), [])[0])
    with pytest.raises(errors.ArgumentError, match="no tensors"):
        quantize(vocab, out, "Q4_0")
    values = np.zeros((9, 256), np.float32)
    values[7, 3] = np.inf
    bad.write_bytes(tiny_gguf.build(tiny_gguf.metadata(), [("blk.0.ffn_up.weight", 0, (256, 9), values.tobytes())])[0])
    with pytest.raises(errors.ArgumentError, match=r"tensor blk.0.ffn_up.weight: row 7, column 3 is inf"):
        quantize(bad, out, "Q4_0")
    with pytest.raises(errors.Unsupported, match=r"tensor \S+: there is no encoder for iq1_s yet"):
        quantize(source, out, "IQ1_S")
    bad.write_bytes(tiny_gguf.build(tiny_gguf.metadata(), [("blk.0.ffn_up.weight", 77, (256, 9), b"")])[0])
    with pytest.raises(errors.UnsupportedModel, match="has type 77"):
        quantize(bad, out, "Q4_0")
    with pytest.raises(errors.FileError, match="No such file"):
        quantize(tmp_path / "nothing.gguf", out, "Q4_0")
    wide = (1 << 23) + 256
    with open(bad, "wb") as f:
        f.write(tiny_gguf.build(tiny_gguf.metadata(), [("blk.0.ffn_up.weight", 1, (wide, 1), b"")])[0])
        f.truncate(f.tell() + 2 * wide + 4096)
    with pytest.raises(errors.UnsupportedModel, match="rows of 8388864 values"):
        quantize(bad, out, "Q4_0")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.gguf", "vocab.gguf"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_sources(source: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """A header with bytes changed, or a file cut short: a typed error and no file, or a file that reads back."""
    folder = tmp_path_factory.mktemp("damaged")
    whole, n_header = tiny_gguf.llama("f16", n_vocab=260, n_layers=1)
    broken = bytearray(whole)
    for _ in range(data.draw(st.integers(0, 3))):
        broken[data.draw(st.integers(4, n_header - 1))] = data.draw(st.integers(0, 255))
    del broken[data.draw(st.one_of(st.just(len(whole)), st.integers(0, len(whole) - 1))):]
    path, out = folder / "in.gguf", folder / "out.gguf"
    path.write_bytes(broken)
    try:
        quantize(path, out, "Q4_K_M", verify=True)
    except errors.Error:
        assert [p.name for p in folder.iterdir()] == ["in.gguf"]
    else:
        with GGUF(out) as g:
            assert g.tensors


PEAK = """
import sys
from pyllm.quantize import quantize
quantize(sys.argv[1], sys.argv[2], sys.argv[3], n_threads=2, verify=True)
print([int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")][0])
"""


@pytest.mark.parametrize("shape", [(2048, 100000), (1 << 23, 16), (4096, 1000, 50)])
def test_memory_does_not_depend_on_the_tensor(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A tensor that takes 0.5 to 0.8 GB as floats, in at most 350 MB. A file of zeros takes no disk."""
    path, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    with open(path, "wb") as f:
        f.write(tiny_gguf.build(tiny_gguf.metadata(), [("blk.0.ffn_up.weight", 1, shape, b"")])[0])
        f.truncate(f.tell() + 2 * int(np.prod(shape)))
    done = subprocess.run([sys.executable, "-c", PEAK, str(path), str(out), "Q2_K"], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 <= 350e6
    assert out.stat().st_size > np.prod(shape) * 84 // 256
    out.unlink()


def test_evaluation_is_that_of_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    f16, out, text = tmp_path / "f16.gguf", tmp_path / "out.gguf", tmp_path / "text.txt"
    f16.write_bytes(tiny_gguf.llama("f16", ctx=1024)[0])
    text.write_text(" ".join(f"w{i * i % 37}" for i in range(50)))
    with pytest.raises(errors.ArgumentError, match=r"tokens, at least 512 are needed"):
        quantize(f16, out, "Q4_0", evaluate=text, progress=lambda done, total: pytest.fail("began"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f16.gguf", "text.txt"]
    text.write_text(" ".join(f"w{i * i % 37}" for i in range(1100)))
    assert main(["quantize", str(f16), str(out), "Q4_0", "--evaluate", str(text), "--verify"]) == 0
    said = capsys.readouterr().err
    with pyllm.LLM(f16, ctx=512) as a, pyllm.LLM(out, ctx=512) as b:
        found = compare(a, [b], text.read_text())
    c = found.candidates[0]
    want = {"kld": c.kld.value, "kld_error": c.kld.error, "kld_99": c.kld_99.value, "kld_max": c.kld_max, "same_top": c.top.value,
            "perplexity": c.perplexity.value, "source_perplexity": found.perplexity.value}
    with GGUF(out) as g:
        assert {k.rpartition(".")[2]: v for k, v in g.kv.items() if isinstance(v, float) and ".evaluation." in k} == {
            k: float(np.float32(v)) for k, v in want.items()}
        assert g.kv["pyllm.receipt.evaluation.text"] == "text.txt"
        assert g.kv["pyllm.receipt.evaluation.text_checksum"] == "sha256:" + hashlib.sha256(text.read_bytes()).hexdigest()
    assert 0 < c.kld.value < 1 and f"KL divergence {c.kld.value:.5f}" in said
    assert main(["show", str(out)]) == 0
    shown = capsys.readouterr().out
    assert f"KL divergence {c.kld.value:.5f}" in shown and f"perplexity {c.perplexity.value:.4f}" in shown


def test_real_model(smollm2: Path, tmp_path: Path) -> None:
    """SmolLM2 out of its dequantized F16: the F16 and the Q8_0 file follow the golden, Q4_K_M answers."""
    f16 = tmp_path / "f16.gguf"
    quantize(smollm2, f16, "F16", allow_requantize=True)
    for name, (_, kind, data) in tensor_data(f16).items():
        assert data == rows_of(smollm2, name).astype("<f2" if kind == "f16" else "<f4").tobytes()
    golden = json.loads((Path(__file__).parents[1] / "data/golden/smollm2-greedy.json").read_text())["results"]
    for mix in ("F16", "Q8_0", "Q4_K_M"):
        out = tmp_path / "out.gguf"
        quantize(f16, out, mix)
        with pyllm.LLM(out, ctx=512) as llm:
            if mix != "Q4_K_M":
                for r in golden:
                    swaps(llm, r["prompt_ids"], r["new_ids"])
            assert llm.complete("The capital of France is", temperature=0, max_tokens=3).text.startswith(" Paris")


# ---- the command ----

def test_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    given = ["quantize", str(source), str(out), "q4_k_m", "--tensor-type", "ffn_up=q8_0", "--tensor-type", r"blk\.0\.ffn_up=q5_k",
             "--output-type", "Q5_0", "--token-embedding-type", "q5_1"]
    assert main([*given, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert not out.exists()
    assert main([*given, "--threads", "1", "--verify"]) == 0
    written = capsys.readouterr()
    assert written.out == f"{out}\n" and written.err == ""
    types = {name: kind for name, (_, kind, _) in tensor_data(out).items()}
    assert (types["blk.0.ffn_up.weight"], types["blk.1.ffn_up.weight"], types["output.weight"], types["token_embd.weight"]) == (
        "q5_k", "q8_0", "q5_0", "q5_1")
    table = [re.split(r"\s{2,}", line) for line in shown.splitlines()[1:] if line.startswith(("blk.", "output", "token"))]
    assert table == [[name, " x ".join(map(str, dims)), "F32" if len(dims) == 1 else "F16", kind.upper(), str(len(data))]
                     for name, (dims, kind, data) in tensor_data(out).items()]
    assert f"({out.stat().st_size} bytes)" in shown
    with GGUF(out) as g:
        assert g.kv["pyllm.receipt.options"] == ["--tensor-type ffn_up=q8_0", r"--tensor-type blk\.0\.ffn_up=q5_k", "--output-type q5_0",
                                                 "--token-embedding-type q5_1"]
    assert main(["quantize", str(source), str(source), "Q8_0"]) == 1
    assert "is the input" in capsys.readouterr().err
    for wrong in (["--tensor-type", "q8_0"], ["--threads", "0"]):
        with pytest.raises(SystemExit) as e:
            main([*given, *wrong])
        assert e.value.code == 2
    capsys.readouterr()


def test_show_prints_the_receipt(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.gguf"
    result = quantize(source, out, Options("Q4_K_M", pure=True))
    assert main(["show", str(out)]) == 0
    text = capsys.readouterr().out
    assert f"pyllm {pyllm.__version__}" in text and "Q4_K_M --pure" in text and source.name in text and result.checksum in text
    assert main(["show", str(out), "--json"]) == 0
    receipt = json.loads(capsys.readouterr().out)["receipt"]
    assert receipt["source.checksum"] == result.checksum and receipt["mix"] == "Q4_K_M" and len(receipt["tensors"]) == len(result.types)
    assert main(["show", str(source), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["receipt"] is None
