"""What a server may be told, with its limits."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from sharedllm.errors import UsageError

KEY = re.compile(r"[!-~]([ -~]*[!-~])?")  # what a client can send in a header, and a header keeps as it is


@dataclass(frozen=True)
class Settings:
    """Limits of one server.

    Raises:
        UsageError: a value is out of its range; the sentence names the field.
    """

    folder: Path
    """Where contexts are kept."""
    shared: bool = False
    """Whether other servers of the same model keep their contexts there too."""
    api_key: str | None = None
    """What clients must send as a bearer token; None: nothing."""
    hosts: tuple[str, ...] = ()
    """Names a client may call the server by, beside localhost and addresses; empty: any where there is a key, else none."""
    rows: int = 8
    """Answers that decode together."""
    queue: int = 64
    """Requests that wait at most; more are told to come again."""
    window: int = 1024
    """Tokens left in the window once a prompt is too long for all of it."""
    answer_tokens: int = 256
    """Of an answer where a request does not say."""
    reading_share: float = 0.5
    """Of the time, for reading and taking in prompts while others' answers are being written."""
    slice_chunks: int = 1
    """Chunks read between two steps."""
    prefill_tokens: int = 512
    """Tokens of a prompt taken in between two steps."""
    memory_bytes: int = 4 * 2**30
    """Of contexts in memory; those used least recently leave it for the disk."""
    prompt_disk_bytes: int = 16 * 2**30
    """Of long prompts on the disk; those used least recently are forgotten."""
    context_disk_bytes: int = 64 * 2**30
    """Of uploaded contexts on the disk; once they take so much, uploads are refused."""
    body_bytes: int = 64 * 2**20
    """Of one request, and characters of the text that is in an uploaded file."""
    file_seconds: float = 60.0
    """That taking the text out of an uploaded file may take."""
    file_memory_bytes: int = 4 * 2**30
    """That it may take of memory."""
    body_seconds: float = 60.0
    """That a request's next bytes may take."""
    seconds: float = 600.0
    """That an answer may take, its wait in the queue included."""
    requests_a_minute: int = 0
    """From one client; 0: any number."""
    grace: float = 30.0
    """Seconds that running answers have once the server is told to end."""

    def __post_init__(self) -> None:
        for name, low in (
            ("rows", 1), ("queue", 0), ("window", 16), ("answer_tokens", 1), ("slice_chunks", 1), ("prefill_tokens", 1),
            ("memory_bytes", 0), ("prompt_disk_bytes", 0), ("context_disk_bytes", 0), ("body_bytes", 1024),
            ("file_memory_bytes", 2**28), ("requests_a_minute", 0),
        ):  # fmt: skip
            if getattr(self, name) < low:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {low}.")
        for name in ("body_seconds", "file_seconds", "seconds", "grace"):
            if not 0 < getattr(self, name) < math.inf:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be a finite number above 0.")
        if not 0 < self.reading_share < 1:
            raise UsageError(f"reading_share is {self.reading_share}; it must lie between 0 and 1.")
        if self.api_key is not None and len(self.api_key) < 8:
            what = "too short" if self.api_key else "empty"
            raise UsageError(
                f"the API key is {what}; give one of at least 8 characters, or leave it out to ask for none."
            )
        if self.api_key is not None and not KEY.fullmatch(self.api_key):
            raise UsageError(
                "the API key holds a character that clients cannot send, or begins or ends with a space or a line break; "
                "give one of printable ASCII characters."
            )
