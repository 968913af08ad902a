"""Answers that are errors, in the words of each API."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from .. import errors


class Refusal(Exception):
    """An answer that is an error. kind: OpenAI's name of its type."""

    def __init__(self, status: int, message: str, *, kind: str = "invalid_request_error", code: str | None = None,
                 param: str | None = None, retry_s: int | None = None, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.param = status, message, kind, code, param
        self.headers = {**(headers or {}), **({} if retry_s is None else {"Retry-After": str(retry_s)})}


def refusal_of(error: errors.Error) -> Refusal:
    """What a client hears of an error of the engine: folders of this machine are left out."""
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    message = re.sub(r"(?<![\w.:/])/(?:[^\s/'\"]+/)*([^\s/'\"]+)", r"\1", message)
    if isinstance(error, errors.ContextOverflow):
        return Refusal(400, message, code="context_length_exceeded", param="messages")
    if isinstance(error, errors.Busy):
        return Refusal(429, message, kind="rate_limit_error", code="rate_limit_exceeded", retry_s=max(1, math.ceil(error.retry_s)))
    if isinstance(error, errors.ArgumentError | errors.Unsupported):
        return Refusal(400, message, code="unsupported" if isinstance(error, errors.Unsupported) else "invalid_value")
    if isinstance(error, errors.Closed | errors.OutOfMemory | errors.CacheFull):
        return Refusal(503, message, kind="server_error", code="unavailable", retry_s=5)
    return Refusal(500, message, kind="server_error", code=type(error).__name__)


_ANTHROPIC_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
                    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error"}


def error_object(path: str, refusal: Refusal) -> dict[str, Any]:
    """The error's JSON in the form of the API that a path belongs to."""
    if path.startswith("/api/"):
        return {"error": refusal.message}
    if path.startswith("/v1/messages"):
        kind = _ANTHROPIC_TYPES.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "api_error")
        return {"type": "error", "error": {"type": kind, "message": refusal.message}}
    return {"error": {"message": refusal.message, "type": refusal.kind, "param": refusal.param, "code": refusal.code}}


def error_response(path: str, refusal: Refusal) -> Response:
    return answer(error_object(path, refusal), refusal.status, refusal.headers)


def encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON response."""
    return Response(encode(value), status, dict(headers or {}), "application/json")
