"""Tiny models and their packed weights on disk, for tests of the pack cache."""

from __future__ import annotations

import time
from pathlib import Path

import tiny_gguf

import pyllm

IDS = list(range(3, 40))
# Two pieces, rows that do not fill groups of 16 (300 tokens), small enough to be quick.
SIZES = {"n_layers": 3, "n_ff": 1024, "n_vocab": 300}


def write_model(path: Path, kind: str = "q4_k", tied: bool = True, seed: int = 1) -> Path:
    """A model whose file is old enough for its times to tell a change."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tiny_gguf.llama(kind, tied, seed, **SIZES)[0])
    time.sleep(0.1)
    return path


def load(path: Path, level: str | None = None, keep: bool = True) -> tuple[str | None, bytes]:
    """(what came of the packed weights, logits)."""
    with pyllm.LLM(path, ctx=64, threads=2, level=level, pack_cache=keep) as llm:
        return llm.info["pack_cache"], llm.logits(IDS).tobytes()


def packs(home: Path) -> list[Path]:
    return sorted(home.glob("packed/*"))


def one_pack(home: Path) -> Path:
    (path,) = packs(home)
    assert path.suffix == ".pack"
    return path


def change(path: Path, at: int, new: bytes) -> None:
    path.chmod(0o600)
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(new)
