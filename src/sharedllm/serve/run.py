"""Running the server in this process, and its log."""

from __future__ import annotations

import json
import logging
import socket
import sys
from types import FrameType
from typing import Any

import uvicorn
from sse_starlette.sse import AppStatus

from sharedllm.errors import WorkError
from sharedllm.serve.app import application
from sharedllm.serve.failures import traced
from sharedllm.serve.service import Service

STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class Lines(logging.Formatter):
    """One JSON object a line; of an error its kind and place, never its words."""

    def format(self, record: logging.LogRecord) -> str:
        own = {name: value for name, value in vars(record).items() if name not in STANDARD}
        about: dict[str, Any] = {"time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname}
        about |= {"logger": record.name, "message": record.getMessage(), **own}
        if record.exc_info:
            about["trace"] = traced(record.exc_info[1])
        return json.dumps(about, ensure_ascii=False, default=str)


class Server(uvicorn.Server):
    """Tells the service that the end is near, so that whoever only follows progress lets go; ends where the model has."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.service.engine.draining = True
        super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        self.should_exit = self.should_exit or self.service.engine.failed
        return await super().on_tick(counter)

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until told to end.

        Raises:
            WorkError: the server could not start, or the thread that owns the model ended by an error, so that nothing
                could be answered any more.
        """
        failure: BaseException | None = None
        try:
            super().run(sockets)
        except (OSError, SystemExit) as error:  # SystemExit: uvicorn's own, by a code that means something else here
            if self.started:
                raise
            failure = error
        if self.service.engine.failed:
            raise WorkError("the model's thread ended by an error, which the log has; start the server again.")
        if not self.started:
            why = f": {failure.strerror or failure}." if isinstance(failure, OSError) else "; its log has the reason."
            raise WorkError(f"the server could not start{why}") from failure


def server(service: Service, host: str, port: int) -> Server:
    """A server that `run` starts; it ends on SIGTERM or SIGINT, running answers first."""
    AppStatus.disable_automatic_graceful_drain()  # it would cut answers off; ours end by themselves
    config = uvicorn.Config(
        application(service),
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=int(service.settings.grace) + 1,
        h11_max_incomplete_event_size=64 * 1024,
    )
    return Server(config, service)


def log_to_stderr(level: str) -> None:
    """Structured lines of this program's and the server's own log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    for name in ("sharedllm", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())
