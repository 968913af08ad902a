"""GET /: a small chat page, one file without anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from .work import Work


@cache
def _page() -> tuple[bytes, str]:
    """(the file, a policy that lets its own script run, and nothing that a model's text might smuggle in)."""
    text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.S)
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return text.encode(), (f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; connect-src 'self'; "
                           "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


async def page(work: Work, request: Request) -> Response:
    data, policy = _page()
    return Response(data, media_type="text/html; charset=utf-8",
                    headers={"content-security-policy": policy, "referrer-policy": "no-referrer", "cache-control": "no-cache"})


ROUTES = {"/": {"GET": page}}
