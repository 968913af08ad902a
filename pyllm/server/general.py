"""Routes that belong to no API in particular: health, metrics, tokens."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from .failures import Refusal, answer
from .limits import Fields
from .metrics import CONTENT_TYPE
from .work import Work


async def health(work: Work, request: Request) -> Response:
    """200 while every engine makes progress; else 503 and why."""
    models = work.models
    state = {s.name: "unloaded" if s.llm is None else "loaded" for s in models.all.values()}
    stalled = [s.name for s in models.all.values() if s.llm is not None and s.llm.load[2] > work.limits.stall_s]
    state.update(dict.fromkeys(stalled, "stalled"))
    if models.starting:
        status = "loading"
    elif models.failed is not None:
        status = "failed"
    elif work.admission.draining:
        status = "draining"
    else:
        status = "stalled" if stalled else "ok"
    body = {"status": status, "version": __version__, "models": state, "generations": work.admission.count, "queue": work.limits.queue}
    return answer(body, 200 if status == "ok" else 503, None if status != "loading" else {"Retry-After": "1"})


async def metrics(work: Work, request: Request) -> Response:
    return Response(work.metrics.text(work), media_type=CONTENT_TYPE)


async def tokenize(work: Work, request: Request) -> Response:
    """{"content" or "prompt": text, "add_special", "parse_special", "model"} -> {"tokens", "count", "max_model_len"}"""
    fields = Fields(await work.bodies.read(request))
    text = fields.text("content") or fields.text("prompt") or ""
    if len(text) > work.limits.text:
        raise Refusal(413, f"the text has {len(text)} characters, at most {work.limits.text} are taken", code="request_too_large")
    special = fields.flag("add_special", fields.flag("add_special_tokens", True))
    parse = fields.flag("parse_special", True)
    async with work.models.lease(work.models.find(fields.text("model"))) as llm:
        ids = await run_in_threadpool(llm.tokenize, text, special, parse)
        return answer({"tokens": ids, "count": len(ids), "max_model_len": llm.ctx})


async def detokenize(work: Work, request: Request) -> Response:
    """{"tokens": ids, "special", "model"} -> {"content": text}"""
    fields = Fields(await work.bodies.read(request))
    ids = fields.items("tokens", work.limits.values)
    if any(isinstance(i, bool) or not isinstance(i, int) for i in ids):
        raise Refusal(400, "tokens must be a list of integers", param="tokens", code="invalid_type")
    special = fields.flag("special")
    async with work.models.lease(work.models.find(fields.text("model"))) as llm:
        text = await run_in_threadpool(llm.detokenize, ids, special)
        return answer({"content": text, "prompt": text})


ROUTES = {
    "/health": {"GET": health},
    "/metrics": {"GET": metrics},
    "/tokenize": {"POST": tokenize},
    "/detokenize": {"POST": detokenize},
}
