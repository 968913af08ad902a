"""ERNIE 4.5 dense models (Baidu): Llama whose checkpoints turn neighbouring pairs themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .llama import Llama

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Ernie45(Llama):
    names = ("ernie4_5", "Ernie4_5ForCausalLM")
    tensors = Llama.dense
    hf_defaults = {"tie_word_embeddings": True}

    def row_order(self, name: str, n: int, config: Mapping[str, Any]) -> NDArray[np.intp] | None:
        return None
