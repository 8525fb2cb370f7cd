"""`/v1/contexts`: upload, follow, list, append to, delete, and look into what was read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, File, Query, Response, UploadFile
from fastapi.concurrency import run_in_threadpool
from sse_starlette import EventSourceResponse
from torch import Tensor

from sharedllm.errors import UsageError
from sharedllm.serve.extract import text_of
from sharedllm.serve.failures import ApiError
from sharedllm.serve.service import Service

Upload = Annotated[UploadFile, File(description="Text, Markdown, HTML or PDF.")]
PASSAGE = 8192  # tokens of a passage at most


def routes(service: Service) -> APIRouter:
    """The routes of one service."""
    router, shelf = APIRouter(prefix="/v1/contexts"), service.shelf

    @router.post("", status_code=202)
    async def upload(file: Upload) -> dict[str, Any]:
        service.engine.check_room()
        name, text = await _text(service, file)
        return (await run_in_threadpool(shelf.add, name, text)).describe()

    @router.get("")
    async def contexts() -> dict[str, Any]:
        return {"object": "list", "data": [entry.describe() for entry in shelf.all()]}

    @router.get("/{name}")
    async def context(name: str) -> dict[str, Any]:
        return shelf.get(name).describe()

    @router.post("/{name}", status_code=202)
    async def append(name: str, file: Upload) -> dict[str, Any]:
        shelf.get(name)
        service.engine.check_room()
        added, text = await _text(service, file, after="\n\n")
        return (await run_in_threadpool(shelf.append, name, added, text)).describe()

    @router.delete("/{name}")
    async def delete(name: str) -> dict[str, Any]:
        shelf.delete(name)
        return {"id": name, "object": "context.deleted", "deleted": True}

    @router.get("/{name}/events")
    async def events(name: str) -> Response:
        shelf.get(name)
        return EventSourceResponse(_progress(service, name), sep="\n")

    @router.get("/{name}/text")
    async def text(
        name: str,
        start: Annotated[int, Query(ge=0, lt=2**40)] = 0,
        end: Annotated[int | None, Query(ge=0, lt=2**40)] = None,
    ) -> dict[str, Any]:
        ids = shelf.get(name).ids
        end = min(len(ids), start + PASSAGE, len(ids) if end is None else end)
        if start >= end:
            raise ApiError(
                400, f"there is no passage from {start} to {end}; the context has {len(ids)} tokens.", None, "start"
            )
        passage = await run_in_threadpool(service.llm.tokenizer.decode, ids[start:end].tolist())
        return {"id": name, "start": start, "end": end, "text": passage}

    return router


async def _progress(service: Service, name: str) -> AsyncIterator[dict[str, str]]:
    """How far a reading is, until it ends or the context is deleted."""
    told = ""
    while not service.engine.draining:
        try:
            about = service.shelf.get(name).describe()
        except ApiError:
            return
        if (now := json.dumps(about, ensure_ascii=False)) != told:
            yield {"event": "progress", "data": now}
            told = now
        if about["status"] != "reading":
            return
        await asyncio.sleep(0.2)


async def _text(service: Service, file: UploadFile, after: str = "") -> tuple[str, Tensor]:
    """Name and token ids [n] of an uploaded file.

    Raises:
        ApiError: it has no text that can be read.
    """
    name = (
        "".join(c for c in PurePath((file.filename or "").replace("\\", "/")).name if c.isprintable())[:120] or "text"
    )
    limits, raw = service.settings, await file.read()
    try:
        async with service.extracting:
            text = await run_in_threadpool(text_of, name, raw, limits.file_seconds, limits.file_memory_bytes)
        if len(text) > limits.body_bytes:
            raise ApiError(413, f"'{name}' holds {len(text):,} characters; this server reads {limits.body_bytes:,} of a file: split it.", "file_too_large", "file")  # fmt: skip
        return name, await run_in_threadpool(service.llm.reader.token_ids, after + text)
    except UsageError as error:
        raise ApiError(400, str(error), "unreadable_file", "file") from error
