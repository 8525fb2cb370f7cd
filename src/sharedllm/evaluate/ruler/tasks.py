"""The thirteen tasks of RULER, with its parameters: https://github.com/NVIDIA/RULER."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

from sharedllm.evaluate.ruler.aggregation import CommonWords, FrequentWords
from sharedllm.evaluate.ruler.corpus import Corpus
from sharedllm.evaluate.ruler.niah import Needles
from sharedllm.evaluate.ruler.qa import Documents
from sharedllm.evaluate.ruler.scoring import match_all, match_part
from sharedllm.evaluate.ruler.tracing import Tracing
from sharedllm.evaluate.ruler.wording import Sample, Wording


class Maker(Protocol):
    """Makes the samples of a task."""

    @property
    def wording(self) -> Wording: ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Parts of a `Corpus` that samples are made of, by the names of its properties."""

    @property
    def least(self) -> int:
        """The smallest size a sample may have."""

    def make(self, size: int, length: int, index: int, random: Random, corpus: Corpus) -> Sample:
        """Sample number `index`, meant for `length` tokens; what `size` counts is the maker's own."""


@dataclass(frozen=True)
class Task:
    """A task of RULER: how its samples are made, how long an answer may be, what an answer is worth."""

    maker: Maker
    max_new_tokens: int
    score: Callable[[str, Sequence[str]], float] = match_all


TASKS = {
    "niah_single_1": Task(Needles("noise"), 128),
    "niah_single_2": Task(Needles("prose"), 128),
    "niah_single_3": Task(Needles("prose", value="uuids"), 128),
    "niah_multikey_1": Task(Needles("prose", keys=4), 128),
    "niah_multikey_2": Task(Needles("needles"), 128),
    "niah_multikey_3": Task(Needles("needles", key="uuids", value="uuids"), 128),
    "niah_multivalue": Task(Needles("prose", values=4), 128),
    "niah_multiquery": Task(Needles("prose", keys=4, queries=4), 128),
    "vt": Task(Tracing(), 30),
    "cwe": Task(CommonWords(), 120),
    "fwe": Task(FrequentWords(), 50),
    "qa_1": Task(Documents("squad"), 32, match_part),
    "qa_2": Task(Documents("hotpotqa"), 32, match_part),
}
