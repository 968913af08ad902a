"""Model families, one small file each: the forward pass, the names, and the way from a Hugging Face checkpoint to GGUF.

A file in this folder is found by being here; docs/adding-a-model.md walks through one.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class Arch:
    """A family. Subclasses say what differs; forward is written once and run once a load."""

    names: ClassVar[tuple[str, ...]]                    # GGUF's general.architecture, then Hugging Face class names
    neox: ClassVar[bool] = True                         # rope turns pairs (i, i + n/2); False: (2i, 2i + 1)
    defaults: ClassVar[dict[str, Any]] = {}             # hyperparameters that the family's files may leave out
    tensors: ClassVar[dict[str, str]]                   # Hugging Face name to GGUF name, without .weight or .bias

    @property
    def name(self) -> str:
        return self.names[0]

    def forward(self, g: Builder, c: Config) -> Value:
        """Writes the steps of the forward pass with g and returns the logits."""
        raise NotImplementedError

    def convert(self, name: str, values: NDArray[Any], config: Mapping[str, Any]) -> NDArray[Any]:
        """A checkpoint's tensor as GGUF files hold it. name: its GGUF name; config: config.json."""
        return values

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Keys (without prefix) that do not follow from the table of pyllm/hparams.py."""
        return {}

    def gguf_name(self, hf_name: str) -> str | None:
        """GGUF's name for a checkpoint's tensor; None if the family has no such tensor."""
        stem, _, kind = hf_name.rpartition(".")
        layer = next((part for part in stem.split(".") if part.isdigit()), "")
        name = self.tensors.get(stem.replace(f".{layer}.", ".{i}.", 1) if layer else stem)
        return f"{name.replace('{i}', layer)}.{kind}" if name else None


def permute_heads(values: NDArray[Any], heads: int) -> NDArray[Any]:
    """Reorders the rows (or bias elements) of q or k inside each head from (i, i + n/2) pairs to (2i, 2i + 1) neighbours, the
    order in which GGUF keeps families with neox = False."""
    import numpy as np

    shape = values.shape
    return np.ascontiguousarray(values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape))


@cache
def families() -> dict[str, Arch]:
    """Every family by each of its names."""
    found: dict[str, Arch] = {}
    for module in iter_modules(__path__):
        for item in vars(import_module(f"{__name__}.{module.name}")).values():
            if isinstance(item, type) and issubclass(item, Arch) and "names" in vars(item):
                found.update(dict.fromkeys(item.names, item()))
    return found
