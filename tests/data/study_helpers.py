"""An author that needs no model, and a small plan."""

from __future__ import annotations

import re
from typing import Any

from sharedllm.data.study_author import Pair, Writing
from sharedllm.data.study_build import Plan

PLAN = Plan(6, per_passage=2, passage_tokens=64, neighbours=2, least_tokens=200)


class MadeUp:
    """Asks for the colour of the first item of a passage, the second time without a question mark."""

    def __init__(self, tokenizer: Any, stop_after: int = 10**9) -> None:
        self.tokenizer, self.writing, self.left, self.seeds = tokenizer, Writing(), stop_after, []

    def write(self, passages, kinds, seed):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.seeds.append(seed)
        return [
            [self._pair(ids, kind, n) for n, (kind, _) in enumerate(told)]
            for ids, told in zip(passages, kinds, strict=True)
        ]

    def _pair(self, ids, kind, n):
        found = re.search(r"item (\d+) is (?=.)", self.tokenizer.decode(ids.tolist()))
        answer = f"The item {found[1]}, of line {found[1]}, is blue or of another colour."
        return Pair(
            kind,
            f"What is the colour of item {found[1]}{'?' if n == 0 else ''}",
            answer,
            self.tokenizer(answer).input_ids,
        )
