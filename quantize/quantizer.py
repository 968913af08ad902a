"""The whole way from a model to its quantized file: recipe, pipeline, receipt."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from pyllm import errors
from pyllm._core import lib

from . import imatrix_file, pipeline, receipt, recipes, sensitivity, targets, writer
from .fields import Field
from .imatrix_file import Imatrix
from .pipeline import Progress
from .receipt import Evaluation
from .recipes import Options
from .source import GGUFSource, Source, reading
from .types import type_id, type_name
from .writer import TensorSpec, Writer

_SOURCES = ("f32", "f16", "bf16", "q8_0")       # what may be quantized without being asked twice
_CTX = 512                                      # tokens of a chunk that source and result are compared on


@dataclass(frozen=True)
class PlannedTensor:
    """before: its type in the source, "" if that is none of GGUF's; after: its type in the file; n_bytes: what it takes there."""

    name: str
    dims: tuple[int, ...]
    before: str
    after: str
    n_bytes: int


@dataclass(frozen=True)
class Plan:
    """n_bytes: of the whole file, to the byte; n_params: elements of all tensors."""

    tensors: list[PlannedTensor]
    n_bytes: int
    n_params: int

    @property
    def types(self) -> dict[str, str]:
        return {t.name: t.after for t in self.tensors}


@dataclass(frozen=True)
class Result:
    """path: the file, links followed. n_bytes: its size. types: of every tensor. checksum: of the source. evaluation: if a text was given.
    removed: temporary files of killed processes that were in the folder."""

    path: Path
    n_bytes: int
    types: dict[str, str]
    checksum: str
    evaluation: Evaluation | None
    removed: list[Path]


def quantize(src: str | os.PathLike[str] | Source, out: str | os.PathLike[str], mix: str | Options, *,
             imatrix: str | os.PathLike[str] | None = None, allow_requantize: bool = False, n_threads: int | None = None,
             verify: bool = False, evaluate: str | os.PathLike[str] | None = None, progress: Progress | None = None,
             measuring: Progress | None = None) -> Result:
    """Writes a quantized copy of a model.

    src: a GGUF file (of a split set the first), or an open Source, which stays open.
    out: the new file. It appears under its name only when it is complete and on the disk, and replaces a file of that name then; it is
        never one of the source's own.
    mix: a name (Q4_K_M, see recipes.MIXES), or Options for more: a target, for which types are found by running the source, as
        targets.choose says.
    imatrix: a file of importances; a target without it collects its own.
    allow_requantize: also from types other than F32, F16, BF16 and Q8_0, which loses quality twice.
    n_threads: of the encoders; default: the physical cores. The file does not depend on it.
    verify: reads the file back before it gets its name.
    evaluate: a text on which source and result are compared; the figures go into the receipt. Takes memory for both models, and a source
        that is a GGUF file.
    progress(done, all): bytes of the source; called in this thread, and may raise. measuring(done, all): the same of a target's runs of the
        model, for each part of them.

    At most 350 MB of memory are used, whatever the size of the tensors (without evaluate and target). Raises ArgumentError, FileError,
    FormatError, Unsupported; after any exception, KeyboardInterrupt too, there is no new file, and an old one is as it was.
    """
    text = _text(evaluate) if evaluate is not None else None
    with ExitStack() as stack:
        source = stack.enter_context(_opened(src))
        inputs = [*source.files, *(Path(p) for p in (imatrix, evaluate) if p is not None)]
        writer.output_path(out, inputs)             # what cannot be is said before anything takes time
        if text is not None:
            _check_evaluation(source, text)
        options, imatrix = _resolved(source, mix, imatrix, text, n_threads, measuring)
        importance = stack.enter_context(_imatrix(imatrix, source))
        types = _types(source, options, allow_requantize)
        metadata = _stamp(source, options, types, importance, text)
        found: list[tuple[str, Evaluation | None]] = []

        def finish(done: Writer) -> None:
            found.append((source.checksum(), _evaluate(source, done, text, n_threads) if text else None))
            receipt.finish(done, *found[0])

        written = pipeline.write(
            source, out, {name: type_id(kind) for name, kind in types.items()}, metadata, verify=verify, finish=finish, progress=progress,
            n_threads=n_threads or lib.pyllm_threads_default(), weights=_weights(importance, source) if importance else None)
        return Result(written.path, written.n_bytes, types, *found[0], written.removed)


def plan_file(src: str | os.PathLike[str] | Source, mix: str | Options, *, imatrix: str | os.PathLike[str] | None = None,
              allow_requantize: bool = False, n_threads: int | None = None, measuring: Progress | None = None) -> Plan:
    """What quantize() would write; without a target no tensor is read. Raises as quantize() does."""
    with ExitStack() as stack:
        source = stack.enter_context(_opened(src))
        options, imatrix = _resolved(source, mix, imatrix, None, n_threads, measuring)
        importance = stack.enter_context(_imatrix(imatrix, source))
        types = _types(source, options, allow_requantize)
        metadata = _stamp(source, options, types, importance, None)
        specs = [TensorSpec(t.name, t.dims, type_id(types[t.name])) for t in source.tensors]
        pipeline.check(source.tensors, specs)
        tensors = [PlannedTensor(t.name, t.dims, type_name(t.type_id) if t.type_id >= 0 else "", types[t.name], s.n_bytes)
                   for t, s in zip(source.tensors, specs, strict=True)]
        return Plan(tensors, writer.file_bytes(metadata, specs), sum(prod(s.dims) for s in specs))


@contextmanager
def _opened(src: str | os.PathLike[str] | Source) -> Iterator[Source]:
    if isinstance(src, str | os.PathLike):
        with GGUFSource(src) as source:
            yield source
    else:
        yield src


@contextmanager
def _imatrix(path: str | os.PathLike[str] | None, source: Source) -> Iterator[Imatrix | None]:
    opened: AbstractContextManager[Imatrix | None] = imatrix_file.read(path) if path is not None else nullcontext()
    with opened as importance:
        if importance is not None:
            importance.check(source.tensors)
        yield importance


def _resolved(source: Source, mix: str | Options, imatrix: str | os.PathLike[str] | None, text: _Text | None, n_threads: int | None,
              measuring: Progress | None) -> tuple[Options, str | os.PathLike[str] | None]:
    """(options with a mix's own name, or with the types that meet the target; importance matrix)."""
    if not source.tensors:
        raise errors.ArgumentError(f"{source.name} holds no tensors, only a vocabulary\nhint: give a model")
    options = Options(mix) if isinstance(mix, str) else mix
    target = options.target
    if (options.mix is None) == (target is None):
        raise errors.ArgumentError("either a mix or a target is needed\nhint: name a mix such as Q4_K_M, or say what to aim at")
    if target is None:
        return replace(options, mix=recipes.find_mix(options.mix or ""), imatrix=imatrix is not None), imatrix
    if options.pure:
        raise errors.ArgumentError("pure is one type for all tensors, a target finds one for each\nhint: leave one of them out")
    dims = {t.name: t.dims for t in source.tensors if recipes.is_quantized(t.name, t.dims)}

    def overhead(importance: Imatrix) -> int:
        """Of the longest recipe: the header with its padding."""
        types = {t.name: max(sensitivity.TYPES, key=len) if t.name in dims else type_name(t.type_id) for t in source.tensors}
        empty = [TensorSpec(t.name, (0,) * len(t.dims), 0) for t in source.tensors]
        return writer.file_bytes(_stamp(source, options, types, importance, text), empty)

    found = targets.choose(source, target, list(dims), recipes.wanted(dims, options), imatrix, overhead,
                           n_threads or lib.pyllm_threads_default(), measuring)
    return replace(options, types=found.types, imatrix=True), found.imatrix


def _stamp(source: Source, options: Options, types: Mapping[str, str], importance: Imatrix | None, text: _Text | None) -> dict[str, Field]:
    return receipt.stamp(source.metadata, options, {t.name: t.dims for t in source.tensors}, types, source.name, importance,
                         (text.name, text.checksum) if text else None)


def _types(source: Source, options: Options, allow_requantize: bool) -> dict[str, str]:
    """The type of every tensor; what the mix does not touch stays as it is in a GGUF file, and is f32 out of others."""
    dims = {t.name: t.dims for t in source.tensors}
    types = recipes.choose(recipes.hparams(source.metadata), dims, options)
    for t in source.tensors:
        if isinstance(source, GGUFSource):
            before = type_name(t.type_id)
            if not recipes.is_quantized(t.name, t.dims):
                types[t.name] = before
            elif types[t.name] != before and before not in _SOURCES and not allow_requantize:
                raise errors.ArgumentError(f"{source.name}: tensor {t.name} is {before.upper()} already; quantizing it again loses more\n"
                                           "hint: start from an F16, BF16 or F32 file, or give --allow-requantize")
    return types


def _weights(importance: Imatrix, source: Source) -> pipeline.Weights:
    dims = {t.name: t.dims for t in source.tensors}
    return lambda name: importance.weights(name, dims[name])


# ---- evaluation ----

@dataclass(frozen=True)
class _Text:
    name: str
    data: bytes
    checksum: str


def _text(path: str | os.PathLike[str]) -> _Text:
    file = Path(path)
    with reading(file):
        data = file.read_bytes()
    return _Text(file.name, data, "sha256:" + hashlib.sha256(data).hexdigest())


def _check_evaluation(source: Source, text: _Text) -> None:
    """Raises what _evaluate would, as far as that can be known before."""
    from pyllm import LLM, Tokenizer

    if not isinstance(source, GGUFSource):
        raise errors.ArgumentError("only a GGUF file can be evaluated against\nhint: convert to F16 first, then quantize that")
    LLM.plan(source.files[0], _CTX)
    n = len(Tokenizer(source.files[0]).encode(text.data, parse_special=False))
    if n < _CTX:
        raise errors.ArgumentError(f"the text has {n} tokens, at least {_CTX} are needed to evaluate\nhint: give a longer text")


def _evaluate(source: Source, written: Writer, text: _Text, n_threads: int | None) -> Evaluation:
    from pyllm import LLM

    from .compare import compare
    assert written.temporary is not None
    with LLM(source.files[0], ctx=_CTX, threads=n_threads) as reference, LLM(written.temporary, ctx=_CTX, threads=n_threads) as candidate:
        found = compare(reference, [candidate], text.data, _CTX)
    c = found.candidates[0]
    return Evaluation(c.kld.value, c.kld.error, c.kld_99.value, c.kld_max, c.top.value, c.perplexity.value, found.perplexity.value)
