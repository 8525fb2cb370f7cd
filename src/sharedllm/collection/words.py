"""How many of a question's words stand in each chunk of a collection, and how rare they are there (`sharedllm.words`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sharedllm.collection.sketch import Sketch
from sharedllm.words import lengthened, term


class Postings:
    """Where each token of a collection stands: built from the sketches, once."""

    def __init__(self, sketches: Sequence[Sketch]) -> None:
        self._chunks = [sketch.chunks for sketch in sketches]
        starts = torch.tensor([0, *self._chunks]).cumsum(0)
        token = torch.cat([sketch.token for sketch in sketches])
        chunk = torch.cat([sketch.chunk + start for sketch, start in zip(sketches, starts.tolist(), strict=False)])
        count = torch.cat([sketch.count for sketch in sketches])
        self._long = lengthened(torch.zeros(int(starts[-1])).index_add_(0, chunk, count.float()))
        order = token.argsort(stable=True)
        self._token, self._chunk, self._count = token[order], chunk[order], count[order].float()

    def shares(self, asking: Tensor) -> list[Tensor]:
        """BM25 of every chunk as a share of the best one's, [chunks] a document; all 0 where no word of the question is met.

        Args:
            asking: [Q], ids of the tokens that ask.
        """
        scores = torch.zeros_like(self._long)
        for token in asking.cpu().to(torch.int32).unique():
            held = slice(*torch.searchsorted(self._token, torch.stack([token, token + 1])).tolist())
            counts = torch.zeros_like(self._long).index_add_(0, self._chunk[held], self._count[held])
            scores += term(counts, self._long)
        scores /= scores.max().clamp(min=torch.finfo(torch.float32).tiny)
        return list(scores.split(self._chunks))
