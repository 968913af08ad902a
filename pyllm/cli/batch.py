"""pyllm batch: the requests of a JSON Lines file, many at a time, into another one."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from .. import errors
from ._options import MODEL_HELP, add_backend, add_kv, add_pack_cache, add_parallel, add_speculation, add_threads, model_file, whole
from ._output import note, progress

if TYPE_CHECKING:
    from ..server.guard import Guard

EPILOG = """\
The files have the form of OpenAI's batches. A line of IN:
  {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions",
   "body": {"messages": [{"role": "user", "content": "Hello!"}]}}
Every answer is a line of OUT with its custom_id, in the order in which they
are ready. When OUT is there already, what it has is kept and not asked again:
after Ctrl-C or a crash the same command goes on.
"""
URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")


def add(parser: argparse.ArgumentParser) -> None:
    parser.usage = "pyllm batch [OPTIONS] IN OUT"
    parser.epilog, parser.formatter_class = EPILOG, argparse.RawDescriptionHelpFormatter
    parser.add_argument("requests", metavar="IN", help="requests, one JSON object a line")
    parser.add_argument("answers", metavar="OUT", help="answers; is continued if it exists")
    parser.add_argument("-m", "--model", default="smollm2", metavar="MODEL", help=f"{MODEL_HELP} (default: smollm2)")
    add_parallel(parser, "requests that run at once")
    parser.add_argument("--ctx", type=whole(4, 1 << 24), metavar="N",
                        help="tokens of all running requests together (default: what the model was trained for, if it fits in memory)")
    add_threads(parser)
    add_kv(parser)
    add_backend(parser)
    add_pack_cache(parser)
    add_speculation(parser)


def run(args: argparse.Namespace) -> int:
    from ..llm import LLM
    from ..server import Access, Limits, Models, make_app

    ids = _ids(args.requests)
    done = _finished(args.answers)
    todo = [custom_id for custom_id in ids if custom_id not in done]
    if len(todo) < len(ids):
        note(f"{len(ids) - len(todo)} of {len(ids)} requests have been answered before")
    if not todo:
        return 0
    model = model_file(args.model)
    with _appending(args.answers) as out, LLM(model, args.ctx, args.threads, args.kv, backend=args.backend, pack_cache=args.pack_cache,
                                              draft=args.draft and model_file(args.draft), speculate=args.speculate,
                                              parallel=args.parallel) as llm:
        limits = Limits(body=1 << 30, bodies=1 << 40, queue=1 << 20, request_s=1e9)
        app = make_app(Models.of(llm), Access.make("localhost", (), ()), limits)
        failed = asyncio.run(_answer_all(app, _requests(args.requests, done), out, len(todo), 2 * llm.parallel))
        os.fsync(out.fileno())
    note(f"{len(todo) - failed} answers and {failed} errors in {args.answers}" if failed else f"{len(todo)} answers in {args.answers}")
    return int(failed > 0)


# ---- files ----

def _lines(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, object) of every line that is not empty. Raises ArgumentError for what is no request with a custom_id."""
    try:
        with open(path, "rb") as f:
            for number, line in enumerate(f, 1):
                if line.strip():
                    yield number, _request(path, number, line)
    except OSError as e:
        if isinstance(e, errors.Error):
            raise
        raise errors.FileError(f"{path}: {e.strerror}") from e


def _request(path: str, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise errors.ArgumentError(f"{path}, line {number}: {e}\nhint: every line must be a JSON object") from None
    if not isinstance(value, dict) or not isinstance(value.get("custom_id"), str):
        raise errors.ArgumentError(f"{path}, line {number} is no request\nhint: an object with custom_id, method, url and body")
    return value


def _appending(path: str) -> TextIO:
    try:
        return open(path, "a", encoding="utf-8")
    except OSError as e:
        raise errors.FileError(f"{path}: {e.strerror}") from e


def _ids(path: str) -> list[str]:
    """The custom_ids of a file, each of which stands there once."""
    ids: dict[str, int] = {}
    for number, request in _lines(path):
        first = ids.setdefault(request["custom_id"], number)
        if first != number:
            raise errors.ArgumentError(f"{path}, line {number} has the custom_id of line {first}")
    return list(ids)


def _requests(path: str, done: set[str]) -> Iterator[dict[str, Any]]:
    return (request for _, request in _lines(path) if request["custom_id"] not in done)


def _finished(path: str) -> set[str]:
    """What a file of answers has; a last line that was not written to its end is cut off."""
    done: set[str] = set()
    try:
        if not os.path.exists(path):
            return done
        with open(path, "r+b") as f:
            whole_lines = 0
            for line in f:
                if not line.endswith(b"\n"):
                    break
                try:
                    answer = json.loads(line)
                    done.add((answer["response"], answer["custom_id"])[1])
                except (ValueError, KeyError, TypeError, RecursionError):
                    raise errors.FileError(f"{path} is there and holds something else than answers\nhint: name another file") from None
                whole_lines += len(line)
            f.truncate(whole_lines)
    except OSError as e:
        if isinstance(e, errors.Error):
            raise
        raise errors.FileError(f"{path}: {e.strerror}") from e
    return done


# ---- requests ----

async def _answer_all(app: Guard, requests: Iterator[dict[str, Any]], out: TextIO, total: int, most: int) -> int:
    """Writes the answer to every request, at most `most` at a time; returns how many are errors."""
    running: set[asyncio.Task[dict[str, Any]]] = set()
    finished = failed = 0
    with progress("batch", "requests") as show:
        show(0, total)
        while True:
            while len(running) < most and (request := next(requests, None)) is not None:
                running.add(asyncio.create_task(_answer(app, request)))
            if not running:
                return failed
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                line = task.result()
                failed += line["response"]["status_code"] != 200
                out.write(json.dumps(line) + "\n")
            out.flush()
            finished += len(ended)
            show(finished, total)


async def _answer(app: Guard, request: dict[str, Any]) -> dict[str, Any]:
    """The line of OUT that belongs to a request."""
    body, url = request.get("body"), request.get("url")
    if request.get("method") != "POST" or url not in URLS:
        status, answer = _refused(f"only POST to one of {', '.join(URLS)} can be asked for")
    elif not isinstance(body, dict) or body.get("stream"):
        status, answer = _refused("body must be an object without stream")
    else:
        status, answer = await _post(app, url, json.dumps({k: v for k, v in body.items() if k != "model"}).encode())
    return {"id": "batch_req_" + secrets.token_hex(12), "custom_id": request["custom_id"],
            "response": {"status_code": status, "request_id": "req_" + secrets.token_hex(12), "body": answer}, "error": None}


def _refused(message: str) -> tuple[int, dict[str, Any]]:
    return 400, {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": "invalid_request"}}


async def _post(app: Guard, path: str, body: bytes) -> tuple[int, Any]:
    """Status and JSON of the server's answer, without a network."""
    sent = False
    status, parts = 500, list[bytes]()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()        # this client never leaves
        sent = True
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        else:
            parts.append(message.get("body", b""))

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await app({"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
               "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers, "client": ("batch", 0),
               "server": ("localhost", 80)}, receive, send)
    return status, json.loads(b"".join(parts))
