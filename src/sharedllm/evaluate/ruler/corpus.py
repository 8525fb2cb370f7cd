"""What RULER's samples are made of: a user's text or the one that ships, English words, and questions on documents."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

from sharedllm.errors import UsageError
from sharedllm.evaluate import real

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
FILES = {"squad": ("squad.json", "dev-v2.0.json"), "hotpotqa": ("hotpotqa.json", "hotpot_dev_distractor_v1.json")}
"""Names that the files of documents may have: RULER's, and the one under which they are published."""


@dataclass(frozen=True)
class Asked:
    """A question, its right answers, the documents that answer it, and others near it, by their number."""

    question: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]
    near: tuple[int, ...]


@dataclass(frozen=True)
class Library:
    """Documents and what is asked of them."""

    documents: list[str]
    asked: list[Asked]


class Corpus:
    """What samples are made of; each part is read when it is first needed.

    Args:
        texts: any text, for the tasks that hide needles in prose; none: the text of the benchmark `real`.
        data: a folder with SQuAD's and HotpotQA's files, for the tasks that ask about documents.
    """

    def __init__(self, texts: Sequence[str] = (), data: Path | None = None) -> None:
        self.texts, self.data = texts, data

    @cached_property
    def prose(self) -> list[str]:
        """The words of the texts, in order.

        Raises:
            UsageError: there are none.
        """
        words = " ".join(self.texts or [real.load().text]).split()
        if not words:
            raise UsageError("this task hides its needles in prose; name a text that has words with --text.")
        return words

    @property
    def prose_from(self) -> str:
        """Where the prose is from: `given`, or the name of the text that ships."""
        return "given" if self.texts else real.load().name

    def sentences(self, words: int) -> list[str]:
        """Sentences with so many words of the prose in all, which begins again where it ends."""
        prose = self.prose * -(-words // len(self.prose))
        return re.split(r"(?<=[.!?]) ", " ".join(prose[:words]))

    @cached_property
    def words(self) -> tuple[list[str], list[str], list[str]]:
        """Adjectives, nouns and verbs, each sorted.

        Raises:
            UsageError: the package that has them is not installed.
        """
        try:
            from wonderwords import Defaults, RandomWord
        except ImportError as error:
            raise UsageError(
                "this task is made of English words; install the package that has them with: pip install wonderwords"
            ) from error
        kinds = (Defaults.ADJECTIVES, Defaults.NOUNS, Defaults.VERBS)
        adjectives, nouns, verbs = (sorted(set(RandomWord(words=kind).filter())) for kind in kinds)
        return adjectives, nouns, verbs

    def key(self, random: Random) -> str:
        """An adjective and a noun, joined by a hyphen."""
        adjectives, nouns, _ = self.words
        return f"{random.choice(adjectives)}-{random.choice(nouns)}"

    def different_words(self, count: int, random: Random) -> list[str]:
        """`count` different words; where there are not so many, pairs of them."""
        adjectives, nouns, verbs = self.words
        words = sorted({*adjectives, *nouns, *verbs})
        if count <= len(words):
            return random.sample(words, count)
        pairs = random.sample(range(len(adjectives) * len(nouns)), count - len(words))
        words += [f"{adjectives[pair // len(nouns)]}-{nouns[pair % len(nouns)]}" for pair in pairs]
        return random.sample(list(dict.fromkeys(words)), count)

    def lacks(self, needs: Sequence[str]) -> str | None:
        """Why the first of these parts, named as the properties here are, cannot be had; None where all can."""
        try:
            for need in needs:
                getattr(self, need)
        except UsageError as error:
            return str(error)
        return None

    @cached_property
    def squad(self) -> Library:
        """Paragraphs of SQuAD 2.0 (arXiv 1806.03822), its answerable questions; near are those of the same article."""
        articles = self._read("squad", lambda found: found["data"])
        documents = sorted({p["context"] for article in articles for p in article["paragraphs"]})
        number = {document: i for i, document in enumerate(documents)}
        asked = []
        for article in articles:
            same = [number[p["context"]] for p in article["paragraphs"]]
            for paragraph in article["paragraphs"]:
                own = number[paragraph["context"]]
                for question in paragraph["qas"]:
                    if not question.get("is_impossible"):
                        answers = tuple(dict.fromkeys(answer["text"] for answer in question["answers"]))
                        near = tuple(dict.fromkeys(i for i in same if i != own))
                        asked.append(Asked(question["question"], answers, (own,), near))
        return Library(documents, asked)

    @cached_property
    def hotpotqa(self) -> Library:
        """Paragraphs of HotpotQA (arXiv 1809.09600) with their titles, and its questions, ten paragraphs each."""
        rows = self._read("hotpotqa", list)
        named = [[f"{title}\n{''.join(sentences)}" for title, sentences in row["context"]] for row in rows]
        documents = sorted({document for own in named for document in own})
        number = {document: i for i, document in enumerate(documents)}
        asked = [
            Asked(row["question"], (row["answer"],), tuple(dict.fromkeys(number[d] for d in own)), ())
            for row, own in zip(rows, named, strict=True)
        ]
        return Library(documents, asked)

    def _read(self, name: str, rows: Any) -> list[dict[str, Any]]:
        file = next((self.data / file for file in FILES[name] if self.data and (self.data / file).is_file()), None)
        if file is None:
            raise UsageError(f"this task asks about documents; name a folder that has {FILES[name][0]} with --data.")
        try:
            return list(rows(json.loads(file.read_text(encoding="utf-8"))))
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{file} is not the file of {name} as it was published; get it again.") from error
