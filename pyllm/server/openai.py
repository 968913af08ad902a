"""OpenAI's API: chat completions and models. Completions are in completions.py, responses in responses.py."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..llm import LLM
from ..replies import Chunk, Logprob, Reply, Stream, ToolDelta
from ..tokenizer import Tokenizer
from .asking import MAX_TOKENS, calls_of, form_of, role_of, sampling, stops, template_options, text_of, tools_of
from .failures import Refusal, answer, error_object
from .limits import Fields, Limits
from .models import Served
from .streams import PING, SSE, Streamed, event
from .work import Job, Work, client_of, watched

DONE = b"data: [DONE]\n\n"


async def chat(work: Work, request: Request) -> Response:
    fields = Fields(await work.bodies.read(request))
    served = work.models.find(fields.text("model"))
    messages = messages_of(fields, work.limits)
    options = {**chat_options(fields, work.limits), "client": client_of(request)}
    n = fields.whole("n", 1, work.limits.n) or 1
    streaming, with_usage = stream_options(fields)
    starts = [partial(_start, messages, {**options, "choice": i}) for i in range(n)]
    head = head_of("chatcmpl-", "chat.completion", served)
    if streaming:
        job = await work.start(served, starts)
        return Streamed(job, _chat_frames(job, head, with_usage), SSE, failure)
    with watched(request):
        job = await work.start(served, starts)
        try:
            replies = await job.replies()
            return answer(_completion(job, head, replies))
        finally:
            await job.close()


def _start(messages: list[dict[str, Any]], options: dict[str, Any], llm: LLM) -> Stream:
    return llm.astream(messages, **options)


def failure(refusal: Refusal) -> bytes:
    return event(error_object("/v1", refusal))


# ---- what is asked ----

def messages_of(fields: Fields, limits: Limits) -> list[dict[str, Any]]:
    """The conversation in the words of chat templates."""
    messages = []
    for given in fields.objects("messages", limits.messages):
        message: dict[str, Any] = {"role": role_of(given), "content": text_of(given, "content") or ""}
        for key in ("name", "tool_call_id", "reasoning_content"):
            if given.has(key):
                message[key] = given.text(key)
        if calls := calls_of(given, limits):
            message["tool_calls"] = calls
        messages.append(message)
    if not messages:
        raise Refusal(400, "messages must be a list of at least one message", param="messages", code="invalid_value")
    return messages


def chat_options(fields: Fields, limits: Limits) -> dict[str, Any]:
    options = {**sampling(fields, limits), "stop": stops(fields, "stop", limits), **form_of(fields), **tools_of(fields, limits)}
    most = fields.whole("max_completion_tokens", 1, MAX_TOKENS) or fields.whole("max_tokens", 1, MAX_TOKENS)
    if most:
        options["max_tokens"] = most
    top = fields.whole("top_logprobs", 0, limits.logprobs)
    if fields.flag("logprobs"):
        options["logprobs"] = top or 0
    elif top is not None:
        raise Refusal(400, "top_logprobs needs logprobs to be true", param="top_logprobs", code="invalid_value")
    if extra := template_options(fields):
        options["template_options"] = extra
    return options


def stream_options(fields: Fields) -> tuple[bool, bool]:
    """(whether to stream, whether with usage)."""
    return fields.flag("stream"), fields.inner("stream_options").flag("include_usage")


# ---- what is answered ----

def head_of(prefix: str, kind: str, served: Served) -> dict[str, Any]:
    return {"id": prefix + secrets.token_hex(12), "object": kind, "created": int(time.time()), "model": served.name}


def finish_reason(reply: Reply) -> str:
    """A generation whose time was over counts as one that became too long."""
    if reply.finish_reason != "stop":
        return "length"
    return "tool_calls" if reply.tool_calls else "stop"


def usage_of(replies: Sequence[Reply], n_prompts: int = 1) -> dict[str, Any]:
    """A prompt counts once, however many choices it has; replies: those of each prompt in a row."""
    each = max(len(replies) // n_prompts, 1)
    prompts = replies[::each]
    prompt = sum(r.usage.prompt_tokens for r in prompts)
    written = sum(r.usage.completion_tokens for r in replies)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written,
            "prompt_tokens_details": {"cached_tokens": sum(r.usage.cached_tokens for r in prompts)}}


def timings_of(reply: Reply) -> dict[str, Any]:
    """Beyond OpenAI's fields, with the names of llama.cpp's server: milliseconds and tokens a second."""
    t, usage = reply.timings, reply.usage
    drafts = {"draft_n": usage.drafted_tokens, "draft_n_accepted": usage.accepted_tokens} if usage.drafted_tokens else {}
    return {"queue_ms": round(t.queue_s * 1e3, 3), "prompt_n": usage.prompt_tokens - usage.cached_tokens,
            "prompt_ms": round(t.prompt_s * 1e3, 3), "prompt_per_second": round(t.prompt_per_s, 3), "predicted_n": usage.completion_tokens,
            "predicted_ms": round(t.predicted_s * 1e3, 3), "predicted_per_second": round(t.predicted_per_s, 3), **drafts}


def token_logprobs(tokenizer: Tokenizer, logprobs: Iterable[Logprob]) -> list[dict[str, Any]]:
    """OpenAI's form; tokens that end a reply are not part of its text."""
    def entry(token: int, value: float) -> dict[str, Any]:
        data = tokenizer.token_bytes(token, special=True)
        return {"token": data.decode("utf-8", "replace"), "logprob": max(value, -9999.0), "bytes": list(data)}

    return [{**entry(p.id, p.logprob), "top_logprobs": [entry(*pair) for pair in p.top]} for p in logprobs if not tokenizer.is_end(p.id)]


def _completion(job: Job, head: dict[str, Any], replies: list[Reply]) -> dict[str, Any]:
    choices = []
    for i, reply in enumerate(replies):
        message: dict[str, Any] = {"role": "assistant", "content": reply.text}
        if reply.reasoning:
            message["reasoning_content"] = reply.reasoning
        if reply.tool_calls:
            message |= {"content": reply.text or None, "tool_calls": [call.to_openai() for call in reply.tool_calls]}
        logprobs = {"content": token_logprobs(job.llm.tokenizer, reply.logprobs)} if reply.logprobs else None
        choices.append({"index": i, "message": message, "logprobs": logprobs, "finish_reason": finish_reason(reply)})
    return {**head, "choices": choices, "usage": usage_of(replies), "timings": timings_of(replies[0])}


async def _chat_frames(job: Job, head: dict[str, Any], with_usage: bool) -> AsyncIterator[bytes]:
    head = {**head, "object": "chat.completion.chunk"}

    def frame(i: int, delta: dict[str, Any], reason: str | None = None, logprobs: Any = None, **more: Any) -> bytes:
        choice = {"index": i, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return event({**head, "choices": [choice], **({"usage": None} if with_usage else {}), **more})

    replies: dict[int, Reply] = {}
    for i in range(job.n):
        yield frame(i, {"role": "assistant", "content": ""})
    async for got in job.events(ping=True):
        if got is None:
            yield PING
            continue
        i, what = got
        if isinstance(what, Reply):
            replies[i] = what
            yield frame(i, {}, finish_reason(what), timings=timings_of(what))
            continue
        tokens = token_logprobs(job.llm.tokenizer, what.logprobs)
        if tokens or what.text or what.reasoning or what.tool_calls:
            yield frame(i, delta_of(what), logprobs={"content": tokens} if tokens else None)
    if with_usage:
        yield event({**head, "choices": [], "usage": usage_of([replies[i] for i in range(job.n)])})
    yield DONE


def delta_of(chunk: Chunk) -> dict[str, Any]:
    delta: dict[str, Any] = {"content": chunk.text} if chunk.text or not (chunk.reasoning or chunk.tool_calls) else {}
    if chunk.reasoning:
        delta["reasoning_content"] = chunk.reasoning
    if chunk.tool_calls:
        delta["tool_calls"] = _tool_deltas(chunk.tool_calls)
    return delta


def _tool_deltas(pieces: Iterable[ToolDelta]) -> list[dict[str, Any]]:
    """One entry per call: clients lose the second of two in the same event."""
    calls: dict[int, dict[str, Any]] = {}
    for piece in pieces:
        begun = {} if piece.id is None else {"id": piece.id, "type": "function"}
        named = {} if piece.id is None else {"name": piece.name}
        call = calls.setdefault(piece.index, {"index": piece.index, **begun, "function": {**named, "arguments": ""}})
        call["function"]["arguments"] += piece.arguments
    return list(calls.values())


# ---- models ----

async def models(work: Work, request: Request) -> Response:
    return answer({"object": "list", "data": [_model(served) for served in work.models.all.values()]})


async def model(work: Work, request: Request) -> Response:
    return answer(_model(work.models.find(request.path_params["name"])))


def _model(served: Served) -> dict[str, Any]:
    body = {"id": served.name, "object": "model", "created": served.created, "owned_by": "pyllm"}
    if served.llm is not None:
        info = served.llm.info
        body["max_model_len"] = info["ctx"]
        body["meta"] = {key: info[key] for key in ("arch", "n_params", "n_ctx_train", "n_vocab", "file_bytes")}
    return body


ROUTES = {
    "/v1/chat/completions": {"POST": chat},
    "/v1/models": {"GET": models},
    "/v1/models/{name:path}": {"GET": model},
}
