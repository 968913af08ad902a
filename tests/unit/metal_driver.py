"""What test_metal_backend.py runs in a child process in which the fake Metal device is preloaded: a command and its arguments as JSON.

Prints JSON."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from pyllm import LLM, build, errors
from pyllm._core import ffi, lib, new_error
from pyllm.engine import METAL, Engine
from pyllm.gguf import GGUF


def counters(*names: str) -> dict[str, int]:
    fake = ctypes.CDLL(None).fake_counter
    fake.restype = ctypes.c_long
    return {name: fake(name.encode()) for name in names}


def batches(n: int, how: str) -> Iterator[tuple[int, int]]:
    size = {"prefill": n, "decode": 1, "chunked": 7}[how]
    return ((i, min(i + size, n)) for i in range(0, n, size))


def golden(files: list[tuple[str, int | None, list[int]]], kv: str, out: str) -> dict[str, Any]:
    """Logits of files [path, ctx, ids], in three ways each, to the folder out."""
    said = {}
    for path, ctx, ids in files:
        with GGUF(path) as file:
            tape = build.tape_text(file, ctx)
            try:
                engine = Engine(file.handle, tape, threads=1, kv=kv, n_positions=64, level=METAL)
            except errors.UnsupportedModel as e:
                said[path] = str(e)
                continue
            for how in ("prefill", "decode", "chunked"):
                seq = engine.open_seq()
                rows = []
                for a, b in batches(len(ids), how):
                    n = engine.step([(seq, ids[a:b], b - a)])
                    rows.append(engine.logits[:n].copy())
                engine.close_seq(seq)
                np.save(f"{out}/{len(said)}-{how}.npy", np.concatenate(rows))
            engine.close()
            said[path] = ""
    return {"said": said, **counters("live", "copied", "in place")}


def mixed(path: str, ids: list[int]) -> dict[str, Any]:
    """One sequence alone, and again in steps with others that differ in length; all logits as lists of the largest difference."""
    with GGUF(path) as file:
        engine = Engine(file.handle, build.tape_text(file, None), threads=1, kv="f32", n_positions=1024, level=METAL)

        def alone() -> Any:
            seq = engine.open_seq()
            rows = []
            for i in range(len(ids)):
                engine.step([(seq, ids[i:i + 1], 1)])
                rows.append(engine.logits[0].copy())
            engine.close_seq(seq)
            return np.array(rows)

        expected = alone()
        a, b = engine.open_seq(), engine.open_seq()
        engine.step([(b, ids[::-1], 0)])
        rows = []
        for i in range(0, len(ids), 5):
            n = engine.step([(b, ids[i:i + 1], 1), (a, ids[i:i + 5], len(ids[i:i + 5]))])
            rows.append(engine.logits[1:n].copy())
        apart = np.abs(np.concatenate(rows) - expected).max() / np.abs(expected).max()
        state, length = engine.save(a), engine.length(a)
        c = engine.open_seq()
        engine.restore(c, state)
        engine.step([(a, ids[:1], 1)])
        again = engine.logits[0].copy()
        engine.step([(c, ids[:1], 1)])
        same = bool((engine.logits[0] == again).all())
        engine.cancel(True)
        try:
            engine.step([(a, ids[:1], 1)])
            cancelled = False
        except errors.Cancelled:
            cancelled = engine.length(a) == length + 1
        engine.close()
    return {"apart": float(apart), "same": same, "cancelled": cancelled, **counters("live", "dispatches", "kernel attn_merge")}


def long(path: str, ids: list[int]) -> dict[str, Any]:
    """The last token's logits after a long prompt: by the kernels for many rows, and for one row whose positions are cut into parts."""
    with GGUF(path) as file:
        engine = Engine(file.handle, build.tape_text(file, 4096), threads=1, kv="f32", n_positions=2048, level=METAL)
        a, b = engine.open_seq(), engine.open_seq()
        for i in range(0, len(ids) - 1, 512):
            engine.step([(a, ids[:-1][i:i + 512], 0)])
        state = engine.save(a)
        engine.restore(b, state)
        engine.step([(a, ids[-1:], 1)])
        one = engine.logits[0].copy()
        engine.step([(b, [*ids[-1:], 5], 2)])
        two = engine.logits[0].copy()
        engine.close()
    return {"apart": float(np.abs(one - two).max() / np.abs(two).max()), **counters("kernel attn_merge")}


def shapes(path: str, ids: list[int]) -> dict[str, Any]:
    """How many pipelines are made by the engine, and how many more by steps of twelve shapes, each twice."""
    with GGUF(path) as file:
        engine = Engine(file.handle, build.tape_text(file, None), threads=1, kv="f16", n_positions=512, level=METAL)
        made = counters("pipelines")["pipelines"]
        seq = engine.open_seq()
        for _ in range(2):
            for n in range(1, 13):
                engine.step([(seq, ids[:n], n % 3 and 1)])
        after = counters("pipelines", "command buffers", "barriers", "dispatches")
        engine.close()
    return {"made": made, **after}


def stop(path: str, ids: list[int]) -> dict[str, Any]:
    """A step of many rows whose flag is set while it runs: how many command buffers it takes whole, and until it stops."""
    with GGUF(path) as file:
        engine = Engine(file.handle, build.tape_text(file, None), threads=1, kv="f32", n_positions=512, level=METAL)
        seq, other = engine.open_seq(), engine.open_seq()
        engine.step([(seq, ids, 1)])
        want, whole = engine.logits[0].copy(), counters("command buffers")["command buffers"]
        engine.step([(other, ids[:5], 0)])
        ctypes.CDLL(None).fake_set_after(ctypes.c_long(1), ctypes.c_void_p(int(ffi.cast("intptr_t", engine._cancel))))
        before = counters("command buffers")["command buffers"]
        try:
            engine.step([(other, ids[5:], 1)])
            stopped = False
        except errors.Cancelled:
            stopped = engine.length(other) == 5
        after = counters("command buffers")["command buffers"] - before
        engine.cancel(False)
        engine.step([(other, ids[5:], 1)])
        apart = float(np.abs(engine.logits[0] - want).max() / np.abs(want).max())
        engine.close()
    return {"whole": whole, "after": after, "stopped": stopped, "apart": apart}


def load(path: str, options: dict[str, Any]) -> dict[str, Any]:
    """What LLM says, and the first tokens."""
    try:
        with LLM(path, **options) as llm:
            said = {"backend": llm.backend, "level": llm.level, "tokens": list(llm.complete([1, 5, 9], temperature=0, max_tokens=4).tokens)}
            for what in ("profile", "observe", "part", "write"):
                try:
                    engine = llm._engine
                    match what:
                        case "profile":
                            engine.profile().__enter__()
                        case "observe":
                            engine.observe({}).__enter__()
                        case "part":
                            engine.part(0, 1, None, np.zeros(1, np.float32)).__enter__()
                        case "write":
                            engine.write("output.weight", 0, np.zeros((16, 1), np.uint8))
                except errors.Error as e:
                    said[what] = str(e)
    except errors.Error as e:
        said = {"error": type(e).__name__, "message": str(e)}
    return said | counters("live", "copied", "in place")


def free(path: str) -> dict[str, Any]:
    """A load whose tape does not fit leaves nothing behind."""
    with GGUF(path) as file:
        text, out, err = build.tape_text(file, None).encode().replace(b"embed ", b"embad ", 1), ffi.new("pyllm_model **"), new_error()
        rc = lib.pyllm_model_load(file.handle, text, len(text), b"metal", ffi.NULL, 1, ffi.NULL, out, err)
    return {"rc": rc, **counters("live")}


def swaps(path: str, prompt: list[int], golden_ids: list[int]) -> dict[str, Any]:
    """Teacher-forced: where another token than the golden one is ahead, with its gap and whether the golden one is second."""
    with LLM(path, ctx=1024, kv="f16", backend="metal") as llm:
        logits = llm.logits(prompt + golden_ids)[len(prompt) - 1:-1]
        reply = llm.complete(prompt, temperature=0, max_tokens=8)
    found = []
    for i, (row, want) in enumerate(zip(logits, golden_ids, strict=True)):
        first, second = (int(t) for t in np.argsort(-row, kind="stable")[:2])
        if first != want:
            found.append([i, float(row[first] - row[want]), second == want])
    return {"found": found, "tokens": list(reply.tokens), **counters("command buffers", "live")}


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](*json.loads(sys.argv[2]))))
