"""pyllm: run language models from GGUF files on the machine in front of you.

    import pyllm
    with pyllm.LLM("model.gguf") as llm:
        print(llm.chat("Why is the sky blue?"))
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import errors as errors
    from .errors import Error as Error
    from .llm import LLM as LLM
    from .replies import Chunk as Chunk
    from .replies import Logprob as Logprob
    from .replies import Plan as Plan
    from .replies import Reply as Reply
    from .replies import Stream as Stream
    from .replies import Timings as Timings
    from .replies import ToolCall as ToolCall
    from .replies import ToolDelta as ToolDelta
    from .replies import Usage as Usage
    from .session import Session as Session
    from .tokenizer import Tokenizer as Tokenizer

_HOMES = {
    "llm": ("LLM",),
    "replies": ("Chunk", "Logprob", "Plan", "Reply", "Stream", "Timings", "ToolCall", "ToolDelta", "Usage"),
    "session": ("Session",),
    "tokenizer": ("Tokenizer",),
}


def __getattr__(name: str) -> Any:
    """Names load on first use, so that `import pyllm` stays cheap."""
    from importlib import import_module

    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    errors = import_module(".errors", __name__)
    if name == "errors":
        return errors
    if not name.startswith("_") and isinstance(getattr(errors, name, None), type):
        return getattr(errors, name)
    raise AttributeError(f"module 'pyllm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(["__version__", "errors", "Error", *(n for names in _HOMES.values() for n in names)])
