"""`/health`, `/ready`, `/metrics`, and the page at `/`."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from sharedllm.serve.failures import ApiError
from sharedllm.serve.service import Service

SCRIPTS = ("page.js", "documents.js", "kept.js", "map.js", "maps.js", "server.js", "show.js")
PAGE = {"": ("page.html", "text/html"), "page.css": ("page.css", "text/css")}
PAGE |= {script: (script, "text/javascript") for script in SCRIPTS}


def routes(service: Service) -> APIRouter:
    """The routes of one service."""
    router = APIRouter()

    @router.head("/health", include_in_schema=False)
    @router.get("/health")
    async def health() -> dict[str, Any]:
        if not service.engine.alive:
            raise ApiError(503, "the model's thread has ended; start the server again.", "unhealthy")
        return {"status": "ok"}

    @router.head("/ready", include_in_schema=False)
    @router.get("/ready")
    async def ready() -> dict[str, Any]:
        if service.engine.draining or not service.engine.alive:
            raise ApiError(503, "the server is shutting down.", "shutting_down")
        return {"status": "ready", "model": service.model, "window": service.llm.window}

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    for path, (name, kind) in PAGE.items():
        router.api_route(f"/{path}", methods=["GET", "HEAD"], include_in_schema=False)(_file(name, kind))
    return router


def _file(name: str, kind: str) -> Any:
    content = files("sharedllm.serve").joinpath("page", name).read_text(encoding="utf-8")

    async def answer() -> Response:
        return Response(content, media_type=kind)

    return answer
