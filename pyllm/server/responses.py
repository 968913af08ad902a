"""OpenAI's /v1/responses without a memory: every request brings its whole conversation."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..llm import LLM
from ..replies import Chunk, Reply, Stream, ToolDelta
from .asking import MAX_TOKENS, form_of, role_of, sampling, text_of, tools_of
from .failures import Refusal, answer, error_object
from .limits import Fields, Limits
from .models import Served
from .streams import PING, SSE, Streamed, event
from .work import Job, Work, client_of, watched

PATH = "/v1/responses"


async def responses(work: Work, request: Request) -> Response:
    fields = Fields(await work.bodies.read(request))
    served = work.models.find(fields.text("model"))
    conversation = conversation_of(fields, work.limits)
    options = {**_options(fields, work.limits), "client": client_of(request)}

    def start(llm: LLM) -> Stream:
        return llm.astream(conversation, **options)

    head = _head(fields, served)
    if fields.flag("stream"):
        job = await work.start(served, [start])
        return Streamed(job, _frames(job, head), SSE, _failure)
    with watched(request):
        job = await work.start(served, [start])
        try:
            reply, = await job.replies()
            return answer({**head, **_ending(job, reply), "output": [_done(item) for item in _items(reply)]})
        finally:
            await job.close()


# ---- what is asked ----

def conversation_of(fields: Fields, limits: Limits) -> list[dict[str, Any]]:
    if fields.has("previous_response_id") or fields.has("conversation"):
        raise Refusal(400, "this server keeps no responses: send the whole conversation as input", param="previous_response_id",
                      code="unsupported")
    out: list[dict[str, Any]] = []
    instructions = fields.text("instructions")
    if instructions:
        out.append({"role": "system", "content": instructions})
    if isinstance(fields.values.get("input"), str):
        return [*out, {"role": "user", "content": fields.values["input"]}]
    reasoning = ""
    for item in fields.objects("input", limits.messages):
        kind = item.text("type", "message")
        if kind == "reasoning":
            reasoning = text_of(item, "content", ("reasoning_text", "text")) or ""
        elif kind == "message":
            message = {"role": role_of(item), "content": text_of(item, "content") or ""}
            if reasoning and message["role"] == "assistant":
                message["reasoning_content"] = reasoning
            reasoning = ""
            out.append(message)
        elif kind == "function_call":
            call = {"id": item.needed_text("call_id"), "type": "function",
                    "function": {"name": item.needed_text("name"), "arguments": item.needed_text("arguments")}}
            if not out or out[-1]["role"] != "assistant":
                out.append({"role": "assistant", "content": "", **({"reasoning_content": reasoning} if reasoning else {})})
                reasoning = ""
            out[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            out.append({"role": "tool", "tool_call_id": item.needed_text("call_id"), "content": text_of(item, "output") or ""})
        else:
            raise Refusal(400, f"{item.name('type')} is {str(kind)[:40]!r}, which this server does not know", param=item.name("type"),
                          code="unsupported")
    if not out:
        raise Refusal(400, "input must be a text or a list of items", param="input", code="invalid_value")
    return out


def _options(fields: Fields, limits: Limits) -> dict[str, Any]:
    options = {**sampling(fields, limits), **form_of(fields.inner("text"), "format"), **tools_of(fields, limits)}
    most = fields.whole("max_output_tokens", 1, MAX_TOKENS)
    if most is not None:
        options["max_tokens"] = most
    effort = fields.inner("reasoning").text("effort")
    if effort is not None:
        options["template_options"] = {"reasoning_effort": effort[:40], "enable_thinking": effort != "none"}
    return options


# ---- what is answered ----

def _head(fields: Fields, served: Served) -> dict[str, Any]:
    """A response that has just begun."""
    return {"id": "resp_" + secrets.token_hex(12), "object": "response", "created_at": int(time.time()), "status": "in_progress",
            "error": None, "incomplete_details": None, "instructions": fields.text("instructions"),
            "max_output_tokens": fields.values.get("max_output_tokens"), "model": served.name, "output": [],
            "parallel_tool_calls": fields.flag("parallel_tool_calls", True),
            "previous_response_id": None, "reasoning": {"effort": fields.inner("reasoning").text("effort"), "summary": None},
            "store": False, "temperature": fields.values.get("temperature"),
            "text": {"format": fields.inner("text").inner("format").values or {"type": "text"}},
            "tool_choice": fields.values.get("tool_choice") or "auto", "tools": fields.values.get("tools") or [],
            "top_p": fields.values.get("top_p"), "truncation": "disabled", "usage": None,
            "metadata": fields.inner("metadata").values}


def _ending(job: Job, reply: Reply) -> dict[str, Any]:
    u = reply.usage
    thought = len(job.llm.tokenize(reply.reasoning, add_special=False)) if reply.reasoning else 0
    whole = reply.finish_reason == "stop"
    return {"status": "completed" if whole else "incomplete", "incomplete_details": None if whole else {"reason": "max_output_tokens"},
            "usage": {"input_tokens": u.prompt_tokens, "input_tokens_details": {"cached_tokens": u.cached_tokens},
                      "output_tokens": u.completion_tokens, "output_tokens_details": {"reasoning_tokens": thought},
                      "total_tokens": u.total_tokens}}


def _items(reply: Reply) -> Iterator[dict[str, Any]]:
    if reply.reasoning:
        yield _item("reasoning", reply.reasoning)
    if reply.text or not reply.tool_calls:
        yield _item("message", reply.text)
    for call in reply.tool_calls:
        yield _call_item(call.id, call.name, call.text)


_PARTS = {"reasoning": "reasoning_text", "message": "output_text"}


def _item(kind: str, text: str | None, item_id: str | None = None) -> dict[str, Any]:
    """An output item that is not done yet. text None: nothing has come."""
    if kind == "reasoning":
        thoughts = [] if text is None else [{"type": "reasoning_text", "text": text}]
        return {"id": item_id or "rs_" + secrets.token_hex(12), "type": kind, "summary": [], "content": thoughts}
    content: list[dict[str, Any]] = [] if text is None else [{"type": "output_text", "text": text, "annotations": [], "logprobs": []}]
    return {"id": item_id or "msg_" + secrets.token_hex(12), "type": kind, "role": "assistant", "content": content}


def _call_item(call_id: str, name: str, arguments: str, item_id: str | None = None) -> dict[str, Any]:
    return {"id": item_id or "fc_" + secrets.token_hex(12), "type": "function_call", "call_id": call_id, "name": name,
            "arguments": arguments}


def _done(item: dict[str, Any], status: str = "completed") -> dict[str, Any]:
    return {**item, "status": status}


class _Events:
    """Numbered events; one output item is open at a time."""

    def __init__(self, head: dict[str, Any]) -> None:
        self._head, self._number, self._text = head, 0, list[str]()
        self._item: dict[str, Any] | None = None
        self.output: list[dict[str, Any]] = []

    def event(self, name: str, /, **more: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": f"response.{name}", "sequence_number": number, **more}, f"response.{name}")

    def _of_part(self, name: str, **more: Any) -> bytes:
        assert self._item is not None
        return self.event(name, item_id=self._item["id"], output_index=len(self.output), content_index=0, **more)

    def text(self, kind: str, piece: str) -> Iterator[bytes]:
        if self._item is None or self._item["type"] != kind:
            yield from self.close()
            self._item, self._text = _item(kind, None), []
            yield self.event("output_item.added", output_index=len(self.output), item=_done(self._item, "in_progress"))
            yield self._of_part("content_part.added", part=_item(kind, "")["content"][0])
        self._text.append(piece)
        more: dict[str, Any] = {"logprobs": []} if kind == "message" else {}
        yield self._of_part(f"{_PARTS[kind]}.delta", delta=piece, **more)

    def call(self, piece: ToolDelta) -> Iterator[bytes]:
        if piece.id is not None:
            yield from self.close()
            self._item, self._text = _call_item(piece.id, piece.name or "", ""), []
            yield self.event("output_item.added", output_index=len(self.output), item=_done(self._item, "in_progress"))
        if piece.arguments and self._item is not None:
            self._text.append(piece.arguments)
            yield self.event("function_call_arguments.delta", item_id=self._item["id"], output_index=len(self.output),
                             delta=piece.arguments)

    def close(self) -> Iterator[bytes]:
        if self._item is None:
            return
        kind, text = self._item["type"], "".join(self._text)
        if kind == "function_call":
            item = _done({**self._item, "arguments": text})
            yield self.event("function_call_arguments.done", item_id=item["id"], output_index=len(self.output), name=item["name"],
                             arguments=text)
            yield self.event("output_item.done", output_index=len(self.output), item=item)
            self.output.append(item)
            self._item = None
            return
        item = _done(_item(kind, text, self._item["id"]))
        yield self._of_part(f"{_PARTS[kind]}.done", text=text, **({"logprobs": []} if kind == "message" else {}))
        yield self._of_part("content_part.done", part=item["content"][0])
        yield self.event("output_item.done", output_index=len(self.output), item=item)
        self.output.append(item)
        self._item = None


async def _frames(job: Job, head: dict[str, Any]) -> AsyncIterator[bytes]:
    events = _Events(head)
    yield events.event("created", response=head)
    yield events.event("in_progress", response=head)
    async for got in job.events(ping=True):
        what = None if got is None else got[1]
        if what is None:
            yield PING
        elif isinstance(what, Chunk):
            for kind, piece in (("reasoning", what.reasoning), ("message", what.text)):
                for frame in events.text(kind, piece) if piece else ():
                    yield frame
            for call in what.tool_calls:
                for frame in events.call(call):
                    yield frame
        else:
            if not what.text and not what.tool_calls:           # an answer without a text has an empty message
                for frame in events.text("message", ""):
                    yield frame
            for frame in events.close():
                yield frame
            ending = _ending(job, what)
            yield events.event(ending["status"], response={**head, **ending, "output": events.output})


def _failure(refusal: Refusal) -> bytes:
    error = error_object(PATH, refusal)["error"]
    return event({"type": "error", "code": error["code"], "message": error["message"], "param": error["param"], "sequence_number": 0},
                 "error")


ROUTES = {PATH: {"POST": responses}}
