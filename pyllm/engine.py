"""The C engine behind Python types: loading, sequences, steps. One thread at a time may call an Engine."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import errors, weights
from ._core import check, ffi, lib, new_error
from .gguf import GGUF

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .sampling import Sampler

KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 2, "q4_0": 3}
MAX_ROWS = 512      # rows of one step: a prompt chunk keeps the matrix kernels busy
MAX_LOGITS = 64     # rows with logits of one step, at least
PARALLEL = 16       # sequences, unless more are asked for
MAX_DRAFTS = 31     # tokens that are checked at once behind the next one of a sequence
METAL = "metal"     # in place of a CPU level: the GPU, through Metal

_untouched = ffi.new_allocator(should_clear_after_alloc=False)      # pages come when they are written


@dataclass(eq=False)
class Choice:
    """What `Engine.choose` does for one request: the token for `position` from logits, a row of the last step or a buffer of n_vocab
    floats. drafts: tokens at which the step's next rows were computed; their choices count as long as every draft before was chosen.
    mask: a bit for every token (in whole 32-bit words), set where it may be chosen, only without drafts. guess: see Sampler.ask.
    tokens: what was chosen; error: why no more."""

    sampler: Sampler
    logits: Any
    position: int
    drafts: Sequence[int] = ()
    mask: bytes | None = None
    guess: bool = False
    tokens: list[int] = field(default_factory=list)
    error: errors.Error | None = None


class Engine:
    """A loaded model with its KV cache. gguf: handle of an open file; tape: text of docs/tape.md; n_positions: KV room in tokens;
    parallel: sequences that may live at once.
    level: a CPU level, None for the best, or METAL. pack: where packed weights are kept (pack_cache.entry_path); pack_state is then what
    came of it. cancel: a flag (int32_t *) that ends the load too."""

    def __init__(self, gguf: Any, tape: str, *, threads: int, kv: str, n_positions: int, level: str | None,
                 parallel: int = PARALLEL, pack: Path | None = None, cancel: Any = None) -> None:
        self.tape = tape
        text, err = tape.encode(), new_error()
        self._model = self._engine = ffi.NULL
        self._cancel = ffi.new("int32_t *") if cancel is None else cancel
        self.pack_state: str | None = None
        self.backend = METAL if level == METAL else "cpu"
        if pack is None:
            self._model = weights.load(gguf, text, level, threads, self._cancel)
        else:
            from . import pack_cache

            self._model, self.pack_state = pack_cache.load(gguf, text, level, threads, self._cancel, pack)
        self.params = engine_params(threads, kv, n_positions, parallel, tape)
        self.max_rows: int = self.params.max_rows
        self.max_logits: int = self.params.max_logits
        made = ffi.new("pyllm_engine **")
        try:
            check(lib.pyllm_engine_new(self._model, self.params, made, err), err)
        except errors.Error:
            self.close()
            raise
        self._engine = made[0]
        self.n_vocab: int = lib.pyllm_model_n_vocab(self._model)
        self.width: int = lib.pyllm_model_width(self._model)        # of a row of logits, or of an embedding
        self.n_steps: int = lib.pyllm_model_n_steps(self._model)
        self.weight_bytes: int = lib.pyllm_model_weight_bytes(self._model)
        self._tokens, self._seqs, self._want = (ffi.new(f"{kind}[]", self.max_rows) for kind in ("int32_t", "int32_t", "uint8_t"))
        self._logits = _untouched("float[]", self.max_logits * self.width)
        self._choices = ffi.new("pyllm_choice[]", self.max_logits)
        self._group = ffi.new("pyllm_group *")
        self._pid = os.getpid()

    def close(self) -> None:
        """Returns all memory and threads. Safe to call twice."""
        if self._engine != ffi.NULL:
            lib.pyllm_engine_free(self._engine)
        if self._model != ffi.NULL:
            lib.pyllm_model_free(self._model)
        self._model = self._engine = ffi.NULL

    def cancel(self, yes: bool) -> None:
        """Any thread: the running step stops at its next tile and raises Cancelled; so do later ones until cancel(False)."""
        lib.pyllm_cancel_set(self._cancel, int(yes))

    def follow(self, other: Engine) -> None:
        """From now on this engine, of as many threads, works with those of the other one, which is closed after it, and what cancels the
        other one cancels this one. One thread calls both."""
        err = new_error()
        check(lib.pyllm_engine_share(self._engine, other._engine, err), err)
        self._cancel = other._cancel

    def open_seq(self) -> int | None:
        """A new, empty sequence, or None when all are in use."""
        seq: int = lib.pyllm_seq_new(self._engine, ffi.NULL)
        return seq if seq >= 0 else None

    def close_seq(self, seq: int) -> None:
        if self._engine != ffi.NULL:
            lib.pyllm_seq_free(self._engine, seq)

    def length(self, seq: int) -> int:
        n: int = lib.pyllm_seq_length(self._engine, seq)
        return n

    def truncate(self, seq: int, n: int) -> bool:
        """Cuts a sequence to n tokens, which can always be done by MAX_DRAFTS + 1 where nothing is recurrent; False when its window's pages
        or its state there are gone and it must start again from 0."""
        return bool(lib.pyllm_seq_truncate(self._engine, seq, n, ffi.NULL) == 0)

    @cached_property
    def recurrent(self) -> tuple[bool, ...]:
        """Of each layer group: whether its pages are states, good for one position only."""
        return tuple(bool(self.group(g).recurrent) for g in range(len(self.windows)))

    @cached_property
    def windows(self) -> tuple[int, ...]:
        """Of each layer group: how many positions a row sees there, 0: all."""
        return tuple(self.group(g).window for g in range(lib.pyllm_engine_n_groups(self._engine)))

    def group(self, g: int) -> Any:
        """The pyllm_group of a layer group, good until the next call."""
        check(lib.pyllm_engine_group(self._engine, g, self._group), ffi.NULL)
        return self._group

    def seq_pages(self, seq: int, first: int, n: int) -> list[list[int]]:
        """Of each layer group n pages of a sequence; -1: behind the window."""
        out, err = ffi.new("int32_t[]", len(self.windows) * n), new_error()
        check(lib.pyllm_seq_pages(self._engine, seq, first, n, out, err), err)
        flat = list(out)
        return [flat[g * n:(g + 1) * n] for g in range(len(self.windows))]

    def attach(self, seq: int, n_tokens: int, pages: list[list[int]]) -> None:
        """An empty sequence begins with n_tokens tokens that are in these pages; the last one is copied if it is not full."""
        err = new_error()
        check(lib.pyllm_seq_attach(self._engine, seq, n_tokens, _flat(pages), err), err)

    def adopt(self, seq: int, first: int, pages: list[list[int]]) -> None:
        """Full pages of a sequence, from `first` on, give way to pages of the same content; -1: this one stays."""
        err = new_error()
        check(lib.pyllm_seq_adopt(self._engine, seq, first, len(pages[0]), _flat(pages), err), err)

    def keep(self, pages: list[list[int]]) -> None:
        """These pages outlive their sequences."""
        err = new_error()
        check(lib.pyllm_pages_keep(self._engine, _flat(pages), len(pages[0]), err), err)

    def drop(self, pages: list[list[int]]) -> None:
        """These pages are no longer kept."""
        err = new_error()
        check(lib.pyllm_pages_drop(self._engine, _flat(pages), len(pages[0]), err), err)

    def count_idle(self, group: int, pages: list[int]) -> int:
        """How many of a group's pages are kept and held by no sequence."""
        n: int = lib.pyllm_pages_idle(self._engine, group, ffi.new("int32_t[]", pages), len(pages))
        return n

    def page_bytes(self, group: int) -> int:
        n: int = self.group(group).page_bytes
        return n

    def page(self, seq: int, group: int, i: int) -> Any:
        """The bytes of a page, a buffer; None: behind the window."""
        n = ffi.new("int64_t *")
        data = lib.pyllm_seq_page(self._engine, seq, group, i, n)
        return None if data == ffi.NULL else ffi.buffer(data, n[0])

    def load(self, seq: int, n_tokens: int, path: str, offsets: Sequence[int], sums: Sequence[Sequence[int]]) -> None:
        """An empty sequence begins with n_tokens tokens whose pages lie in a file, see pyllm_seq_load. Raises FileError, StateError,
        CacheFull."""
        err, flat = new_error(), ffi.new("uint64_t[]", [s for of_group in sums for s in of_group])
        check(lib.pyllm_seq_load(self._engine, seq, n_tokens, os.fsencode(path), ffi.new("int64_t[]", offsets), flat, err), err)

    def free_pages(self) -> int:
        """Pages that no sequence holds, of layers without a window; where all state is recurrent, more than are ever needed."""
        n: int = lib.pyllm_engine_free_positions(self._engine)
        return n // 16

    def step(self, rows: Sequence[tuple[int, Sequence[int], int]]) -> int:
        """Runs (sequence, tokens, number of last tokens that want logits) triples as one batch; logits are in self.logits[:returned]."""
        at = wanted = 0
        for seq, tokens, want in rows:
            n = len(tokens)
            self._tokens[at:at + n] = tokens
            self._seqs[at:at + n] = [seq] * n
            self._want[at:at + n] = [0] * (n - want) + [1] * want
            at += n
            wanted += want
        err = new_error()
        check(lib.pyllm_step(self._engine, at, self._tokens, self._seqs, self._want, self._logits, self._cancel, err), err)
        return wanted

    @cached_property
    def logits(self) -> NDArray[np.float32]:
        """float32 [max_logits, width], written to by every step."""
        import numpy as np  # not at the top: the first token of a program does without

        return np.frombuffer(ffi.buffer(self._logits), np.float32).reshape(self.max_logits, self.width)

    def logits_row(self, i: int) -> Any:
        """Row i of `logits` as a buffer of floats."""
        return ffi.buffer(self._logits + i * self.width, 4 * self.width)

    def choose(self, choices: Sequence[Choice]) -> None:
        """Chooses tokens for many requests at once, each with a sampler of its own."""
        alive = []
        for c, into in zip(choices, self._choices, strict=False):
            logits = self._logits + c.logits * self.n_vocab if isinstance(c.logits, int) else ffi.from_buffer("float *", c.logits)
            alive += [logits, c.sampler.ask(into, logits, self.n_vocab, c.position, c.drafts, c.mask, c.guess)]
        err = new_error()
        check(lib.pyllm_choose(self._engine, self._choices, len(choices), err), err)
        for c, into in zip(choices, self._choices, strict=False):
            c.tokens, c.error = c.sampler.chosen(into)

    @contextmanager
    def profile(self) -> Iterator[NDArray[np.float64]]:
        """While open, every step of the tape adds its seconds to its place in the array that is yielded."""
        import numpy as np

        self._need_cpu("a profile by step")

        seconds = np.zeros(lib.pyllm_model_n_steps(self._model))
        lib.pyllm_engine_profile(self._engine, ffi.from_buffer("double *", seconds))
        try:
            yield seconds
        finally:
            lib.pyllm_engine_profile(self._engine, ffi.NULL)

    @contextmanager
    def observe(self, widths: Mapping[int, int]) -> Iterator[dict[int, NDArray[np.float64]]]:
        """While open, the squares of the first input of step i of the tape, `widths[i]` values a row, add up in array i of what is
        yielded."""
        import numpy as np

        self._need_cpu("an importance matrix")

        sums = {i: np.zeros(width) for i, width in widths.items()}
        places = ffi.new("double *[]", lib.pyllm_model_n_steps(self._model))
        for i, a in sums.items():
            places[i] = ffi.from_buffer("double *", a)
        lib.pyllm_engine_observe(self._engine, places)
        try:
            yield sums
        finally:
            lib.pyllm_engine_observe(self._engine, ffi.NULL)

    def _need_cpu(self, what: str) -> None:
        if self.backend != "cpu":
            raise errors.UnsupportedModel(f"{what} is made on the CPU only\nhint: load the model with backend=\"cpu\"")

    @contextmanager
    def part(self, first: int, last: int, before: NDArray[np.float32] | None, after: NDArray[np.float32] | None) -> Iterator[None]:
        """While open, steps run [first, last) of the tape only; before, after: float32 [rows * live(first or last)], None at the tape's
        ends."""
        def floats(a: NDArray[np.float32] | None) -> Any:
            return ffi.NULL if a is None else ffi.from_buffer("float *", a)

        err = new_error()
        check(lib.pyllm_engine_part(self._engine, first, last, floats(before), floats(after), err), err)
        try:
            yield
        finally:
            lib.pyllm_engine_part(self._engine, 0, self.n_steps, ffi.NULL, ffi.NULL, err)

    def live(self, step: int) -> int:
        """Floats a row that are needed from this step of the tape on and computed before it."""
        n: int = lib.pyllm_engine_live(self._engine, step)
        return n

    def write(self, tensor: str, first: int, rows: NDArray[np.uint8]) -> None:
        """Overwrites rows [first, first + len(rows)) of a matrix in memory; rows: uint8 [n, bytes of a row], in the type that its file
        has."""
        err = new_error()
        name = tensor.encode("utf-8", "surrogateescape")
        check(lib.pyllm_model_write(self._model, name, first, len(rows), ffi.from_buffer(rows), err), err)

    def save(self, seq: int) -> bytes:
        """The sequence's KV cache as bytes, checksummed."""
        err = new_error()
        n = check(lib.pyllm_seq_save(self._engine, seq, ffi.NULL, 0, err), err)
        out = bytearray(n)
        check(lib.pyllm_seq_save(self._engine, seq, ffi.from_buffer(out), n, err), err)
        return bytes(out)

    def restore(self, seq: int, data: bytes) -> None:
        err = new_error()
        check(lib.pyllm_seq_restore(self._engine, seq, ffi.from_buffer(data), len(data), err), err)

    def kernels(self) -> list[str]:
        """"slot=symbol" of every kernel that a run of this model can call."""
        if self._model == ffi.NULL:
            raise errors.Closed("the model is closed")
        names: list[str] = []
        while (name := lib.pyllm_model_kernel(self._model, len(names))) != ffi.NULL:
            names.append(ffi.string(name).decode())
        return names


def _flat(pages: list[list[int]]) -> Any:
    return ffi.new("int32_t[]", [p for of_group in pages for p in of_group])


def engine_params(threads: int, kv: str, n_positions: int, parallel: int, tape: str) -> Any:
    """Steps take MAX_ROWS rows, or a whole text where rows see those behind them."""
    if not isinstance(kv, str) or kv not in KV_TYPES:
        raise errors.ArgumentError(f"kv type {reprlib.repr(kv)} does not exist\nhint: one of {', '.join(KV_TYPES)}")
    return ffi.new("pyllm_engine_params *", {
        "n_threads": threads, "kv_type": KV_TYPES[kv], "max_rows": max(MAX_ROWS, n_positions if " causal=0" in tape else 0),
        "max_seqs": parallel, "n_positions": n_positions, "max_logits": max(MAX_LOGITS, parallel),
        "rewind": MAX_DRAFTS + 1})


def plan_bytes(gguf: GGUF, tape: str, threads: int, kv: str, n_positions: int, parallel: int) -> tuple[int, int, int]:
    """(weights, KV, activations) in bytes, without taking them. Errors of the tape name the file: its tensors do not fit together."""
    text, err = tape.encode(), new_error()
    weights, cache, act = ffi.new("int64_t *"), ffi.new("int64_t *"), ffi.new("int64_t *")
    params = engine_params(threads, kv, n_positions, parallel, tape)
    try:
        check(lib.pyllm_model_plan(gguf.handle, text, len(text), weights, ffi.new("uint64_t *"), err), err)
        check(lib.pyllm_engine_plan(gguf.handle, text, len(text), params, cache, act, err), err)
    except (errors.FormatError, errors.UnsupportedModel) as e:
        hint = e.hint or "the file is damaged, or a variant that its architecture's description does not cover"
        raise type(e)(f"{gguf.path}: {e.message}\nhint: {hint}") from None
    return weights[0], cache[0], act[0]
