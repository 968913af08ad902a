"""pyllm serve: an HTTP server with the APIs of OpenAI, Anthropic and Ollama."""

from __future__ import annotations

import argparse
import logging
import os
import re
from pathlib import Path
from typing import Any

from .. import errors
from ._options import (
    MODEL_HELP,
    add_backend,
    add_disk_cache,
    add_kv,
    add_pack_cache,
    add_parallel,
    add_speculation,
    add_threads,
    model_file,
    whole,
)
from ._output import clean, note

EPILOG = """\
Editors, agents and libraries take the address that it prints, with /v1 for
OpenAI's API; a browser finds a chat page there.

Without a key only this machine can ask. With --host 0.0.0.0 others can, too,
and then a key is required.
"""


def add(parser: argparse.ArgumentParser) -> None:
    parser.usage = "pyllm serve [OPTIONS] [MODEL ...]"
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("models", metavar="MODEL", nargs="*",
                        help=f"{MODEL_HELP}; NAME=MODEL serves it under a name of yours; the first one is the default")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="listen on this address (default: 127.0.0.1)")
    parser.add_argument("--port", type=whole(0, 65535), default=8080, metavar="N", help="0 takes any that is free (default: 8080)")
    parser.add_argument("--api-key", action="append", metavar="KEY", help="a key that requests must carry; may be given several times "
                        "(default: $PYLLM_API_KEY)")
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME",
                        help="a further name under which the server may be asked; may be given several times")
    parser.add_argument("--ctx", type=whole(4, 1 << 24), metavar="N",
                        help="context in tokens (default: what the model was trained for, if it fits in memory)")
    add_parallel(parser, "requests that run at once in a model")
    add_threads(parser)
    add_kv(parser)
    add_backend(parser)
    parser.add_argument("--chat-template", metavar="FILE", help="Jinja template instead of the model's")
    add_pack_cache(parser)
    add_disk_cache(parser)
    add_speculation(parser)
    parser.add_argument("--keep-alive", type=duration, metavar="TIME",
                        help="unload a model that was not used for this time: 90, 5m, 1h (default: keep it)")
    parser.add_argument("--limit", type=limit, action="append", default=[], metavar="NAME=VALUE",
                        help="one of the limits of docs/server.md; may be given several times")
    parser.add_argument("--quiet", action="store_true", help="no line for every request")


def run(args: argparse.Namespace) -> int:
    from ..server import Limits, Models, http, listen, make_server
    from ..server.models import split_name

    limits = Limits(**dict(args.limit))
    if args.draft is not None and len(args.models) > 1:
        raise errors.ArgumentError("--draft is of one model, but several are to be served\nhint: a server for each, on ports of their own")
    keys = args.api_key or [key for key in [os.environ.get("PYLLM_API_KEY")] if key]
    options = _options(args)
    files = [(name, model_file(spec)) for name, spec in map(split_name, args.models or ["smollm2"])]
    models = Models.named(files, options, args.keep_alive)
    server = make_server(models, args.host, keys, args.allow_host, limits)
    sock = listen(args.host, args.port)
    _log(quiet=args.quiet)

    def ready() -> None:
        url = http.url_of(args.host, sock)
        note(f"serving {', '.join(map(clean, models.all))} at {url} (a chat page); APIs: {url}/v1 and {url}/api; Ctrl-C ends it")

    http.run(server, sock, ready)
    return 0


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """What LLM takes of each model."""
    return {"ctx": args.ctx, "threads": args.threads, "kv": args.kv, "backend": args.backend, "pack_cache": args.pack_cache,
            "disk_cache": args.disk_cache, "parallel": args.parallel, "draft": args.draft and model_file(args.draft),
            "speculate": args.speculate, "chat_template": _text_of(args.chat_template)}


def duration(text: str) -> float | None:
    """argparse type: seconds, or a number with s, m or h; a negative one: for ever."""
    from ..server.models import seconds_of

    try:
        return seconds_of(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time such as 90, 5m or 1h") from None


def limit(text: str) -> tuple[str, float]:
    """argparse type: NAME=VALUE of a field of Limits."""
    from ..server import Limits

    name, _, value = text.partition("=")
    field = Limits.__dataclass_fields__.get(name.replace("-", "_"))
    if field is None:
        raise argparse.ArgumentTypeError(f"there is no limit {name!r}; there are {', '.join(Limits.__dataclass_fields__)}")
    kind = float if field.name.endswith("_s") else int
    if not re.fullmatch(r"\d{1,15}" if kind is int else r"\d{1,9}(\.\d{1,9})?", value, re.ASCII):
        raise argparse.ArgumentTypeError(f"{name} cannot be {value!r}")
    return field.name, kind(value)


def _text_of(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as e:
        raise errors.FileError(f"{path}: {getattr(e, 'strerror', None) or e}\nhint: --chat-template takes a text file") from e


def _log(quiet: bool) -> None:
    """The server's log on stderr: a line for every request, none of what is asked or answered."""
    class Notes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            note(clean(record.getMessage()) if record.exc_info is None else self.format(record))

    logger = logging.getLogger("pyllm.server")
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.addHandler(Notes())
