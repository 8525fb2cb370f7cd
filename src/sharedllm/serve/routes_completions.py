"""`/v1/models`, `/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from sse_starlette import EventSourceResponse

from sharedllm.serve.answers import Shape
from sharedllm.serve.asking import Ask, Asked, asked
from sharedllm.serve.bodies import BodyRoute
from sharedllm.serve.failures import ApiError
from sharedllm.serve.hearing import heard, unheard
from sharedllm.serve.schemas import ChatRequest, CompletionRequest
from sharedllm.serve.service import Service
from sharedllm.serve.task import Ended, Piece
from sharedllm.serve.turns import PLACE


def routes(service: Service) -> APIRouter:
    """The routes of one service."""
    router = APIRouter(prefix="/v1", route_class=BodyRoute)

    def described() -> dict[str, Any]:
        return {"id": service.model, "object": "model", "created": service.created, "owned_by": "sharedllm"}

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [described()]}

    @router.get("/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        service.check_model(model)
        return described()

    @router.post("/chat/completions")
    async def chat(request: Request, body: ChatRequest) -> Response:
        return await _answer(service, request, body, True)

    @router.post("/completions")
    async def complete(request: Request, body: CompletionRequest) -> Response:
        return await _answer(service, request, body, False)

    return router


async def _answer(service: Service, request: Request, ask: Ask, chat: bool) -> Response:
    counted = bool(ask.stream and ask.stream_options is not None and ask.stream_options.include_usage)
    shape = Shape(service.llm.tokenizer, service.model, chat, counted)
    task = await asked(service, ask)
    request.scope[PLACE].leave()  # if it is large, the next one has its turn
    if ask.stream:
        stream = _stream(shape, task)
        return EventSourceResponse(stream, sep="\n")
    work = asyncio.create_task(_collect(task))
    try:
        if not await heard(request, work):
            return unheard()
    finally:
        work.cancel()
        task.cancel()
    pieces, ended = work.result()
    return JSONResponse(shape.whole(pieces, task.task.choices, task.usage, ended))


async def _collect(task: Asked) -> tuple[list[Piece], Ended]:
    pieces: list[Piece] = []
    async for event in task.events():
        if isinstance(event, Piece):
            pieces.append(event)
        elif isinstance(event, Ended):
            return pieces, event
    raise AssertionError("events end with Ended")


async def _stream(shape: Shape, task: Asked) -> AsyncIterator[dict[str, str]]:
    """Server-sent events of an answer; an error on the way is the last one."""
    try:
        if shape.chat:
            for index in range(task.task.choices):
                yield _event(shape.opening(index))
        async for event in task.events():
            if isinstance(event, Piece):
                yield _event(shape.piece(event))
            elif isinstance(event, Ended) and shape.counted:
                yield _event(shape.closing(task.usage, event))
        yield {"data": "[DONE]"}
    except ApiError as error:
        yield _event(error.body())
    finally:
        task.cancel()


def _event(values: dict[str, Any]) -> dict[str, str]:
    return {"data": json.dumps(values, ensure_ascii=False)}
