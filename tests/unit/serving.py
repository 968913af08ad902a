"""A client for tests of the server: plain HTTP, so that what is on the wire is what is seen."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events; [DONE] must be the last if it is there."""
        data = [line[6:] for line in self.body.decode().splitlines() if line.startswith("data: ")]
        if data and data[-1] == "[DONE]":
            data.pop()
        return [json.loads(d) for d in data]


class Client:
    def __init__(self, url: str) -> None:
        self.address = url.removeprefix("http://")

    def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
        """body: bytes as they are, anything else as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            connection.request(method, path, data, {"Content-Type": "application/json"} | (headers or {}))
            r = connection.getresponse()
            return Answer(r.status, {k.lower(): v for k, v in r.getheaders()}, r.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, None, headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self.request("POST", path, body, headers)

    def chat(self, text: str, **fields: Any) -> Answer:
        return self.post("/v1/chat/completions", {"messages": [{"role": "user", "content": text}], **fields})

    def open_stream(self, text: str, **fields: Any) -> Reader:
        return Reader(self.address, "/v1/chat/completions", {"messages": [{"role": "user", "content": text}], "stream": True, **fields})

    def raw(self, data: bytes) -> socket.socket:
        host, _, port = self.address.rpartition(":")
        sock = socket.create_connection((host, int(port)), timeout=60)
        sock.sendall(data)
        return sock


class Reader:
    """A streamed answer, read as it comes."""

    def __init__(self, address: str, path: str, body: Any) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=60)
        self._connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        self.answer = self._connection.getresponse()

    def lines(self) -> Iterator[str]:
        for line in self.answer:
            if line.strip():
                yield line.decode().rstrip("\n")

    def first(self) -> None:
        """Waits for the first piece of text."""
        next(line for line in self.lines() if '"content":"' in line and '"content":""' not in line)

    def close(self) -> None:
        self.answer.close()
        self._connection.close()


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.01)
