"""Requests made for harm: each is answered within a second, none with a 5xx, while another client's stream goes on and says what it says
alone."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Client, wait_until

import pyllm

pytest.importorskip("uvicorn")

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "Hi"}]
DEEP = b"[" * 100_000 + b"]" * 100_000
EVIL = "http://evil.example"


@pytest.fixture(scope="module")
def llm(smollm2: Path) -> Iterator[pyllm.LLM]:
    with pyllm.LLM(smollm2, ctx=1024) as llm:
        yield llm


@pytest.fixture(scope="module")
def client(llm: pyllm.LLM) -> Iterator[Client]:
    with llm.serve(0, name="smollm2", drain_s=0) as server:
        yield Client(server.url)


class Neighbour:
    """A client that reads one stream after the other in the background."""

    def __init__(self, client: Client, expected: str) -> None:
        self.pieces, self.wrong, self._ends = 0, list[str](), False
        self._client, self._expected = client, expected
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        wait_until(lambda: self.pieces > 0)

    def _run(self) -> None:
        while not self._ends:
            said = ""
            for line in self._client.open_stream("Tell a tale.", temperature=0, max_tokens=24).lines():
                if line.startswith("data: {"):
                    delta = json.loads(line[6:])["choices"][0]["delta"]
                    said += delta.get("content", "")
                    self.pieces += 1
            if said != self._expected:
                self.wrong.append(said)

    def __enter__(self) -> Neighbour:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ends = True
        self._thread.join()
        assert not self.wrong


@pytest.fixture(scope="module")
def neighbour(client: Client, llm: pyllm.LLM) -> Iterator[Neighbour]:
    with Neighbour(client, llm.chat("Tell a tale.", temperature=0, max_tokens=24).text) as neighbour:
        yield neighbour


# ---- bodies ----

def chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"messages": HI, "max_tokens": 1, **fields}


def text(**fields: Any) -> tuple[str, dict[str, Any]]:
    return TEXT, {"prompt": "Hi", "max_tokens": 1, **fields}


def said(content: Any, role: Any = "user", **more: Any) -> tuple[str, dict[str, Any]]:
    return CHAT, {"messages": [{"role": role, "content": content, **more}], "max_tokens": 1}


NUMBERS = ("temperature", "top_p", "min_p", "typical_p", "top_k", "presence_penalty", "frequency_penalty", "repeat_penalty",
           "repetition_penalty",
           "repeat_last_n", "seed", "max_tokens", "max_completion_tokens", "n", "top_logprobs")
FLAGS = ("stream", "logprobs")
# (path, body): bytes as they are; each is the client's fault
WRONG: list[tuple[str, Any]] = [
    (CHAT, b""), (CHAT, b"{"), (CHAT, b"null"), (CHAT, b"[]"), (CHAT, b"1"), (CHAT, b'"x"'), (CHAT, b"{'a': 1}"), (CHAT, b'{"a": 1,}'),
    (CHAT, b'{"temperature": NaN}'), (CHAT, b'{"temperature": Infinity}'), (CHAT, b'{"temperature": -Infinity}'), (CHAT, b"{}"),
    (CHAT, b'{"seed": ' + b"9" * 5000 + b"}"), (CHAT, b'\xef\xbb\xbf{"messages": []}'), (CHAT, '{"messages": []}'.encode("utf-16")),
    (CHAT, b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}'), (CHAT, b'{"messages": [{"role": "user", "content": "\\ud800"}]}'),
    (CHAT, b'{"messages": [{"role": "user", "content": "a\\udc00\\ud800b"}]}'), (CHAT, b'{"\\ud800": 1}'), (CHAT, b'{"messages": "\\u12"}'),
    (CHAT, DEEP), (CHAT, b'{"messages": ' + DEEP + b"}"), (TEXT, b'{"prompt": ' + DEEP + b"}"), (CHAT, b'{"a":' * 100_000),
    (CHAT, b'{"messages": [' + b"[]," * 300_000 + b"[]]}"), (CHAT, b'{"x": "' + b'\\"' * 1_500_000), (CHAT, b'"' * 3_000_000),
    (CHAT, b"\\" * 3_000_000), (CHAT, b'{"messages": [' + b"1," * 200_000 + b"1]}"), (CHAT, b'{"a": 1' + b', "a": 1' * 200_000 + b"}"),
    *(chat(**{name: value}) for name in NUMBERS for value in ("1", [], {}, True, -1e308, 1e308)),
    *(chat(**{name: value}) for name in FLAGS for value in ("true", 1, [])),
    (CHAT, b'{"temperature": 1e999, "messages": [{"role": "user", "content": "Hi"}]}'), chat(seed=1 << 64), chat(seed=-(1 << 63) - 1),
    chat(max_tokens=0), chat(max_tokens=1.5), chat(max_tokens=10**30), chat(n=0), chat(n=17), chat(n=10**6), chat(temperature=-1),
    chat(top_p=2), chat(logprobs=True, top_logprobs=21), chat(top_logprobs=2), chat(logprobs=True, top_logprobs=-(1 << 31)),
    chat(stop=1), chat(stop=[1]), chat(stop=""), chat(stop=[""]), chat(stop=["x"] * 17), chat(stop="x" * 257), chat(stop=["x"] * 200_000),
    chat(stop={"x": 1}), chat(logit_bias=[1]), chat(logit_bias="x"), chat(logit_bias={"x": 1}), chat(logit_bias={"-1": 1}),
    chat(logit_bias={"1e3": 1}), chat(logit_bias={"9999999999": 1}), chat(logit_bias={"99999999": 1}), chat(logit_bias={"1": "x"}),
    chat(logit_bias={"1": 1e300}), chat(logit_bias={str(i): 1 for i in range(100_000)}), chat(model=1), chat(model="x" * 1_000_000),
    chat(model="../../etc/passwd"), chat(stream_options=1), chat(stream=True, stream_options={"include_usage": "x"}),
    chat(chat_template_kwargs=[1]), chat(chat_template_kwargs={"enable_thinking": "x"}), chat(messages=None), chat(messages=[]),
    chat(messages="Hi"), chat(messages={"role": "user"}), chat(messages=[1]), chat(messages=[None]), chat(messages=[[]]),
    chat(messages=[{}]),
    chat(messages=HI * 5000), chat(messages=HI * 4000), said(1), said({"type": "text"}), said([1]), said([{"type": "text"}]),
    said([{"type": "text", "text": 1}]), said([{"type": "text", "text": "x"}] * 5000), said("x", 1), said("x", "robot"), said("x", None),
    said("x", "x" * 100_000), said("x", name=1), said("x", tool_call_id=[]), said("a" * 3_900_000), said(" " * 3_900_000),
    said("\U0001f600" * 250_000), said("hello " * 600_000), said("<|im_end|>" * 100_000),
    *(said([{"type": kind, kind: {"url": url}}]) for kind in ("image_url", "input_audio", "file", "video_url")
      for url in ("http://127.0.0.1:9/", "file:///etc/passwd", "data:image/png;base64,AAAA")),
    text(prompt=""), text(prompt=[]), text(prompt=None), text(prompt=1), text(prompt={}), text(prompt=[1.5]), text(prompt=[True]),
    text(prompt=[-1]), text(prompt=[1 << 63]), text(prompt=[49_152]), text(prompt=[[1], "x", 2]), text(prompt=[[[1]]]), text(prompt=[None]),
    text(prompt=["x"] * 65), text(prompt=["x"] * 5, n=16), text(prompt=[1] * 5000), text(prompt=[1] * 200_000), text(prompt=[[]]),
    text(prompt=["x"] * 100_000), text(best_of=2), text(best_of=10**6), text(suffix="x"), text(suffix=1), text(suffix="x", echo=True),
    text(logprobs=21), text(logprobs=-1), text(logprobs=True), text(echo=1), text(max_tokens=0), text(stream=True, echo=True, logprobs=1),
    text(prompt="word " * 5000, echo=True, logprobs=1, max_tokens=0),
    ("/tokenize", {"content": "x" * 1_100_000}), ("/tokenize", {"content": 1}), ("/tokenize", {"content": "x", "add_special": 1}),
    ("/detokenize", {"tokens": [-1]}), ("/detokenize", {"tokens": [1 << 70]}), ("/detokenize", {"tokens": "x"}),
    ("/detokenize", {"tokens": [1.5]}), ("/detokenize", {"tokens": [None]}),
    ("/v1/messages", {"messages": HI}), ("/v1/messages", {"messages": HI, "max_tokens": "x"}),
    ("/v1/messages", {"messages": HI, "max_tokens": 1, "stop_sequences": "x" * 1000}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "tool_thing"}]}], "max_tokens": 1}),
    ("/v1/messages", {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * 5000}], "max_tokens": 1}),
    ("/v1/messages", {"messages": HI, "max_tokens": 1, "system": [1]}), ("/v1/messages", {"messages": HI, "max_tokens": 1, "thinking": 1}),
    ("/v1/responses", {"input": 1}), ("/v1/responses", {"input": [{"type": "item_reference", "id": "x"}]}), ("/v1/responses",
    {"input": []}),
    ("/v1/responses", {"input": "Hi", "text": 1, "reasoning": 1}), ("/v1/responses", {"input": "Hi", "conversation": "x"}),
    ("/v1/responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://127.0.0.1:9/"}]}]}),
    ("/api/chat", {"messages": HI, "options": 1}), ("/api/chat", {"messages": HI, "options": {"temperature": "x"}}),
    ("/api/chat", {"messages": HI, "keep_alive": "soon"}), ("/api/chat", {"messages": HI, "keep_alive": []}),
    ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["AAAA"]}]}), ("/api/chat", {"messages": HI, "think": 1}),
    ("/api/generate", {"prompt": 1}), ("/api/generate", {"prompt": "x", "images": ["AAAA"]}), ("/api/generate", {"prompt": "x",
    "suffix": "y"}),
    ("/api/show", {"model": "../x"}), ("/nothing", {}), ("/v1", {}), ("/" + "x" * 20_000, {}), ("/%00", {}), ("/../../etc/passwd", {}),
]


def test_there_are_enough_of_them() -> None:
    assert len(WRONG) >= 120


def test_wrong_bodies_are_refused_at_once(client: Client, neighbour: Neighbour) -> None:
    for path, body in WRONG:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        shown = f"{path[:60]} {data[:100]!r}"
        for _attempt in range(3):        # a slow moment of the machine is not the server's
            begun, pieces = time.monotonic(), neighbour.pieces
            answer = client.post(path, data)
            took = time.monotonic() - begun
            assert 400 <= answer.status < 500, (shown, answer.status, answer.body[:200])
            assert "error" in answer.json, shown
            if took < 1:
                break
        else:
            raise AssertionError((shown, took, neighbour.pieces - pieces))
        assert b"/root" not in answer.body and b"0x7f" not in answer.body and len(answer.body) < 1000, shown
    before = neighbour.pieces
    wait_until(lambda: neighbour.pieces > before)
    assert client.get("/health").status == 200


def test_unusual_requests_are_served(client: Client) -> None:
    harmless = [
        chat(seed=(1 << 64) - 1), chat(seed=-(1 << 63)), chat(max_tokens=1.0), chat(top_k=0, temperature=100), chat(logit_bias={}),
        chat(logit_bias={"1": -1e4}), chat(stop=["x" * 256] * 16), chat(made_up={"a": [1] * 1000}, model="", user=None), said(""),
        said(None),
        said("\0"), said("\ue000undefined\ue000"), said("{{ 7 * 7 }}{% for %}"), said("\u202e\u0000\ufffe"),
        chat(chat_template="{{ 1/0 }}"),
        chat(chat_template_kwargs={"messages": 1, "tokenize": True, "tools": [1]}), (CHAT, b'{"messages": [{"role": "user", "content": '
        b'"\\ud83d\\ude00"}], "max_tokens": 1}'), text(prompt=[1, 2]), text(prompt=["a", [1]]), text(suffix=""), text(best_of=1)]
    for path, body in harmless:
        answer = client.post(path, body)
        assert answer.status == 200, (body, answer.body)


# ---- requests ----

def head(*lines: str, start: str = f"POST {CHAT} HTTP/1.1", host: str | None = "localhost") -> bytes:
    return "\r\n".join([start, *([f"Host: {host}"] if host is not None else []), *lines, "", ""]).encode("latin-1")


JSON, BODY = "Content-Type: application/json", json.dumps(chat()[1]).encode()
LENGTH = f"Content-Length: {len(BODY)}"
RAW: list[bytes] = [
    head(JSON, LENGTH, host=None) + BODY, head(JSON, LENGTH, host="evil.example") + BODY, head(JSON, LENGTH,
    host="localhost.evil.example") + BODY,
    head(JSON, LENGTH, host="127.0.0.1.evil.example:80") + BODY, head(JSON, LENGTH, host="evil.example#localhost") + BODY,
    head(JSON, LENGTH, host="localhost@evil.example") + BODY, head(JSON, LENGTH, host="203.0.113.5") + BODY, head(JSON, LENGTH,
    host="") + BODY,
    head(JSON, LENGTH, host="[::ffff:7f00:1") + BODY, head(JSON, LENGTH, "Host: evil.example") + BODY,
    head(JSON, LENGTH, start=f"POST {EVIL}{CHAT} HTTP/1.1", host="evil.example") + BODY,
    *(head(JSON, LENGTH, f"Origin: {origin}") + BODY for origin in (EVIL, "null", "http://localhost:1", "http://[", "x")),
    *(head(kind, LENGTH) + BODY for kind in ("Content-Type: text/plain", "Content-Type: application/x-www-form-urlencoded", "X: y",
                                             "Content-Type: multipart/form-data; boundary=x",
                                             "Content-Type: text/plain; application/json")),
    head(JSON, LENGTH, "Content-Encoding: gzip") + BODY, head(JSON, "Content-Length: -1"), head(JSON, "Content-Length: abc"),
    head(JSON, "Content-Length: 99999999999999999999"), head(JSON, "Content-Length: 20000000"), head(JSON, "Content-Length: 4194305"),
    head(JSON, LENGTH, "Content-Length: 5") + BODY, head(JSON, "Transfer-Encoding: chunked") + b"zz\r\n",
    head(JSON, "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    head(JSON, "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n", head(*(f"X-{i}: y" for i in range(100)), JSON, LENGTH) + BODY,
    head("X: " + "y" * 1_000_000, JSON, LENGTH) + BODY, head("X: a\0b", JSON, LENGTH) + BODY, head("X : y", JSON, LENGTH) + BODY,
    head(JSON, LENGTH, start=f"FOO {CHAT} HTTP/1.1") + BODY, head(start="TRACE / HTTP/1.1"), head(start="CONNECT evil.example:80 HTTP/1.1"),
    head(start="OPTIONS * HTTP/1.1"), head(f"Origin: {EVIL}", "Access-Control-Request-Method: POST", start=f"OPTIONS {CHAT} HTTP/1.1"),
    head(start="GET /" + "x" * 100_000 + " HTTP/1.1"), head(start="GET /nothing HTTP/9.9"), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01" * 20 + b"\n\n",
    b"\0" * 1000 + b"\n\n", b"\r\n\r\n\r\n" * 10 + b"x\r\n\r\n", b"GET / HTTP/1.1\nHost: x\n y: z\n\n",
]


def reply_to(client: Client, data: bytes) -> bytes:
    """What is sent back until the first answer is whole or the connection ends."""
    with client.raw(b"") as sock:
        sock.settimeout(5)
        received = b""
        try:
            sock.sendall(data)
            while b"\r\n\r\n" not in received and (part := sock.recv(65536)):
                received += part
        except OSError:
            pass
        return received


def test_wrong_requests_are_refused_at_once(client: Client, neighbour: Neighbour) -> None:
    for data in RAW:
        for _attempt in range(3):
            begun = time.monotonic()
            received = reply_to(client, data)
            if (took := time.monotonic() - begun) < 1:
                break
        else:
            raise AssertionError((data[:100], took))
        status = received.split(b" ", 2)[1:2]
        assert not received or (status and 400 <= int(status[0]) < 500), (data[:100], received[:300])
        assert b"access-control" not in received.lower()
    assert client.get("/health").status == 200
    assert client.chat("Hi", max_tokens=1).status == 200


def test_large_bodies_get_their_answer_though_nobody_reads_them(client: Client, neighbour: Neighbour) -> None:
    """Clients that send first and read then must not lose the answer to a reset connection."""
    big = json.dumps(said("x" * 20_000_000)[1]).encode()
    begun = time.monotonic()
    assert client.post(CHAT, big).status == 413
    with client.raw(head(JSON, "Transfer-Encoding: chunked", "Connection: close")) as sock:
        for at in range(0, 6_000_000, 100_000):
            sock.sendall(b"%x\r\n%s\r\n" % (100_000, big[at:at + 100_000]))
        sock.sendall(b"0\r\n\r\n")
        assert b" 413 " in sock.recv(65536)
    assert time.monotonic() - begun < 10


# ---- slow and vanished clients ----

@pytest.mark.slow
def test_half_open_connections_do_not_keep_others_out(llm: pyllm.LLM) -> None:
    with llm.serve(0, connections=20, header_s=2, body_s=2, drain_s=0) as server:
        client = Client(server.url)
        sockets: list[socket.socket] = []
        for i in range(100):
            part = [b"", b"POST", head(JSON, "Content-Length: 100"), head(JSON, "Content-Length: 100") + b'{"messages"',
                    head(JSON, "Transfer-Encoding: chunked") + b"ffffffffffffffff\r\n"][i % 5]
            sockets.append(client.raw(part))
            if i % 20 == 19:
                begun = time.monotonic()
                assert client.chat("Hi", max_tokens=1).status == 200
                assert time.monotonic() - begun < 5
        stream = client.open_stream("Write a very long story.")     # a request that is being answered is never the one to go
        stream.first()
        sockets += [client.raw(b"POST") for _ in range(30)]
        stream.first()
        stream.close()
        for sock in sockets:            # all are closed, by the time limit at the latest
            sock.settimeout(30)
            with sock:
                try:
                    while sock.recv(65536):
                        pass
                except ConnectionError:
                    pass


@pytest.mark.slow
def test_a_client_that_does_not_read_loses_its_connection(llm: pyllm.LLM) -> None:
    with llm.serve(0, write_s=1, drain_s=0) as server:
        client = Client(server.url)
        client.chat("Hi", max_tokens=1)
        size, n = len(client.get("/metrics").body), 4000
        assert size * n > 10_000_000        # far more than sockets buffer
        with client.raw(head(start="GET /metrics HTTP/1.1") * n) as sock:
            time.sleep(3)
            sock.settimeout(20)
            received = 0
            try:
                while part := sock.recv(1 << 20):
                    received += part.count(b"HTTP/1.1 200")
            except ConnectionError:
                pass
        assert 0 < received < n
        assert client.get("/health").status == 200


# ---- keys ----

def test_every_route_needs_the_key(llm: pyllm.LLM) -> None:
    import base64

    from pyllm.server.app import ROUTES

    with llm.serve(0, api_keys=["secret-key-1", "secret-key-2"], drain_s=0) as server:
        client = Client(server.url)
        routes = [(method, path.replace("{name:path}", "x")) for path, methods in ROUTES.items() for method in methods]
        for method, path in [*routes, ("GET", "/nothing"), ("POST", "/v1/nothing"), ("HEAD", "/health"), ("OPTIONS", CHAT)]:
            for given in ({}, {"Authorization": "Bearer wrong-key"}, {"Authorization": "Bearer"}, {"x-api-key": "secret-key-"},
                          {"Authorization": "Basic !!!"}, {"Authorization": "Bearer secret-key-1\u00e9"}):
                answer = client.request(method, path, b"{}" if method == "POST" else None, given)
                assert answer.status == 401 and "www-authenticate" in answer.headers, (method, path, given)
        basic = "Basic " + base64.b64encode(b"any:secret-key-1").decode()
        for given in ({"Authorization": "Bearer secret-key-1"}, {"x-api-key": "secret-key-2"}, {"Authorization": basic}):
            assert client.get("/health", **given).status == 200
