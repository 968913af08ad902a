"""SmolLM3: Llama in which every fourth layer has no rotary embedding (Yang et al., arXiv:2501.18795)."""

from __future__ import annotations

from .llama import Llama


class SmolLM3(Llama):
    names = ("smollm3", "SmolLM3ForCausalLM")
    tensors = Llama.dense

    def has_rope(self, layer: int) -> bool:
        return (layer + 1) % 4 != 0
