"""All kinds of synthetic retrieval in one context: facts to copy, keys of a table, several hops, counts."""

from __future__ import annotations

import numpy as np

from sharedllm.data.counts import draw_counts
from sharedllm.data.hops import draw_hops
from sharedllm.data.needles import DISTRACTED, Needle, draw_needles
from sharedllm.data.pairs import draw_pairs


def draw_facts(
    random: np.random.Generator,
    count: int,
    pairs: float = 0.0,
    hops: float = 0.0,
    counts: float = 0.0,
    distracted: float = DISTRACTED,
    wordings: int | None = None,
) -> list[Needle]:
    """`count` facts for training to hide in one context, none with a second answer.

    Each kind has subjects of its own, so that no kind answers another's question.

    Args:
        pairs: share that are keys of a table; `hops`: that follow from several statements; `counts`: that are to be
            counted. The rest are needles.
        wordings: of needles, how many are drawn from; None: all.
        distracted: share of all but those in tables, which have other keys beside them, that come with a statement like theirs.
    """
    shares = [pairs, hops, counts, max(0.0, 1 - pairs - hops - counts)]
    kinds = random.choice(len(shares), size=count, p=shares)
    drawn = [int((kinds == i).sum()) for i in range(len(shares))]
    return [
        *draw_pairs(random, drawn[0]),
        *draw_hops(random, drawn[1], distracted),
        *draw_counts(random, drawn[2], distracted),
        *draw_needles(random, drawn[3], distracted, wordings),
    ]
