"""What the user asked `sharedllm eval` for, and what the benchmarks make of it before they run, each made once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sharedllm.cli import common

if TYPE_CHECKING:
    from torch import Tensor

    from sharedllm.data.needles import Needle
    from sharedllm.evaluate.asking import Text
    from sharedllm.evaluate.examples import Dataset
    from sharedllm.evaluate.needle import Haystack
    from sharedllm.evaluate.perplexity import Passage
    from sharedllm.evaluate.real import RealSet
    from sharedllm.evaluate.results import Results
    from sharedllm.evaluate.ruler.corpus import Corpus
    from sharedllm.evaluate.ruler.run import Plan
    from sharedllm.methods import Method
    from sharedllm.model import SharedLLM
    from sharedllm.sources import Document

NEW_TOKENS = 32  # of an answer, in the benchmarks of one's own texts


@dataclass(frozen=True)
class Request:
    """What the user asked for, checked, with model and methods loaded."""

    task: str
    llm: SharedLLM
    methods: Sequence[Method]
    documents: Sequence[Document]
    data: Path | None
    subtasks: Sequence[str]
    lengths: Sequence[int]
    samples: int
    stride: int | None
    """Tokens between passages that slide over whole texts; None: `samples` of them are taken."""
    targets: int
    per_text: int
    max_new_tokens: int | None
    """None: as many as the benchmark allows."""
    variant: str
    ceiling: bool
    seed: int
    results: Results
    free: float
    """Memory that a method can take, in bytes."""

    @property
    def new_tokens(self) -> int:
        """Of an answer at most, where the benchmark allows any number."""
        return self.max_new_tokens or NEW_TOKENS

    @property
    def scored(self) -> int:
        """How many of a passage's last tokens perplexity scores: the shortest leaves a token before them."""
        return min(self.targets, min(self.lengths) - 1)

    @property
    def windows(self) -> dict[str, int]:
        """What each method sees itself; with perplexity at the longest length, and what is scored at least."""
        from sharedllm.evaluate.perplexity import window_of

        told = {method.name: method.window for method in self.methods}
        seen = {method.name: window_of(method, max(self.lengths), self.scored) for method in self.methods}
        return seen if self.task == "perplexity" else told

    @cached_property
    def texts(self) -> list[tuple[str, Tensor]]:
        """Name and token ids [n] of each document."""
        return [(Path(d.name).name, self.llm.reader.token_ids(d.text).long()) for d in self.documents]

    @cached_property
    def passages(self) -> list[Passage]:
        """The passages that perplexity scores: those of the longest length, whose ends are those of the shorter ones."""
        from sharedllm.evaluate.perplexity import cut_passages, scored_tokens, slide_passages

        longest = max(self.lengths)
        cut_passages(self.texts, min(self.lengths), 1)  # too short a length is refused
        if self.stride:
            passages = slide_passages(self.texts, longest, self.stride)
            scored = scored_tokens(passages, self.scored)
            all_of_them = sum(len(ids) for _, ids in self.texts)
            common.say(
                f"{len(passages):,} passages of {longest:,} tokens, one every {self.stride:,}: "
                f"{scored:,} of {all_of_them:,} tokens are scored"
            )
        else:
            passages = cut_passages(self.texts, longest, self.samples, self.targets)
        self._say_left_out([longest])
        if not self.stride and len(passages) < self.samples:
            common.say(
                f"the texts have room for {len(passages)} passages whose scored tokens differ, not {self.samples}"
            )
        return passages

    @cached_property
    def haystacks(self) -> list[list[Haystack]]:
        """Those of every length; every length is checked before the first is run."""
        from sharedllm.evaluate.asking import tokens_beside
        from sharedllm.evaluate.needle import build_haystacks
        from sharedllm.prompts import Prompt

        def encode(statement: str) -> Tensor:
            return self.llm.reader.token_ids(statement).long()

        def beside(needle: Needle) -> int:
            return tokens_beside(Prompt(self.llm.tokenizer, needle.question), self.new_tokens)

        made = [
            build_haystacks(self.texts, n, self.samples, self.per_text, self.seed, encode, beside) for n in self.lengths
        ]
        self._say_left_out(self.lengths)
        return made

    @cached_property
    def examined(self) -> list[list[Text]]:
        """Passages with questions drawn from them, of every length; every length is checked before the first is run."""
        from sharedllm.evaluate.questions import examine

        made = [
            examine(self.texts, n, self.samples, self.per_text, self.llm.tokenizer, self.new_tokens)
            for n in self.lengths
        ]
        self._say_left_out(self.lengths)
        return made

    @cached_property
    def corpus(self) -> Corpus:
        """What RULER's samples are made of."""
        from sharedllm.evaluate.ruler.corpus import Corpus

        return Corpus([document.text for document in self.documents], self.data)

    @cached_property
    def ruler_plan(self) -> Plan:
        """RULER's tasks that can be asked, by length."""
        from sharedllm.evaluate.ruler.run import plan

        return plan(self.llm, self.subtasks, self.lengths, self.samples, self.seed, self.corpus, common.say)

    @cached_property
    def datasets(self) -> list[Dataset]:
        """LongBench's or InfiniteBench's, `samples` examples of each."""
        from sharedllm.evaluate import infinitebench, longbench

        assert self.data is not None  # the command asks for it
        if self.task == "longbench":
            found = longbench.datasets(self.data, self.subtasks, self.variant)
        else:
            found = infinitebench.datasets(self.data, self.subtasks)
        chosen = [dataset.spread(self.samples) for dataset in found]
        for dataset in chosen:
            common.say(f"{dataset.task.name}: {len(dataset.examples):,} of {dataset.of:,} examples")
        return chosen

    @cached_property
    def written(self) -> RealSet:
        """The text that ships, with `samples` of its questions."""
        from sharedllm.evaluate import real

        chosen = real.load().spread(self.samples)
        common.say(f"real: {len(chosen.questions):,} of {chosen.of:,} questions")
        return chosen

    def _say_left_out(self, lengths: Sequence[int]) -> None:
        from sharedllm.evaluate.perplexity import left_out

        for line in left_out(self.texts, lengths):
            common.say(line)
