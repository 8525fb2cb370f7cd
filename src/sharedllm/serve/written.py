"""The text of an answer, as its tokens come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"  # what a tokenizer makes of a character whose last bytes are still to come
LONGEST = 4  # bytes of a character in UTF-8: after as many tokens it is no character


class Written:
    """Turns tokens into pieces of text that can be sent; ends before a stop string.

    A piece is held back while it may be the start of a stop string, or ends inside a character.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()) -> None:
        self.tokenizer, self.stops = tokenizer, [stop for stop in stops if stop]
        self.stopped = False
        self._ids: list[int] = []  # the tokens before the newest, which say how those begin, and the newest
        self._known = 0  # how many of them are in the text already
        self._held = ""

    def push(self, token: int) -> str:
        """Take the next token; returns the text that can be sent now."""
        self._ids.append(token)
        before, now = self._decode(self._ids[: self._known]), self._decode(self._ids)
        if now.endswith(UNFINISHED) and len(self._ids) - self._known < LONGEST:
            return ""
        self._held += now[len(before) :]
        self._ids, self._known = self._ids[self._known :], len(self._ids) - self._known
        return self._sendable()

    def finish(self) -> str:
        """What is left when the answer ends."""
        if self.stopped:
            return ""
        rest = self._held + self._decode(self._ids)[len(self._decode(self._ids[: self._known])) :]
        self._held, self._ids, self._known = rest, [], 0
        cut = self._sendable()
        if not self.stopped:
            cut, self._held = cut + self._held, ""
        return cut

    def _sendable(self) -> str:
        found = [at for stop in self.stops if (at := self._held.find(stop)) >= 0]
        if found:
            self.stopped = True
            piece, self._held = self._held[: min(found)], ""
            return piece
        kept = max((_overlap(self._held, stop) for stop in self.stops), default=0)
        at = len(self._held) - kept
        piece, self._held = self._held[:at], self._held[at:]
        return piece

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
