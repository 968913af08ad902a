"""From a checkpoint to a GGUF file in one pass: a checkpoint is a source like any other for the pipeline that quantizes."""

from __future__ import annotations

import os

from . import pipeline, recipes
from .checkpoint import Checkpoint
from .types import type_id
from .writer import Writer


def convert(path: str | os.PathLike[str], out: str | os.PathLike[str], mix: str = "F16", *, n_threads: int, name: str | None = None,
            pre: str | None = None, vocab_only: bool = False, verify: bool = False, progress: pipeline.Progress | None = None) -> Writer:
    """Writes the GGUF file of a checkpoint's folder; returns the writer, which knows path and size.

    mix: one of recipes.MIXES; name, pre, vocab_only: see Checkpoint; verify, progress: see pipeline.write. Raises what these raise, and
    leaves no file then.
    """
    with Checkpoint(path, name=name, pre=pre, vocab_only=vocab_only) as source:
        dims = {t.name: t.dims for t in source.tensors}
        types = recipes.choose(recipes.hparams(source.metadata), dims, recipes.Options(mix))
        return pipeline.write(source, out, {name: type_id(kind) for name, kind in types.items()}, source.metadata, n_threads=n_threads,
                              verify=verify, progress=progress)
