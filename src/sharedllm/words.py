"""How many of a question's words stand in each part of a text, and how rare they are there: Okapi BM25 over token ids.

Nearness of meaning passes over a name that is met once; words do not (docs/LOG.md). The score is that of Robertson and
Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009), with k1 = 1.2 and b = 0.75; a part is a finest span
of a tree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sharedllm.tree import placed

SATURATION, BY_LENGTH = 1.2, 0.75  # k1 and b


def lengthened(sizes: Tensor) -> Tensor:
    """What the lengths of parts in tokens, [N], do to the weight of a word in them."""
    return 1 - BY_LENGTH + BY_LENGTH * sizes / sizes.float().mean().clamp(min=1)


def term(counts: Tensor, long: Tensor) -> Tensor:
    """What one word adds to the score of each part, [N].

    Args:
        counts: [N], how often it stands there.
        long: [N], as `lengthened` says.
    """
    held = int((counts > 0).sum())
    rare = torch.tensor((len(counts) - held + 0.5) / (held + 0.5)).log1p()
    return rare * counts * (SATURATION + 1) / (counts + SATURATION * long)


@dataclass(frozen=True)
class Words:
    """A text and a question, as token ids.

    text: [n], of all chunks in order; asking: [Q], of the tokens that ask.
    """

    text: Tensor
    asking: Tensor

    def shares(self, lengths_X: Sequence[Tensor], borders_XF: Sequence[Tensor]) -> list[Tensor]:
        """BM25 of every finest span as a share of the best one's, [X, F] a block; all 0 where no word of the question is met.

        Args:
            lengths_X, borders_XF: tokens of the chunks, and borders of their finest spans [X, F + 1], a tensor a block.
        """
        text, (starts, ends) = self.text.cpu(), placed(lengths_X, borders_XF).T.contiguous()
        sizes = ends - starts
        scores, long = torch.zeros(len(ends)), lengthened(sizes)
        for token in self.asking.unique().tolist():
            at = (text == token).nonzero().flatten()
            counts = torch.bincount(torch.searchsorted(ends, at, right=True), minlength=len(ends))[: len(ends)]
            scores += term(counts, long)
        scores /= scores.max().clamp(min=torch.finfo(torch.float32).tiny)
        sizes_XF = [borders.shape[0] * (borders.shape[1] - 1) for borders in borders_XF]
        parts = zip(scores.split(sizes_XF), borders_XF, strict=True)
        return [part.view(borders.shape[0], -1).to(borders.device) for part, borders in parts]
