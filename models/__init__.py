"""Model families, one small file each: the forward pass, the names, and the way from a Hugging Face checkpoint to GGUF.

A file in this folder is found by being here; docs/adding-a-model.md walks through one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Arch:
    """A family. Subclasses say what differs; forward is written once and run once a load."""

    names: ClassVar[tuple[str, ...]]                    # GGUF's general.architecture, then Hugging Face class names
    neox: ClassVar[bool] = True                         # rope turns pairs (i, i + n/2); False: (2i, 2i + 1)
    oracle: ClassVar[str] = "transformers"              # whose logits the tests compare with
    layer_norm: ClassVar[bool] = False                  # norms take the mean off and may have a bias; False: RMS norms
    encoder: ClassVar[bool] = False                     # the result is an embedding, not logits
    hybrid: ClassVar[bool] = False                      # layers without heads of keys and values have recurrent steps instead of attention
    attends: ClassVar[bool] = True                      # False: all that a model knows of a sequence is its recurrent state
    yarn_truncates: ClassVar[bool] = True               # YaRN's ramp begins and ends at whole pairs
    yarn_scales_scores: ClassVar[bool] = False          # YaRN's multiplier, a tenth of which is in the file, is one of all scores
    defaults: ClassVar[dict[str, Any]] = {}             # hyperparameters that the family's files may leave out
    # Checkpoint's name to GGUF's, both without .weight and .bias, or both whole. {i}: layer; {e}: in a stack; several names: each has some
    # of the rows, see row_order.
    tensors: ClassVar[dict[str, Any]]
    hf_ignored: ClassVar[tuple[str, ...]] = ()          # whole names of what checkpoints hold and no model needs
    hf_defaults: ClassVar[dict[str, Any]] = {}          # entries that config.json may leave out
    hf_keys: ClassVar[dict[str, str]] = {}              # usual entry of config.json to what the family's files call it

    @property
    def name(self) -> str:
        return self.names[0]

    def forward(self, g: Builder, c: Config) -> Value:
        """Writes the steps of the forward pass with g and returns the logits, or the embedding."""
        raise NotImplementedError

    def row_order(self, name: str, n: int, config: Mapping[str, Any]) -> NDArray[np.intp] | None:
        """Which of the checkpoint's n rows (of a bias: elements) are those of a GGUF tensor, in its order; None: all as they are. Of a
        stack: of each matrix."""
        return None

    def heads(self, name: str, config: Mapping[str, Any]) -> tuple[int, int, int] | None:
        """(n, begin, end): a GGUF stack is rows [begin, end) of each of the n parts, one above the other, of the checkpoint's matrix."""
        return None

    def offset(self, name: str) -> float:
        """What GGUF's values of a tensor are greater by than the checkpoint's."""
        return 0.0

    def shape(self, name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> tuple[int, ...]:
        """GGUF's shape of a tensor, in numpy's order, where it has the same values in another one."""
        return shape

    def change(self, name: str) -> Callable[[NDArray[np.float32]], NDArray[np.float32]] | None:
        """What GGUF has in place of the checkpoint's values of a tensor; None: these."""
        return None

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Keys (without prefix) that do not follow from the table of pyllm/hparams.py."""
        return {}

    def transposed(self, name: str) -> bool:
        """Whether the checkpoint has a GGUF matrix [out, in] as [in, out]."""
        return False

    def gguf_names(self, hf_name: str) -> tuple[str, ...]:
        """GGUF's name for a checkpoint's tensor; several where it holds what GGUF keeps apart, none if the family has no such tensor. All
        matrices of a stack have one name."""
        pattern, layer, _ = _pattern(hf_name)
        stem, _, kind = pattern.rpartition(".")
        found = self.tensors.get(pattern) or self.tensors.get(stem) or ()
        ending = "" if pattern in self.tensors else f".{kind}"
        names = (found,) if isinstance(found, str) else found
        return tuple(name.replace("{i}", layer or "") + ending for name in names)

    def ignores(self, hf_name: str) -> bool:
        return _pattern(hf_name)[0] in self.hf_ignored


_STACKS = ("altup_projections", "altup_unembed_projections")    # lists of matrices outside of layers


def stack_index(hf_name: str) -> int | None:
    """Which matrix of a stack a checkpoint's tensor is: the second number in its name, or the only one where the stack is of no layer."""
    entry = _pattern(hf_name)[2]
    return None if entry is None else int(entry)


def _pattern(hf_name: str) -> tuple[str, str | None, str | None]:
    """A name with {i} and {e} for its numbers, and these."""
    parts = hf_name.split(".")
    found: dict[str, str] = {}
    for i, part in enumerate(parts):
        if part.isdigit() and len(found) < 2:
            mark = "{e}" if found or parts[i - 1] in _STACKS else "{i}"
            found[mark], parts[i] = part, mark
    return ".".join(parts), found.get("{i}"), found.get("{e}")


def neighbours(n: int, heads: int) -> NDArray[np.intp]:
    """Row order of q or k for families with neox = False: inside each head, pairs (i, i + n/2) become neighbours (2i, 2i + 1)."""
    import numpy as np

    return np.array(np.arange(n).reshape(heads, 2, -1).swapaxes(1, 2).ravel())


@cache
def families() -> dict[str, Arch]:
    """Every family by each of its names."""
    found: dict[str, Arch] = {}
    for module in iter_modules(__path__):
        for item in vars(import_module(f"{__name__}.{module.name}")).values():
            if isinstance(item, type) and issubclass(item, Arch) and "names" in vars(item):
                found.update(dict.fromkeys(item.names, item()))
    return found
