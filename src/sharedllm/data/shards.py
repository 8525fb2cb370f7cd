"""Writing tokens: flat little-endian shards, one series a split, with a sha256 for each."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np


@dataclass(frozen=True)
class Shard:
    """A finished shard: its file name, split, tokens held, size in bytes, and sha256 in hexadecimal."""

    file: str
    split: str
    tokens: int
    bytes: int
    sha256: str


class ShardWriter:
    """Appends documents of one split to `<split>-<n>.bin` files of at most `limit` tokens each."""

    def __init__(self, folder: Path, split: str, limit: int) -> None:
        self.folder, self.split, self.limit = folder, split, limit
        self.shards: list[Shard] = []
        self._handle: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._tokens = self._bytes = 0

    def add(self, tokens: np.ndarray) -> tuple[str, int]:
        """Writes one document of at most `limit` tokens; returns its shard's file name and where it starts there."""
        assert tokens.ndim == 1 and len(tokens) <= self.limit
        if self._handle is not None and self._tokens + len(tokens) > self.limit:
            self.close()
        if self._handle is None:
            self._handle = (self.folder / self._name()).open("wb")
        start = self._tokens
        data = tokens.tobytes()
        write_bytes(self._handle, data)
        self._hash.update(data)
        self._tokens += len(tokens)
        self._bytes += len(data)
        return self._name(), start

    def close(self) -> None:
        """Finishes the open shard, if there is one."""
        if self._handle is None:
            return
        self._handle.close()
        self.shards.append(Shard(self._name(), self.split, self._tokens, self._bytes, self._hash.hexdigest()))
        self._handle, self._hash = None, hashlib.sha256()
        self._tokens = self._bytes = 0

    def abandon(self) -> None:
        """Closes the file without finishing it, ignoring what a full disk answers."""
        if self._handle is not None:
            try:
                self._handle.close()
            except OSError:
                pass
            self._handle = None

    def _name(self) -> str:
        return f"{self.split}-{len(self.shards)}.bin"


def write_bytes(handle: BinaryIO, data: bytes) -> None:
    """Writes all of `data`; raises OSError as the file system does."""
    handle.write(data)
