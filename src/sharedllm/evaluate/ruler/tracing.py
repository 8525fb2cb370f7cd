"""RULER's variable tracking: a variable gets a value, others get it from one another, all hidden in noise."""

from __future__ import annotations

import string
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from sharedllm.evaluate.ruler.corpus import NOISE, Corpus
from sharedllm.evaluate.ruler.wording import TRACING, Sample, Wording


@dataclass(frozen=True)
class Tracing:
    """Makes samples with one chain of `hops` assignments after the first, and a worked example before.

    A sample's size is the number of lines of noise.
    """

    hops: int = 4
    needs: ClassVar[tuple[str, ...]] = ()
    wording: ClassVar[Wording] = TRACING
    example_lines: ClassVar[int] = 12
    """Lines of noise in the worked example: RULER fills 500 tokens, which is as many with usual tokenizers."""

    @property
    def least(self) -> int:
        return self.hops + 1

    def make(self, size: int, length: int, index: int, random: Random, corpus: Corpus) -> Sample:
        context, value, names = self._text(min(size, self.example_lines), 3, random)
        solved = f"{self.wording.whole(context, query=value, count=len(names))} {' '.join(names)}\n\n"
        context, value, names = self._text(size, 5, random)
        return self.wording.worded(context, names, example=solved, query=value, count=len(names))

    def _text(self, size: int, letters: int, random: Random) -> tuple[str, str, list[str]]:
        """Noise with a chain in it, the value, and the names of all variables that have it."""
        names: dict[str, None] = {}
        while len(names) <= self.hops:
            names["".join(random.choices(string.ascii_uppercase, k=letters))] = None
        chain, value = list(names), str(random.randrange(10_000, 99_999))
        said = [f"VAR {chain[0]} = {value}"]
        said += [f"VAR {name} = VAR {before} " for before, name in zip(chain, chain[1:], strict=False)]
        lines, places = [NOISE] * size, sorted(random.sample(range(size), len(said)))
        for already, (place, line) in enumerate(zip(places, said, strict=True)):
            lines.insert(place + already, line)
        return "\n".join(lines), value, chain
