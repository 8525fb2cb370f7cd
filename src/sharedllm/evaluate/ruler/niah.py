"""RULER's needles in a haystack: statements with keys and values hidden in noise, in prose, or among others like them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from random import Random

from sharedllm.evaluate.ruler import wording
from sharedllm.evaluate.ruler.corpus import NOISE, Corpus
from sharedllm.evaluate.ruler.wording import Sample

DEPTHS = [round(100 * i / 39) for i in range(40)]
"""Where needles may stand in prose, in percent of its sentences."""


@dataclass(frozen=True)
class Needles:
    """Makes samples with `keys` keys of `values` values each, `queries` of which are asked for.

    A sample's size is the number of lines of its haystack, or of words where it is prose.
    """

    haystack: str
    """`noise`, `prose` or `needles`."""
    key: str = "words"
    """`words` or `uuids`."""
    value: str = "numbers"
    """`numbers` or `uuids`."""
    keys: int = 1
    values: int = 1
    queries: int = 1

    @property
    def wording(self) -> wording.Wording:
        return wording.ONE_NEEDLE if self.values * self.queries == 1 else wording.NEEDLES

    @property
    def needs(self) -> tuple[str, ...]:
        return ("prose",) * (self.haystack == "prose") + ("words",) * (self.key == "words")

    @property
    def least(self) -> int:
        """The smallest size."""
        return 100 if self.haystack == "prose" else self.keys * self.values

    def make(self, size: int, length: int, index: int, random: Random, corpus: Corpus) -> Sample:
        keys: dict[str, list[str]] = {}
        while len(keys) < self.keys:
            keys[self._key(random, corpus)] = [self._value(random) for _ in range(self.values)]
        needles = [self._say(key, value) for key, values in keys.items() for value in values]
        random.shuffle(needles)
        asked = random.sample(list(keys), self.queries)
        context = self._hide(needles, size, keys, random, corpus)
        return self.wording.worded(
            context,
            [value for key in asked for value in keys[key]],
            kind=self.value[:-1] if self.wording is wording.ONE_NEEDLE else self.value,
            query=", ".join(asked[:-1]) + f", and {asked[-1]}" if len(asked) > 1 else asked[0],
        )

    def _hide(self, needles: list[str], size: int, keys: dict[str, list[str]], random: Random, corpus: Corpus) -> str:
        if self.haystack == "prose":
            sentences = corpus.sentences(size)
            places = [len(sentences) * depth // 100 for depth in random.sample(DEPTHS, len(needles))]
            return " ".join(_inserted(sentences, places, needles))
        if self.haystack == "noise":
            lines = [NOISE] * size
        else:
            lines = []
            while len(lines) < size:
                key = self._key(random, corpus)
                if key not in keys:  # or the question would have two answers
                    lines.append(self._say(key, self._value(random)))
        return "\n".join(_inserted(lines, random.sample(range(len(lines)), len(needles)), needles))

    def _say(self, key: str, value: str) -> str:
        return wording.NEEDLE.format(kind=self.value, key=key, value=value)

    def _key(self, random: Random, corpus: Corpus) -> str:
        return _uuid(random) if self.key == "uuids" else corpus.key(random)

    def _value(self, random: Random) -> str:
        return _uuid(random) if self.value == "uuids" else str(random.randint(1_000_000, 9_999_999))


def _uuid(random: Random) -> str:
    return str(uuid.UUID(int=random.getrandbits(128), version=4))


def _inserted(lines: list[str], places: list[int], needles: list[str]) -> list[str]:
    """The lines with a needle before each place; the needles keep their order."""
    made, at = [], 0
    for place, needle in zip(sorted(places), needles, strict=True):
        made += [*lines[at:place], needle]
        at = place
    return made + lines[at:]
