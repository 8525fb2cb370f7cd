"""What is made of token ids that several steps read, kept for the newest of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import numpy as np

Made = TypeVar("Made")


class Newest(Generic[Made]):
    """What `make` gives for token ids, made once as long as they are among the last `most` asked for."""

    def __init__(self, most: int, make: Callable[[np.ndarray], Made]) -> None:
        self.most, self.make = max(most, 1), make
        self._made: dict[bytes, Made] = {}

    def __len__(self) -> int:
        return len(self._made)

    def of(self, ids: np.ndarray) -> Made:
        key = ids.tobytes()
        if key not in self._made:
            while len(self._made) >= self.most:
                self._made.pop(next(iter(self._made)))
            self._made[key] = self.make(ids)
        return self._made[key]
