"""Types chosen by measurement: the least divergence from the source within a size, or the smallest file within a divergence."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

from pyllm import errors
from pyllm.llm import LLM

from . import knapsack, sensitivity
from .sensitivity import Calibration, Importance, Progress, Sensitivity, State
from .source import GGUFSource, TensorSource, n_rows
from .types import row_bytes, type_id, type_name

_ALIGN = 32
_SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
# What the engine can be given back after a change: matrices of these types.
_MEASURABLE = ("f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class Target:
    """kind: "size" in bytes of the file, "bpw" in bits of its tensors' data for each parameter, or "kld" in nats, mean on the calibration
    text."""

    kind: str
    value: float
    calibration: Calibration

    @property
    def words(self) -> str:
        """As the command says it."""
        return f"--target-{self.kind} {self.value:.10g}"

    def tensor_bytes(self, tensors: list[TensorSource], overhead: int) -> int:
        """What the tensors' data may take. overhead: bytes of the file before it."""
        if self.kind == "bpw":
            return int(self.value * sum(prod(t.dims) for t in tensors) / 8)
        return int(self.value) - overhead


def parse_size(text: str) -> int:
    """Bytes of "900MB", "1.2 GiB", "1000000"; ValueError for other texts."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]?i?b?)", text.strip().lower())
    if not found or found[2] not in _SIZES | {"k": 0, "m": 0, "g": 0}:
        raise ValueError(f"{text!r} is not a size such as 900MB or 1.2GiB")
    unit = found[2] if found[2] in _SIZES else found[2] + "b"
    return int(float(found[1]) * _SIZES[unit])


@dataclass
class Search:
    """What is known about every matrix of a model: the sizes that it may have, and what each costs. kept: bytes of the tensors that stay as
    they are."""

    sensitivities: dict[str, Sensitivity]
    dims: dict[str, tuple[int, ...]]
    fixed: Mapping[str, str]
    kept: int
    _sizes: dict[tuple[str, str], int] = field(default_factory=dict)

    def within(self, n_bytes: int) -> dict[str, str]:
        """The types with the least expected divergence whose data, with that of all other tensors, takes at most n_bytes."""
        names = list(self.sensitivities)
        kinds = [[self.fixed[n]] if n in self.fixed else sensitivity.fitting_types(self.dims[n][0]) for n in names]
        options = [[(self.size(n, k), self.sensitivities[n].cost(k)) for k in ks] for n, ks in zip(names, kinds, strict=True)]
        chosen = knapsack.solve(options, n_bytes - self.kept)
        return {n: ks[i] for n, ks, i in zip(names, kinds, chosen, strict=True)}

    def below(self, kld: float) -> dict[str, str]:
        """The smallest types whose expected divergence is at most kld. ArgumentError if there are none."""
        low, high = (self.kept + sum(f(self.size(n, k) for k in sensitivity.fitting_types(self.dims[n][0])) for n in self.sensitivities)
                     for f in (min, max))
        best = self.within(high)
        if self.expected(best) > kld:
            raise errors.ArgumentError(f"a KL divergence of {kld:.3g} cannot be reached: "
                                       f"the largest types leave about {self.expected(best):.3g}\n"
                                       "hint: a larger target")
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
        if (name, kind) not in self._sizes:
            n = row_bytes(type_id(kind), self.dims[name][0]) * n_rows(self.dims[name])
            self._sizes[name, kind] = -(-n // _ALIGN) * _ALIGN
        return self._sizes[name, kind]


def state_path(out: str | os.PathLike[str]) -> str:
    """Where measurements are kept: beside the output, for the next run, with this or another target."""
    return f"{os.fspath(out)}.sensitivity.jsonl"


def measured(source: GGUFSource, out: str | os.PathLike[str], calibration: Calibration, choosable: Callable[[TensorSource], bool],
             fixed: Mapping[str, str], importance: Importance | None, imatrix: str | None, n_threads: int,
             progress: Progress | None = None) -> Search:
    """Runs the source on the calibration text, once for every tensor that `choosable` names, less what an earlier run left beside `out`.

    fixed: types that the caller has chosen. imatrix: checksum of the importance matrix. Takes memory for the source as a loaded model.
    """
    some = [t for t in source.tensors if choosable(t)]
    for t in some:
        if type_name(t.type_id) not in _MEASURABLE:
            raise errors.ArgumentError(f"{source.name}: tensor {t.name} is {type_name(t.type_id).upper()}; a target needs a source in "
                                       f"{', '.join(k.upper() for k in _MEASURABLE)}\n"
                                        "hint: start from an F16, BF16 or F32 file, or name a type")
    with State(state_path(out), sensitivity.state_key(source, calibration, imatrix)) as state, \
            LLM(source.files[0], ctx=calibration.ctx, threads=n_threads, kv="f32") as llm:
        probe = sensitivity.Probe(llm, source, calibration, importance)
        found = sensitivity.measure(probe, some, importance, state, n_threads, progress)
    others = sum(-(-row_bytes(t.type_id, t.dims[0]) * n_rows(t.dims) // _ALIGN) * _ALIGN for t in source.tensors if t.name not in found)
    return Search(found, {t.name: t.dims for t in some}, fixed, others)
