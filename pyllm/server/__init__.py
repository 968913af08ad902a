"""The HTTP server (extra `server`): OpenAI's, Anthropic's and Ollama's APIs over models in this process. See docs/server.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import errors

try:
    from .app import make_app
    from .guard import Access, is_loopback
    from .http import Background, Server, listen
    from .limits import Limits
    from .models import Models
except ImportError as e:
    raise errors.Unsupported(f"the server needs a package that is not installed: {e.name}\nhint: pip install 'pyllm[server]'") from e

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ..llm import LLM

__all__ = ["Access", "Background", "Limits", "Models", "Server", "listen", "make_app", "make_server", "serve"]


def make_server(models: Models, host: str, keys: Iterable[str] = (), names: Iterable[str] = (), limits: Limits | None = None) -> Server:
    """A server that does not run yet. Raises ArgumentError where anybody on the network could use it without a key."""
    keys = tuple(keys)
    if not keys and not is_loopback(host):
        raise errors.ArgumentError(f"{host} can be reached from other machines, so an API key is needed\n"
                                   "hint: --api-key KEY, or $PYLLM_API_KEY; or listen on 127.0.0.1")
    if any(len(key) < 8 or not key.isascii() or not key.isprintable() or key != key.strip() for key in keys):
        raise errors.ArgumentError("an API key must have at least 8 printable ASCII characters")
    app = make_app(models, Access.make(host, keys, names), limits)
    return Server(app, app.work)


def serve(llm: LLM, host: str, port: int, keys: Iterable[str], names: Iterable[str], name: str | None,
          limits: dict[str, Any]) -> Background:
    """Serves one model that is in memory, on a thread of its own."""
    unknown = [key for key in limits if key not in Limits.__dataclass_fields__]
    if unknown:
        raise errors.ArgumentError(f"there is no limit {unknown[0]!r}\nhint: one of {', '.join(Limits.__dataclass_fields__)}")
    server = make_server(Models.of(llm, name), host, keys, names, Limits(**limits))
    return Background(server, listen(host, port), host)
