"""Draft models: small models of the same vocabulary that guess what a larger one is going to say."""

from __future__ import annotations

import os

from . import errors, memory
from .build import build
from .engine import Engine, plan_bytes
from .gguf import GGUF
from .loading import at_once

TAIL = 0.01     # of a vocabulary may be missing in the other one: files of one family are padded to different sizes
_VOCABULARY = ("tokenizer.ggml.model", "tokenizer.ggml.pre")


def check_vocabulary(draft: GGUF, target: GGUF) -> None:
    """Raises ArgumentError unless equal ids mean equal tokens in both."""
    different = next((key for key in _VOCABULARY if draft.kv.get(key) != target.kv.get(key)), None)
    mine, theirs = draft.kv.get("tokenizer.ggml.tokens"), target.kv.get("tokenizer.ggml.tokens")
    if different is not None:
        why = f"{different} is {str(draft.kv.get(different))[:40]!r} there and {str(target.kv.get(different))[:40]!r} here"
    elif not isinstance(mine, list) or not isinstance(theirs, list):
        why = "it has none"
    elif abs(len(mine) - len(theirs)) > TAIL * max(len(mine), len(theirs)):
        why = f"it has {len(mine)} tokens, not {len(theirs)}"
    else:
        at = next((i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b), None)
        if at is None:
            return
        why = f"token {at} is {str(mine[at])[:40]!r} there and {str(theirs[at])[:40]!r} here"
    names = [os.path.basename(gguf.path) for gguf in (draft, target)]
    raise errors.ArgumentError(f"the draft model {names[0]} has another vocabulary than {names[1]}: {why}\n"
                               "hint: a smaller model of the same family")


def check_state(path: str, tape: str) -> None:
    """Raises UnsupportedModel for models that cannot take back a token that was guessed wrong."""
    if " state=" in tape:
        raise errors.UnsupportedModel(f"{path} has recurrent states, which cannot be rewound: no draft model can be used with it or as it\n"
                                      "hint: leave the draft model out")


def load(path: str, target: str, ctx: int, threads: int, kv: str, level: str | None, parallel: int) -> tuple[Engine, int]:
    """(the draft model in a file for that in another one, positions of one text that it can be used for). ctx: tokens that all texts may
    have together. Raises what loading a model raises, and ArgumentError for another vocabulary."""
    with GGUF(path) as gguf, GGUF(target) as theirs:
        tape, _ = build(gguf, None)
        check_state(path, tape)
        trained = next(int(line.split()[2]) for line in tape.splitlines() if line.startswith("hparam n_ctx_train "))
        n_ctx = min(ctx, trained)
        tape, _ = build(gguf, n_ctx)
        need, free, mb = sum(plan_bytes(gguf, tape, threads, kv, ctx, parallel)), memory.available(), 1 << 20
        if need > free:
            raise errors.OutOfMemory(f"the draft model {path} needs {need // mb} MB with {ctx} tokens, {free // mb} MB are available\n"
                                     "hint: a smaller ctx, or no draft model")
        _, engine = at_once(lambda: check_vocabulary(gguf, theirs), lambda cancel: Engine(
            gguf.handle, tape, threads=threads, kv=kv, n_positions=ctx, level=level, parallel=parallel, cancel=cancel))
        return engine, n_ctx
