"""Who may ask: checked for every route before anything is read of a request's body.

Browsers let any page send requests to a server on this machine. Three rules keep them out: the Host header must name this server (a foreign
name that was pointed here is refused), an Origin must be this server's own, and what is posted must be application/json, which no page may
send elsewhere without a permission that this server never gives.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .failures import Refusal, error_response
from .limits import Limits
from .work import Work

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(:\d{1,5})?", re.ASCII)


@dataclass(frozen=True)
class Access:
    """hosts: names of this server, lower case. any_address: it listens on all of this machine's addresses, which pages cannot borrow as
    they can names. keys: SHA-256 of each API key; none: no key is needed."""

    hosts: frozenset[str] = frozenset(LOOPBACK)
    any_address: bool = False
    keys: tuple[bytes, ...] = ()

    @classmethod
    def make(cls, host: str, keys: Iterable[str] = (), names: Iterable[str] = ()) -> Access:
        bound = f"[{host}]" if ":" in host else host
        return cls(frozenset(name.lower() for name in (*LOOPBACK, bound, *names)), host in ("0.0.0.0", "::"),
                   tuple(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest() for key in keys))

    def knows(self, host: str) -> bool:
        found = _HOST.fullmatch(host)
        if not found:
            return False
        name = found[1].lower().removesuffix(".")
        return name in self.hosts or (self.any_address and _is_address(name))

    def key_of(self, headers: Headers) -> str | None:
        """A name of the key that a request carries (Bearer, x-api-key, or as the password of Basic, which browsers ask people for), the
        same in every process that has this key; "" if none is needed; None if it is wrong, which takes as long as a right one."""
        if not self.keys:
            return ""
        given = hashlib.sha256(_key_of(headers)).digest()
        found = -1
        for i, key in enumerate(self.keys):
            found = i if hmac.compare_digest(given, key) else found
        return None if found < 0 else f"key {self.keys[found].hex()[:32]}"


def is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host.strip("[]")).is_loopback)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _key_of(headers: Headers) -> bytes:
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return headers.get("x-api-key", "").encode("latin-1")


class _Body:
    """A request's body as the application reads it. left: whether some of it was not read."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self.left = receive, True

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            self.left = False
        return message

    async def skip(self, limits: Limits) -> None:
        """Reads the rest after an answer that did not wait for it: a connection that ends with bytes unread is reset, and the client, which
        sends everything before it reads, would never see the answer."""
        async def read() -> None:
            n = 0
            while self.left and n <= limits.bodies:
                n += len((await self.receive()).get("body", b""))

        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(read(), limits.body_s)


class Guard:
    """ASGI middleware with the checks of this module."""

    def __init__(self, app: ASGIApp, access: Access, work: Work) -> None:
        self.work = work
        self._app, self._access, self._limits = app, access, work.limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        body = _Body(receive)

        async def safe_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-content-type-options", b"nosniff")]}
            elif not message.get("more_body") and body.left:
                await send({**message, "more_body": True})
                await body.skip(self._limits)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        refusal = self.check(scope)
        if refusal is None:
            await self._app(scope, body.receive, safe_send)
        else:
            self.work.metrics.answered("refused", refusal.status)
            await error_response(scope["path"], refusal)(scope, body.receive, safe_send)

    def check(self, scope: Scope) -> Refusal | None:
        """Why a request is refused, from its method, path and headers alone."""
        if len(scope["headers"]) > self._limits.headers:
            return Refusal(431, f"the request has {len(scope['headers'])} headers, at most {self._limits.headers} are taken")
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._access.knows(host):
            return Refusal(400, "the Host header does not name this server (see --allow-host)", code="host_not_allowed")
        if origin is not None and _netloc(origin) != host.lower():
            return Refusal(403, "pages of other origins may not use this server", kind="permission_error", code="origin_not_allowed")
        scope["pyllm.key"] = self._access.key_of(headers)
        if scope["pyllm.key"] is None:
            challenge = 'Basic realm="pyllm: any user, the API key as password"' if scope["path"] == "/" else "Bearer"
            return Refusal(401, "a valid API key is needed: Authorization: Bearer KEY, or x-api-key: KEY", kind="authentication_error",
                           code="invalid_api_key", headers={"WWW-Authenticate": challenge})
        if scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            kind = headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                return Refusal(415, "what is posted must have the header Content-Type: application/json", code="wrong_content_type")
            if headers.get("content-encoding", "identity").lower() != "identity":
                return Refusal(415, "compressed bodies are not taken", code="wrong_content_encoding")
        return None
