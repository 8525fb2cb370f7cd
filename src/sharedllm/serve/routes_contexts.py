"""`/v1/contexts`: upload, follow, list, append to, delete, and look into what was read."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, File, Query, Request, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from sse_starlette import EventSourceResponse
from torch import Tensor

from sharedllm.errors import UsageError
from sharedllm.extract import TooLong, text_of
from sharedllm.serve.failures import ApiError
from sharedllm.serve.service import Service
from sharedllm.serve.turns import PLACE
from sharedllm.serve.written import UNFINISHED

Upload = Annotated[UploadFile, File(description="Text, Markdown, HTML or PDF.")]
PASSAGE = 8192  # tokens of a passage at most
AROUND = 3  # tokens on one side that a character may go on in


def routes(service: Service) -> APIRouter:
    """The routes of one service."""
    router, shelf = APIRouter(prefix="/v1/contexts"), service.shelf

    @router.post("", status_code=202)
    async def upload(request: Request, file: Upload) -> dict[str, Any]:
        service.engine.check_room()
        async with request.scope[PLACE].turn():
            name, text = await _text(service, file)
            return (await run_in_threadpool(shelf.add, name, text)).describe()

    @router.get("")
    async def contexts() -> dict[str, Any]:
        return {"object": "list", "data": [entry.describe() for entry in await service.looked(shelf.all)]}

    @router.get("/events")
    async def all_events() -> Response:
        return EventSourceResponse(_progress(service), sep="\n")

    @router.get("/{name}")
    async def context(name: str) -> dict[str, Any]:
        return (await service.looked(shelf.get, name)).describe()

    @router.post("/{name}", status_code=202)
    async def append(request: Request, name: str, file: Upload) -> dict[str, Any]:
        await service.looked(shelf.get, name)
        service.engine.check_room()
        async with request.scope[PLACE].turn():
            added, text = await _text(service, file, after="\n\n")
            return (await run_in_threadpool(shelf.append, name, added, text)).describe()

    @router.delete("/{name}")
    async def delete(name: str) -> dict[str, Any]:
        await service.looked(shelf.delete, name)
        return {"id": name, "object": "context.deleted", "deleted": True}

    @router.get("/{name}/events")
    async def events(name: str) -> Response:
        await service.looked(shelf.get, name)
        return EventSourceResponse(_progress(service, name), sep="\n")

    @router.get("/{name}/text")
    async def text(
        name: str,
        start: Annotated[int, Query(ge=0, lt=2**40)] = 0,
        end: Annotated[int | None, Query(ge=0, lt=2**40)] = None,
    ) -> dict[str, Any]:
        ids = (await service.looked(shelf.get, name)).ids
        end = min(len(ids), start + PASSAGE, len(ids) if end is None else end)
        if start >= end:
            raise ApiError(
                400, f"there is no passage from {start} to {end}; the context has {len(ids)} tokens.", None, "start"
            )
        passage = await run_in_threadpool(_passage, service.llm.tokenizer, ids, start, end)
        return {"id": name, "start": start, "end": end, "text": passage}

    return router


async def _progress(service: Service, name: str | None = None) -> AsyncIterator[dict[str, str]]:
    """How far a context is read, or all are that are being read, until each is or is deleted.

    A replica waits for its requests before it ends, and is killed if that takes longer than the grace time and a little: there
    clients are let go before that, and follow anew.
    """
    shelf, told, settings = service.shelf, dict[str, str](), service.settings
    until = time.monotonic() + (settings.grace if settings.shared else math.inf)
    followed = set() if name is None else {name}
    kept = await service.looked(shelf.all) if name is None else []
    ended = {entry.id for entry in kept if entry.status != "reading"}
    while not service.engine.draining and time.monotonic() < until:
        if name is None:
            here = list(shelf.contexts.values())
            followed |= {entry.id for entry in here if entry.id not in ended or entry.status == "reading"}
        for one in sorted(followed):
            try:
                about, event = (await service.looked(shelf.get, one)).describe(), "progress"
            except ApiError as error:
                if error.status != 404:
                    continue  # it cannot be looked at now
                about, event = {"id": one, "object": "context.deleted", "deleted": True}, "deleted"
            if (now := json.dumps(about, ensure_ascii=False)) != told.get(one):
                yield {"event": event, "data": now}
                told[one] = now
            if about.get("status") != "reading":
                followed.discard(one)
                ended.add(one)
        if not followed:
            return
        await asyncio.sleep(0.2)


def _passage(tokenizer: Any, ids: Tensor, start: int, end: int) -> str:
    """The text of some of all tokens [n], without what its ends leave of characters that they cut through."""

    def decoded(first: int, last: int) -> str:
        return str(tokenizer.decode(ids[max(0, first) : last].tolist()))

    text = decoded(start, end)
    first, last = 0, len(text)
    if not text.strip(UNFINISHED):
        return ""
    if text.startswith(UNFINISHED):
        before = decoded(start - AROUND, end)  # which ends as the text does where that is not cut
        while text.startswith(UNFINISHED, first) and not before.endswith(text[first:]):
            first += 1
    if text.endswith(UNFINISHED):
        after = decoded(start, end + AROUND)
        while text.endswith(UNFINISHED, first, last) and not after.startswith(text[:last]):
            last -= 1
    return text[first:last]


async def _text(service: Service, file: UploadFile, after: str = "") -> tuple[str, Tensor]:
    """Name and token ids [n] of an uploaded file.

    Raises:
        ApiError: it has no text that can be read.
    """
    name = (
        "".join(c for c in PurePath((file.filename or "").replace("\\", "/")).name if c.isprintable())[:120] or "text"
    )
    settings = service.settings
    limits = settings.file_seconds, settings.file_memory_bytes, settings.body_bytes
    try:
        raw = await file.read()
        text = await run_in_threadpool(text_of, name, raw, *limits)
        return name, await run_in_threadpool(service.llm.reader.token_ids, after + text)
    except TooLong as error:
        raise ApiError(413, str(error), "file_too_large", "file") from error
    except UsageError as error:
        raise ApiError(400, str(error), "unreadable_file", "file") from error
