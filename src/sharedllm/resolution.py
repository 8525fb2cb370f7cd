"""How finely one question reads a context.

Chunks and trees were settled when a text was read. How many slots a leaf gives, how many chunks are taken in and how many of
those whole may differ from question to question; a chunk of which that needs more than is stored is read again.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sharedllm.config import SharedConfig


@dataclass(frozen=True)
class Resolution:
    """Settings of one question, by the names they have in `SharedConfig`; None: as the adapter was trained."""

    slots_per_leaf: int | None = None
    fine_chunks: int | None = None
    read_chunks: int | None = None
    quoted_tokens: int | None = None

    def settings(self, config: SharedConfig) -> SharedConfig:
        """`config` with these settings.

        Raises:
            UsageError: a value is out of range.
        """
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        if self.slots_per_leaf is not None:
            given["slots_per_leaf"] = min(self.slots_per_leaf, config.chunk_length)  # no leaf is longer
        return dataclasses.replace(config, **given)


AS_TRAINED = Resolution()
