"""Large JSON bodies: parsed and checked on a thread, in turn, so that answers being written do not wait for all of it.

Parsing itself holds Python's lock: a body of the largest size stops everything for about a second. Checking a body of many
parts takes ten times as long, and on a thread others run meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any, get_type_hints

from fastapi import HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from sharedllm.serve.turns import LARGE, PLACE


class Invalid(HTTPException):
    """What is wrong with a body, where FastAPI's own errors of it would not come through."""

    def __init__(self, error: ValidationError) -> None:
        super().__init__(400)
        self._errors = error.errors(include_url=False, include_context=False, include_input=False)

    def errors(self) -> list[dict[str, Any]]:
        return [{**error, "loc": ("body", *error["loc"])} for error in self._errors]


class BodyRoute(APIRoute):
    """A route whose parameter `body` is a model: FastAPI is given a large one as what it has become."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle, model = super().get_route_handler(), get_type_hints(self.endpoint).get("body")

        async def handler(request: Request) -> Response:
            return await handle(request if model is None else _Body(request, model))

        return handler


class _Body(Request):
    def __init__(self, request: Request, model: type[BaseModel]) -> None:
        super().__init__(request.scope, request.receive)
        self._model = model

    async def json(self) -> Any:
        body = await self.body()
        if len(body) <= LARGE:
            return json.loads(body)
        await self.scope[PLACE].begin()
        return await run_in_threadpool(self._checked, body)

    def _checked(self, body: bytes) -> BaseModel:
        values = json.loads(body)
        try:
            return self._model.model_validate(values, from_attributes=True)  # as FastAPI does
        except ValidationError as error:
            raise Invalid(error) from None
