"""Questions written by hand about a real text that ships, so that something real is measured without a download.

The text is parts of the Jargon File (public domain), 34 thousand tokens. `questions.yaml` has each question, its right answers,
and the words of the text that hold them.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from sharedllm.errors import WorkError
from sharedllm.evaluate.asking import Asked, Examination, Question, Text, ask_methods
from sharedllm.evaluate.examples import evenly
from sharedllm.evaluate.needle import how_many_found, is_found
from sharedllm.evaluate.results import Results
from sharedllm.methods import Method
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Written:
    """A question written by hand: any of `answers` is right, and `where` are words of the text that hold one."""

    ask: str
    answers: tuple[str, ...]
    where: str

    def place(self, text: str) -> tuple[int, int]:
        """First and last character of `where`, whatever the white space between its words.

        Raises:
            ValueError: it does not stand there exactly once.
        """
        found = list(re.finditer(r"\s+".join(map(re.escape, self.where.split())), text))
        if len(found) != 1:
            raise ValueError(f"{self.where!r} stands {len(found)} times in the text; it must stand there once.")
        return found[0].span()

    def score(self, answer: str) -> float:
        return float(any(is_found(right, answer) for right in self.answers))


@dataclass(frozen=True)
class RealSet:
    """The text, what it is called, and its questions in the order in which it answers them, or some of them."""

    name: str
    text: str
    questions: Sequence[Written]
    of: int = 0
    """How many there are where these are some; 0: these."""

    def spread(self, samples: int) -> RealSet:
        """At most `samples` of the questions, evenly spread over all."""
        return replace(self, questions=evenly(self.questions, samples), of=self.of or len(self.questions))


def load() -> RealSet:
    """The set that ships.

    Raises:
        WorkError: its text is not the one the questions were written for.
    """
    about: dict[str, Any] = yaml.safe_load((FOLDER / "questions.yaml").read_text(encoding="utf-8"))
    text = (FOLDER / about["text"]).read_text(encoding="utf-8")
    if hashlib.sha256(text.encode()).hexdigest() != about["sha256"]:
        raise WorkError(
            f"{FOLDER / about['text']} is not the text its questions were written for; install sharedllm again."
        )
    written = [Written(q["ask"], tuple(map(str, q["answers"])), q["where"]) for q in about["questions"]]
    return RealSet(about["name"], text, sorted(written, key=lambda question: question.place(text)))


def as_text(llm: SharedLLM, real: RealSet, max_new_tokens: int) -> Text:
    """The text with its questions, each of which says where its answer stands; 1 for a right answer and 0 for others."""
    questions, tokens, read = [], 0, 0
    for written in real.questions:
        first, last = written.place(real.text)
        tokens, read = tokens + len(llm.reader.token_ids(real.text[read:first])), first
        held = len(llm.reader.token_ids(real.text[first:last]))
        prompt = Prompt(llm.tokenizer, written.ask)
        questions.append(Question(prompt, written.score, max_new_tokens, written.answers, tokens, held))
    return Text(real.name, llm.reader.token_ids(real.text).long(), questions)


def run(
    llm: SharedLLM,
    methods: Sequence[Method],
    real: RealSet,
    max_new_tokens: int,
    seed: int,
    progress: Callable[[str], None],
    ceiling: bool = False,
    results: Results | None = None,
    free: float = math.inf,
) -> Iterator[dict[str, Any]]:
    """Ask all questions of the whole text by all methods; yields a row a method.

    A row says what `asking.row` says; its `value` is the share of answers that have a right one in them. `questions` and
    `expected` have an entry a question, `samples_of` is how many questions there are.

    Args:
        ceiling: also ask the plain model shown only the tokens around the answer; a row of method `passage`.
        results: what is known already is taken from there.
        free: memory that can be taken, in bytes; a method that needs more gives a row without a value.
    """
    text = as_text(llm, real, max_new_tokens)

    def more(asked: Asked) -> dict[str, Any]:
        return {
            "samples_of": real.of or len(real.questions),
            "questions": [q.ask for q in real.questions],
            "expected": [list(q.answers) for q in real.questions],
        }

    examination = Examination("real", "answered", len(text.ids), [text], more, summary=how_many_found)
    return ask_methods(llm, methods, examination, seed, progress, results or Results(), ceiling, free)
