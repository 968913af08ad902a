"""Texts as vectors: what an encoder makes of a whole text, or the hidden states of a decoder behind its last norm.

Rows are pooled in the order of the text, in float32; lengths are exact sums. So a vector's bits depend on nothing but its text.
"""

from __future__ import annotations

import reprlib
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from math import fsum, sqrt
from typing import TYPE_CHECKING, Any

from . import errors
from .engine import MAX_ROWS, Engine
from .scheduler import PAGE

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .driver import Driver
    from .llm import LLM

POOLINGS = ("none", "mean", "cls", "last")      # in the order of GGUF's pooling_type
OPEN = 8                                        # texts in one step, at most


@dataclass
class _Text:
    index: int
    ids: Sequence[int]
    seq: int | None = None
    done: int = 0
    parts: list[NDArray[np.float32]] = field(default_factory=list)


class Embedder:
    """Makes vectors with one model; any thread. stated: the file's pooling_type, if it has one."""

    def __init__(self, llm: LLM, engine: Engine, driver: Driver, stated: Any) -> None:
        self._weak, self._engine, self._driver = weakref.ref(llm), engine, driver       # no cycle: del frees
        stated = stated if isinstance(stated, int) and 0 <= stated < len(POOLINGS) else None
        steps = [line.split(" ", 2)[:2] for line in engine.tape.splitlines()[1:]]
        steps = [s for s in steps if s[0] not in ("hparam", "table", "ignore") and not s[0].startswith("#")]
        ops = [op for op, _ in steps]
        self.encodes = steps[-1][1] == "embedding"
        if self.encodes:
            self._at = next(i for i, op in enumerate(ops) if op in ("pool", "rows"))    # here all rows are still there
            self._pools = POOLINGS[(stated if stated is not None else 1)] if ops[self._at] == "pool" else "last"
        else:
            self._at, self._pools = max(i for i, op in enumerate(ops) if op in ("norm", "layernorm")) + 1, ""
        self.pooling = POOLINGS[stated or 1]
        self._goes_on = self._at + 1 < len(ops)        # more follows the pooling
        self._hidden = engine.live(self._at)
        self.width = engine.width if self.encodes else self._hidden

    @property
    def _llm(self) -> LLM:
        llm = self._weak()
        assert llm is not None          # whoever embeds holds it
        return llm

    def embed(self, texts: Any, pooling: str | None, normalize: bool, dimensions: int | None, truncate: bool) -> NDArray[np.float32]:
        """See LLM.embed."""
        import numpy as np

        if pooling not in (None, *POOLINGS[1:]):
            raise errors.ArgumentError(f"pooling is {reprlib.repr(pooling)}, must be one of {', '.join(POOLINGS[1:])}")
        if self.encodes and self._goes_on and pooling not in (None, self._pools):
            raise errors.ArgumentError(f"pooling is {pooling!r}, but what follows it in this model was made for {self._pools}\n"
                                       "hint: leave pooling out")
        ids = self.ids([texts] if isinstance(texts, str) else texts, truncate)
        rows = [shortened(x, dimensions, normalize) for x in self._vectors(ids, pooling or self.pooling)]
        if isinstance(texts, str):
            return rows[0]
        return np.stack(rows) if rows else np.empty((0, self.width), np.float32)

    def rows(self, text: str | Sequence[int]) -> NDArray[np.float32]:
        return self._vectors(self.ids([text], False), "none")[0]

    def ids(self, texts: Any, truncate: bool) -> list[list[int]]:
        if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
            raise errors.ArgumentError(f"texts is {reprlib.repr(texts)}, must be a list of texts")
        return [self._ids(text, truncate) for text in texts]

    def _ids(self, text: str | Sequence[int], truncate: bool) -> list[int]:
        llm = self._llm
        if isinstance(text, str):
            if not truncate:
                llm.refuse_long(text)
            ids = llm.tokenizer.encode(text)
        else:
            ids = llm.valid_ids(text)
        if len(ids) > llm.ctx:
            if not truncate:
                raise errors.ContextOverflow(len(ids), llm.ctx)
            end = [ids[-1]] if ids[-1] == llm.tokenizer.eos else []
            ids = ids[:llm.ctx - len(end)] + end
        if not ids:
            raise errors.ArgumentError("a text to embed is empty\nhint: give at least one token")
        return ids

    def _vectors(self, texts: Sequence[Sequence[int]], pooling: str) -> list[NDArray[np.float32]]:
        """[width], or with pooling none [tokens, width], of each text."""
        made: dict[int, NDArray[np.float32]] = {}
        waiting = [_Text(i, ids) for i, ids in enumerate(texts)][::-1]
        running: list[_Text] = []

        def step() -> None:
            rows = self._rows(running, waiting, pooling)
            for text, _ in rows:
                if text.seq is None:
                    text.seq = self._driver.open_seq()
            self._driver.make_room(sum(n for _, n in rows) + PAGE * len(rows), len(rows))
            self._run(rows, pooling)
            for text in [t for t in running if t.done == len(t.ids)]:
                running.remove(text)
                self._close(text)
                made[text.index] = _pooled(text.parts, pooling)

        self._llm._check()
        self._driver._refuse_processors()       # before a lock is waited for that the engine's thread could need to come back
        with self._driver.turn:
            try:
                while waiting or running:
                    self._driver.call(step)
            finally:
                with suppress(errors.Closed, errors.ForkedProcess):
                    for text in running:
                        self._driver.post(partial(self._close, text))
        return [made[i] for i in range(len(texts))]

    def _close(self, text: _Text) -> None:
        if text.seq is not None:
            self._engine.close_seq(text.seq)
            text.seq = None

    def _rows(self, running: list[_Text], waiting: list[_Text], pooling: str) -> list[tuple[_Text, int]]:
        """(text, rows of it) of the next step. Encoders take a text as a whole; of decoders, rows that are wanted all are fewer."""
        room = self._engine.max_rows if self.encodes else MAX_ROWS if pooling == "last" else self._engine.max_logits
        rows: list[tuple[_Text, int]] = []
        for text in running:
            n = min(len(text.ids) - text.done, room)
            rows += [(text, n)] if n else []
            room -= n
        while (waiting and len(running) < min(OPEN, self._llm.parallel) and room >= (len(waiting[-1].ids) if self.encodes else 1)
               and (not running or sum(len(t.ids) for t in (*running, waiting[-1])) <= self._llm.ctx)):
            running.append(text := waiting.pop())
            n = min(len(text.ids), room)
            rows.append((text, n))
            room -= n
        return rows

    def _run(self, rows: Sequence[tuple[_Text, int]], pooling: str) -> None:
        """One step; what it gives of each text is added to its parts."""
        import numpy as np

        engine, total = self._engine, sum(n for _, n in rows)
        engine.cancel(False)
        ends = [int(text.done + n == len(text.ids)) for text, n in rows]
        given = [(end if pooling == "last" else n) for (_, n), end in zip(rows, ends, strict=True)]
        wants = ends if self.encodes else given
        batch = [(text.seq, text.ids[text.done:text.done + n], want) for (text, n), want in zip(rows, wants, strict=True)]
        if self.encodes and pooling == self._pools:
            n_out = engine.step(batch)          # type: ignore[arg-type]
            out, given = engine.logits[:n_out].copy(), ends
        else:
            out = np.empty((total if self.encodes else sum(given), self._hidden), np.float32)
            with engine.part(0, self._at, None, out):
                engine.step(batch)              # type: ignore[arg-type]
            given = [n for _, n in rows] if self.encodes else given
        at = 0
        for (text, n), rows_of in zip(rows, given, strict=True):
            text.parts += [out[at:at + rows_of]] if rows_of else []
            text.done += n
            at += rows_of


def _pooled(parts: list[NDArray[np.float32]], pooling: str) -> NDArray[np.float32]:
    import numpy as np

    x = np.concatenate(parts) if len(parts) > 1 else parts[0]
    if pooling == "none":
        return x
    if len(x) == 1:
        return np.array(x[0])
    return np.array(x[0] if pooling == "cls" else x[-1] if pooling == "last" else x.cumsum(axis=0)[-1] / np.float32(len(x)))


def shortened(x: NDArray[np.float32], dimensions: int | None, normalize: bool) -> NDArray[np.float32]:
    """The first dimensions of a vector, made one of length 1: each value is the quotient in double, rounded once."""
    import numpy as np

    if dimensions is not None and not (isinstance(dimensions, int) and not isinstance(dimensions, bool) and 1 <= dimensions <= len(x)):
        raise errors.ArgumentError(f"dimensions is {reprlib.repr(dimensions)}, must be a whole number from 1 to {len(x)}")
    y = np.array(x[:dimensions], np.float64)
    if not normalize:
        return y.astype(np.float32)
    length = sqrt(fsum((y * y).tolist()))
    return (y / length if length else y).astype(np.float32)
