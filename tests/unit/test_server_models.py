"""Several models in one server: loaded when they are asked for, unloaded when nobody uses them or memory is needed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import tiny_gguf
from serving import Client, wait_until

import pyllm
from pyllm import errors

pytest.importorskip("uvicorn")

from pyllm.server import Background, Models, listen, make_server
from pyllm.server.models import Served, name_of, seconds_of, split_name


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny-Q8_0.gguf"
    path.write_bytes(tiny_gguf.llama("q8_0", ctx=256)[0])
    return path


@contextmanager
def serving(models: Models) -> Iterator[Client]:
    with Background(make_server(models, "127.0.0.1"), listen("127.0.0.1", 0), "127.0.0.1") as server:
        yield Client(server.url)


def complete(client: Client, model: str | None, **fields: object) -> int:
    return client.post("/v1/completions", {"prompt": [1, 270], "max_tokens": 2, "model": model, **fields}).status


def states(client: Client) -> dict[str, str]:
    return client.get("/health").json["models"]     # type: ignore[no-any-return]


def test_models_come_when_they_are_asked_for_and_go_when_idle(tiny: Path) -> None:
    models = Models.named([("a", tiny), ("b", tiny), ("b", tiny)], {"ctx": 128, "threads": 1}, keep_s=1.2)
    with serving(models) as client:
        assert [m["id"] for m in client.get("/v1/models").json["data"]] == ["a", "b", "b-2"]
        wait_until(lambda: client.get("/health").status == 200)
        assert states(client) == {"a": "loaded", "b": "unloaded", "b-2": "unloaded"}
        assert complete(client, None) == complete(client, "b") == 200
        assert states(client) == {"a": "loaded", "b": "loaded", "b-2": "unloaded"}
        reader = client.open_stream("", model="b")
        reader.close()
        running = {m["name"] for m in client.get("/api/ps").json["models"]}
        assert running == {"a", "b"}
        wait_until(lambda: set(states(client).values()) == {"unloaded"})
        assert client.get("/api/tags").json["models"][0]["details"]["family"] == "llama"       # told from the file
        assert complete(client, "a") == 200
        shown = {"model": "a", "prompt": "", "keep_alive": 0}
        assert client.post("/api/generate", shown).json["done_reason"] == "unload" and states(client)["a"] == "unloaded"
        assert client.post("/api/generate", {**shown, "keep_alive": "5m"}).json["done_reason"] == "load" and states(client)["a"] == "loaded"


def test_places_are_as_many_as_a_model_chooses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Where nobody says --parallel: fewer where recurrent states would take much of the memory, and the log tells how many."""
    from checkpoints import goldens

    from pyllm.cli import parse
    from pyllm.cli.serve import _options

    golden, path = goldens.load("rwkv7"), tmp_path / "rwkv7.gguf"
    goldens.write_gguf(path, golden.weights, golden.config, golden.hf_class)
    monkeypatch.setattr("pyllm.llm._fit", partial(pyllm.llm._fit, refuse=False))      # the memory that is told is little
    of_16, of_4 = (pyllm.LLM.plan(path, parallel=n).kv for n in (16, 4))
    for more, states in (([], of_4), ([], of_16), (["--parallel", "3"], of_4)):
        monkeypatch.setattr("pyllm.memory.available", lambda states=states: 8 * states + 4096)
        models = Models.named([("a", path)], _options(parse(["serve", "--threads", "1", *more])), None)
        caplog.clear()
        with caplog.at_level("INFO", "pyllm.server"):
            asyncio.run(models.start())
        wanted = 3 if more else 4 if states == of_4 else 16
        assert models.default.llm is not None and models.default.llm.parallel == wanted
        assert f": {wanted} requests at once, " in caplog.text
        asyncio.run(models.close())
    assert parse(["batch", "in", "out"]).parallel is None


def test_the_longest_unused_model_makes_room(tiny: Path) -> None:
    served: list[Served] = []

    def load() -> pyllm.LLM:
        if sum(s.llm is not None for s in served) >= 2:
            raise errors.OutOfMemory("it does not fit")
        return pyllm.LLM(tiny, ctx=128, threads=1)

    served += [Served(name, str(tiny), load, None) for name in "abc"]
    with serving(Models(served)) as client:
        wait_until(lambda: client.get("/health").status == 200)
        assert [complete(client, name) for name in "bac"] == [200] * 3
        assert states(client) == {"a": "loaded", "b": "unloaded", "c": "loaded"}
        assert complete(client, "b") == 200
        assert states(client) == {"a": "unloaded", "b": "loaded", "c": "loaded"}


def test_a_callers_model_stays_loaded(tiny: Path) -> None:
    """That of LLM.serve is its caller's: no request unloads it, nor one that needs room."""
    with pyllm.LLM(tiny, ctx=128, threads=1) as llm, llm.serve(0, drain_s=0) as server:
        client = Client(server.url)
        assert client.post("/api/generate", {"prompt": "", "keep_alive": 0}).status == 200
        assert complete(client, None) == 200 and set(states(client).values()) == {"loaded"}
        models = Models.of(llm)
        assert not asyncio.run(models.make_room()) and models.default.llm is llm
        assert len(llm.complete("w1", max_tokens=1).tokens) == 1


def test_a_key_has_one_name_in_every_process() -> None:
    """What is cached for its client on disk is found again when other keys have come and gone."""
    from starlette.datastructures import Headers

    from pyllm.server import Access

    asked = [Headers({"authorization": f"Bearer {key}"}) for key in ("first-key", "second-key")]
    before, after = (Access.make("::1", keys) for keys in (["first-key", "second-key"], ["third-key", "second-key", "first-key"]))
    names = [before.key_of(headers) for headers in asked]
    assert names == [after.key_of(headers) for headers in asked] and len({*names, "", None}) == 4
    assert not any("first-key" in str(name) or "second-key" in str(name) for name in names)


def test_a_model_that_does_not_fit_beside_others_in_use_is_503(tiny: Path) -> None:
    first = pyllm.LLM(tiny, ctx=128, threads=1)
    entered, release = threading.Event(), threading.Event()

    def slow(ids: object, logits: object) -> None:
        entered.set()
        release.wait(30)

    def load() -> pyllm.LLM:
        raise errors.OutOfMemory("it does not fit")

    models = Models([Served("a", str(tiny), lambda: first, None), Served("b", str(tiny), load, None)])
    with serving(models) as client:
        wait_until(lambda: client.get("/health").status == 200)
        user = threading.Thread(target=lambda: first.complete([1], max_tokens=1, logits_processor=slow))
        user.start()
        entered.wait(30)
        waiting = threading.Thread(target=complete, args=(client, "a"))
        waiting.start()
        wait_until(lambda: client.get("/health").json["generations"] == 1)
        answer = client.post("/v1/completions", {"prompt": [1], "max_tokens": 1, "model": "b"})
        assert answer.status == 503 and "retry-after" in answer.headers
        release.set()
        user.join()
        waiting.join()
        assert complete(client, "a") == 200


def test_requests_while_the_model_loads_are_503(tiny: Path) -> None:
    release = threading.Event()

    def load() -> pyllm.LLM:
        release.wait(30)
        return pyllm.LLM(tiny, ctx=128, threads=1)

    with serving(Models([Served("a", str(tiny), load, None)])) as client:
        health = client.get("/health")
        assert health.status == 503 and health.json["status"] == "loading"
        answer = client.post("/v1/completions", {"prompt": [1], "max_tokens": 1})
        assert answer.status == 503 and answer.json["error"]["code"] == "model_loading" and answer.headers["retry-after"] == "1"
        release.set()
        wait_until(lambda: client.get("/health").status == 200)
        assert complete(client, "a") == 200


def test_a_request_whose_model_cannot_be_loaded_says_why(tiny: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(tiny.read_bytes()[:1000])
    with serving(Models.named([("a", tiny), ("b", damaged)], {"threads": 1}, None)) as client:
        wait_until(lambda: client.get("/health").status == 200)
        answer = client.post("/v1/completions", {"prompt": [1], "model": "b"})
        message = answer.json["error"]["message"]
        assert answer.status == 500 and "damaged.gguf" in message and str(tmp_path) not in message
        assert complete(client, "a") == 200


def test_names() -> None:
    assert [split_name(t) for t in ("smollm2", "a/b-Q4.gguf", "x=a/b.gguf", "user/repo-GGUF:Q4")] == [
        ("smollm2", "smollm2"), ("b-Q4", "a/b-Q4.gguf"), ("x", "a/b.gguf"), ("repo-GGUF:Q4", "user/repo-GGUF:Q4")]
    assert name_of("/m/big-00001-of-00003.gguf") == "big"
    assert [seconds_of(t) for t in ("90", "5m", "1.5h", "250ms", "-1", "0")] == [90, 300, 5400, 0.25, None, 0]
    with pytest.raises(ValueError):
        seconds_of("soon")
