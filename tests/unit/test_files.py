"""Model files that change under a running model, split sets, and files that are no models."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_gguf
from tok_oracle import read_header

import pyllm
from pyllm.gguf import GGUF

PROMPTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9", "a b c"]


# ---- changes under a running model ----

def truncate(path: Path) -> None:
    os.truncate(path, 1000)


def overwrite(path: Path) -> None:
    with path.open("r+b") as f:
        f.write(os.urandom(path.stat().st_size))


def overwrite_rows(path: Path) -> None:
    """Only the embedding: a reader that trusts the file would go on with other text."""
    _, _, at = read_header(path.read_bytes())[1]["token_embd.weight"]
    with path.open("r+b") as f:
        f.seek(at)
        f.write(bytes(4096))


def replace(path: Path) -> None:
    other = path.with_name("new")
    other.write_bytes(b"not a model")
    os.replace(other, path)


def delete(path: Path) -> None:
    path.unlink()


CHANGES = [truncate, overwrite, overwrite_rows, replace, delete]


@pytest.fixture(params=["untied", "tied", "smollm2"])
def kind(request: pytest.FixtureRequest) -> str:
    """untied: the embedding is read from the file in every step; the others keep all in memory."""
    return str(request.param)


@pytest.fixture
def model_bytes(kind: str, request: pytest.FixtureRequest) -> bytes:
    if kind == "smollm2":
        path: Path = request.getfixturevalue("smollm2")
        return path.read_bytes()
    return tiny_gguf.llama("q8_0", tied=kind == "tied", ctx=512)[0]


@pytest.mark.parametrize("change", CHANGES)
def test_the_file_changes_while_streams_run(kind: str, model_bytes: bytes, tmp_path: Path, change: Callable[[Path], None]) -> None:
    """Four streams, all in the middle of their text, go on bit-identically or end with an error that names the file."""
    path = tmp_path / "model.gguf"
    path.write_bytes(model_bytes)
    os.utime(path, (1, 1))
    arrived, go_on = threading.Event(), threading.Event()

    def hold(ids: Sequence[int], logits: np.ndarray[Any, Any]) -> None:
        """On the engine's thread, so that nobody gets a token meanwhile. Streams start within a step or two of each other."""
        if len(ids) == 20:
            arrived.set()
            assert go_on.wait(60)

    with pyllm.LLM(path, ctx=512, speculate="off") as llm:      # or a stream that repeats itself is done before another one has begun
        options: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "logit_bias": {llm.tokenizer.eos: float("-inf")}}
        want = [llm.complete(p, **options).text for p in PROMPTS]
        streams = [llm.stream_complete(p, **options, **({} if i else {"logits_processor": hold})) for i, p in enumerate(PROMPTS)]
        got: list[list[str]] = [[] for _ in PROMPTS]

        def read(i: int) -> pyllm.Error | None:
            try:
                for chunk in streams[i]:
                    got[i].append(chunk.text)
            except pyllm.Error as e:
                return e
            return None

        with ThreadPoolExecutor(4) as pool:
            readers = [pool.submit(read, i) for i in range(4)]
            try:
                assert arrived.wait(60)
                assert not any(r.done() for r in readers)
                change(path)
            finally:
                go_on.set()
            ends = [r.result() for r in readers]
        for end, text, right in zip(ends, map("".join, got), want, strict=True):
            assert text == right if end is None else right.startswith(text)
            assert end is None or (isinstance(end, pyllm.errors.FileError) and str(path) in str(end) and end.hint)
        if kind == "untied" and change in (truncate, overwrite, overwrite_rows):
            assert all(ends), "text was made from rows that somebody else wrote"
        if kind != "untied":
            assert not any(ends)
    if change in (truncate, overwrite, replace, delete):
        with pytest.raises(pyllm.Error):
            pyllm.LLM(path)


def test_a_change_is_noticed_by_the_next_request(tmp_path: Path) -> None:
    """An untied embedding stays in the file: what somebody writes there must never become text."""
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_gguf.llama("q8_0")[0])
    os.utime(path, (1, 1))
    with pyllm.LLM(path, chat_template="{{ messages[-1].content }}") as llm, llm.session() as session:
        llm.complete([5, 6, 7], max_tokens=2)
        overwrite_rows(path)
        requests = [lambda: llm.complete([5, 6, 7], max_tokens=2), lambda: llm.logits([5, 6]), lambda: session.chat("w1", max_tokens=2)]
        for request in requests:
            with pytest.raises(pyllm.errors.FileError, match="changed") as e:
                request()
            assert str(path) in str(e.value) and e.value.hint


# ---- split sets ----

def write_split(path: Path, tensors_per_file: int) -> list[Path]:
    """The tiny llama as the gguf package splits it."""
    writer = gguf.GGUFWriter(None, "llama", split_max_tensors=tensors_per_file)
    for key, value in (tiny_gguf.metadata() | tiny_gguf.vocabulary()).items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)](key, value)
    for name, _, shape, data in tiny_gguf.tensors("f32", tiny_gguf.shapes()):
        writer.add_tensor(name, np.frombuffer(data, np.float32).reshape(tuple(reversed(shape))))
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(path.parent.glob(f"{path.stem}-*-of-*.gguf"))


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    found = write_split(tmp_path / "split.gguf", 8)
    assert [p.name for p in found] == [f"split-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    return found


def test_a_split_set_is_one_model(parts: list[Path], tmp_path: Path) -> None:
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(tiny_gguf.llama("f32")[0])
    tokens = list(range(1, 40))
    with pyllm.LLM(whole) as one, pyllm.LLM(parts[0]) as split:
        assert np.array_equal(one.logits(tokens), split.logits(tokens))
        parts[1].unlink()
        assert one.complete(tokens, seed=1, max_tokens=8).tokens == split.complete(tokens, seed=1, max_tokens=8).tokens
    with GGUF(whole) as one, pytest.raises(pyllm.Error, match="split-00002-of-00003"):
        GGUF(parts[0])


def refused(path: Path, *words: str) -> None:
    with pytest.raises((pyllm.errors.FileError, pyllm.errors.FormatError, pyllm.errors.ArgumentError)) as e:
        pyllm.LLM(path)
    assert all(word in str(e.value) for word in words) and e.value.hint, str(e.value)


def test_wrong_parts_are_named(parts: list[Path], tmp_path: Path) -> None:
    second, third = parts[1].read_bytes(), parts[2].read_bytes()
    refused(parts[1], "file 2 of a set of 3", "first")
    parts[2].unlink()
    refused(parts[0], parts[2].name, "No such file")
    parts[2].write_bytes(second)                        # one part twice
    refused(parts[0], parts[2].name, "file 2 of 3")
    parts[2].write_bytes(tiny_gguf.llama("f32")[0])     # another model's file
    refused(parts[0], parts[2].name)
    parts[2].write_bytes(third[:len(third) // 2])       # cut off
    refused(parts[0], parts[2].name, "incomplete")
    parts[2].write_bytes(b"")
    refused(parts[0], parts[2].name, "empty")
    parts[2].write_bytes(third)
    renamed = tmp_path / "model.gguf"
    parts[0].rename(renamed)
    refused(renamed, "-00001-of-00003.gguf")


def test_a_part_of_another_split_is_refused(parts: list[Path], tmp_path: Path) -> None:
    """A set of 3 with the last part of another set of 3 of the same model: two tensors are missing."""
    (tmp_path / "other").mkdir()
    foreign = write_split(tmp_path / "other" / "split.gguf", 9)
    assert len(foreign) == 3
    parts[2].write_bytes(foreign[2].read_bytes())
    refused(parts[0], "19 tensors", "21")


# ---- files that are no models ----

def lfs_pointer() -> bytes:
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 98362432\n"


GOOD = tiny_gguf.llama("f32", n_layers=1, n_embd=32, n_ff=32, heads=2, kv_heads=1)[0]
NO_MODELS: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "is empty"),
    ("one byte", b"G", "incomplete"),
    ("a GGUF's first bytes", GOOD[:20], "incomplete"),
    ("a zip", b"PK\x03\x04" + bytes(100), "zip"),
    ("a web page", b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>", "web page"),
    ("a git LFS pointer", lfs_pointer(), "is a Git LFS pointer"),
    ("a safetensors file", struct.pack("<Q", 1000) + b'{"__metadata__":{"format":"pt"}' + bytes(1000), "safetensors"),
    ("GGML's older format", b"tjgg" + bytes(100), "before GGUF"),
    ("zeros", bytes(100), "not a GGUF file"),
    ("GGUF version 1", b"GGUF" + struct.pack("<I", 1) + GOOD[8:], "GGUF version 1"),
    ("GGUF version 4", b"GGUF" + struct.pack("<I", 4) + GOOD[8:], "GGUF version 4"),
    ("a big-endian GGUF", b"GGUF" + struct.pack(">I", 3) + GOOD[8:], "big-endian"),
    ("half a model", GOOD[:len(GOOD) // 2], "incomplete"),
    ("a model without its last byte", GOOD[:-33], "incomplete"),
    ("a vocabulary", tiny_gguf.build({"general.architecture": "llama"} | tiny_gguf.vocabulary(), [])[0], "vocabulary-only"),
    ("a GGUF of something else", tiny_gguf.build({"general.type": "adapter"}, [])[0], "general.architecture"),
]


@pytest.mark.parametrize(("data", "words"), [pytest.param(data, words, id=name) for name, data, words in NO_MODELS])
def test_files_that_are_no_models(data: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    with pytest.raises((pyllm.errors.FormatError, pyllm.errors.Unsupported)) as e:
        pyllm.LLM(path)
    assert words in str(e.value) and str(path) in str(e.value) and e.value.hint, str(e.value)


def test_things_that_are_no_files(tmp_path: Path) -> None:
    """A folder, a pipe that nobody writes to, a device, a missing file, a link to nowhere."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path, words in [(tmp_path, "a folder"), (tmp_path / "pipe", "not a regular file"), (Path("/dev/zero"), "not a regular file"),
                        (tmp_path / "missing.gguf", "No such file"), (tmp_path / "link", "No such file")]:
        with pytest.raises(pyllm.errors.FileError, match=words) as e:
            GGUF(path)
        assert str(path) in str(e.value) and e.value.hint
        with pytest.raises(pyllm.errors.FileError) as e:
            pyllm.LLM(path)
        assert str(path) in str(e.value) and e.value.hint


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    """Refused with the system's reason; root may read everything, and then it just loads."""
    path = tmp_path / "model.gguf"
    path.write_bytes(GOOD)
    path.chmod(0)
    if os.geteuid():
        with pytest.raises(pyllm.errors.FileError, match="Permission denied"):
            pyllm.LLM(path)
    else:
        pyllm.LLM(path).close()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("align", [8, 32, 4096])
def test_versions_and_alignments(version: int, align: int, tmp_path: Path) -> None:
    sizes = {"n_layers": 1, "n_embd": 32, "n_ff": 32, "heads": 2, "kv_heads": 1}
    kv = tiny_gguf.metadata(**sizes) | tiny_gguf.vocabulary() | {"general.alignment": align}
    path = tmp_path / "model.gguf"
    path.write_bytes(tiny_gguf.build(kv, tiny_gguf.tensors("f32", tiny_gguf.shapes(**sizes)), version, align)[0])
    with pyllm.LLM(path) as llm:
        assert np.isfinite(llm.logits([1, 2, 3])).all()
