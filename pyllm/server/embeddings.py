"""Embeddings, in OpenAI's and in Ollama's words."""

from __future__ import annotations

import base64
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from ..llm import LLM
from .failures import Refusal, answer
from .limits import Fields, Limits, kind_of
from .models import Served, seconds_of
from .work import Work, watched

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Texts = list[str | list[int]]
SLICE = 16          # texts between two looks at whether the client is still there
MAX_WIDTH = 1 << 20


async def openai(work: Work, request: Request) -> Response:
    fields = Fields(await work.bodies.read(request))
    served = work.models.find(fields.text("model"))
    texts = texts_of(fields, "input", work.limits)
    in_base64 = fields.choice("encoding_format", ("float", "base64"), "float") == "base64"
    with watched(request):
        vectors, n_tokens = await _embed(work, served, texts, fields.whole("dimensions", 1, MAX_WIDTH))
        data = await run_in_threadpool(lambda: [
            {"object": "embedding", "index": i, "embedding": _base64(v) if in_base64 else numbers(v)} for i, v in enumerate(vectors)])
    return await run_in_threadpool(answer, {"object": "list", "data": data, "model": served.name,
                                            "usage": {"prompt_tokens": n_tokens, "total_tokens": n_tokens}})


async def ollama(work: Work, request: Request) -> Response:
    """/api/embed"""
    fields = Fields(await work.bodies.read(request))
    served = _served(work, fields)
    begun = time.perf_counter()
    texts = texts_of(fields, "input", work.limits)
    with watched(request):
        vectors, n_tokens = await _embed(work, served, texts, fields.whole("dimensions", 1, MAX_WIDTH), fields.flag("truncate", True))
        rows = await run_in_threadpool(lambda: [numbers(v) for v in vectors])
    return await run_in_threadpool(answer, {"model": served.name, "embeddings": rows, "total_duration": _ns(begun), "load_duration": 0,
                                            "prompt_eval_count": n_tokens})


async def ollama_one(work: Work, request: Request) -> Response:
    """/api/embeddings, the older one: a text, whose vector keeps its length."""
    fields = Fields(await work.bodies.read(request))
    served = _served(work, fields)
    prompt = fields.needed_text("prompt")
    with watched(request):
        vectors, _ = await _embed(work, served, [prompt], None, True, normalize=False)
    return answer({"embedding": numbers(vectors[0])})


def _served(work: Work, fields: Fields) -> Served:
    served = work.models.find(fields.text("model") or fields.text("name"))
    keep = fields.values.get("keep_alive")
    if isinstance(keep, int | float | str) and not isinstance(keep, bool):
        try:
            served.keep_s = seconds_of(keep if isinstance(keep, str) else f"{keep:.3f}")
        except (ValueError, OverflowError):
            raise fields.wrong("keep_alive", "seconds, or a time such as 5m") from None
    return served


def texts_of(fields: Fields, key: str, limits: Limits) -> Texts:
    """A text, a list of token ids, or a list of either."""
    value = fields.values.get(key)
    if isinstance(value, str):
        return [value]
    given = fields.items(key, limits.values)
    if not given:
        raise Refusal(400, f"{key} must be a text, a list of token ids, or a list of those", param=key, code="invalid_value")
    if all(_is_id(item) for item in given):
        return [given]
    if len(given) > limits.inputs:
        raise Refusal(400, f"{key} has {len(given)} texts, at most {limits.inputs} are taken", param=key, code="too_many")
    for i, item in enumerate(given):
        if not isinstance(item, str) and not (isinstance(item, list) and item and all(map(_is_id, item))):
            raise Refusal(400, f"{key}[{i}] is {kind_of(item)}, must be a text or a list of token ids", param=f"{key}[{i}]",
                          code="invalid_type")
    return given


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


async def _embed(work: Work, served: Served, texts: Texts, dimensions: int | None, truncate: bool = False,
                 normalize: bool = True) -> tuple[list[NDArray[np.float32]], int]:
    """(vectors, tokens of all texts)."""
    work.admission.enter(1)
    try:
        async with work.models.lease(served) as llm:
            ids = await run_in_threadpool(llm.embed_ids, texts, truncate)
            vectors: list[NDArray[np.float32]] = []
            for at in range(0, len(ids), SLICE):
                async with served.embedding:        # others wait here, not on threads that chats need
                    vectors += await run_in_threadpool(partial(_slice, llm, ids[at:at + SLICE], dimensions, normalize))
            return vectors, sum(map(len, ids))
    finally:
        work.admission.leave()


def _slice(llm: LLM, ids: Sequence[list[int]], dimensions: int | None, normalize: bool) -> list[NDArray[np.float32]]:
    return list(llm.embed(ids, dimensions=dimensions, normalize=normalize))


def numbers(vector: NDArray[np.float32]) -> list[float]:
    """As JSON has them: the shortest that give the same float32."""
    return [float(f"{x:.9g}") for x in vector.tolist()]


def _base64(vector: NDArray[np.float32]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _ns(begun: float) -> int:
    return int((time.perf_counter() - begun) * 1e9)


ROUTES = {
    "/v1/embeddings": {"POST": openai},
    "/api/embed": {"POST": ollama},
    "/api/embeddings": {"POST": ollama_one},
}
