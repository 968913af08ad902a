"""The server under load: clients that leave at any moment leave nothing behind; more than fits is refused, and nothing else happens.

Slow: pytest -m slow tests/unit/test_server_load.py. PYLLM_STREAMS sets how many streams (default 10,000).
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import resource
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_gguf
from serving import Client, wait_until

import pyllm

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow
STREAMS, CONNECTIONS = int(os.environ.get("PYLLM_STREAMS", "10000")), 200


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[pyllm.LLM]:
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    path.write_bytes(tiny_gguf.llama("q8_0", ctx=512)[0])
    with pyllm.LLM(path) as llm:
        yield llm


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def threads() -> int:
    """Without those of the server's pool, which end after some idle seconds."""
    return sum(not t.name.startswith("AnyIO") for t in threading.enumerate())


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def ask(address: str, body: dict[str, object], read: int | None) -> int:
    """Posts to /v1/completions, reads that many lines of the answer (None: to its end) and leaves; the status."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        data = json.dumps(body).encode()
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
                     b"Content-Length: %d\r\n\r\n%s" % (len(data), data))
        if read == 0:
            return 0
        status = int((await reader.readline()).split()[1])
        n = 0
        while (line := await reader.readline()) and (read is None or n < read):
            n += line.startswith(b"data: ")
        return status
    finally:
        writer.transport.abort()


def test_streams_that_end_anywhere_leave_nothing(llm: pyllm.LLM) -> None:
    outside = threading.active_count()
    with llm.serve(0, queue=CONNECTIONS, drain_s=0) as server:
        client = Client(server.url)

        async def worker(number: int, n: int) -> Counter[int]:
            rng = random.Random(number)
            seen: Counter[int] = Counter()
            for i in range(n):
                body = {"prompt": [1, *rng.choices(range(259, 300), k=rng.randrange(1, 60))], "max_tokens": 40, "stream": True, "seed": i}
                seen[await ask(client.address, body, rng.choice([0, 1, 2, 3, 5, 8, 20, None]))] += 1
            return seen

        async def half() -> Counter[int]:
            each = STREAMS // 2 // CONNECTIONS
            return sum(await asyncio.gather(*(worker(i, each) for i in range(CONNECTIONS))), Counter())

        def settled() -> bool:
            return client.get("/health").json["generations"] == 0 and llm.load[:2] == (0, 0)

        asyncio.run(ask(client.address, {"prompt": [1, 270], "max_tokens": 4}, None))
        pages = llm.on_engine(lambda engine: engine.free_pages())
        seen = asyncio.run(half())
        wait_until(settled)
        before = open_files(), threads(), resident()
        seen += asyncio.run(half())
        wait_until(settled)
        wait_until(lambda: open_files() <= before[0])
        assert set(seen) <= {0, 200, 429} and seen[200] > STREAMS // 2
        assert llm.on_engine(lambda engine: engine.free_pages()) == pages
        assert threads() == before[1]
        assert resident() < 1.02 * before[2] + (4 << 20)
    wait_until(lambda: threading.active_count() == outside)
    assert llm.complete([1, 270], max_tokens=2).tokens


@pytest.fixture
def memory_limit() -> Iterator[None]:
    """1 GiB of addresses more than there are, the stacks of the server's threads among them."""
    before, pages = resource.getrlimit(resource.RLIMIT_AS), int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + (1 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("memory_limit")
def test_overload_is_refused_and_nothing_else(llm: pyllm.LLM) -> None:
    """Twenty times as many clients as there are places, for a minute."""
    with llm.serve(0, queue=8, drain_s=0) as server:
        client, ends = Client(server.url), time.monotonic() + 60

        async def worker(i: int) -> Counter[int]:
            seen: Counter[int] = Counter()
            while time.monotonic() < ends:
                seen[await ask(client.address, {"prompt": [1, 259 + i % 40], "max_tokens": 100, "ignored": i}, None)] += 1
            return seen

        async def all_of_them() -> Counter[int]:
            return sum(await asyncio.gather(*map(worker, range(160))), Counter())

        seen = asyncio.run(all_of_them())
        assert set(seen) == {200, 429} and min(seen.values()) > 20
        begun = time.monotonic()
        wait_until(lambda: client.post("/v1/completions", {"prompt": [1], "max_tokens": 1}).status == 200)
        assert time.monotonic() - begun < 1
