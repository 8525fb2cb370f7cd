"""All kinds of synthetic retrieval in one context: facts to copy, keys of a table, several hops, counts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sharedllm.data.counts import draw_counts
from sharedllm.data.hops import draw_hops
from sharedllm.data.needles import Needle, draw_needles
from sharedllm.data.pairs import draw_pairs

DRAWS: tuple[Callable[[np.random.Generator, int], list[Needle]], ...] = (
    draw_pairs, draw_hops, draw_counts, draw_needles,
)  # fmt: skip


def draw_facts(
    random: np.random.Generator, count: int, pairs: float = 0.0, hops: float = 0.0, counts: float = 0.0
) -> list[Needle]:
    """`count` facts for training to hide in one context, none with a second answer.

    Each kind has subjects of its own, so that no kind answers another's question.

    Args:
        pairs: share that are keys of a table; `hops`: that follow from several statements; `counts`: that are to be
            counted. The rest are needles.
    """
    shares = [pairs, hops, counts, max(0.0, 1 - pairs - hops - counts)]
    kinds = random.choice(len(DRAWS), size=count, p=shares)
    return [fact for i, draw in enumerate(DRAWS) for fact in draw(random, int((kinds == i).sum()))]
