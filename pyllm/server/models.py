"""The models of a server: loaded when they are needed, unloaded when nobody needs them."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from .. import errors
from ..llm import LLM
from .failures import Refusal

log = logging.getLogger("pyllm.server")


class Served:
    """One model under its name. llm is None while it is not in memory."""

    def __init__(self, name: str, path: str, load: Callable[[], LLM], keep_s: float | None, llm: LLM | None = None) -> None:
        self.name, self.path = name, path
        self.keep_s = keep_s            # seconds in memory after its last use; None: for ever
        self.llm, self.created, self.used = llm, int(time.time()), time.monotonic()
        self.owned = llm is None        # else closing it is its owner's
        self.users = 0
        self.described: Any = None      # what ollama.py read of its file
        self.embedding = asyncio.Lock()     # texts are embedded one call after the other
        self._load, self._loading = load, asyncio.Lock()

    @property
    def ends(self) -> float | None:
        """Monotonic time at which it is unloaded if nobody uses it."""
        return None if self.keep_s is None else self.used + self.keep_s

    async def ready(self, make_room: Callable[[], Awaitable[bool]]) -> LLM:
        async with self._loading:
            while self.llm is None:
                try:
                    llm = self.llm = await _on_thread(self._load)
                    log.info("loaded %s in %.1f s: %d requests at once, %d tokens of context", self.name, llm.load_s, llm.parallel, llm.ctx)
                except errors.OutOfMemory:
                    if not await make_room():
                        raise
            return self.llm

    async def unload(self) -> None:
        """Returns when its memory is free. What belongs to a caller of LLM.serve stays loaded."""
        if not self.owned:
            return
        llm, self.llm = self.llm, None
        if llm is not None:
            await asyncio.to_thread(llm.close)
            log.info("unloaded %s", self.name)


async def _on_thread(load: Callable[[], LLM]) -> LLM:
    """On a thread that the end of the process does not wait for."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[LLM] = loop.create_future()

    def settle(llm: LLM | None, error: BaseException | None) -> None:
        if future.done():
            if llm is not None:
                llm.close()
        elif llm is not None:
            future.set_result(llm)
        elif error is not None:
            future.set_exception(error)

    def work() -> None:
        llm = error = None
        try:
            llm = load()
        except BaseException as e:
            error = e
        try:
            loop.call_soon_threadsafe(settle, llm, error)
        except RuntimeError:            # the server has ended meanwhile
            if llm is not None:
                llm.close()

    threading.Thread(target=work, name="pyllm-load", daemon=True).start()
    return await future


class Models:
    """All of a server's models; the first is the default."""

    def __init__(self, served: Iterable[Served]) -> None:
        self.all = {s.name: s for s in served}
        self.default = next(iter(self.all.values()))
        self.starting = False           # the default model loads for the first time
        self.failed: Exception | None = None        # why that did not succeed

    @classmethod
    def of(cls, llm: LLM, name: str | None = None) -> Models:
        """One that is in memory already and stays there."""
        def gone() -> LLM:
            raise errors.Closed("the model is closed")
        return cls([Served(name or name_of(llm.path), llm.path, gone, None, llm)])

    @classmethod
    def named(cls, files: Iterable[tuple[str, str | os.PathLike[str]]], options: Mapping[str, Any], keep_s: float | None) -> Models:
        """files: (name, what LLM takes); two of one name get numbers."""
        served: dict[str, Served] = {}
        for name, spec in files:
            unique = next(n for i in range(1, 1 << 20) if (n := name if i == 1 else f"{name}-{i}") not in served)
            served[unique] = Served(unique, os.fspath(spec), partial(LLM, spec, **options), keep_s)
        return cls(served.values())

    def find(self, name: str | None) -> Served:
        """By its name; Ollama's clients add :latest, and files may be named in full. None or empty: the default."""
        if not name:
            return self.default
        plain = name.removesuffix(":latest")
        found = self.all.get(name) or self.all.get(plain) or self.all.get(name_of(plain))
        if found is None:
            raise Refusal(404, f"there is no model {name[:100]!r} here; there is {', '.join(self.all)}", code="model_not_found",
                          param="model")
        return found

    async def start(self) -> None:
        """Loads the default model."""
        self.starting = True
        try:
            await self.default.ready(self.make_room)
        finally:
            self.starting = False

    @asynccontextmanager
    async def lease(self, served: Served) -> AsyncIterator[LLM]:
        """The model, loaded if need be, and not unloaded meanwhile."""
        if self.starting and served.llm is None:
            raise Refusal(503, "the model is being loaded", kind="server_error", code="model_loading", retry_s=1)
        served.users += 1
        try:
            yield await served.ready(self.make_room)
        finally:
            served.users -= 1
            served.used = time.monotonic()
            if served.users == 0 and served.keep_s == 0:
                await served.unload()

    async def make_room(self) -> bool:
        """Unloads the model that was unused for the longest time; False if all that are loaded are in use."""
        idle = [s for s in self.all.values() if s.owned and s.llm is not None and s.users == 0]
        if idle:
            await min(idle, key=lambda s: s.used).unload()
        return bool(idle)

    async def sweep(self) -> None:
        """Unloads what was not used for its time."""
        now = time.monotonic()
        for s in self.all.values():
            if s.llm is not None and s.users == 0 and s.ends is not None and now >= s.ends:
                await s.unload()

    async def close(self) -> None:
        for s in self.all.values():
            if s.owned:
                await s.unload()


def split_name(text: str) -> tuple[str, str]:
    """(name, what LLM takes) of a MODEL or NAME=MODEL of the command line."""
    name, equals, spec = text.partition("=")
    if equals and not os.path.exists(text) and re.fullmatch(r"[\w.:-]+", name):
        return name, spec
    return name_of(text), text


def seconds_of(text: str) -> float | None:
    """Of a time such as 90, 5m or 1.5h; None, for ever, of a negative one. Raises ValueError."""
    found = re.fullmatch(r"(-?\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h)?", text, re.ASCII)
    if not found:
        raise ValueError(text)
    seconds = float(found[1]) * {"ms": 1e-3, "m": 60, "h": 3600}.get(found[2], 1)
    return None if seconds < 0 else seconds


def name_of(spec: str) -> str:
    """A short name: of a file without its folder and ending, of user/repo the repo."""
    last = spec.replace("\\", "/").rstrip("/").rpartition("/")[2] or spec
    return re.sub(r"(-\d{5}-of-\d{5})?\.gguf$", "", last, flags=re.I).removesuffix("-GGUF")
