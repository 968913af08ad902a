"""From a checkpoint to a GGUF file in one pass: a checkpoint is a source like any other for the pipeline that quantizes."""

from __future__ import annotations

import os

from pyllm._core import lib

from . import pipeline
from .checkpoint import Checkpoint
from .quantizer import Result, quantize
from .recipes import Options


def convert(path: str | os.PathLike[str], out: str | os.PathLike[str], mix: str | Options = "F16", *, name: str | None = None,
            pre: str | None = None, vocab_only: bool = False, imatrix: str | os.PathLike[str] | None = None, n_threads: int | None = None,
            verify: bool = False, progress: pipeline.Progress | None = None) -> Result:
    """Writes the GGUF file of a checkpoint's folder.

    name, pre, vocab_only: see Checkpoint; a vocabulary alone has no types. The others, memory and what is raised: see quantize(). Nothing
    that the checkpoint holds is run, and no file is left after an exception.
    """
    with Checkpoint(path, name=name, pre=pre, vocab_only=vocab_only) as source:
        if not vocab_only:
            return quantize(source, out, mix, imatrix=imatrix, n_threads=n_threads, verify=verify, progress=progress)
        written = pipeline.write(source, out, {}, source.metadata, n_threads=n_threads or lib.pyllm_threads_default(), verify=verify)
        return Result(written.path, written.n_bytes, {}, "", None, written.removed)
