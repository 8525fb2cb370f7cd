"""What a request can fail with: a status, and a body in the shape of OpenAI's errors."""

from __future__ import annotations

import errno
import logging
import traceback
from typing import Any

from sharedllm.errors import SharedLLMError, UsageError, out_of_memory

log = logging.getLogger(__name__)
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


def too_late(reading: bool = False) -> ApiError:
    """What a client is told whose time is over.

    Args:
        reading: whether its own long prompt was still being read.
    """
    if reading:
        return ApiError(
            504,
            "the prompt could not be read in the time that this server allows (--seconds); ask again, which goes on from "
            "what was read, or upload the text as a context and ask when it is ready.",
            "timeout",
        )
    return ApiError(504, "the answer took longer than this server allows; ask for a shorter one.", "timeout")


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of an error; one that was not foreseen is logged, and says nothing of itself."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UsageError):
        return ApiError(400, str(error))
    if out_of_memory(error):
        return ApiError(
            503, "there is not enough memory for this now; try again, or send less.", "out_of_memory", None, 5
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ApiError(507, "the server's disk is full; delete contexts that are not needed.", "disk_full")
    log.error("unforeseen error", extra={"trace": traced(error)})
    return ApiError(500, "something failed inside the server; its log has the reason.", "internal_error")
