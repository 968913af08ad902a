"""OpenAI's /v1/completions: texts without a template, with echo, logprobs of prompts, and fill-in-the-middle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from ..llm import LLM
from ..replies import Logprob, Reply, Stream
from ..tokenizer import Tokenizer
from .asking import MAX_TOKENS, form_of, sampling, stops
from .failures import Refusal, answer
from .limits import Fields, Limits, kind_of
from .openai import DONE, failure, finish_reason, head_of, stream_options, timings_of, usage_of
from .streams import PING, SSE, Streamed, event
from .work import Job, Work, client_of, watched

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Prompt = str | list[int]
DEFAULT_TOKENS = 16     # OpenAI's


@dataclass(frozen=True)
class Ask:
    """prompts x n generations, in this order. top: alternatives per token, None: no logprobs."""

    prompts: list[Prompt]
    n: int
    options: dict[str, Any]
    echo: bool
    top: int | None
    suffix: str | None


async def completions(work: Work, request: Request) -> Response:
    fields = Fields(await work.bodies.read(request))
    served = work.models.find(fields.text("model"))
    ask = _ask_of(fields, work.limits, client_of(request))
    streaming, with_usage = stream_options(fields)
    if streaming and ask.echo and ask.top is not None:
        raise Refusal(400, "echo with logprobs cannot be streamed", param="stream", code="unsupported")
    head = head_of("cmpl-", "text_completion", served)
    if ask.options["max_tokens"] == 0:
        if not ask.echo or streaming:
            raise Refusal(400, "max_tokens 0 needs echo, without stream", param="max_tokens", code="invalid_value")
        with watched(request):
            return answer(await _echo_alone(work, served.name, head, ask))
    starts = [partial(_start, prompt, ask.suffix, {**ask.options, "choice": i}) for prompt in ask.prompts for i in range(ask.n)]
    if streaming:
        job = await work.start(served, starts)
        return Streamed(job, _frames(job, head, ask, with_usage), SSE, failure)
    with watched(request):
        job = await work.start(served, starts)
        try:
            replies = await job.replies()
            before = [await _prompt_part(job.llm, prompt, ask) for prompt in ask.prompts]
            choices = [_choice(i, reply, before[i // ask.n], ask, job.llm.tokenizer) for i, reply in enumerate(replies)]
            return answer({**head, "choices": choices, "usage": usage_of(replies, len(ask.prompts)), "timings": timings_of(replies[0])})
        finally:
            await job.close()


def _start(prompt: Prompt, suffix: str | None, options: dict[str, Any], llm: LLM) -> Stream:
    return llm.stream_complete(prompt, suffix=suffix, **options)


# ---- what is asked ----

def _ask_of(fields: Fields, limits: Limits, client: str) -> Ask:
    prompts = _prompts(fields, limits)
    n = fields.whole("n", 1, limits.n) or 1
    if fields.whole("best_of", 1, limits.n) not in (None, n):
        raise Refusal(400, "best_of must be as n", param="best_of", code="unsupported")
    top = fields.whole("logprobs", 0, limits.logprobs)
    options = sampling(fields, limits) | {"stop": stops(fields, "stop", limits), "client": client, **form_of(fields)}
    if top is not None:
        options["logprobs"] = top
    most = fields.whole("max_tokens", 0, MAX_TOKENS)
    options["max_tokens"] = DEFAULT_TOKENS if most is None else most
    suffix = fields.text("suffix")
    echo = fields.flag("echo")
    if suffix and (echo or not all(isinstance(p, str) for p in prompts)):
        raise Refusal(400, "suffix goes with prompts that are texts, without echo", param="suffix", code="unsupported")
    return Ask(prompts, n, options, echo, top, suffix or None)


def _prompts(fields: Fields, limits: Limits) -> list[Prompt]:
    """A text, a list of token ids, or a list of either."""
    value = fields.values.get("prompt")
    if isinstance(value, str):
        return [value]
    given = fields.items("prompt", limits.values)
    if given and all(isinstance(item, int) and not isinstance(item, bool) for item in given):
        return [given]
    if len(given) > limits.queue:
        raise Refusal(400, f"prompt has {len(given)} texts, at most {limits.queue} are taken", param="prompt", code="too_many")
    for i, item in enumerate(given):
        ids = isinstance(item, list) and all(isinstance(t, int) and not isinstance(t, bool) for t in item)
        if not ids and not isinstance(item, str):
            raise Refusal(400, f"prompt[{i}] is {kind_of(item)}, must be a text or a list of token ids", param=f"prompt[{i}]",
                          code="invalid_type")
    if not given:
        raise Refusal(400, "prompt must be a text, a list of token ids, or a list of those", param="prompt", code="invalid_value")
    return given


# ---- what is answered ----

@dataclass(frozen=True)
class Part:
    """Text before a reply, and its tokens if asked for; the first token of a text has no logprob."""

    text: str = ""
    tokens: tuple[tuple[int, Logprob | None], ...] = ()


async def _prompt_part(llm: LLM, prompt: Prompt, ask: Ask) -> Part:
    if not ask.echo:
        return Part()
    if ask.top is None:
        return Part(prompt if isinstance(prompt, str) else llm.detokenize(prompt))
    ids = await run_in_threadpool(llm.tokenize, prompt) if isinstance(prompt, str) else prompt
    scored = await _in_pieces(partial(_scores, llm, ids, ask.top))
    return Part(llm.detokenize(ids), tuple(zip(ids, [None, *scored], strict=True)))


async def _in_pieces(make: Callable[[], Iterator[list[Logprob]]]) -> list[Logprob]:
    """All of an iterator's lists, each computed on a thread: whoever is cancelled stops after one."""
    pieces, out = make(), list[Logprob]()
    try:
        while (piece := await run_in_threadpool(next, pieces, None)) is not None:
            out += piece
        return out
    finally:
        await asyncio.shield(run_in_threadpool(pieces.close))       # type: ignore[attr-defined]


def _scores(llm: LLM, ids: Sequence[int], top: int) -> Iterator[list[Logprob]]:
    """Logprobs of ids[1:], each given those before it."""
    at = 0
    for logits in llm.logit_blocks(ids[:-1]):
        yield _score(logits, ids[at + 1:at + 1 + len(logits)], top)
        at += len(logits)


def _score(logits: NDArray[np.float32], chosen: Sequence[int], top: int) -> list[Logprob]:
    """logits: float32 [len(chosen), n_vocab]; row i predicts chosen[i]."""
    import numpy as np

    out = []
    for row, token in zip(logits.astype(np.float64), chosen, strict=True):
        row -= row.max()
        row -= np.log(np.exp(row).sum())
        best: Iterable[Any] = np.argpartition(-row, top)[:top] if top else ()
        ranked = sorted(((int(i), float(row[i])) for i in best), key=lambda pair: (-pair[1], pair[0]))
        out.append(Logprob(token, float(row[token]), tuple(ranked)))
    return out


async def _echo_alone(work: Work, model: str, head: dict[str, Any], ask: Ask) -> dict[str, Any]:
    """Prompts with their logprobs and nothing behind them: what evaluations ask for."""
    work.admission.enter(1)
    try:
        async with work.models.lease(work.models.find(model)) as llm:
            parts = [await _prompt_part(llm, prompt, ask) for prompt in ask.prompts]
            count = sum(len(p.tokens) or len(llm.tokenize(p.text)) for p in parts)
            choices = [{"index": i, "text": part.text, "finish_reason": "length",
                        "logprobs": None if ask.top is None else _legacy(part.tokens, llm.tokenizer)}
                       for i, part in enumerate(p for p in parts for _ in range(ask.n))]
            return {**head, "choices": choices, "usage": {"prompt_tokens": count, "completion_tokens": 0, "total_tokens": count}}
    finally:
        work.admission.leave()


def _choice(i: int, reply: Reply, before: Part, ask: Ask, tokenizer: Tokenizer) -> dict[str, Any]:
    tokens = (*before.tokens, *((p.id, p) for p in reply.logprobs if not tokenizer.is_end(p.id)))
    return {"index": i, "text": before.text + reply.text, "finish_reason": finish_reason(reply),
            "logprobs": None if ask.top is None else _legacy(tokens, tokenizer)}


def _legacy(tokens: Iterable[tuple[int, Logprob | None]], tokenizer: Tokenizer, offset: int = 0) -> dict[str, Any]:
    """The parallel lists of completions. offset: characters of the text before the first token."""
    out: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    for token, logprob in tokens:
        out["tokens"].append(_text(tokenizer, token))
        out["token_logprobs"].append(None if logprob is None else max(logprob.logprob, -9999.0))
        top: dict[str, float] = {}
        for other, value in logprob.top if logprob else ():
            top.setdefault(_text(tokenizer, other), max(value, -9999.0))        # the likelier of two with one text
        out["top_logprobs"].append(None if logprob is None else top)
        out["text_offset"].append(offset)
        offset += len(tokenizer.token_bytes(token).decode("utf-8", "replace"))
    return out


def _text(tokenizer: Tokenizer, token: int) -> str:
    """Bytes that are no text by themselves as OpenAI writes them."""
    data = tokenizer.token_bytes(token, special=True)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{b:02x}" for b in data)


async def _frames(job: Job, head: dict[str, Any], ask: Ask, with_usage: bool) -> AsyncIterator[bytes]:
    def frame(i: int, text: str, reason: str | None = None, logprobs: Any = None, **more: Any) -> bytes:
        choice = {"index": i, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return event({**head, "choices": [choice], **({"usage": None} if with_usage else {}), **more})

    replies: dict[int, Reply] = {}
    offsets = [0] * job.n
    if ask.echo:
        for i in range(job.n):
            part = await _prompt_part(job.llm, ask.prompts[i // ask.n], ask)
            offsets[i] = len(part.text)
            yield frame(i, part.text)
    async for got in job.events(ping=True):
        if got is None:
            yield PING
            continue
        i, what = got
        if isinstance(what, Reply):
            replies[i] = what
            yield frame(i, "", finish_reason(what), timings=timings_of(what))
            continue
        tokens = [(p.id, p) for p in what.logprobs if not job.llm.tokenizer.is_end(p.id)]
        if what.text or tokens:
            yield frame(i, what.text, logprobs=_legacy(tokens, job.llm.tokenizer, offsets[i]) if tokens else None)
            offsets[i] += len(what.text)
    if with_usage:
        yield event({**head, "choices": [], "usage": usage_of([replies[i] for i in range(job.n)], len(ask.prompts))})
    yield DONE


ROUTES = {"/v1/completions": {"POST": completions}}
