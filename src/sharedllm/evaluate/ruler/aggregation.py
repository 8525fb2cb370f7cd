"""RULER's aggregation: the most common words of a list, and the most frequent words of a coded text."""

from __future__ import annotations

import math
import string
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from sharedllm.evaluate.ruler.corpus import Corpus
from sharedllm.evaluate.ruler.wording import COMMON_WORDS, FREQUENT_WORDS, Sample, Wording

SHORT = 4096  # below it, words are repeated less often
ANSWER = 50  # tokens kept free for the answer on frequent words


@dataclass(frozen=True)
class CommonWords:
    """Makes lists with `common` words repeated often, the others seldom, and a worked example before.

    A sample's size is the number of different words.
    """

    common: int = 10
    often: int = 30
    seldom: int = 3
    needs: ClassVar[tuple[str, ...]] = ("words",)
    wording: ClassVar[Wording] = COMMON_WORDS

    @property
    def least(self) -> int:
        return self.common + 1

    def make(self, size: int, length: int, index: int, random: Random, corpus: Corpus) -> Sample:
        short = length < SHORT
        listed, common = self._list(*((20, 3, 1) if short else (40, 10, 3)), random, corpus)
        solved = f"{self.wording.whole(listed)} {_numbered(common)}\n"
        listed, common = self._list(size, *((6, 1) if short else (self.often, self.seldom)), random, corpus)
        return self.wording.worded(listed, common, example=solved)

    def _list(self, size: int, often: int, seldom: int, random: Random, corpus: Corpus) -> tuple[str, list[str]]:
        words = corpus.different_words(size, random)
        common = words[: self.common]
        listed = common * often + words[self.common :] * seldom
        random.shuffle(listed)
        return _numbered(listed), common


def _numbered(words: list[str]) -> str:
    return " ".join(f"{i}. {word}" for i, word in enumerate(words, 1))


@dataclass(frozen=True)
class FrequentWords:
    """Makes texts of coded words whose counts fall with the square of their rank; the first is noise.

    A sample's size is the number of words that the zeta distribution is laid out for; counts are rounded down.
    """

    letters: int = 6
    least: int = 100
    """From here on the fourth word is more frequent than the fifth."""
    needs: ClassVar[tuple[str, ...]] = ()
    wording: ClassVar[Wording] = FREQUENT_WORDS

    def make(self, size: int, length: int, index: int, random: Random, corpus: Corpus) -> Sample:
        words: dict[str, None] = {}
        while len(words) < max(5, (length - ANSWER) // 50):
            words["".join(random.choices(string.ascii_lowercase, k=self.letters))] = None
        ranked = ["...", *list(words)[1:]]
        zeta = math.pi**2 / 6  # of 2, the distribution's exponent
        text = [word for k, word in enumerate(ranked, 1) for _ in range(int(size / k**2 / zeta))]
        random.shuffle(text)
        return self.wording.worded(" ".join(text), ranked[1:4])
