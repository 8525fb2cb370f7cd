"""`POST /v1/map`: what a question reads of its contexts, and what its answer attended to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool

from sharedllm.methods.estimate import attended_bytes, cache_bytes
from sharedllm.serve.asking import Prepared, composed, prepared
from sharedllm.serve.bodies import BodyRoute
from sharedllm.serve.chat import token_ids
from sharedllm.serve.engine import ENDING
from sharedllm.serve.failures import ApiError, too_late
from sharedllm.serve.hearing import heard, unheard
from sharedllm.serve.map import mapped
from sharedllm.serve.schemas import MapRequest
from sharedllm.serve.service import Service
from sharedllm.serve.turns import PLACE


def routes(service: Service) -> APIRouter:
    """The routes of one service."""
    router = APIRouter(prefix="/v1", route_class=BodyRoute)

    @router.post("/map")
    async def draw(request: Request, body: MapRequest) -> Any:
        until = time.monotonic() + service.settings.seconds
        service.engine.check_room()
        asked = await prepared(service, body)
        request.scope[PLACE].leave()  # if it is large, the next one has its turn
        if not asked.contexts and asked.split.reads is None:
            raise ApiError(400, "there is nothing to map; name a context, or ask about a long text.", None, "context")
        answer = await run_in_threadpool(token_ids, service.llm.tokenizer, body.answer)
        gone = threading.Event()
        slices = _map(service, asked, answer)
        work = service.engine.do(slices, lambda: gone.is_set() or time.monotonic() > until, answering=True)
        try:
            drawn = asyncio.wrap_future(work)
            if not await heard(request, drawn):
                return unheard()
        finally:
            gone.set()
        if drawn.cancelled():
            raise (
                ApiError(503, ENDING, "shutting_down", retry_after=5)
                if service.engine.draining
                else too_late(asked.reading)
            )
        return {"object": "map", **drawn.result()}

    return router


def _map(service: Service, asked: Prepared, answer: list[int]) -> Generator[None, None, dict[str, Any]]:
    parts: list[dict[str, Any]] = [
        {"context": entry.id, "tokens": context.tokens, "read_seconds": round(entry.seconds, 3)}
        for entry, context in zip(asked.entries, asked.contexts, strict=True)
    ]
    if not asked.split.attends:
        tokens = sum(part["tokens"] for part in parts)
        about = {"tokens": tokens, "compressed": False, "slots": tokens, "attention": None}
        return {**about, "quoted": [], "chunks": [], "parts": parts}
    context = yield from composed(service, asked)
    yield
    if asked.split.reads is not None:
        parts.append({"context": None, "tokens": len(asked.split.reads), "read_seconds": None})
    most = service.settings.prefill_tokens
    drawn = yield from mapped(service.llm, context, asked.split, answer, asked.most, most)
    about = {"tokens": context.tokens, "compressed": True, **drawn, "parts": parts}
    quoted = sum(span["end"] - span["start"] for span in drawn["quoted"])
    return {**about, **_against_full_attention(service, context.tokens, context.nbytes, drawn["slots"], quoted)}


def _against_full_attention(service: Service, tokens: int, kept: int, slots: int, quoted: int) -> dict[str, Any]:
    """Bytes and seconds beside those that the model's own attention to all tokens would take.

    What is attended to are the slots, in the layers with a branch, and the tokens that are quoted, in all layers.

    Its seconds are what the whole model takes for as many tokens in short pieces, as measured when the server started:
    attention to all that is before would only add to them.
    """
    llm, speed = service.llm, service.engine.tokens_per_second
    return {
        "kept_bytes": kept,
        "attended_bytes": attended_bytes(llm, slots, quoted),
        "full_attention": {
            "bytes": cache_bytes(llm, tokens),
            "seconds_at_least": tokens / speed if speed else None,
        },
    }
