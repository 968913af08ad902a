"""LLM: a loaded model that many threads and tasks can use at once."""

from __future__ import annotations

import atexit
import logging
import os
import re
import reprlib
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from functools import cached_property, partial
from math import prod
from numbers import Integral, Real
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from . import errors, memory
from ._core import ffi, lib
from .build import build
from .cost import Cost, run_costs
from .dialogue import Asked, Message, Messages, Readers, ask
from .draft import check_state
from .draft import load as load_draft
from .driver import Driver
from .engine import MAX_LOGITS, MAX_ROWS, METAL, PARALLEL, Engine, plan_bytes
from .generation import Generation
from .gguf import GGUF, file_path
from .infill import InfillMarks, find_marks
from .loading import at_once, no_thread
from .lora import attach
from .replies import Plan, Reply, Stream
from .sampling import Options, Sampler
from .speculation import Mode, mode_of
from .stores import part_paths
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .chat import ChatTemplate
    from .disk_cache import DiskCache
    from .embedding import Embedder
    from .server.http import Background
    from .session import Session

T = TypeVar("T")

# For files without a template whose vocabulary has ChatML's marks.
CHATML = ("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")

# RWKV's "World" models; files of llama.cpp name it instead of spelling it out.
RWKV_WORLD = ("{% for m in messages %}{% if m.role == 'user' %}User: {% elif m.role == 'assistant' %}Assistant: {% endif %}"
              "{{ m.content | trim }}\n\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}")

UNLIMITED = 1 << 20     # tokens, of models that keep nothing of a token but a state
LONG_TEXT = 1 << 16     # characters from which on a text is looked at in pieces first

AdapterSpec = str | os.PathLike[str] | tuple[str | os.PathLike[str], float]


class LLM:
    """A model in memory.

    spec: a GGUF file, a name of the catalogue, of LM Studio or Ollama, `user/repo[:QUANT]`, or None for the demo model. ctx: tokens of one
    conversation; None: what the model was trained for, or what fits in half of the free memory, whichever is less. threads: None = physical
    cores. kv: of the KV cache, "f16", "f32", "q8_0", "q4_0". level: of the CPU, None = the best (or PYLLM_CPU). chat_template: Jinja source
    instead of the file's. backend: "cpu"; "metal", the GPU of an Apple computer, or UnsupportedModel with what it lacks; "auto", the GPU if
    it can run the model, else the CPU. adapters: LoRA adapters in GGUF files that are in force together: paths, or (path, scale).
    pack_cache: keep the packed weights on disk, so that later loads map them; twice the disk space, but a start in a fraction of the
    time; not with adapters.
    speculate: how following tokens are guessed and checked together, which changes the speed and never the text: "auto", "lookup" (guesses
    from the text itself only), "off" or a number, of as many guesses each time. draft: a smaller model with the same vocabulary that
    guesses, named as spec is.
    disk_cache: keep the KV cache of conversations on disk, so that a later process goes on with them at once; True: at most 8 GB and a
    tenth of the free disk, a number: so many bytes.
    parallel: requests that may run at once, 1 to 512; None: 16, or fewer where their recurrent states would take more than an eighth of the
    free memory; others wait, at most max_waiting of them (then: Busy). stall_s: the most seconds that
    a long prompt may keep running answers waiting for their next token; None: 0.05, or twice the time of a token if that is more.

    Every method may be called from any thread; calls share the engine's steps and get the same results as alone. Raises ModelNotFound,
    FormatError, UnsupportedModel, UnsupportedTokenizer, OutOfMemory (nothing is taken when the model does not fit). Use it as a context
    manager or call close(): all memory goes back.
    """

    def __init__(self, spec: str | os.PathLike[str] | None = None, ctx: int | None = None, threads: int | None = None, kv: str = "f16", *,
                 level: str | None = None, chat_template: str | None = None, adapters: Sequence[AdapterSpec] = (), pack_cache: bool = False,
                 disk_cache: bool | int = False,
                 draft: str | os.PathLike[str] | None = None, speculate: str | int = "auto",
                 parallel: int | None = None, max_waiting: int = 1024, stall_s: float | None = None, backend: str = "cpu",
                 progress: Callable[[int, int], None] | None = None) -> None:
        self._closing, self._closed = threading.RLock(), False      # a collection of garbage may close within a close
        if chat_template is not None and not isinstance(chat_template, str):
            raise errors.ArgumentError(f"chat_template is {reprlib.repr(chat_template)}, must be a text")
        if parallel is not None:
            parallel = _whole("parallel", parallel, MAX_ROWS)
        max_waiting = _whole("max_waiting", max_waiting, 1 << 20)
        if not isinstance(disk_cache, bool):
            disk_cache = _whole("disk_cache", disk_cache, 1 << 60)
        if stall_s is not None and not (isinstance(stall_s, Real) and not isinstance(stall_s, bool) and stall_s >= 0):
            raise errors.ArgumentError(f"stall_s is {reprlib.repr(stall_s)}, must be seconds")
        if backend not in ("cpu", METAL, "auto"):
            raise errors.ArgumentError(f"backend {reprlib.repr(backend)} does not exist\nhint: cpu, metal or auto")
        if backend == METAL and (pack_cache or level is not None):
            raise errors.ArgumentError("level and pack_cache are for the CPU\nhint: leave them out, or backend=\"cpu\"")
        if level == METAL:
            raise errors.ArgumentError("metal is no CPU level\nhint: backend=\"metal\"")
        started = time.perf_counter()
        self._mode = mode_of(speculate, draft is not None)
        self.path = _resolve(spec, progress)
        self.draft_path = None if draft is None else _resolve(draft, progress)
        self._chat_source = chat_template
        self._template: ChatTemplate | None = None
        self._adapters = _adapter_specs(adapters)
        with self._open() as gguf:
            self.threads: int = lib.pyllm_threads_default() if threads is None else _whole("threads", threads, 1024)
            self.parallel = _parallel(gguf, self.threads, kv) if parallel is None else parallel
            seqs = min(self.parallel + bool(disk_cache), MAX_ROWS)          # one holds what is being written
            self.ctx, tape, plan = _fit(gguf, ctx, self.threads, kv, seqs)
            pack = _pack_path(gguf, tape) if pack_cache and not self._adapters else None
            (self.tokenizer, self._infill), self._engine = at_once(
                lambda: _tokenizer(gguf),
                lambda cancel: _engine(backend, level, pack, gguf=gguf.handle, tape=tape, threads=self.threads, kv=kv, n_positions=self.ctx,
                                       parallel=seqs, cancel=cancel))
            self._metadata = {k: gguf.kv[k] for k in gguf.kv if k.startswith(("general.", "tokenizer.chat_template"))}
            self._n_params = sum(prod(t.shape) for name, t in gguf.tensors.items() if ".lora_" not in name)
            self._n_ctx_train = _trained_ctx(tape)
            self._pooling = gguf.kv.get(f"{gguf.kv.get('general.architecture')}.pooling_type")
        self.kv, self.plan_bytes = kv, plan
        self.backend = self._engine.backend
        self.level = METAL if self.backend == METAL else ffi.string(lib.pyllm_cpu_level()).decode() if level is None else level
        if self._engine.n_vocab > self.tokenizer.n_vocab:
            self._padding = range(self.tokenizer.n_vocab, self._engine.n_vocab)     # rows without a token can't be chosen
        else:
            self._padding = range(0)
        self._readers = Readers(self.tokenizer, self._engine.n_vocab)
        drafting: Engine | None = None
        draft_ctx = 0
        try:
            if self.draft_path is not None:
                check_state(self.path, tape)
                drafting, draft_ctx = load_draft(self.draft_path, self.path, self.ctx, self.threads, kv, self.level, self.parallel)
                drafting.follow(self._engine)
            disk = self._disk_cache(tape, disk_cache) if disk_cache else None
            self._driver = Driver(self._engine, self.parallel, max_waiting, stall_s, partial(_is_end, self.tokenizer), drafting,
                                  draft_ctx)
            self._driver.disk = disk
        except BaseException as e:
            for engine in (drafting, self._engine):
                if engine is not None:
                    engine.close()
            if isinstance(e, RuntimeError):
                raise no_thread(e) from None
            raise
        _open_models.add(self)
        self.load_s = time.perf_counter() - started

    # ---- generating ----

    def chat(self, messages: Messages, **options: Any) -> Reply:
        """The model's answer to a message or a conversation ([{"role": ..., "content": ...}, ...]). Options: pyllm.sampling.Options."""
        return self._chat(messages, options).result()

    def stream(self, messages: Messages, **options: Any) -> Stream:
        """The answer piece by piece; see Stream."""
        return Stream(self._chat(messages, options), self)

    async def achat(self, messages: Messages, **options: Any) -> Reply:
        return await self._chat(messages, options).result_async()

    def astream(self, messages: Messages, **options: Any) -> Stream:
        """As stream, for `async for`."""
        return Stream(self._chat(messages, options), self)

    def complete(self, prompt: str | Sequence[int], **options: Any) -> Reply:
        """What follows a text or token ids, without any template. Text gets BOS as the model asks. suffix: a text; what belongs between
        the prompt and it, from models that were trained for that (UnsupportedModel for others)."""
        return self._complete(prompt, options).result()

    def stream_complete(self, prompt: str | Sequence[int], **options: Any) -> Stream:
        """As complete, piece by piece."""
        return Stream(self._complete(prompt, options), self)

    async def acomplete(self, prompt: str | Sequence[int], **options: Any) -> Reply:
        return await self._complete(prompt, options).result_async()

    def generate_batch(self, prompts: Iterable[Messages | Sequence[int]], *, chat: bool = True, **options: Any) -> list[Reply]:
        """The replies to many prompts, in their order, computed together. prompts: what `chat` takes or, with chat=False, what `complete`
        takes. Raises the first error, and then gives up on the others."""
        replies = dict(self.iter_batch(prompts, chat=chat, **options))
        return [replies[i] for i in range(len(replies))]

    def iter_batch(self, prompts: Iterable[Messages | Sequence[int]], *, chat: bool = True, **options: Any) -> Iterator[tuple[int, Reply]]:
        """(index of the prompt, its reply) pairs as they come. prompts is read little by little and may be endless. Leaving the iteration
        cancels what still runs."""
        from .batch import run

        self._check()
        start: Callable[..., Generation] = self._chat if chat else self._complete
        if isinstance(prompts, str | Mapping) or not isinstance(prompts, Iterable):
            raise errors.ArgumentError(f"prompts is {reprlib.repr(prompts)}, must be a list of prompts")
        with closing(run((partial(start, p, options) for p in prompts), 2 * self.parallel)) as replies:
            for i, reply in replies:
                if isinstance(reply, errors.Error):
                    raise reply
                yield i, reply

    def session(self, messages: Sequence[Message] = ()) -> Session:
        """A conversation that keeps its KV cache between turns."""
        from .session import Session

        self._check()
        return Session(self, messages)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits of every position: float32 [len(ids), n_vocab]; row i predicts token i + 1. Raises ContextOverflow."""
        import numpy as np

        self._check_writes()
        tokens = self._ids(ids)
        out = np.empty((len(tokens), self._engine.n_vocab), np.float32)
        at = 0
        for block in self.logit_blocks(tokens):
            out[at:at + len(block)] = block
            at += len(block)
        return out

    def logit_blocks(self, ids: Sequence[int], start: int = 0) -> Iterator[NDArray[np.float32]]:
        """The rows of `logits` from position `start` on, in blocks [at most 64, n_vocab]: all at once would be gigabytes for long texts."""
        self._check_writes()
        tokens = self._ids(ids)
        seq = self._driver.call(self._driver.open_seq, undo=self._engine.close_seq)
        try:
            for at in range(0, start, MAX_ROWS):
                self._driver.call(partial(self._step_alone, seq, tokens[at:min(at + MAX_ROWS, start)], 0))
            for at in range(start, len(tokens), MAX_LOGITS):
                part = tokens[at:at + MAX_LOGITS]
                yield self._driver.call(partial(self._step_alone, seq, part, len(part)))
        finally:
            with suppress(errors.Closed, errors.ForkedProcess):     # not waited for: a generator may be collected anywhere
                self._driver.post(lambda: self._engine.close_seq(seq))

    def embed(self, texts: str | Sequence[str | Sequence[int]], *, pooling: str | None = None, normalize: bool = True,
              dimensions: int | None = None, truncate: bool = False) -> NDArray[np.float32]:
        """Vectors of texts, or of token ids: float32 [number of texts, width], of length 1 unless normalize=False; of one str: [width].

        Any model can: encoders (BERT and its kin) are made for it; of others it is what the last norm gives. pooling: "mean" of a text's
        tokens, its first ("cls") or "last" one; None: as the file says, else the mean. dimensions: only so many of the first values, for
        models that were trained for that. truncate: a text that is too long is cut; else it raises ContextOverflow."""
        return self._embedder.embed(texts, pooling, normalize, dimensions, truncate)

    def token_embeddings(self, text: str | Sequence[int]) -> NDArray[np.float32]:
        """The vectors that `embed` pools, one for each token: float32 [tokens, width]."""
        return self._embedder.rows(text)

    def embed_ids(self, texts: Sequence[str | Sequence[int]], truncate: bool = False) -> list[list[int]]:
        """Token ids as `embed` has them. Raises ArgumentError, ContextOverflow."""
        return self._embedder.ids(texts, truncate)

    @property
    def encodes(self) -> bool:
        """Whether this model only embeds texts."""
        return self._embedder.encodes

    @property
    def n_embd(self) -> int:
        """Values of a vector of `embed`."""
        return self._embedder.width

    def on_engine(self, fn: Callable[[Engine], T]) -> T:
        """fn(engine) on the engine's thread, between two of its steps: for tools that measure a model, such as pyllm.quantize. It finds no
        cached prefixes, and none outlive it: it may change weights."""
        def alone() -> T:
            self._driver.clear()
            self._driver.leave_disk()
            try:
                return fn(self._engine)
            finally:
                self._driver.clear()

        self._check()
        return self._driver.call(alone)

    def serve(self, port: int = 8080, host: str = "127.0.0.1", *, api_keys: Iterable[str] = (), hosts: Iterable[str] = (),
              name: str | None = None, **limits: float) -> Background:
        """A server with OpenAI's, Anthropic's and Ollama's APIs on a thread of its own (extra `server`); `url` of what is returned says
        where, close() or the end of its `with` ends it. port: 0 takes any that is free. hosts: further names under which it may be asked.
        name: of the model, instead of its file's. limits: see docs/server.md. Raises ArgumentError, FileError, Unsupported."""
        from .server import serve

        self._check()
        return serve(self, host, port, api_keys, hosts, name, limits)

    # ---- text and tokens ----

    def tokenize(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        return self.tokenizer.encode(text, add_special, parse_special)

    def detokenize(self, ids: Iterable[int], special: bool = False) -> str:
        return self.tokenizer.decode(ids, special)

    @property
    def template(self) -> ChatTemplate:
        """The chat template. Raises UnsupportedTemplate if the model has none or it is outside of the template language."""
        if self._template is None:
            from .chat import ChatTemplate

            source = self.template_source or CHATML
            names = [self.tokenizer.token_text(t) if t is not None else "" for t in (self.tokenizer.bos, self.tokenizer.eos)]
            if source is CHATML and len(self.tokenizer.encode("<|im_start|>", add_special=False)) != 1:
                raise errors.UnsupportedTemplate(f"{self.path} has no chat template\nhint: use complete(), or give --chat-template FILE")
            self._template = ChatTemplate(source, names[0], names[1])
        return self._template

    @property
    def template_source(self) -> str:
        """The chat template as it is written, or an empty text."""
        source = self._chat_source or _valid_text(self._metadata.get("tokenizer.chat_template"))
        return RWKV_WORLD if source == "rwkv-world" else source

    @property
    def can_infill(self) -> bool:
        """Whether `complete` takes a suffix."""
        return self._infill is not None

    def prompt_ids(self, messages: Messages, tools: Any = None, tool_choice: Any = None, **template_options: Any) -> list[int]:
        """Token ids of a conversation, ready for the answer."""
        text, _ = ask(self.template, messages, {"tools": tools, "tool_choice": tool_choice, "template_options": template_options})
        return self.tokenizer.encode(text, add_special=False)

    # ---- about the model ----

    @staticmethod
    def plan(spec: str | os.PathLike[str] | None = None, ctx: int | None = None, kv: str = "f16", threads: int | None = None,
             parallel: int | None = None) -> Plan:
        """The memory that loading would take, without taking it."""
        with GGUF(_resolve(spec, None)) as gguf:
            count = lib.pyllm_threads_default() if threads is None else _whole("threads", threads, 1024)
            places = _parallel(gguf, count, kv) if parallel is None else _whole("parallel", parallel, MAX_ROWS)
            return _fit(gguf, ctx, count, kv, places, refuse=False)[2]

    @property
    def info(self) -> dict[str, Any]:
        """arch, name, n_params, n_ctx_train, ctx, n_vocab, backend, level, threads, kv, path, file_bytes, weight_bytes, kv_bytes,
        pack_cache, draft, load_s.

        pack_cache: "mapped", "stored" or, if neither could be done, "failed"; None without pack_cache=True."""
        meta = self._metadata
        return {"arch": meta.get("general.architecture"), "name": _valid_text(meta.get("general.name")) or None, "n_params": self._n_params,
                "n_ctx_train": self._n_ctx_train, "ctx": self.ctx, "n_vocab": self._engine.n_vocab, "backend": self.backend,
                "level": self.level, "threads": self.threads, "kv": self.kv, "path": str(self.path),
                "file_bytes": os.path.getsize(self.path) if os.path.exists(self.path) else None,
                "weight_bytes": self._engine.weight_bytes, "kv_bytes": self.plan_bytes.kv,
                "pack_cache": self._engine.pack_state, "draft": self.draft_path, "load_s": self.load_s}

    @property
    def load(self) -> tuple[int, int, float]:
        """(requests that run, requests that wait, seconds since the engine last finished a step; 0 while it has nothing to do)."""
        return self._driver.load

    def kernels(self) -> list[str]:
        """"slot=symbol" of the kernels that this model's steps call."""
        self._check()
        return self._engine.kernels()

    def bench(self, test: str, depth: int = 0, reps: int = 5) -> list[float]:
        """Tokens a second of `reps` runs: "pp512" a prompt of 512 tokens, "tg128" 128 tokens one by one, "tg32x8" 32 in each of 8 sequences
        at once; depth: tokens before them."""
        return self._bench(test, depth, reps, lambda run: run())

    def profile(self, test: str, depth: int = 0, reps: int = 5) -> list[tuple[Cost, float]]:
        """What every step of the tape did in one run of a test of `bench`, as (its work, seconds): the median of `reps` runs. One
        sequence only."""
        import numpy as np

        kind, n, count = _test(test)
        if count > 1:
            raise errors.ArgumentError(f"test {test!r} cannot be profiled\nhint: pp512, tg128 and so on")

        def measured(run: Callable[[], float]) -> NDArray[np.float64]:
            with self._engine.profile() as seconds:
                run()
            return seconds

        seconds = np.median(self._bench(test, depth, reps, measured), axis=0)
        with self._open() as gguf:
            work = run_costs(gguf, self._engine.tape, n, MAX_ROWS if kind == "pp" else 1, depth, self.kv)
        return list(zip(work, seconds.tolist(), strict=True))

    def _bench(self, test: str, depth: int, reps: int, around: Callable[[Callable[[], float]], T]) -> list[T]:
        """around(run) for every repetition, on the engine's thread; run() returns the speed."""
        self._check()
        kind, n, count = _test(test)
        depth, reps = _whole("depth", depth, 1 << 24, 0), _whole("reps", reps, 1 << 20)
        if (depth + n) * count > self.ctx:
            raise errors.ContextOverflow((depth + n) * count, self.ctx)
        return self._driver.call(lambda: [self._bench_once(kind, n, count, depth, around) for _ in range(reps)])

    def close(self) -> None:
        """Ends running requests with Closed and returns all memory and threads. Safe to call twice."""
        if self._driver.forked:
            return
        with self._closing:
            if self._closed:
                return
            self._closed = True
        try:
            self._driver.save()
        finally:
            self._driver.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_driver", None) is not None:
            self.close()

    def __repr__(self) -> str:
        return f"<LLM {self._metadata.get('general.name') or os.path.basename(self.path)} ctx={self.ctx} {self.level} x{self.threads}>"

    # ---- inside ----

    def _open(self) -> GGUF:
        """The file with its adapters."""
        gguf = GGUF(self.path)
        try:
            for path, scale in self._adapters:
                attach(gguf, path, scale)
        except BaseException:
            gguf.close()
            raise
        return gguf

    def _disk_cache(self, tape: str, limit: int) -> DiskCache:
        from .disk_cache import DiskCache, key_of

        files: list[str | Path] = [*part_paths(Path(self.path)), *(path for path, _ in self._adapters)]
        scales = "".join(f"\0{scale!r}" for _, scale in self._adapters)
        key = key_of(files, tape + scales, f"{self.kv} {self.backend}")
        return DiskCache(self._engine, self.path, key, None if limit is True else limit)

    def _check(self) -> None:
        if self._driver.forked:
            raise errors.ForkedProcess
        if self._closed:
            raise errors.Closed("the model is closed")

    @cached_property
    def _embedder(self) -> Embedder:
        from .embedding import Embedder

        self._check()
        return Embedder(self, self._engine, self._driver, self._pooling)

    def _check_writes(self) -> None:
        """As _check, and the model gives logits."""
        self._check()
        if self.encodes:
            raise errors.UnsupportedModel(f"{os.path.basename(self.path)} embeds texts, it does not write any\nhint: use embed()")

    def _chat(self, messages: Messages, options: Mapping[str, Any], on_end: Callable[[], None] | None = None) -> Generation:
        self._check_writes()
        text, asked = ask(self.template, messages, options)
        return self._submit(self._encode(text, add_special=False), asked, on_end=on_end)

    def _complete(self, prompt: str | Sequence[int], options: Mapping[str, Any], on_end: Callable[[], None] | None = None) -> Generation:
        self._check_writes()
        suffix = options.get("suffix")
        if suffix is not None:
            ids = self._infill_ids(prompt, suffix)
        else:
            ids = self._encode(prompt) if isinstance(prompt, str) else self._ids(prompt)
        return self._submit(ids, Asked(Options.make(_without(options, "suffix"))), on_end=on_end)

    def _infill_ids(self, before: Any, after: Any) -> list[int]:
        if not isinstance(before, str) or not isinstance(after, str):
            raise errors.ArgumentError("with suffix, the prompt and the suffix are texts")
        if self._infill is None:
            raise errors.UnsupportedModel(f"{os.path.basename(self.path)} has no fill-in-the-middle tokens\n"
                                          "hint: leave suffix out, or use a code model that was trained for it")
        for text in (before, after):
            self.refuse_long(text)
        return self._infill.prompt(self.tokenizer, before, after)

    def _encode(self, text: str, add_special: bool = True) -> list[int]:
        self.refuse_long(text)
        return self.tokenizer.encode(text, add_special)

    def refuse_long(self, text: str) -> None:
        """Raises ContextOverflow for a text far beyond the context before all of it is tokenized. Cut texts have a few tokens more than
        the whole; a quarter is far from that."""
        if len(text) <= LONG_TEXT:
            return
        n = 0
        for at in range(0, len(text), LONG_TEXT):
            n += len(self.tokenizer.encode(text[at:at + LONG_TEXT], add_special=False))
            if n > self.ctx + self.ctx // 4 + LONG_TEXT // 256:
                raise errors.ContextOverflow(max(n, n * len(text) // (at + LONG_TEXT)), self.ctx)

    def _submit(self, ids: list[int], asked: Asked, on_end: Callable[[], None] | None = None) -> Generation:
        """Starts a request."""
        self._check_writes()
        options = asked.options
        if not ids:
            raise errors.ArgumentError("the prompt is empty\nhint: give at least one token")
        if len(ids) > self.ctx:
            raise errors.ContextOverflow(len(ids), self.ctx)
        if self._padding:
            bias = dict.fromkeys(self._padding, float("-inf")) | dict(options.logit_bias or {})
            options = Options(**{**options.__dict__, "logit_bias": bias})
        mode = self._mode if options.speculate is None else mode_of(options.speculate, self.draft_path is not None)
        if any(self._engine.recurrent):     # a token that was guessed wrong could not be taken back
            mode = Mode()
        sampler = Sampler(options, self.tokenizer, self._engine.n_vocab)
        reading = self._readers.reading(ids, asked)
        g = Generation(ids, options, self.tokenizer, sampler, self.ctx, self._driver.cancel, reading=reading, mode=mode,
                       on_end=on_end)
        if len(ids) == self.ctx:
            g.finish_full()
        else:
            self._driver.submit(g)
        return g

    def _ids(self, ids: Sequence[int]) -> list[int]:
        tokens = self.valid_ids(ids)
        if len(tokens) > self.ctx:
            raise errors.ContextOverflow(len(tokens), self.ctx)
        return tokens

    def valid_ids(self, ids: Sequence[int]) -> list[int]:
        """Token ids as a list, however many. Raises ArgumentError."""
        try:
            if isinstance(ids, (str, bytes, bytearray)):
                raise TypeError
            tokens = [index(i) for i in ids]
        except TypeError:
            raise errors.ArgumentError(f"a prompt is a text or a list of token ids, not {reprlib.repr(ids)}") from None
        bad = next((t for t in tokens if not 0 <= t < self._engine.n_vocab), None)
        if bad is not None:
            raise errors.ArgumentError(f"token id {bad} is not in the vocabulary of {self._engine.n_vocab}")
        return tokens

    def _step_alone(self, seq: int, tokens: list[int], want: int) -> NDArray[np.float32]:
        """A step beside the scheduler's, and the logits of its last `want` tokens; when pages run out, others give theirs."""
        self._engine.cancel(False)
        self._driver.make_room(len(tokens))
        n = self._engine.step([(seq, tokens, want)])
        logits: NDArray[np.float32] = self._engine.logits[:n].copy()
        return logits

    def _bench_once(self, kind: str, n: int, count: int, depth: int, around: Callable[[Callable[[], float]], T]) -> T:
        """n tokens in each of `count` sequences that hold `depth` tokens."""
        engine, seqs = self._engine, list[int]()
        engine.cancel(False)
        self._driver.clear()
        tokens = [1 + i * 7919 % (engine.n_vocab - 2) for i in range(depth + n)]
        size = MAX_ROWS // count if kind == "pp" else 1

        def run() -> float:
            start = time.perf_counter()
            for at in range(depth, depth + n, size):
                want = int(kind == "tg" or at + size >= depth + n)
                engine.step([(seq, tokens[at:min(at + size, depth + n)], want) for seq in seqs])
            return n * count / (time.perf_counter() - start)

        try:
            for _ in range(count):
                seqs.append(self._driver.open_seq())
                for at in range(0, depth, MAX_ROWS):
                    engine.step([(seqs[-1], tokens[at:min(at + MAX_ROWS, depth)], 0)])
            return around(run)
        finally:
            for seq in seqs:
                engine.close_seq(seq)


_open_models: weakref.WeakSet[LLM] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before the interpreter goes: an engine's thread must not outlive it."""
    for llm in list(_open_models):
        llm.close()


def _tokenizer(gguf: GGUF) -> tuple[Tokenizer, InfillMarks | None]:
    tokenizer = Tokenizer(gguf)
    return tokenizer, find_marks(gguf.kv, tokenizer)


def _is_end(tokenizer: Tokenizer, token: int) -> bool:
    return token < tokenizer.n_vocab and tokenizer.is_end(token)


def _engine(backend: str, level: str | None, pack: Path | None, **options: Any) -> Engine:
    if backend != "cpu":
        try:
            return Engine(level=METAL, **options)
        except (errors.UnsupportedModel, errors.OutOfMemory) as e:
            if backend == METAL:
                raise
            logging.getLogger("pyllm").info("runs on the CPU: %s", e.message)
    return Engine(level=level, pack=pack, **options)


def _pack_path(gguf: GGUF, tape: str) -> Path:
    from .pack_cache import entry_path

    return entry_path(gguf, tape)


def _resolve(spec: str | os.PathLike[str] | None, progress: Callable[[int, int], None] | None) -> str:
    path = None if spec is None else file_path(spec)
    if path is not None and (os.path.isfile(path) or (os.path.dirname(path) and os.path.exists(path))):
        return path                         # what is no file says so when it is opened
    from .catalogue import resolve

    return os.fspath(resolve(path, progress=progress))


def _adapter_specs(adapters: Any) -> list[tuple[str, float]]:
    """(path, scale) of every adapter."""
    if isinstance(adapters, Sequence) and not isinstance(adapters, str):
        pairs = [(a, 1.0) if isinstance(a, str | os.PathLike) else a for a in adapters]
        if all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
            return [(file_path(path), scale) for path, scale in pairs]
    raise errors.ArgumentError(f"adapters is {reprlib.repr(adapters)}, must be a list of paths or of (path, scale)")


def _without(options: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in options.items() if k != name}


def _test(test: Any) -> tuple[str, int, int]:
    """(kind, tokens, sequences) of a test of `bench`."""
    found = re.fullmatch(r"(pp|tg)([1-9]\d{0,7})(?:x([1-9]|1[0-6]))?", test, re.ASCII) if isinstance(test, str) else None
    if not found:
        raise errors.ArgumentError(f"test {reprlib.repr(test)} does not exist\nhint: pp512, tg128, tg32x8 and so on")
    return found[1], int(found[2]), int(found[3] or 1)


def _whole(name: str, value: Any, most: int, least: int = 1) -> int:
    """An integer argument from least to most."""
    if isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most:
        return int(value)
    raise errors.ArgumentError(f"{name} is {reprlib.repr(value)}, must be a whole number from {least} to {most}")


def _valid_text(value: Any) -> str:
    """A text of the metadata with U+FFFD for bytes that are not UTF-8; empty for other values."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if isinstance(value, str) else ""


def _trained_ctx(tape: str) -> int:
    return next(int(line.split()[2]) for line in tape.splitlines() if line.startswith("hparam n_ctx_train "))


def _parallel(gguf: GGUF, threads: int, kv: str) -> int:
    """Sequences, where nobody asks for a number: fewer than usual if their recurrent states took more than an eighth of the free memory."""
    tape, n = build(gguf)[0], PARALLEL
    while n > 1 and " state=" in tape and plan_bytes(gguf, tape, threads, kv, 16, n)[1] > memory.available() // 8:
        n //= 2
    return n


def _fit(gguf: GGUF, ctx: int | None, threads: int, kv: str, parallel: int, refuse: bool = True) -> tuple[int, str, Plan]:
    """(context, tape, plan): chooses ctx where it is None, refuses what does not fit in the available memory."""
    if ctx is not None:
        ctx = _whole("ctx", ctx, 1 << 24)
    tape, _ = build(gguf, ctx)
    trained, free = _trained_ctx(tape), memory.available()
    grows = "\nattn " in tape           # else there are states alone, of one size for any number of tokens
    if not grows:
        trained = max(trained, UNLIMITED)
    chosen = ctx or trained
    weights, cache, act = plan_bytes(gguf, tape, threads, kv, chosen, parallel)
    if ctx is None and grows and cache > max(free - weights - act, 0) // 2:
        per_token = cache / chosen
        chosen = max(min(512, trained), min(trained, int((free - weights - act) / 2 / per_token) // 256 * 256))
        tape, _ = build(gguf, chosen)
        weights, cache, act = plan_bytes(gguf, tape, threads, kv, chosen, parallel)
    plan = Plan(weights, cache, act, chosen)
    if refuse and plan.total > free:
        mb = 1 << 20
        raise errors.OutOfMemory(
            f"{gguf.path} needs {plan.total // mb} MB ({weights // mb} weights, {cache // mb} KV cache of {chosen} tokens, "
            f"{act // mb} work space), {free // mb} MB are available\nhint: a smaller ctx, kv='q8_0' or a smaller quantization needs less")
    return chosen, tape, plan
