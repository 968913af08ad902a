"""Chat templates: Jinja from the model file, rendered by minijinja with limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class ChatTemplate:
    def __init__(self, source: str, bos: str = "", eos: str = "") -> None:
        import minijinja
        self._env = minijinja.Environment(templates={"chat": source}, pycompat=True, trim_blocks=True, lstrip_blocks=True, auto_escape_callback=lambda n: False)
        self._bos, self._eos = bos, eos

    def render(self, messages: Sequence[Mapping[str, Any]], tools: Any = None, add_generation_prompt: bool = True, **kw: Any) -> str:
        return self._env.render_template("chat", messages=list(messages), tools=tools, add_generation_prompt=add_generation_prompt, bos_token=self._bos, eos_token=self._eos, **kw)
