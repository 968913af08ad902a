"""The ASGI application: routes of every API over one set of models."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from .. import errors
from . import anthropic, completions, embeddings, general, ollama, openai, page, responses
from .failures import Refusal, answer, error_response, refusal_of
from .guard import Access, Guard
from .limits import Bodies, Limits
from .metrics import Metrics
from .models import Models
from .work import Work

log = logging.getLogger("pyllm.server")
Handler = Callable[[Work, Request], Awaitable[Response]]
ROUTES: dict[str, dict[str, Handler]] = {}      # path -> method -> handler
for _dialect in (general, openai, completions, responses, anthropic, ollama, embeddings, page):
    ROUTES.update(_dialect.ROUTES)


def make_app(models: Models, access: Access | None = None, limits: Limits | None = None) -> Guard:
    """The ASGI application; its `work` is what requests share. Starting its lifespan loads the default model, ending it frees all that it
    loaded."""
    limits = limits or Limits()
    work = Work(models, limits, Metrics(), Bodies(limits))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_start(models)), asyncio.create_task(_sweep(models))]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            work.stop_all()
            await asyncio.gather(*tasks, return_exceptions=True)
            await models.close()

    routes = [Route(path, _endpoint(work, path, methods), methods=list(methods)) for path, methods in ROUTES.items()]

    async def unknown(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        work.metrics.answered("other", error.status_code)
        return error_response(request.url.path, _unknown(request, error))

    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: unknown})
    app.router.redirect_slashes = False
    return Guard(app, access or Access(), work)


async def _start(models: Models) -> None:
    try:
        await models.start()
    except Exception as e:
        models.failed = e


async def _sweep(models: Models) -> None:
    while True:
        await asyncio.sleep(1)
        await models.sweep()


def _unknown(request: Request, error: HTTPException) -> Refusal:
    if error.status_code == 405:
        return Refusal(405, f"{request.url.path} does not take {request.method}", code="method_not_allowed", headers=error.headers)
    return Refusal(error.status_code, f"there is nothing at {request.url.path[:200]}", code="not_found")


def _endpoint(work: Work, path: str, methods: dict[str, Handler]) -> Callable[[Request], Awaitable[Response]]:
    """Every failure becomes an answer in the words of the path's API; nobody's text goes to the log."""

    async def endpoint(request: Request) -> Response:
        begun = time.monotonic()
        handler = methods.get(request.method) or methods["GET"]        # HEAD
        try:
            response = await handler(work, request)
        except Refusal as e:
            response = error_response(path, e)
        except errors.Error as e:
            response = error_response(path, refusal_of(e))
        except ClientDisconnect:
            response = answer({}, 499)      # for the count; nobody is there to read it
        except Exception:
            log.exception("a request of %s failed", path)
            response = error_response(path, Refusal(500, "the server has a defect; its log says more", kind="server_error"))
        work.metrics.answered(path, response.status_code)
        log.info("%s %s %d %.3f s", request.method, path, response.status_code, time.monotonic() - begun)
        return response

    return endpoint


