"""Anthropic's API: messages, whole and as events, and the count of their tokens."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from ..llm import LLM
from ..replies import Chunk, Reply, Stream, ToolDelta
from .asking import MAX_PARTS, MAX_TOKENS, matched_stop, sampling, stops, text_of
from .failures import Refusal, answer, error_object
from .limits import Fields, Limits
from .streams import SSE, Streamed, event
from .work import Job, Work, client_of, watched

PATH = "/v1/messages"


async def messages(work: Work, request: Request) -> Response:
    fields = Fields(await work.bodies.read(request))
    served = work.models.find(fields.text("model"))
    conversation, options = messages_of(fields, work.limits), {**_options(fields, work.limits), "client": client_of(request)}

    def start(llm: LLM) -> Stream:
        return llm.astream(conversation, **options)

    head = {"id": "msg_" + secrets.token_hex(12), "type": "message", "role": "assistant", "model": served.name}
    if fields.flag("stream"):
        job = await work.start(served, [start])
        return Streamed(job, _frames(job, head, options["stop"]), SSE, _failure)
    with watched(request):
        job = await work.start(served, [start])
        try:
            reply, = await job.replies()
            return answer({**head, "content": _content(reply), **_ending(job, reply, options["stop"]), "usage": _usage(reply)})
        finally:
            await job.close()


async def count_tokens(work: Work, request: Request) -> Response:
    fields = Fields(await work.bodies.read(request))
    conversation = messages_of(fields, work.limits)
    async with work.models.lease(work.models.find(fields.text("model"))) as llm:
        tools = _tools(fields, work.limits)
        ids = await run_in_threadpool(llm.prompt_ids, conversation, tools.get("tools"), tools.get("tool_choice"), **_thinking(fields))
        return answer({"input_tokens": len(ids)})


def _failure(refusal: Refusal) -> bytes:
    return event(error_object(PATH, refusal), "error")


# ---- what is asked ----

def messages_of(fields: Fields, limits: Limits) -> list[dict[str, Any]]:
    """The conversation in the words of chat templates."""
    out: list[dict[str, Any]] = []
    system = text_of(fields, "system")
    if system:
        out.append({"role": "system", "content": system})
    given = list(fields.objects("messages", limits.messages))
    if not given:
        raise Refusal(400, "messages must be a list of at least one message", param="messages")
    for message in (part for whole in given for part in _messages(whole)):
        if out and out[-1]["role"] == message["role"] != "system" and out[-1].keys() == message.keys() == {"role", "content"}:
            out[-1]["content"] += "\n" + message["content"]        # turns of one side are one turn
        else:
            out.append(message)
    return out


def _messages(message: Fields) -> Iterator[dict[str, Any]]:
    """A message as templates take it: results of tools are messages of their own."""
    role = message.choice("role", ("user", "assistant", "system"), "")
    if not isinstance(message.values.get("content"), list):
        yield {"role": role, "content": message.needed_text("content")}
        return
    texts, reasoning, calls = [], [], []
    for block in message.objects("content", MAX_PARTS):
        kind = block.text("type", "text")
        if kind == "text":
            texts.append(block.needed_text("text"))
        elif kind == "thinking":
            reasoning.append(block.needed_text("thinking"))
        elif kind == "tool_use":
            calls.append({"id": block.needed_text("id"), "type": "function",
                          "function": {"name": block.needed_text("name"), "arguments": block.inner("input").values}})
        elif kind == "tool_result":
            yield {"role": "tool", "tool_call_id": block.needed_text("tool_use_id"), "content": text_of(block, "content") or ""}
        elif kind != "redacted_thinking":
            raise Refusal(400, f"{block.name('type')} is {str(kind)[:40]!r}: this model takes text only", param=block.name("type"))
    if texts or calls or reasoning:
        yield {"role": role, "content": "\n".join(texts), **({"reasoning_content": "\n".join(reasoning)} if reasoning else {}),
               **({"tool_calls": calls} if calls else {})}


def _options(fields: Fields, limits: Limits) -> dict[str, Any]:
    most = fields.whole("max_tokens", 1, MAX_TOKENS)
    if most is None:
        raise fields.wrong("max_tokens", "a whole number of at least 1")
    return {**sampling(fields, limits), "max_tokens": most, "stop": stops(fields, "stop_sequences", limits),
            "template_options": _thinking(fields), **_tools(fields, limits)}


def _tools(fields: Fields, limits: Limits) -> dict[str, Any]:
    tools = []
    for tool in fields.objects("tools", limits.tools):
        if tool.text("type", "custom") != "custom":
            raise Refusal(400, f"{tool.name('type')}: only tools of the client are known here", param=tool.name("type"), code="unsupported")
        tools.append({"type": "function", "function": {"name": tool.needed_text("name"), "description": tool.text("description") or "",
                                                       "parameters": tool.inner("input_schema").values}})
    chosen = fields.inner("tool_choice")
    kind = chosen.choice("type", ("auto", "any", "tool", "none"), "auto")
    choice = {"any": "required", "tool": chosen.text("name")}.get(kind, kind)
    return {"tools": tools, "tool_choice": choice, "parallel_tool_calls": not chosen.flag("disable_parallel_tool_use")} if tools else {}


def _thinking(fields: Fields) -> dict[str, Any]:
    """Only who asks for thinking gets it, from templates that know the switch."""
    return {"enable_thinking": fields.inner("thinking").text("type") in ("enabled", "adaptive")}


# ---- what is answered ----

def _content(reply: Reply) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if reply.reasoning:
        blocks.append({"type": "thinking", "thinking": reply.reasoning, "signature": ""})
    if reply.text:
        blocks.append({"type": "text", "text": reply.text})
    return blocks + [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments} for call in reply.tool_calls]


def _ending(job: Job, reply: Reply, given: tuple[str, ...]) -> dict[str, Any]:
    if reply.finish_reason != "stop":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    found = matched_stop(reply, given, job.llm.tokenizer)
    reason = "tool_use" if reply.tool_calls else "end_turn" if found is None else "stop_sequence"
    return {"stop_reason": reason, "stop_sequence": found}


def _usage(reply: Reply) -> dict[str, int]:
    """input_tokens are those that had to be computed, as Anthropic counts."""
    u = reply.usage
    return {"input_tokens": u.prompt_tokens - u.cached_tokens, "output_tokens": u.completion_tokens, "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": u.cached_tokens}


class _Blocks:
    """Events of content blocks: one is open at a time."""

    def __init__(self) -> None:
        self._index, self._kind = -1, ""

    def text(self, kind: str, piece: str) -> list[bytes]:
        """kind: text or thinking."""
        out = [] if kind == self._kind else [*self.close(), self._open({"type": kind, kind: ""})]
        self._kind = kind
        return [*out, self._event("content_block_delta", delta={"type": f"{kind}_delta", kind: piece})]

    def call(self, piece: ToolDelta) -> list[bytes]:
        out = []
        if piece.id is not None:
            out = [*self.close(), self._open({"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}})]
            self._kind = "tool_use"
        if piece.arguments:
            out.append(self._event("content_block_delta", delta={"type": "input_json_delta", "partial_json": piece.arguments}))
        return out

    def _open(self, block: dict[str, Any]) -> bytes:
        self._index += 1
        return self._event("content_block_start", content_block=block)

    def close(self) -> list[bytes]:
        if not self._kind:
            return []
        self._kind = ""
        return [self._event("content_block_stop")]

    def _event(self, kind: str, **more: Any) -> bytes:
        return event({"type": kind, "index": self._index, **more}, kind)


async def _frames(job: Job, head: dict[str, Any], given: tuple[str, ...]) -> AsyncIterator[bytes]:
    usage = {"input_tokens": job.prompt_tokens, "output_tokens": 0}
    yield event({"type": "message_start", "message": {**head, "content": [], "stop_reason": None, "stop_sequence": None,
                                                      "usage": usage}}, "message_start")
    blocks = _Blocks()
    async for got in job.events(ping=True):
        what = None if got is None else got[1]
        if what is None:
            yield event({"type": "ping"}, "ping")
        elif isinstance(what, Chunk):
            for kind, piece in (("thinking", what.reasoning), ("text", what.text)):
                for frame in blocks.text(kind, piece) if piece else ():
                    yield frame
            for call in what.tool_calls:
                for frame in blocks.call(call):
                    yield frame
        else:
            for frame in blocks.close():
                yield frame
            yield event({"type": "message_delta", "delta": _ending(job, what, given), "usage": _usage(what)}, "message_delta")
    yield event({"type": "message_stop"}, "message_stop")


ROUTES = {PATH: {"POST": messages}, f"{PATH}/count_tokens": {"POST": count_tokens}}
