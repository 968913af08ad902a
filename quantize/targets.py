"""Types chosen by measurement: the least divergence from the source within a size, or the smallest file within a divergence."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import NamedTuple

from pyllm import errors
from pyllm.llm import LLM
from pyllm.perplexity import split

from . import imatrix, imatrix_file, knapsack, sensitivity
from .imatrix_file import Imatrix
from .measurements import Measurements
from .recipes import Target
from .sensitivity import Importance, Probe, Progress, Sensitivity
from .source import GGUFSource, Source, n_rows
from .types import row_bytes, type_id, type_name

_ALIGN = 32
_CTX, _CHUNKS = 512, 16         # tokens of a chunk, and chunks at most, that importance is measured on
_RUNS = 4                       # of a whole recipe, at most, on the way to a divergence
_CLOSE = 0.97                   # of the wanted divergence: near enough below it
# What the engine can be given back after a change: matrices of these types.
_MEASURABLE = ("f32", "f16", "bf16", "q8_0")


@dataclass
class Search:
    """The sizes that matrices may have, and what each costs. fixed: types that are not free to choose; kept: bytes of all other tensors."""

    sensitivities: Mapping[str, Sensitivity]
    dims: Mapping[str, tuple[int, ...]]
    fixed: Mapping[str, str]
    kept: int

    def within(self, n_bytes: int) -> dict[str, str]:
        """The types with the least expected divergence whose data, with that of all other tensors, takes at most n_bytes. ArgumentError if
        there are none."""
        kinds = {n: self._kinds(n) for n in self.sensitivities}
        options = [[(self.size(n, k), self.sensitivities[n].cost(k)) for k in ks] for n, ks in kinds.items()]
        least = self.kept + sum(min(size for size, _ in some) for some in options)
        if least > n_bytes:
            raise errors.ArgumentError(f"the smallest types take {least} bytes, the target leaves {max(n_bytes, 0)} for the tensors\n"
                                       "hint: a larger target")
        chosen = knapsack.solve(options, n_bytes - self.kept)
        return {n: ks[i] for (n, ks), i in zip(kinds.items(), chosen, strict=True)}

    def below(self, kld: float) -> dict[str, str]:
        """The smallest types whose expected divergence is at most kld. ArgumentError if there are none."""
        low, high = (self.kept + sum(f(self.size(n, k) for k in self._kinds(n)) for n in self.sensitivities) for f in (min, max))
        best = self.within(high)
        if self.expected(best) > kld:
            raise errors.ArgumentError(f"a KL divergence of {kld:.3g} cannot be reached: "
                                       f"the largest types leave about {self.expected(best):.3g}\nhint: a larger target")
        while high - low > 1 + high // 10000:
            middle = (low + high) // 2
            found = self.within(middle)
            if self.expected(found) <= kld:
                best, high = found, middle
            else:
                low = middle
        return best

    def expected(self, types: Mapping[str, str]) -> float:
        return sum(self.sensitivities[n].cost(k) for n, k in types.items())

    def size(self, name: str, kind: str) -> int:
        """With the padding behind it."""
        return _padded(kind, self.dims[name])

    def _kinds(self, name: str) -> list[str]:
        return [self.fixed[name]] if name in self.fixed else sensitivity.fitting_types(self.dims[name][0])


class Choice(NamedTuple):
    """types: of the tensors that were asked for; imatrix: the importance matrix that they count on."""

    types: dict[str, str]
    imatrix: Path


def choose(source: Source, target: Target, tensors: Sequence[str], fixed: Mapping[str, str], given: str | os.PathLike[str] | None,
           overhead: Callable[[Imatrix], int], n_threads: int, progress: Progress | None = None) -> Choice:
    """The types that meet a target, of these tensors of the source.

    fixed: types that the caller has chosen. given: an importance matrix; without it one is collected on the target's text. overhead: bytes
    of the file that are no tensor's. progress(done, all): runs of the model, of each part of the work. What was measured before is read out
    of the cache; to measure, the source is loaded as a model. Raises ArgumentError for what cannot be measured or met.
    """
    if not isinstance(source, GGUFSource):
        raise errors.ArgumentError("a target needs a source that can be run\nhint: convert to F16 first, then quantize that")
    some = [t for t in source.tensors if t.name in tensors]
    for t in some:
        if type_name(t.type_id) not in _MEASURABLE:
            raise errors.ArgumentError(f"{source.name}: tensor {t.name} is {type_name(t.type_id).upper()}; a target needs a source in "
                                       f"{', '.join(k.upper() for k in _MEASURABLE)}\n"
                                       "hint: start from an F16, BF16 or F32 file, or name a type")
    with ExitStack() as stack:
        importance = stack.enter_context(imatrix_file.read(given)) if given is not None else None
        key = {"source": source.checksum(), "text": target.checksum, "ctx": _CTX, "chunks": _CHUNKS}
        known = stack.enter_context(Measurements(key | {"imatrix": importance.checksum if importance else ""}))
        runs = stack.enter_context(_Runs(source, target, n_threads))
        if importance is None:
            if not known.imatrix.exists():
                runs.collect(known.imatrix, progress)
            importance = stack.enter_context(imatrix_file.read(known.imatrix))
        importance.check(source.tensors)
        dims = {t.name: t.dims for t in source.tensors}
        weights: Importance = lambda name: importance.weights(name, dims[name])       # noqa: E731
        found = sensitivity.measure(lambda: runs.probe(weights), some, weights, known, n_threads, progress)
        search = Search(found, dims, fixed, sum(_padded(type_name(t.type_id), t.dims) for t in source.tensors if t.name not in found))
        if target.kind == "kld":
            types = _below(target.value, search, runs, weights, known, progress)
        else:
            room = target.value * sum(map(prod, dims.values())) / 8 if target.kind == "bpw" else target.value - overhead(importance)
            types = search.within(int(room))
        return Choice(types, importance.path)


def _below(wanted: float, search: Search, runs: _Runs, weights: Importance, known: Measurements,
           progress: Progress | None) -> dict[str, str]:
    """The smallest types that were measured, all together, to diverge by at most `wanted`: how far the sum of single divergences is from
    that of all is learnt on the way."""
    best: dict[str, str] | None = None
    ratio = 1.0
    for i in range(_RUNS):
        if progress:
            progress(i, _RUNS)
        types = search.below(wanted / ratio)
        name = "all " + hashlib.sha256(repr(sorted(types.items())).encode()).hexdigest()[:16]
        if known.get(name) is None:
            known.put(name, runs.probe(weights).kld(types))
        kld = known.get(name)
        if kld <= wanted and (best is None or sum(search.size(*t) for t in types.items()) < sum(search.size(*t) for t in best.items())):
            best = types
        if _CLOSE * wanted <= kld <= wanted:
            break
        ratio = kld / search.expected(types) / (1 + _CLOSE) * 2      # aims between the two
    if progress:
        progress(_RUNS, _RUNS)
    if best is None:
        raise errors.ArgumentError(f"a KL divergence of {wanted:.3g} was not reached: the last recipe leaves {kld:.3g}\n"
                                   "hint: a larger target")
    return best


def _padded(kind: str, dims: tuple[int, ...]) -> int:
    return -(-row_bytes(type_id(kind), dims[0]) * n_rows(dims) // _ALIGN) * _ALIGN


class _Runs:
    """The source as a loaded model, from the first time that it is needed."""

    def __init__(self, source: GGUFSource, target: Target, n_threads: int) -> None:
        self._source, self._target, self._threads = source, target, n_threads
        self._stack = ExitStack()
        self._probe: Probe | None = None

    @cached_property
    def _llm(self) -> LLM:
        return self._stack.enter_context(LLM(self._source.files[0], ctx=_CTX, threads=self._threads, kv="f32"))

    def collect(self, out: Path, progress: Progress | None) -> None:
        """An importance matrix of the text."""
        n = min(len(split(self._llm, self._target.text, _CTX)), _CHUNKS)
        for found in imatrix.estimates(self._llm, self._target.text, self._target.name, _CTX, n, output=True):
            if progress:
                progress(found.chunk_count, n)
        found.save(out)

    def probe(self, weights: Importance) -> Probe:
        if self._probe is None:
            self._probe = Probe(self._llm, self._source, split(self._llm, self._target.text, _CTX)[:1], weights)
        return self._probe

    def __enter__(self) -> _Runs:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
