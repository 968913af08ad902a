"""EmbeddingGemma (arXiv:2509.20354): Gemma 3 whose tokens see both ways; the mean goes through two more matrices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .gemma3 import Gemma3

if TYPE_CHECKING:
    from pyllm.build import Builder, Value
    from pyllm.hparams import Config


class GemmaEmbedding(Gemma3):
    names = ("gemma-embedding", "Gemma3TextModel")
    encoder = True
    defaults = Gemma3.defaults | {"window": 512, "attn_softcap": 0.0, "final_softcap": 0.0}
    tensors = Gemma3.tensors | {"dense_2": "dense_2", "dense_3": "dense_3"}

    def forward(self, g: Builder, c: Config) -> Value:
        y = g.pool(g.norm(self.body(g, c), "output_norm"))
        for name in ("dense_2", "dense_3"):
            y = g.linear(y, name) if g.has(name) else y
        return y

    def gguf_names(self, hf_name: str) -> tuple[str, ...]:
        return super().gguf_names(hf_name) or super().gguf_names(f"model.{hf_name}")

    def hf_hparams(self, config: Mapping[str, Any]) -> dict[str, Any]:
        if not config.get("use_bidirectional_attention"):
            raise ValueError("without use_bidirectional_attention this is no EmbeddingGemma")
        return super().hf_hparams(config) | {"attention.causal": False}
