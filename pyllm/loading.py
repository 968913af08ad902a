"""Tokenizer and engine of a model at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from . import errors
from ._core import ffi, lib
from .engine import Engine

T = TypeVar("T")


def at_once(make_tokenizer: Callable[[], T], make_engine: Callable[[Any], Engine]) -> tuple[T, Engine]:
    """A tokenizer, with what belongs to it, and an engine at once, the latter on a thread of its own, so that Ctrl-C is heard. It is given
    a flag that ends its load."""
    cancel, ended = ffi.new("int32_t *"), threading.Event()
    made: list[Engine] = []
    failed: list[BaseException] = []

    def load() -> None:
        try:
            made.append(make_engine(cancel))
        except BaseException as e:
            failed.append(e)
        finally:
            ended.set()

    try:
        threading.Thread(target=load, name="pyllm-load", daemon=True).start()
    except RuntimeError as e:
        raise no_thread(e) from None
    try:
        tokenizer = make_tokenizer()
        ended.wait()
    except BaseException:
        lib.pyllm_cancel_set(cancel, 1)
        ended.wait()
        for engine in made:
            engine.close()
        raise
    if failed:
        raise failed[0]
    return tokenizer, made[0]


def no_thread(e: RuntimeError) -> errors.OutOfMemory:
    return errors.OutOfMemory(f"no thread can be had: {e}\nhint: end other programs, or raise the limit (ulimit -u)")
