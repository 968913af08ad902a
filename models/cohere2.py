"""Command R7B and Command A (arXiv:2504.00698): Command R with windows in three of four layers; the others have no rope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .command_r import CommandR

if TYPE_CHECKING:
    from pyllm.hparams import Config


class Cohere2(CommandR):
    names = ("cohere2", "Cohere2ForCausalLM")
    defaults = {"window_pattern": 4}

    def has_rope(self, c: Config, layer: int) -> bool:
        return c.is_local(layer)
