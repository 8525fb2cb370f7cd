"""The application: routes, and errors in one shape."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from sharedllm.serve import routes_completions, routes_contexts, routes_map, routes_operation
from sharedllm.serve.bodies import Invalid
from sharedllm.serve.failures import ApiError, as_api_error
from sharedllm.serve.guard import Guard
from sharedllm.serve.schemas import Failure
from sharedllm.serve.service import Service

SENTENCES: dict[str | int, str] = {
    "There was an error parsing the body": "the body cannot be parsed; check its quotes, its numbers and how deeply it is nested.",
    404: "there is no such page.",
    405: "this page takes no such method.",
}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def application(service: Service) -> FastAPI:
    """The ASGI application of a service, which starts and ends with it."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start)
        yield
        await asyncio.to_thread(service.stop)

    refusals: dict[int | str, dict[str, Any]] = {"4XX": {"model": Failure}, "5XX": {"model": Failure}}
    app = FastAPI(title="SharedLLM", lifespan=lifespan, docs_url=None, redoc_url=None, responses=refusals)
    for part in (routes_completions, routes_contexts, routes_map, routes_operation):
        app.include_router(part.routes(service))
    app.state.service = service
    app.add_middleware(Guard, service=service)
    app.add_exception_handler(ApiError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Invalid, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _failed)
    return app


async def _refused(_request: Request, error: Any) -> Response:
    return JSONResponse(error.body(), error.status, error.headers())


async def _failed(request: Request, error: Any) -> Response:
    return await _refused(request, as_api_error(error))


async def _http(request: Request, error: Any) -> Response:
    cause = error.__cause__
    if isinstance(cause, OSError | MemoryError):  # a full disk, say, which FastAPI takes for a fault of the body
        return await _refused(request, as_api_error(cause))
    detail = str(error.detail)
    sentence = SENTENCES.get(detail) or SENTENCES.get(error.status_code) or f"{detail.rstrip('.')}."
    headers = {"Allow": _allowed(request)} if error.status_code == 405 else dict(error.headers or {})
    answer = ApiError(error.status_code, sentence)
    return JSONResponse(answer.body(), answer.status, {**headers, **answer.headers()})


def _allowed(request: Request) -> str:
    """The methods that a path takes: of all its routes, where an error names those of the first one."""
    scopes = ({**request.scope, "method": method} for method in METHODS)
    found = [s["method"] for s in scopes if any(route.matches(s)[0] == Match.FULL for route in request.app.routes)]
    return ", ".join(found)


async def _invalid(request: Request, error: Any) -> Response:
    """The first thing that is wrong with a request, in one sentence."""
    errors = error.errors()
    first = [e for e in errors if e["loc"][:2] == errors[0]["loc"][:2]][
        -1
    ]  # of a choice of types: the one that fits best
    if first["type"] == "json_invalid":
        return await _refused(
            request, ApiError(400, "the body is not valid JSON; check quotes and commas.", "invalid_json")
        )
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    field = ".".join(part for part in place if part.isdigit() or (part.isidentifier() and part.islower()))
    reason = str(first["msg"]).removeprefix("Value error, ")
    reason = reason if reason.startswith(("is ", "must ")) else f"is wrong: {reason[:1].lower()}{reason[1:]}"
    sentence = f"{field or 'the body'} {reason}."
    return await _refused(request, ApiError(400, sentence, "invalid_value", field or None))
