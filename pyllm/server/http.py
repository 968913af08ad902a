"""The listening side: uvicorn with limits on connections and on slow clients, in a thread or as the whole process."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .. import errors
from .limits import Limits

if TYPE_CHECKING:
    from .work import Work

log = logging.getLogger("pyllm.server.http")
KEEP_ALIVE_S = 60
MAX_HEADER_BYTES = 32 << 10
_FULL = (b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
         b"Content-Length: 90\r\n\r\n"
         b'{"error":{"message":"too many connections","type":"server_error","code":"unavailable"}}  \n')


def connection_class(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol of one connection, with limits on what a client may make it wait for."""

    class Connection(H11Protocol):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.logger = log           # uvicorn's own would write to stderr of whoever embeds this

        def connection_made(self, transport: asyncio.Transport) -> None:    # type: ignore[override]
            super().connection_made(transport)
            self.opened = self.loop.time()
            self.since: float | None = self.opened      # of the bytes that a request still lacks; None: nothing is owed
            self.blocked: float | None = None           # since the client does not read what it is sent
            if len(self.connections) > limits.connections and not self._make_room():
                transport.write(_FULL)
                transport.close()

        def _make_room(self) -> bool:
            """Closes the connection that has owed its request for the longest time, so that those who wait cannot keep others out."""
            others = [c for c in self.connections if isinstance(c, Connection) and c is not self and c.may_go]
            if others:
                min(others, key=lambda c: c.opened).transport.abort()
            return bool(others)

        @property
        def may_go(self) -> bool:
            """Whether no whole request is being answered here."""
            return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

        def data_received(self, data: bytes) -> None:
            before = self.cycle
            if self.since is None and (before is None or before.response_complete):
                self.since = self.loop.time()
            super().data_received(data)
            if self.cycle is not before:
                self.since = None

        def on_response_complete(self) -> None:
            if self.conn.their_state is h11.SEND_BODY:      # refused before it had sent everything
                self.since = self.loop.time()
            super().on_response_complete()

        def pause_writing(self) -> None:
            self.blocked = self.loop.time()
            super().pause_writing()

        def resume_writing(self) -> None:
            self.blocked = None
            super().resume_writing()

        def check(self, now: float) -> None:
            """Ends the connection if its client is too slow."""
            late = self.since is not None and now - self.since > limits.header_s
            if late or (self.blocked is not None and now - self.blocked > limits.write_s):
                self.transport.abort()

    return Connection


class Server(uvicorn.Server):
    """uvicorn's server over one app; `work` is what the app's requests share."""

    def __init__(self, app: Any, work: Work) -> None:
        self.work, self._checked = work, 0.0
        super().__init__(uvicorn.Config(
            app, http=connection_class(work.limits), ws="none", loop="asyncio", lifespan="on", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_S, h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_graceful_shutdown=int(work.limits.drain_s) + 2, backlog=256))

    async def on_tick(self, counter: int) -> bool:
        now = asyncio.get_running_loop().time()
        if now - self._checked >= 1:
            self._checked = now
            for connection in list(self.server_state.connections):
                connection.check(now)       # type: ignore[union-attr]
        return await super().on_tick(counter) or self.work.models.failed is not None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes nothing new, lets what runs go on for drain_s, then ends it."""
        self.work.admission.draining = True
        timer = asyncio.get_running_loop().call_later(self.work.limits.drain_s, self.work.stop_all)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound; port 0: any that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(256)
    except (OSError, OverflowError) as e:
        sock.close()
        reason = getattr(e, "strerror", None) or e
        raise errors.FileError(f"cannot listen on {host} port {port}: {reason}\nhint: choose another port; 0 takes any that is free") from e
    return sock


def url_of(host: str, sock: socket.socket) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{sock.getsockname()[1]}"


class Background:
    """A server on a thread of its own. url: where it is. A context manager; close() ends it."""

    def __init__(self, server: Server, sock: socket.socket, host: str) -> None:
        self.url = url_of(host, sock)
        self._server, self._failure = server, list[BaseException]()
        self._thread = threading.Thread(target=self._run, args=(sock,), name="pyllm-server", daemon=True)
        self._thread.start()
        while not server.started:
            if not self._thread.is_alive():
                raise errors.Error(f"the server did not start: {self._failure[0] if self._failure else 'no reason is known'}")
            time.sleep(0.002)

    def _run(self, sock: socket.socket) -> None:
        try:
            self._server.run([sock])
        except BaseException as e:
            self._failure.append(e)
        finally:
            sock.close()

    def close(self) -> None:
        """Returns when all requests have ended: they may go on for the limit drain_s."""
        self._server.should_exit = True
        self._thread.join()

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<server at {self.url}>"


def run(server: Server, sock: socket.socket, ready: Callable[[], None]) -> None:
    """Serves in this thread, the main one, until SIGTERM or Ctrl-C; a second Ctrl-C does not wait for running requests. Raises what keeps
    the default model from being loaded."""
    def ignore(number: int, frame: FrameType | None) -> None:
        """uvicorn raises the signal again when all is done."""

    before = {number: signal.signal(number, ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ready()
        server.run([sock])
        if server.work.models.failed is not None:
            raise server.work.models.failed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        sock.close()
