"""What every request passes: host, origin, key, rate, size; and what every answer carries.

A page of another site can make a browser call a server on this machine. It cannot with these checks: a browser names
the site in `Origin`, and a name that was pointed at this machine (DNS rebinding) is not among the hosts. Where any name is
let in, such a page lacks the key.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import time
from collections import OrderedDict
from ipaddress import ip_address
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sharedllm.serve.failures import ApiError, as_api_error
from sharedllm.serve.routes_operation import PAGE
from sharedllm.serve.service import Service
from sharedllm.serve.settings import Settings
from sharedllm.serve.turns import LARGE, PLACE, Place

log = logging.getLogger("sharedllm.access")
OPEN = (*(f"/{path}" for path in PAGE), "/health", "/ready")  # that need no key
MAP = "/v1/map"
HELD = ("/v1/chat/completions", "/v1/completions", MAP)  # whose bodies are in memory; those of files are not
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
CLIENTS = 10_000  # whose rates are remembered


class Answer:
    """Sends an answer with headers of the server's own; after a refusal what the application sends is dropped."""

    def __init__(self, send: Send, headers: dict[str, str]) -> None:
        self._send, self._headers, self.status, self._refused = send, headers, 0, False

    async def __call__(self, message: Message) -> None:
        if self._refused:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            MutableHeaders(scope=message).update(self._headers)
        await self._send(message)

    async def refuse(self, error: ApiError) -> None:
        """Send an error as the whole answer, unless one has begun."""
        if self.status:
            return
        body = json.dumps(error.body()).encode()
        headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers()}
        raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": error.status, "headers": raw})
        await self({"type": "http.response.body", "body": body})
        self._refused = True


class Guard:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service, self.settings, self.metrics = app, service, service.settings, service.metrics
        self._allowance: OrderedDict[str, tuple[float, float]] = OrderedDict()  # requests left, when that was known

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, started = secrets.token_hex(8), time.perf_counter()
        answer = Answer(send, {**HEADERS, "X-Request-Id": request})
        place = scope[PLACE] = Place(self.service.files if _uploads(scope) else self.service.texts)
        try:
            if self._check(scope, Headers(scope=scope)) > LARGE:
                self._make_room(scope, place)
            await self.app(scope, self._bounded(scope, receive, answer), answer)
        except ApiError as error:
            await answer.refuse(error)
        except Exception as error:
            if answer.status:
                raise  # so that the connection breaks off and the answer does not look whole
            await answer.refuse(as_api_error(error))
        finally:
            place.leave()
            self._tell(scope, request, answer.status, time.perf_counter() - started)

    def _check(self, scope: Scope, headers: Headers) -> int:
        """Raise `ApiError` for a request that is not let in; bytes that it says it has."""
        host = headers.get("host", "")
        if not self._called_by(_parts(f"//{host}").hostname or ""):
            raise ApiError(403, "this server is not called by that name; --allow-host adds one.", "host_not_allowed")
        origin = headers.get("origin")
        if origin is not None and _parts(origin).netloc != host:
            raise ApiError(403, "pages of other sites may not call this server.", "origin_not_allowed")
        size = headers.get("content-length", "0")
        if not size.isdigit() or int(size) > self.settings.body_bytes:
            raise too_large(self.settings)
        key = None if scope["path"] in OPEN else self.settings.api_key
        # first, so that keys cannot be tried at any rate
        if self.settings.requests_a_minute and (key is not None or scope["path"].startswith("/v1/")):
            self._take_turn(scope["client"][0] if scope.get("client") else "")
        if key is not None:
            scheme, _, sent = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(sent.strip().encode(), key.encode()):
                raise ApiError(401, "the API key is missing or wrong; send it as a bearer token.", "invalid_api_key")
        return int(size)

    def _called_by(self, name: str) -> bool:
        """Whether a client may call this server by a name: an address is no other site's, and a page of one has no key."""
        if name in self.settings.hosts or name == "localhost" or name.endswith(".localhost") or _is_address(name):
            return True
        return not self.settings.hosts and self.settings.api_key is not None

    def _make_room(self, scope: Scope, place: Place) -> None:
        """Refuse a large request before its body is read where it would be afterwards; else it has its place."""
        engine = self.service.engine
        if _uploads(scope) or scope["path"] == MAP:
            engine.check_room()
            place.take()
        elif scope["path"] in HELD:
            engine.check_queue(1)
            place.take()

    def _take_turn(self, client: str) -> None:
        """Let a client's request pass if it has one left: a bucket that fills evenly, a minute's requests deep."""
        rate, now = self.settings.requests_a_minute, time.monotonic()
        left, known = self._allowance.pop(client, (float(rate), now))
        left = min(float(rate), left + (now - known) * rate / 60)
        self._allowance[client] = (max(left - 1, 0.0) if left >= 1 else left, now)
        if len(self._allowance) > CLIENTS:
            self._allowance.popitem(last=False)
        if left < 1:
            wait = int((1 - left) * 60 / rate) + 1
            raise ApiError(429, "too many requests from here; slow down.", "rate_limit_exceeded", retry_after=wait)

    def _bounded(self, scope: Scope, receive: Receive, answer: Answer) -> Receive:
        """Receive a body that is neither too large nor too slow; else it is refused, whatever the application says."""
        size, whole = 0, False

        async def bounded() -> Message:
            nonlocal size, whole
            if whole:
                return await receive()  # waits until the client goes
            try:
                message = await self._next(receive)
                size += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if size > self.settings.body_bytes:
                    raise too_large(self.settings)
                if size > LARGE and (scope["path"] in HELD or _uploads(scope)):
                    scope[PLACE].take()
            except ApiError as error:
                await answer.refuse(error)
                raise
            return message

        return bounded

    async def _next(self, receive: Receive) -> Message:
        try:
            return await asyncio.wait_for(receive(), self.settings.body_seconds)
        except TimeoutError:
            raise ApiError(408, "the request's body did not come in time; send it again.", "timeout") from None

    def _tell(self, scope: Scope, request: str, status: int, seconds: float) -> None:
        """Count the request and log it: its route, never its words."""
        route = getattr(scope.get("route"), "path", "none")
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.request_seconds.labels(route).observe(seconds)
        about = {"request": request, "method": scope["method"], "route": route, "status": status}
        log.info("request", extra={**about, "seconds": round(seconds, 4)})


def _uploads(scope: Scope) -> bool:
    """Whether a request brings a file, which lies on the disk until it has its turn."""
    return scope["method"] == "POST" and scope["path"].startswith("/v1/contexts")


def _parts(address: str) -> SplitResult:
    """The parts of an address; none of one that is malformed."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def too_large(settings: Settings) -> ApiError:
    return ApiError(413, f"the request is larger than {settings.body_bytes:,} bytes; send less.", "request_too_large")
