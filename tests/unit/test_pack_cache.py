"""Packed weights on disk: the same bits with and without them; damage and replaced models change nothing but the time that a load takes."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_gguf
from packed import SIZES, change, load, one_pack, packs, write_model

import pyllm
from pyllm import pack_cache
from pyllm._core import ffi, lib

DATA = 2 << 20                  # where the data begin, and the size of their checksummed pieces
HEADER = struct.Struct("<8sIIQQQQ")     # magic, version, bytes of the path, identity, key, bytes of data, pieces
MASK, ODD = (1 << 64) - 1, 0x9e3779b97f4a7c15


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYLLM_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "models/tiny.gguf", "q8_0")


# ---- the same model ----

@pytest.mark.parametrize(("kind", "tied"), [("f32", True), ("f16", False), ("q4_0", True), ("q5_1", False), ("q8_0", True), ("q3_k", False),
                                            ("q4_k", True), ("q6_k", False), ("iq3_s", True), ("mxfp4", False)])
def test_the_same_bits(tmp_path: Path, kind: str, tied: bool) -> None:
    path = write_model(tmp_path / "m.gguf", kind, tied)
    state, expected = load(path, keep=False)
    assert state is None
    assert load(path) == ("stored", expected)
    assert load(path) == ("mapped", expected)
    for level in ffi.string(lib.pyllm_cpu_levels()).decode().split():       # the layout is that of all levels
        assert load(path, level) == ("mapped", expected)


def test_a_mapped_load_reads_little_and_takes_no_memory(tmp_path: Path, home: Path) -> None:
    """A few groups of rows of every tensor instead of all of them; weights are pages of the file."""
    code = """
import json, sys, pyllm
def bytes_read():
    return int(open("/proc/self/io").read().split()[1])
before = bytes_read()
with pyllm.LLM(sys.argv[1], ctx=16, threads=2, pack_cache=True) as llm:
    print(json.dumps([llm.info["pack_cache"], bytes_read() - before, llm.info["weight_bytes"], ".pack" in open("/proc/self/maps").read()]))
"""
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_gguf.llama("f32", False, n_layers=2, n_ff=4096, n_vocab=8000)[0])
    time.sleep(0.1)
    runs = [json.loads(subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, timeout=300).stdout)
            for _ in range(2)]
    (state, read, size, mapped), (state2, read2, size2, mapped2) = runs
    assert (state, mapped) == ("stored", False) and read > size > 20e6
    assert (state2, mapped2) == ("mapped", True) and size2 == size and read2 < read - 0.9 * size


def test_sessions_go_on_with_mapped_weights(model: Path, tmp_path: Path) -> None:
    """The fingerprint that binds a saved state to a model is the same for packed and mapped weights."""
    texts = []
    for keep in (False, True, True):
        with pyllm.LLM(model, ctx=64, chat_template="{{ messages[-1].content }}", pack_cache=keep) as llm, llm.session() as s:
            if keep:
                s.load(tmp_path / "state")
            else:
                s.chat("w1 w2", temperature=0, max_tokens=4)
                s.save(tmp_path / "state")
            texts.append(s.chat("w3", temperature=0, max_tokens=4).tokens)
    assert texts[0] == texts[1] == texts[2]


def test_what_is_kept_depends_on_the_order_of_the_weights_but_not_on_the_context(model: Path) -> None:
    from pyllm.build import build
    from pyllm.gguf import GGUF

    with GGUF(model) as gguf:
        tape = build(gguf, 64)[0]
        swapped = tape.replace("blk.2.attn_norm", "?").replace("blk.1.attn_norm", "blk.2.attn_norm").replace("?", "blk.1.attn_norm")
        paths = [pack_cache.entry_path(gguf, t) for t in (tape, build(gguf, 32)[0], swapped)]
        assert swapped != tape and paths[0] == paths[1] != paths[2]


def test_split_sets(tmp_path: Path) -> None:
    """A model's identity is that of all its files."""
    whole = write_model(tmp_path / "whole.gguf", "q8_0", False)
    first = split(whole, tmp_path / "set")
    time.sleep(0.1)
    expected = load(whole, keep=False)[1]
    assert load(first) == ("stored", expected) and load(first) == ("mapped", expected)
    second = next(p for p in first.parent.iterdir() if p != first)
    os.utime(second)
    time.sleep(0.1)
    assert load(first) == ("stored", expected)


def split(whole: Path, folder: Path) -> Path:
    """Two files; the second holds what does not begin with "blk.0"."""
    kv = tiny_gguf.metadata(SIZES["n_layers"], n_ff=SIZES["n_ff"]) | tiny_gguf.vocabulary(SIZES["n_vocab"])
    shapes = tiny_gguf.shapes(SIZES["n_layers"], n_ff=SIZES["n_ff"], n_vocab=SIZES["n_vocab"])
    tensors = tiny_gguf.tensors("q8_0", shapes)
    halves = [[t for t in tensors if t[0].startswith("blk.0") == (i == 0)] for i in range(2)]
    folder.mkdir()
    paths = [folder / f"m-0000{i + 1}-of-00002.gguf" for i in range(2)]
    for i, path in enumerate(paths):
        marks = {"split.no": i, "split.count": 2, "split.tensors.count": len(tensors)}
        path.write_bytes(tiny_gguf.build((kv if i == 0 else {}) | marks, halves[i])[0])
    assert whole.stat().st_size < sum(p.stat().st_size for p in paths) + 4096
    return paths[0]


# ---- another model in its place ----

def test_a_model_that_was_replaced(model: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also by one of the same size and, as far as utime can, the same times, written into the same file."""
    assert load(model)[0] == "stored"
    old = model.stat()
    with open(model, "r+b") as f:
        f.write(tiny_gguf.llama("q8_0", True, 2, **SIZES)[0])
    os.utime(model, ns=(old.st_atime_ns, old.st_mtime_ns))
    time.sleep(0.1)
    new = model.stat()
    assert (new.st_size, new.st_mtime_ns, new.st_ino) == (old.st_size, old.st_mtime_ns, old.st_ino)
    expected = load(model, keep=False)[1]
    assert load(model) == ("stored", expected) and "was packed before" in caplog.text
    assert load(model) == ("mapped", expected) and len(packs(home)) == 1


def test_a_model_that_was_written_a_moment_ago(tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its next change may carry the same time: nothing can be kept of it yet."""
    path = write_model(tmp_path / "m.gguf")
    for _ in range(100):                        # until one load is quick enough
        os.utime(path)
        state, logits = load(path)
        if state == "failed":
            break
    assert state == "failed" and "moment before it was opened" in caplog.text and packs(home) == []
    time.sleep(0.1)
    assert load(path) == ("stored", logits)


def checksum(data: bytes) -> int:
    h = 0x243f6a8885a308d3 ^ len(data)
    for (word,) in struct.iter_unpack("<Q", data[:len(data) // 8 * 8]):
        h = (h ^ word) * ODD & MASK
        h ^= h >> 32
    for byte in data[len(data) // 8 * 8:]:
        h = (h ^ byte) * ODD & MASK
        h ^= h >> 32
    return h


def mix(h: int, v: int) -> int:
    h = (h ^ v) * ODD & MASK
    return h ^ h >> 29


def checksum_block(data: bytes) -> int:
    h = [1, 2, 3, 4]
    whole = len(data) // 32 * 32
    for i, (word,) in enumerate(struct.iter_unpack("<Q", data[:whole])):
        h[i % 4] = mix(h[i % 4], word)
    out = checksum(data[whole:])
    for stream in h:
        out = mix(out, stream)
    return out


def sign(path: Path) -> None:
    """Makes all checksums of a file of packed weights right."""
    raw = path.read_bytes()
    _, _, path_bytes, _, _, _, pieces = HEADER.unpack_from(raw)
    sums = b"".join(struct.pack("<Q", checksum_block(raw[DATA + i * DATA:DATA + (i + 1) * DATA][:])) for i in range(pieces))
    head = raw[:HEADER.size + path_bytes] + sums
    change(path, 0, head + struct.pack("<Q", checksum(head)))


def test_signing_is_what_the_library_does(model: Path, home: Path) -> None:
    load(model)
    raw = one_pack(home).read_bytes()
    sign(one_pack(home))
    assert one_pack(home).read_bytes() == raw and load(model)[0] == "mapped"


@pytest.mark.parametrize("kind", ["q4_k", "q8_0", "f32"])
def test_another_layout_is_seen(tmp_path: Path, home: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """What a version of pyllm with another packed layout would have left: all is right but the order of the bytes in one tensor."""
    path = write_model(tmp_path / "m.gguf", kind)
    expected = load(path)[1]
    pack = one_pack(home)
    raw = bytearray(pack.read_bytes())
    end = DATA + HEADER.unpack_from(raw)[5] - 8192
    matrix = end - (end - DATA) // 4 // 64 * 64
    for at in range(matrix, end, 64):                       # neighbours change places throughout
        raw[at:at + 64] = raw[at + 32:at + 64] + raw[at:at + 32]
    change(pack, 0, bytes(raw))
    sign(pack)
    assert load(path) == ("stored", expected) and "and is packed now" in caplog.text
    assert load(path) == ("mapped", expected)


def test_a_vector_of_another_model_is_seen(model: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = load(model)[1]
    pack = one_pack(home)
    raw = pack.read_bytes()
    gains = next(t[3] for t in tiny_gguf.tensors("q8_0", tiny_gguf.shapes(3, n_ff=1024, tied=True)) if t[0] == "blk.0.attn_norm.weight")
    at = raw.index(gains)
    change(pack, at, gains[::-1])
    sign(pack)
    assert load(model) == ("stored", expected) and "attn_norm" in caplog.text


def test_the_key_and_the_identity_are_compared(model: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = load(model)[1]
    for at, said in ((16, "was packed before"), (24, "in the places that the model needs")):
        change(one_pack(home), at, b"\x01\x02\x03\x04\x05\x06\x07\x08")
        sign(one_pack(home))
        assert load(model) == ("stored", expected) and said in caplog.text


# ---- damage ----

def regions(raw: bytes) -> dict[str, int]:
    """A byte of every part of the file."""
    _, _, path_bytes, _, _, data_bytes, pieces = HEADER.unpack_from(raw)
    sums = HEADER.size + path_bytes
    end_of_sums, end = sums + 8 * pieces, DATA + data_bytes
    return {"magic": 0, "version": 8, "bytes of the path": 12, "identity": 16, "key": 31, "bytes of data": 32, "high bytes of data": 39,
            "pieces": 40, "path": HEADER.size + 1, "end of the path": sums - 1, "first sum": sums, "last sum": end_of_sums - 1,
            "sum of the header": end_of_sums, "first byte": DATA, "end of piece 1": 2 * DATA - 1, "piece 2": 2 * DATA,
            "middle": DATA + data_bytes // 2, "tail": end - 8192, "last byte": end - 1}


def test_damage_anywhere_is_seen(model: Path, home: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = load(model)[1]
    good = one_pack(home).read_bytes()
    assert len(good) > 2 * DATA + 9000
    for name, at in regions(good).items():
        for new in (good[at] ^ 1, good[at] ^ 0xff):
            change(one_pack(home), at, bytes([new]))
            caplog.clear()
            assert load(model) == ("stored", expected), name
            assert "made anew" in caplog.text, name
    rng = random.Random()
    for _ in range(20):
        at = rng.choice((rng.randrange(DATA, len(good)), rng.randrange(HEADER.size + 64)))
        change(one_pack(home), at, bytes([good[at] ^ 1 << rng.randrange(8)]))
        assert load(model) == ("stored", expected), at


def test_files_of_another_length(model: Path, home: Path) -> None:
    expected = load(model)[1]
    good = one_pack(home).read_bytes()
    for size in (0, 1, 47, HEADER.size, 100, DATA - 1, DATA, DATA + 1, len(good) - 1, len(good) // 2):
        one_pack(home).chmod(0o600)
        os.truncate(one_pack(home), size)
        assert load(model) == ("stored", expected), size
    for more in (b"\0", bytes(4096)):
        change(one_pack(home), len(good), more)
        assert load(model) == ("stored", expected)
    assert one_pack(home).read_bytes()[DATA:] == good[DATA:]


def test_what_is_not_a_file(model: Path, home: Path) -> None:
    expected = load(model)[1]
    path = one_pack(home)
    path.unlink()
    path.mkdir()
    assert load(model) == ("failed", expected)
    path.rmdir()
    os.mkfifo(path)
    assert load(model) == ("stored", expected) and load(model) == ("mapped", expected)
