"""A context that the server keeps, and its folder.

about.json          name, documents, time of reading
text.safetensors    token ids, while they are not all read
slots/              the context, as `sharedllm encode` would write it
"""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from sharedllm.context import Context
from sharedllm.errors import SharedLLMError, UsageError
from sharedllm.files import replaced_file
from sharedllm.manifest import MANIFEST, read_manifest
from sharedllm.model import SharedLLM
from sharedllm.serve.failures import ApiError

log = logging.getLogger(__name__)
ID = re.compile(r"ctx_[0-9a-f]{32}")
ABOUT, TEXT, SLOTS = "about.json", "text.safetensors", "slots"
BROKEN = "broken"
"""The state of a folder whose `about.json` says none: no server has made it, and none takes it for deleted."""


def new_id() -> str:
    return f"ctx_{secrets.token_hex(16)}"


def state_of(folder: Path) -> str | None:
    """The name of the state that an entry's folder is in, a new one with each writing; None where there is none.

    Raises:
        ApiError: 503, it cannot be read now, which says nothing of whether it is there.
    """
    try:
        about = (folder / ABOUT).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        log.warning("a kept context cannot be looked at", extra={"context": folder.name, "reason": str(error)})
        raise ApiError(
            503, "the folder of a context cannot be read now; try again in a moment.", "context_unreadable", None, 5
        ) from error
    try:
        return str(json.loads(about).get("state", ""))
    except (ValueError, AttributeError):
        return BROKEN


@dataclass(eq=False)
class Entry:
    """A context by its id; or a long prompt that may come again, by a hash of its tokens.

    Attributes:
        ids: [n], all that is to be read.
        context: the last whole state, which questions see once it is all that is to be read; None until there is one.
        partial: what is being read now.
        loaded: whether its slots are in memory, and not on the disk alone.
        reserved: bytes of memory set apart for what is being read.
    """

    id: str
    folder: Path
    documents: list[str] = field(default_factory=list)
    created: int = field(default_factory=lambda: int(time.time()))
    ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int32))
    model: str = ""
    """Whose token ids they are; empty where an earlier server did not say."""
    context: Context | None = None
    partial: Context | None = None
    error: str | None = None
    seconds: float = 0.0
    marks: list[tuple[int, float]] = field(default_factory=list)
    """Tokens read, and when by the clock, after the first slice of the reading that goes on and after its newest."""
    loaded: bool = False
    reserved: int = 0
    saved: bool = False
    deleted: bool = False
    unwritten: bool = False
    """Whether what was read is on its way to the disk, and nobody is told that it is ready before it is there: other
    servers find it by its folder alone."""
    used: float = field(default_factory=time.monotonic)
    states: tuple[str, str] = ("", "")
    """The last two states of its folder that are its own: that it found, wrote, or is writing."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """Held while `context`, `loaded` and `saved` change, which belong together."""

    @property
    def status(self) -> str:
        if self.error is not None:
            return "failed"
        return "ready" if self.whole and not self.unwritten else "reading"

    @property
    def whole(self) -> bool:
        """Whether questions see all that is to be read."""
        return self.context is not None and self.context.tokens == len(self.ids)

    @property
    def overtaken(self) -> bool:
        """Whether another server has written or deleted its folder since this one did."""
        return state_of(self.folder) not in self.states

    def advance(self, seconds: float) -> None:
        """Take down that a slice of its reading, which took so long, has ended."""
        assert self.partial is not None
        self.seconds += seconds
        self.marks = [*self.marks[:1], (self.partial.tokens, time.monotonic())]

    @property
    def speed(self) -> float | None:
        """Tokens a second of the reading that goes on, by the clock: whatever else is done between its slices counts, since it
        will between those to come. None until two of them have ended."""
        if len(marks := self.marks) < 2:
            return None
        (before, then), (read, now) = marks
        return (read - before) / (now - then) if now > then else None

    def finish(self, context: Context) -> None:
        """Let questions see what was read; it is in memory and not on the disk yet."""
        with self._lock:
            self.context, self.loaded, self.saved = context, True, False

    def fail(self, error: str) -> None:
        """Let nobody ask it, and let go of what is in memory; from what is on the disk the next server reads on."""
        with self._lock:
            self.error, self.partial, self.reserved = error, None, 0
            self.context, self.loaded = None, False

    def leave_memory(self, context: Context, stored: Context) -> bool:
        """Put what is on the disk in the place of a context; False where that is no longer what questions see."""
        with self._lock:
            if self.context is not context or not self.saved:
                return False
            self.context, self.loaded = stored, False
            return True

    def describe(self) -> dict[str, Any]:
        """What a client is told."""
        reading = self.status == "reading"
        read = len(self.ids) if self.whole else 0 if self.partial is None else self.partial.tokens
        speed = self.speed if reading else None
        return {
            "id": self.id,
            "object": "context",
            "created": self.created,
            "documents": self.documents,
            "status": self.status,
            "error": self.error,
            "tokens": len(self.ids),
            "read_tokens": read,
            "read_seconds": round(self.seconds, 3),
            "tokens_per_second": None if speed is None else round(speed, 1),
            "seconds_left": None if not speed else round((len(self.ids) - read) / speed, 1),
            "bytes": 0 if self.context is None else self.context.nbytes,
            "in_memory": self.loaded,
            "on_disk": self.saved,
        }

    def save_text(self) -> None:
        """Write down what is to be read, before it is; where one of both files cannot be written the other stays as it was."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with replaced_file(self.folder / ABOUT) as about, replaced_file(self.folder / TEXT) as text:
            text.write_bytes(save({"ids": self.ids.contiguous()}))
            about.write_bytes(self._about())

    def save_about(self) -> None:
        with replaced_file(self.folder / ABOUT) as unfinished:
            unfinished.write_bytes(self._about())

    def _about(self) -> bytes:
        """What the folder says of itself, in a new state."""
        about: dict[str, Any] = {"id": self.id, "documents": self.documents, "created": self.created}
        about |= {"seconds": self.seconds, "model": self.model}
        self.states = self.states[1], secrets.token_hex(8)
        about["state"] = self.states[1]
        return json.dumps(about).encode()

    def save(self, context: Context, shared: bool = False) -> None:
        """Write down what was read; the text goes when that is all of it.

        Args:
            shared: whether other servers write there too. What one of them wrote or deleted meanwhile stays so; a part of the
                text, kept where it is longer than what is there, makes no new state, at which those that read it would stop.
        """
        whole = context.tokens == len(self.ids)
        if self.deleted or (shared and not whole and _stored_tokens(self.folder / SLOTS) >= context.tokens):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        context.save(self.folder / SLOTS)
        if shared and (state := state_of(self.folder)) not in self.states:
            if state is None:
                self.remove()
            return
        if whole or not shared:
            self.save_about()
        if whole:
            (self.folder / TEXT).unlink(missing_ok=True)
        with self._lock:
            self.saved = context is self.context
        if self.deleted:  # meanwhile
            self.remove()

    def forget(self) -> None:
        """Take away the file that the folder is known by, to other servers and after a restart, before the rest goes."""
        with suppress(FileNotFoundError, NotADirectoryError):
            (self.folder / ABOUT).unlink()

    def remove(self) -> None:
        with suppress(OSError):
            self.forget()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def disk_bytes(self) -> int:
        return sum(_size(os.path.join(place, name)) for place, _, names in os.walk(self.folder) for name in names)

    @classmethod
    def open(cls, folder: Path, llm: SharedLLM) -> Entry:
        """What was kept in a folder.

        Raises:
            SharedLLMError, OSError, ValueError, KeyError: it is broken, or was made with another model.
        """
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        entry = cls(folder.name, folder, [str(d) for d in about["documents"]], int(about["created"]))
        entry.seconds = float(about["seconds"])
        entry.states, entry.model = ("", str(about.get("state", ""))), str(about.get("model", ""))
        if entry.model not in ("", llm.fingerprint):
            raise UsageError(f"{folder} holds a text in the tokens of another model.")
        context = Context.load(folder / SLOTS, llm) if (folder / SLOTS / MANIFEST).exists() else None
        text = _text(folder / TEXT)
        if text is None and context is None:
            raise ValueError("it holds no text")
        if context is not None and (text is None or torch.equal(text, context.ids)):
            entry.ids, entry.context, entry.saved = context.ids, context, True
        elif text is not None:
            entry.ids, entry.partial = text, context
        return entry


def _text(file: Path) -> Tensor | None:
    """The token ids that a file holds; None where it is not there, or no more."""
    try:
        with safe_open(file, framework="pt") as stored:
            ids: Tensor = stored.get_tensor("ids")
            return ids
    except FileNotFoundError:
        return None


def _stored_tokens(folder: Path) -> int:
    """Tokens of the context that a folder holds; 0 where it holds none that can be read."""
    try:
        return sum(document.tokens for document in read_manifest(folder).documents.values())
    except SharedLLMError:
        return 0


def _size(file: str) -> int:
    """Bytes of a file; 0 where it is gone meanwhile."""
    try:
        return os.path.getsize(file)
    except OSError:
        return 0
