"""Responses that go on while a job runs: server-sent events and lines of JSON."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .. import errors
from .failures import Refusal, encode, refusal_of
from .work import Job

log = logging.getLogger("pyllm.server")
SSE, NDJSON = "text/event-stream; charset=utf-8", "application/x-ndjson"
PING = b": ping\n\n"        # a comment that readers of events skip


class Streamed(Response):
    """frames: what is sent, from the events of the job. What ends it early becomes its last frame, made by `failure`. The job is closed at
    the end, and at once when the client leaves."""

    def __init__(self, job: Job, frames: AsyncIterator[bytes], media_type: str, failure: Callable[[Refusal], bytes]) -> None:
        self.status_code, self.media_type, self.background = 200, media_type, None
        self._job, self._frames, self._failure = job, frames, failure
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(_leaves(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            if not sending.done():
                sending.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._job.close()
        if not sending.cancelled() and (error := sending.exception()) is not None and not isinstance(error, OSError | ClientDisconnect):
            raise error

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for frame in self._frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        except Refusal as e:
            await send({"type": "http.response.body", "body": self._failure(e), "more_body": True})
        except errors.Error as e:
            await send({"type": "http.response.body", "body": self._failure(refusal_of(e)), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _leaves(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def event(value: object, name: str | None = None) -> bytes:
    """One server-sent event."""
    head = b"" if name is None else b"event: " + name.encode() + b"\n"
    return head + b"data: " + encode(value) + b"\n\n"


def line(value: object) -> bytes:
    return encode(value) + b"\n"
