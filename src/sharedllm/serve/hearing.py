"""Waiting for work as long as its client is there."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request, Response

LOOK_SECONDS = 0.25


async def heard(request: Request, work: asyncio.Future[Any]) -> bool:
    """Wait until some work is done; False where its client left before that."""
    while not work.done():
        await asyncio.wait([work], timeout=LOOK_SECONDS)
        if not work.done() and await request.is_disconnected():
            return False
    return True


def unheard() -> Response:
    """What nobody hears: the status that proxies log for it."""
    return Response(status_code=499)
