"""What the APIs have in common in what they ask for: sampling options, messages, texts."""

from __future__ import annotations

from typing import Any

from ..replies import Reply
from ..tokenizer import Tokenizer
from .failures import Refusal
from .limits import Fields, Limits, kind_of

MAX_TOKENS = 1 << 30
MAX_PARTS = 4096        # of one content
ANY_OBJECT = {"type": "object"}
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
# name in the API and in Options -> smallest, largest; a whole number if both are int
_NUMBERS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "typical_p": (0.0, 1.0), "top_k": (0, 1 << 30),
    "presence_penalty": (-100.0, 100.0), "frequency_penalty": (-100.0, 100.0), "repeat_penalty": (0.01, 100.0),
    "repeat_last_n": (-1, 1 << 20), "seed": (-(1 << 63), (1 << 64) - 1),
}


def sampling(fields: Fields, limits: Limits) -> dict[str, Any]:
    """Options of pyllm.sampling that have the same name everywhere, those that are there."""
    options: dict[str, Any] = {}
    for name, (low, high) in _NUMBERS.items():
        value: float | None
        if isinstance(low, int) and isinstance(high, int):
            value = fields.whole(name, low, high)
        else:
            value = fields.number(name, low, high)
        if value is not None:
            options[name] = value
    penalty = fields.number("repetition_penalty", 0.01, 100.0)
    if penalty is not None:
        options.setdefault("repeat_penalty", penalty)
    bias = fields.inner("logit_bias").values
    if bias:
        options["logit_bias"] = logit_bias(fields, limits)
    return options


def logit_bias(fields: Fields, limits: Limits) -> dict[int, float]:
    values = fields.inner("logit_bias")
    if len(values.values) > limits.bias:
        raise Refusal(400, f"logit_bias has {len(values.values)} tokens, at most {limits.bias} are taken", param="logit_bias",
                      code="too_many")
    bias: dict[int, float] = {}
    for key in values.values:
        if not key.isascii() or not key.isdecimal() or len(key) > 9:
            raise Refusal(400, "the keys of logit_bias must be token ids", param="logit_bias", code="invalid_value")
        bias[int(key)] = values.number(key, -1e4, 1e4) or 0.0
    return bias


def stops(fields: Fields, key: str, limits: Limits) -> tuple[str, ...]:
    """Stop strings: one, or a list."""
    value = fields.values.get(key)
    texts = [value] if isinstance(value, str) else fields.items(key, limits.stop)
    for text in texts:
        if not isinstance(text, str) or not 0 < len(text) <= limits.stop_length:
            raise Refusal(400, f"{fields.name(key)} must be one or several strings of 1 to {limits.stop_length} characters",
                          param=fields.name(key), code="invalid_value")
    return tuple(texts)


def text_of(fields: Fields, key: str, kinds: tuple[str, ...] = ("text", "input_text", "output_text")) -> str | None:
    """A content: a text, or a list of parts that hold text. Nothing is ever fetched: parts of other types are refused."""
    value = fields.values.get(key)
    if not isinstance(value, list):
        return fields.text(key)
    texts = []
    for part in fields.objects(key, MAX_PARTS):
        kind = part.text("type", "text")
        if kind not in kinds:
            raise Refusal(400, f"{part.name('type')} is {str(kind)[:40]!r}: this model takes text only", param=part.name("type"),
                          code="unsupported_content")
        texts.append(part.needed_text("text"))
    return "\n".join(texts)


def role_of(fields: Fields) -> str:
    role = fields.values.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        shown = repr(role[:40]) if isinstance(role, str) else kind_of(role)
        raise Refusal(400, f"{fields.name('role')} is {shown}, must be one of {', '.join(_ROLES)}", param=fields.name("role"),
                      code="invalid_value")
    return _ROLES[role]


def form_of(fields: Fields, key: str = "response_format") -> dict[str, Any]:
    """The form that a reply must have: JSON by OpenAI's response_format, or a grammar or regex as pyllm takes them."""
    options: dict[str, Any] = {name: value for name in ("grammar", "regex") if (value := fields.text(name))}
    given = fields.inner(key)
    kind = given.choice("type", ("text", "json_object", "json_schema"), "text")
    if kind == "json_schema":
        holder = given.inner("json_schema") if given.has("json_schema") else given
        if not holder.has("schema"):
            raise holder.wrong("schema", "a JSON schema")
        options["schema"] = holder.inner("schema").values
    elif kind == "json_object":
        options["schema"] = given.inner("schema").values or ANY_OBJECT
    return options


def tools_of(fields: Fields, limits: Limits) -> dict[str, Any]:
    """Options of a chat with tools: definitions in OpenAI's form, nested or flat, and which of them to call."""
    tools = [tool.values for tool in fields.objects("tools", limits.tools)]
    chosen = fields.values.get("tool_choice")
    if chosen is not None and not isinstance(chosen, str | dict):
        raise fields.wrong("tool_choice", "a text or an object")
    parallel = fields.flag("parallel_tool_calls", True)
    return {"tools": tools, "tool_choice": chosen, "parallel_tool_calls": parallel} if tools else {}


def calls_of(message: Fields, limits: Limits) -> list[dict[str, Any]]:
    """Calls of an earlier turn, as OpenAI and Ollama write them."""
    calls = []
    for call in message.objects("tool_calls", limits.tools):
        function = call.inner("function")
        arguments = function.values.get("arguments")
        if not isinstance(arguments, str | dict):
            raise function.wrong("arguments", "JSON as a text, or an object")
        calls.append({"id": call.text("id") or "", "type": "function",
                      "function": {"name": function.needed_text("name"), "arguments": arguments}})
    return calls


def template_options(fields: Fields) -> dict[str, Any]:
    """chat_template_kwargs, of which only switches of thinking pass: a request must not reach a template's inner workings."""
    given = fields.inner("chat_template_kwargs")
    out: dict[str, Any] = {}
    for name in ("enable_thinking", "thinking"):
        if given.has(name):
            out[name] = given.flag(name)
    effort = given.text("reasoning_effort") or fields.text("reasoning_effort")
    if effort is not None:
        out["reasoning_effort"] = effort[:40]
    return out


def matched_stop(reply: Reply, given: tuple[str, ...], tokenizer: Tokenizer) -> str | None:
    """Which of the stop strings ended a reply, None if it ended by itself."""
    if not given or not reply.tokens or tokenizer.is_end(reply.tokens[-1]):
        return None
    text = tokenizer.decode(reply.tokens)
    found = [(at, -len(stop), stop) for stop in given if (at := text.find(stop)) >= 0]
    return min(found)[2] if found else None
