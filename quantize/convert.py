"""From a checkpoint to a GGUF file in one pass: the checkpoint is a source like any other for the pipeline that quantizes."""

from __future__ import annotations

import os

from . import pipeline, recipes
from .checkpoint import Checkpoint
from .types import type_id
from .writer import Writer


def convert(path: str | os.PathLike[str], out: str | os.PathLike[str], mix: str = "F16", *, n_threads: int,
            progress: pipeline.Progress | None = None) -> Writer:
    with Checkpoint(path) as source:
        types = recipes.choose(recipes.hparams(source.metadata), {t.name: t.dims for t in source.tensors}, recipes.Options(mix))
        return pipeline.write(source, out, {name: type_id(kind) for name, kind in types.items()}, source.metadata, n_threads=n_threads,
                              progress=progress)
