"""Exact deduplication: whole files across the build, long paragraphs within a source and against what is held out.

Of source code whole files are compared, of chats whole rows: a function that held-out code holds too may be trained on.
"""

from __future__ import annotations

import hashlib
import re

MIN_PARAGRAPH = 120  # characters; a shorter paragraph may repeat


class Deduper:
    """Remembers what a build has kept.

    Held-out sources must be read first: a file that they hold, or a long paragraph of text, is then kept out of training.
    """

    def __init__(self) -> None:
        self._files: set[bytes] = set()
        self._paragraphs: set[bytes] = set()
        self._heldout: set[bytes] = set()
        self._reading_heldout = False

    def start_source(self, heldout: bool) -> None:
        """A new source begins: its own paragraphs are forgotten, held-out ones stay."""
        if self._reading_heldout:
            self._heldout |= self._paragraphs
        self._paragraphs = set()
        self._reading_heldout = heldout

    def is_new(self, text: str) -> bool:
        """Whether no file with the same words came before; remembers it."""
        key = _key(text)
        if key in self._files:
            return False
        self._files.add(key)
        return True

    def without_repeats(self, text: str) -> str:
        """The text without its long paragraphs that came before."""
        kept = []
        for paragraph in text.split("\n\n"):
            if len(paragraph.strip()) >= MIN_PARAGRAPH:
                key = _key(paragraph)
                if key in self._paragraphs or key in self._heldout:
                    continue
                self._paragraphs.add(key)
            kept.append(paragraph)
        return "\n\n".join(kept)


def _key(text: str) -> bytes:
    return hashlib.sha256(re.sub(r"\s+", " ", text).strip().lower().encode()).digest()[:16]
