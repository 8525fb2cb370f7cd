"""How finely one question reads a context, from what is stored anyway.

Chunks, trees and what is stored of them were settled when a text was read. How many slots a leaf gives, how many chunks
are taken in and how many of those whole may differ from question to question.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sharedllm.config import SharedConfig
from sharedllm.encoder import Encoded
from sharedllm.errors import UsageError
from sharedllm.tree import candidate_tokens


@dataclass(frozen=True)
class Resolution:
    """Settings of one question, by the names they have in `SharedConfig`; None: as the adapter was trained."""

    slots_per_leaf: int | None = None
    fine_chunks: int | None = None
    read_chunks: int | None = None
    quoted_tokens: int | None = None

    def settings(self, config: SharedConfig, blocks: Sequence[Encoded]) -> SharedConfig:
        """`config` with these settings, for a question about some stored chunks.

        Raises:
            UsageError: a value is out of range, or the chunks do not keep the tokens it needs.
        """
        given = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        changed = dataclasses.replace(config, **given)
        if any(name in given for name in STORED):
            for block in blocks:
                _check_stored(block, changed, given)
        return changed


STORED = ("fine_chunks", "slots_per_leaf")
"""What a context must store enough tokens for."""
AS_TRAINED = Resolution()


def _check_stored(block: Encoded, config: SharedConfig, given: dict[str, int]) -> None:
    n = int(block.lengths.max())
    needed = torch.arange(n) if config.fine_chunks else candidate_tokens(n, config.tree_depth, config.slots_per_leaf)
    if not torch.isin(needed.to(block.tokens.device), block.tokens[0]).all():
        asked = " and ".join(f"{name} {value}" for name, value in given.items() if name in STORED)
        raise UsageError(
            f"the context does not keep the tokens that {asked} needs; encode the text with an adapter whose fine_chunks is "
            "at least 1, which keeps every token, or leave the setting out."
        )
