"""Ollama's API: chat and generate as lines of JSON, and what its clients ask about models."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from ..describe import Description, describe
from ..llm import LLM
from ..replies import Reply, Stream, ToolCall
from .asking import ANY_OBJECT, MAX_TOKENS, calls_of, role_of, sampling, stops, tools_of
from .failures import Refusal, answer, error_object
from .limits import Fields, Limits
from .models import Served, seconds_of
from .streams import NDJSON, Streamed, line
from .work import Job, Work, client_of, watched

VERSION = "0.12.0"      # of Ollama, whose API this is; clients compare it

Wrap = Callable[[str, str, Sequence[ToolCall]], dict[str, Any]]     # (text, thinking, calls) -> the fields that hold them


async def chat(work: Work, request: Request) -> Response:
    fields = Fields(await work.bodies.read(request))
    served = _served(work, fields)
    messages = [_message(m, work.limits) for m in fields.objects("messages", work.limits.messages)]
    options = {**_options(fields, work.limits), **tools_of(fields, work.limits), "client": client_of(request)}
    if not messages:
        return await _load(work, served, fields, {"message": {"role": "assistant", "content": ""}})

    def wrap(text: str, thinking: str, calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        asked = [{"function": {"name": call.name, "arguments": call.arguments}} for call in calls]
        return {"message": {"role": "assistant", "content": text, **({"thinking": thinking} if thinking else {}),
                            **({"tool_calls": asked} if asked else {})}}

    return await _answer(work, request, served, fields, lambda llm: llm.astream(messages, **options), wrap)


async def generate(work: Work, request: Request) -> Response:
    fields = Fields(await work.bodies.read(request))
    served = _served(work, fields)
    prompt, suffix, system = fields.text("prompt") or "", fields.text("suffix"), fields.text("system")
    options = {**_options(fields, work.limits), "client": client_of(request)}
    if fields.items("images", 1):
        raise Refusal(400, "this model takes text only", param="images")
    if not prompt:
        return await _load(work, served, fields, {"response": ""})

    def start(llm: LLM) -> Stream:
        if fields.flag("raw") or suffix:
            plain = {k: v for k, v in options.items() if k != "template_options"}
            return llm.stream_complete(prompt, suffix=suffix or None, **plain)
        messages = [{"role": "system", "content": system}] if system else []
        return llm.astream([*messages, {"role": "user", "content": prompt}], **options)

    def wrap(text: str, thinking: str, calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        return {"response": text, **({"thinking": thinking} if thinking else {})}

    return await _answer(work, request, served, fields, start, wrap)


async def _answer(work: Work, request: Request, served: Served, fields: Fields, start: Callable[[LLM], Stream], wrap: Wrap) -> Response:
    keep = _keep_alive(fields)
    streaming = fields.flag("stream", True)
    with watched(request):
        job = await work.start(served, [start])
        if keep is not None:
            served.keep_s = keep[0]
        if streaming:
            return Streamed(job, _lines(job, wrap), NDJSON, lambda refusal: line(error_object("/api/", refusal)))
        try:
            reply, = await job.replies()
            return answer({**_head(served), **wrap(reply.text, reply.reasoning or "", reply.tool_calls), **_ending(reply)})
        finally:
            await job.close()


async def _load(work: Work, served: Served, fields: Fields, empty: dict[str, Any]) -> Response:
    """Nothing to say: the model is loaded, or with keep_alive 0 unloaded."""
    keep = _keep_alive(fields)
    if keep is not None:
        served.keep_s = keep[0]
    if served.keep_s == 0 and served.owned:
        if served.users == 0:
            await served.unload()
        return answer({**_head(served), **empty, "done": True, "done_reason": "unload"})
    async with work.models.lease(served):
        return answer({**_head(served), **empty, "done": True, "done_reason": "load"})


async def _lines(job: Job, wrap: Wrap) -> AsyncIterator[bytes]:
    async for got in job.events():
        assert got is not None
        what = got[1]
        if isinstance(what, Reply):
            if what.tool_calls:
                yield line({**_head(job.served), **wrap("", "", what.tool_calls), "done": False})
            yield line({**_head(job.served), **wrap("", "", ()), **_ending(what)})
        elif what.text or what.reasoning:
            yield line({**_head(job.served), **wrap(what.text, what.reasoning, ()), "done": False})


# ---- what is asked ----

def _served(work: Work, fields: Fields) -> Served:
    return work.models.find(fields.text("model") or fields.text("name"))


def _message(given: Fields, limits: Limits) -> dict[str, Any]:
    if given.items("images", 1):
        raise Refusal(400, f"{given.name('images')}: this model takes text only", param=given.name("images"))
    message: dict[str, Any] = {"role": role_of(given), "content": given.text("content") or ""}
    if calls := calls_of(given, limits):
        message["tool_calls"] = calls
    if given.has("tool_name"):
        message["name"] = given.text("tool_name")
    if given.has("thinking"):
        message["reasoning_content"] = given.text("thinking")
    return message


def _options(fields: Fields, limits: Limits) -> dict[str, Any]:
    given = fields.inner("options")
    options = {**sampling(given, limits), "stop": stops(given, "stop", limits)}
    form = fields.values.get("format")
    if form and form != "json" and not isinstance(form, dict):
        raise fields.wrong("format", '"json" or a JSON schema')
    if form:
        options["schema"] = form if isinstance(form, dict) else ANY_OBJECT
    most = given.whole("num_predict", -2, MAX_TOKENS)
    if most is not None and most > 0:       # -1 and -2: to the end of the context
        options["max_tokens"] = most
    think = fields.values.get("think")
    if think is not None and not isinstance(think, bool | str):
        raise fields.wrong("think", "true, false or a level")
    if think is not None:
        options["template_options"] = {"enable_thinking": think if isinstance(think, bool) else True,
                                       **({"reasoning_effort": think[:40]} if isinstance(think, str) else {})}
    return options


def _keep_alive(fields: Fields) -> tuple[float | None] | None:
    """(seconds, None: for ever), or None if the request does not say."""
    value = fields.values.get("keep_alive")
    if value is None:
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        return (seconds_of(value if isinstance(value, str) else f"{value:.3f}"),)
    except (ValueError, OverflowError):
        raise fields.wrong("keep_alive", "seconds, or a time such as 5m") from None


# ---- what is answered ----

def _head(served: Served) -> dict[str, Any]:
    return {"model": served.name, "created_at": _time(datetime.now(timezone.utc))}


def _time(when: datetime) -> str:
    return when.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _ending(reply: Reply) -> dict[str, Any]:
    t, u = reply.timings, reply.usage
    return {"done": True, "done_reason": "stop" if reply.finish_reason == "stop" else "length",
            "total_duration": _ns(t.queue_s + t.prompt_s + t.predicted_s), "load_duration": _ns(t.queue_s),
            "prompt_eval_count": u.prompt_tokens, "prompt_eval_duration": _ns(t.prompt_s), "eval_count": u.completion_tokens,
            "eval_duration": _ns(t.predicted_s)}


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


# ---- about models ----

async def _facts(served: Served) -> tuple[dict[str, Any], Description | None]:
    """An entry of /api/tags; what the file's header says, read once."""
    if served.described is None:
        served.described = await run_in_threadpool(_describe, served.path)
    about, changed, digest = served.described
    details = {"parent_model": "", "format": "gguf", "family": about.architecture if about else "", "families":
               [about.architecture] if about else [], "parameter_size": _count(about.n_params) if about else "",
               "quantization_level": about.quantization if about else ""}
    return {"name": served.name, "model": served.name, "modified_at": changed, "size": about.bytes if about else 0, "digest": digest,
            "details": details}, about


def _describe(path: str) -> tuple[Description | None, str, str]:
    """(header, time of change, a digest that tells files and versions of files apart without reading them whole)."""
    try:
        status = os.stat(path)
        about = describe(path)
    except Exception:
        return None, _time(datetime.fromtimestamp(0, timezone.utc)), "0" * 64
    digest = hashlib.sha256(f"{path}\0{status.st_size}\0{status.st_mtime_ns}".encode("utf-8", "surrogateescape")).hexdigest()
    return about, _time(datetime.fromtimestamp(status.st_mtime, timezone.utc)), digest


def _count(n: int) -> str:
    return f"{n / 1e9:.1f}B" if n >= 1e9 else f"{n / 1e6:.2f}M"


async def tags(work: Work, request: Request) -> Response:
    return answer({"models": [(await _facts(served))[0] for served in work.models.all.values()]})


async def ps(work: Work, request: Request) -> Response:
    """The models in memory."""
    now = datetime.now(timezone.utc)
    found = []
    for served in work.models.all.values():
        if served.llm is None:
            continue
        ends = now + timedelta(days=36500) if served.ends is None else now + timedelta(seconds=max(0, served.ends - time.monotonic()))
        info = served.llm.info
        found.append({**(await _facts(served))[0], "size": info["weight_bytes"] + info["kv_bytes"], "size_vram": 0,
                      "context_length": info["ctx"], "expires_at": _time(ends)})
    return answer({"models": found})


async def show(work: Work, request: Request) -> Response:
    fields = Fields(await work.bodies.read(request))
    served = _served(work, fields)
    facts, about = await _facts(served)
    async with work.models.lease(served) as llm:
        info = llm.info
        template, n_embd = llm.template_source, llm.n_embd
        capabilities = ["completion", "tools", *(["insert"] if llm.can_infill else []), *(["thinking"] if "think" in template else [])]
        capabilities = ["embedding"] if llm.encodes else capabilities
    arch = about.architecture if about else ""
    model_info = {"general.architecture": arch, "general.parameter_count": info["n_params"], "general.basename": info["name"],
                  f"{arch}.context_length": info["n_ctx_train"], "pyllm.context_length": info["ctx"],
                  f"{arch}.embedding_length": n_embd}
    return answer({"modelfile": f"FROM {served.name}", "parameters": "", "template": template, "details": facts["details"],
                   "license": about.license if about else "", "modified_at": facts["modified_at"], "capabilities": capabilities,
                   "model_info": model_info})


async def version(work: Work, request: Request) -> Response:
    return answer({"version": VERSION, "pyllm": __version__})


ROUTES = {
    "/api/chat": {"POST": chat},
    "/api/generate": {"POST": generate},
    "/api/tags": {"GET": tags},
    "/api/show": {"POST": show},
    "/api/ps": {"GET": ps},
    "/api/version": {"GET": version},
}
