"""How RULER words its tasks, and how a worded sample is taken apart into the context and what is asked of it.

The wording is that of https://github.com/NVIDIA/RULER (arXiv 2404.06654), letter by letter, since scores depend on it.
Everything before the last question is context: instructions and a worked example too, where a task has them. So the
samples made here and those of RULER's own files are asked in the same way, and a method that reads the context apart
is asked with the question alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Sample:
    """A sample of a task: rendered as `context + between + question`, then `answer_prefix` begins the answer."""

    context: str
    between: str
    """White space."""
    question: str
    answer_prefix: str
    asks: str
    """The part of the question that says what is looked for."""
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Wording:
    """How a task is worded; `{fields}` are filled in."""

    before: str
    after: str
    """The question, with the white space between the context and it."""
    answer_prefix: str
    opening: str
    """How the question begins, whatever the fields are."""
    asks: str
    """A regular expression; what its group matches in the question says what is looked for."""

    def whole(self, context: str, **fields: Any) -> str:
        """The prompt with its answer prefix."""
        return self._input(context, fields) + self.answer_prefix.format(**fields)

    def worded(self, context: str, outputs: Sequence[str], example: str = "", **fields: Any) -> Sample:
        """A sample; a worked `example` stands before everything else."""
        return self.parted(example + self._input(context, fields), outputs, self.answer_prefix.format(**fields))

    def parted(self, text: str, outputs: Sequence[str], answer_prefix: str) -> Sample:
        """A sample from a whole prompt.

        Raises:
            ValueError: there is no question of this wording in it.
        """
        at = text.rindex(self.opening)
        context, question = text[:at].rstrip(), text[at:].strip()
        found = re.search(self.asks, question)
        asks = found[1] if found else question
        return Sample(context, text[len(context) : at], question, answer_prefix, asks, tuple(outputs))

    def _input(self, context: str, fields: dict[str, Any]) -> str:
        return self.before.format(**fields) + context + self.after.format(**fields)


NEEDLE = "One of the special magic {kind} for {key} is: {value}."

ONE_NEEDLE = Wording(
    before=(
        "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the {kind} afterwards.\n"
    ),
    after="\nWhat is the special magic {kind} for {query} mentioned in the provided text?",
    answer_prefix=" The special magic {kind} for {query} mentioned in the provided text is",
    opening="What is the special magic",
    asks=r"(special magic .+) mentioned in",
)
NEEDLES = Wording(
    before=(
        "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
        "I will quiz you about the {kind} afterwards.\n"
    ),
    after="\nWhat are all the special magic {kind} for {query} mentioned in the provided text?",
    answer_prefix=" The special magic {kind} for {query} mentioned in the provided text are",
    opening="What are all the special magic",
    asks=r"(special magic .+) mentioned in",
)
TRACING = Wording(
    before="Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n",
    after="\nQuestion: Find all variables that are assigned the value {query} in the text above.",
    answer_prefix=(
        " Answer: According to the chain(s) of variable assignment in the text above, "
        "{count} variables are assigned the value {query}, they are: "
    ),
    opening="Question: Find all variables",
    asks=r"(variables that are assigned the value \S+)",
)
COMMON_WORDS = Wording(
    before=(
        "Below is a numbered list of words. In these words, some appear more often than others. "
        "Memorize the ones that appear most often.\n"
    ),
    after="\nQuestion: What are the 10 most common words in the above list?",
    answer_prefix=" Answer: The top 10 words that appear most often in the list are:",
    opening="Question: What are the 10 most common words",
    asks=r"(What are .+\?)",
)
FREQUENT_WORDS = Wording(
    before=(
        "Read the following coded text and track the frequency of each coded word. "
        "Find the three most frequently appeared coded words. "
    ),
    after=(
        "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. "
        "What are the three most frequently appeared words in the above coded text?"
    ),
    answer_prefix=" Answer: According to the coded text above, the three most frequently appeared words are:",
    opening="Question: Do not provide any explanation.",
    asks=r"(What are .+\?)",
)
_DOCUMENTS = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)
DOCUMENTS = Wording(
    before=f"{_DOCUMENTS}\n\nThe following are given documents.\n\n",
    after=f"\n\n{_DOCUMENTS}\n\nQuestion: {{query}}",
    answer_prefix=" Answer:",
    opening=_DOCUMENTS,
    asks=r"(?s)Question: (.+)",
)
