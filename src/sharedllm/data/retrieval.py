"""All kinds of synthetic retrieval in one context: facts to copy, keys of a table, several hops, counts."""

from __future__ import annotations

import numpy as np

from sharedllm.data.counts import draw_counts
from sharedllm.data.hops import draw_hops
from sharedllm.data.needles import Needle, draw_needles
from sharedllm.data.pairs import draw_pairs


def draw_facts(
    random: np.random.Generator, count: int, pairs: float = 0.0, hops: float = 0.0, counts: float = 0.0
) -> list[Needle]:
    """`count` facts for training to hide in one context, none with a second answer.

    Each kind has subjects of its own, so that no kind answers another's question.

    Args:
        pairs: share that are keys of a table; `hops`: that follow from several statements; `counts`: that are to be
            counted. The rest are needles.
    """
    kinds = random.choice(4, size=count, p=[pairs, hops, counts, max(0.0, 1 - pairs - hops - counts)])
    drawn = [int((kinds == kind).sum()) for kind in range(4)]
    return [
        fact
        for draw, number in zip((draw_pairs, draw_hops, draw_counts, draw_needles), drawn, strict=True)
        for fact in draw(random, number)
    ]
