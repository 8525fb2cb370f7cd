"""What a request can fail with: a status, and a body in the shape of OpenAI's errors."""

from __future__ import annotations

import traceback
from typing import Any

from sharedllm.errors import SharedLLMError

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(SharedLLMError):
    """One clear sentence with an HTTP status.

    Attributes:
        code: a word for programs, such as `context_not_found`.
        param: the field that was wrong, if one was.
        retry_after: seconds to wait before another try.
    """

    def __init__(
        self,
        status: int,
        sentence: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(sentence)
        self.status, self.code, self.param, self.retry_after = status, code, param, retry_after

    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return {**headers, "WWW-Authenticate": "Bearer"} if self.status == 401 else headers


def traced(error: BaseException | None) -> str:
    """Kind and place of an error, and of those that led to it: never its words, which may quote a user's text."""
    told: list[str] = []
    while error is not None:
        kind = f"{type(error).__module__}.{type(error).__qualname__}\n"
        told.insert(0, "".join(traceback.format_tb(error.__traceback__)) + kind)
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n".join(told)
