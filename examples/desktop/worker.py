"""The model's side of the chat window: one thread that loads models and answers, and tells what happens through a queue."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyllm
from pyllm.catalogue import resolve


@dataclass(frozen=True)
class Event:
    """kind: "progress" (text: of fetching a model), "gone" (the model that was there),
    "loaded" (text: its name, and on a second line about it), "text" and "reasoning" (a piece of the answer),
    "done" (text: how it went), or "error" (text: what failed, and what to do next)."""

    kind: str
    text: str = ""


class Worker:
    """Every method may be called from the thread of the window, and none of them waits for the model. `events` is read there too."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self._options = options         # of sampling, for every answer
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._llm: pyllm.LLM | None = None
        self._session: pyllm.Session | None = None
        self._stream: pyllm.Stream | None = None        # the answer that is being written
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def load(self, spec: str) -> None:
        """Loads a model in place of the one that is there: a path, or a name that pyllm knows."""
        self._stop.clear()
        self._jobs.put(lambda: self._load(spec))

    def ask(self, text: str) -> None:
        self._stop.clear()
        self._jobs.put(lambda: self._answer(text))

    def forget(self) -> None:
        """Begins a new conversation."""
        self.cancel()
        self._jobs.put(self._forget)

    def cancel(self) -> None:
        """Ends the answer that is being written, of which the conversation keeps what it said until then, or the fetching of a model."""
        self._stop.set()
        if (stream := self._stream) is not None:
            stream.cancel()

    def close(self, seconds: float = 5) -> None:
        """Ends the answer and gives the model's memory back."""
        self.cancel()
        self._jobs.put(None)
        self._thread.join(seconds)

    # ---- on the thread ----

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except pyllm.Error as e:
                self.events.put(Event("error", e.message + (f"\n{e.hint}" if e.hint else "")))
            except Exception as e:          # a window that stops to answer would not say why
                self.events.put(Event("error", f"{type(e).__name__}: {e}"))
        self._drop()

    def _load(self, spec: str) -> None:
        path = resolve(spec, self._fetched)
        pyllm.LLM.plan(path)            # fails, if it does, before the model that is there has gone
        self._drop()
        self.events.put(Event("gone"))
        llm = pyllm.LLM(path)
        try:
            llm.template            # noqa: B018  # a model that cannot chat says so here
        except pyllm.Error:
            llm.close()
            raise
        self._llm, self._session = llm, llm.session()
        info = llm.info
        facts = [f"{info['n_params'] / 1e6:,.0f} million parameters", f"{llm.ctx:,} tokens of context", f"{llm.threads} threads"]
        self.events.put(Event("loaded", f"{Path(llm.path).stem}\n{' · '.join(facts)}"))

    def _fetched(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise pyllm.Cancelled("the model was not fetched")
        self.events.put(Event("progress", f"{done / total:.0%} fetched"))

    def _answer(self, text: str) -> None:
        if self._session is None:
            raise pyllm.ArgumentError("no model is loaded\nhint: choose one at the top")
        stream = self._stream = self._session.stream(text, **self._options)
        if self._stop.is_set():
            stream.cancel()
        try:
            for chunk in stream:
                if chunk.reasoning:
                    self.events.put(Event("reasoning", chunk.reasoning))
                if chunk.text:
                    self.events.put(Event("text", chunk.text))
        finally:
            self._stream = None
        reply = stream.reply
        ended = {"cancelled": "stopped, ", "length": "cut off, the context is full: begin a new chat; "}.get(reply.finish_reason, "")
        self.events.put(Event("done", f"{ended}{len(reply.tokens)} tokens, {reply.timings.predicted_per_s:.0f} a second"))

    def _forget(self) -> None:
        if self._session is not None:
            self._session.clear()

    def _drop(self) -> None:
        if self._llm is not None:
            self._llm.close()
        self._llm = self._session = None
