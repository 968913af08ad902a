"""dots.llm1 (arXiv:2506.05767): Qwen3's attention and the experts of DeepSeek V3."""

from __future__ import annotations

from . import deepseek2
from .glm4moe import Glm4Moe
from .qwen3moe import Qwen3Moe


class Dots1(Glm4Moe):
    names = ("dots1", "Dots1ForCausalLM")
    feed_forward_norm = "ffn_norm"
    hf_defaults = {}
    tensors = Qwen3Moe.tensors | deepseek2.SHARED
