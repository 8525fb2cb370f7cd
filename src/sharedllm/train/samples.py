"""What a step trains on: chunks of one document as context, and windows that read them.

Samples are a function of (seed, step, part) alone, so that a run which goes on sees what it would have
seen. The chunks are encoded once and shared by all windows of the sample.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sharedllm.data.folder import Document, TokenFolder
from sharedllm.data.needles import Needle
from sharedllm.data.questions import find_questions
from sharedllm.data.retrieval import draw_facts
from sharedllm.data.study import Passage, Study
from sharedllm.errors import UsageError
from sharedllm.prompts import Prompt
from sharedllm.relevance import ASKING_TOKENS, going_on
from sharedllm.train.recipe import Recipe
from sharedllm.train.too_short import least_tokens, none_left

ASKED = NEEDLES, QUESTIONS = "needles", "questions"  # kinds of samples whose questions have a right answer
STUDY = "study"  # the kind whose questions have a teacher's
LONG, WARM = "long window", "warm window"
FEW = (2, 5)
"""Fewest and most wordings of a sample with few."""


@dataclass(frozen=True)
class Window:
    """Tokens [T] the upper model sees after `chunks` chunks of context; the last `targets` are predicted."""

    chunks: int
    ids: np.ndarray
    targets: int
    question: np.ndarray | None = None
    """[T], True at the tokens that ask; None where nothing does."""
    shown: np.ndarray | None = None
    """What a teacher reads, token by token; ends in the same targets. None: all of the window's chunks and the window."""
    quoted: bool = False
    """Whether the passages nearest to the question are to stand before it."""


def continued(chunks: int, ids: np.ndarray, before: int) -> Window:
    """A window [T] whose first `before` tokens are not predicted; the context is searched by the last of those."""
    return Window(chunks, ids, len(ids) - before, going_on(len(ids), before).numpy())


@dataclass(frozen=True)
class Sample:
    """A context and the windows that read it, searched as `search` says; `source` is the context's, by its name."""

    kind: str
    source: str
    context: np.ndarray
    windows: list[Window]
    search: str
    text: np.ndarray | None = None
    """The context and what follows it, up to where the last window of all steps that share it ends; None where windows ask."""

    @property
    def title(self) -> str:
        """What a sentence calls it, such as `needles of numpy`."""
        return f"{self.kind} of {self.source}"


class Sampler:
    """Draws samples from a token folder.

    Sources are drawn by their weight, a source's documents by their length, places evenly.

    Args:
        tokenizer: needed where the recipe asks for needles, questions or study.
        study: questions of the model's own; without one no sample is of that kind.
    Raises:
        UsageError: no document of the split is long enough, or none of the study's.
    """

    def __init__(
        self,
        folder: TokenFolder,
        recipe: Recipe,
        split: str = "train",
        tokenizer: Any = None,
        study: Study | None = None,
    ) -> None:
        self.folder, self.recipe, self.tokenizer = folder, recipe, tokenizer
        least = least_tokens(recipe)
        self.documents: Sequence[Document] = [d for d in folder.documents(split=split) if d.tokens >= least]
        if not self.documents:
            raise UsageError(none_left(recipe, split))
        self.shares = folder.shares(self.documents)
        self.studied = study
        self.passages = [] if study is None else self._passages(study)

    def draw(self, step: int, part: int = 0) -> Sample:
        """The sample of a step (and of a part of it, under accumulation).

        Under `recipe.reuse` the steps of a group share one context and divide its windows. Where these do not go round,
        every step draws a sample of the same kind for itself, from another place of the same document (or about another
        passage of the study), so that no kind is met less often than without reuse. Where that place answers no question,
        it has the group's sample.
        """
        reuse = self.recipe.reuse
        random = self._random(step // reuse, part)
        document = self.documents[int(random.choice(len(self.documents), p=self.shares))]
        sample = self._drawn(self._kind(random), document, random, reuse)
        if len(sample.windows) < reuse:
            again = self._drawn(sample.kind, document, self._random(step, part, reuse), 1)
            return again if again.kind == sample.kind else sample
        return replace(sample, windows=sample.windows[step % reuse :: reuse])

    def _random(self, *seed: int) -> np.random.Generator:
        return np.random.default_rng([self.recipe.seed, *seed])

    def _kind(self, random: np.random.Generator) -> str | None:
        """A kind drawn by the recipe's shares; None for a continuation."""
        needles, questions, study = self.recipe.needles, self.recipe.questions, self.recipe.study
        drawn = random.random() if needles or questions or study else 1.0
        if drawn < needles:
            return NEEDLES
        if drawn < needles + questions:
            return QUESTIONS
        if drawn < needles + questions + study and self.studied is not None:
            return STUDY
        return self._continuing(random)

    def _continuing(self, random: np.random.Generator) -> str | None:
        for kind, share in ((LONG, self.recipe.long_windows), (WARM, self.recipe.warm)):
            if share and random.random() < share:
                return kind
        return None

    def _drawn(self, kind: str | None, document: Document, random: np.random.Generator, times: int) -> Sample:
        """A sample with as many windows as `times` steps have."""
        if kind == NEEDLES:
            return self.retrieval(document, random, times)
        sample = None
        if kind == STUDY and self.studied is not None:
            sample = self.study(self.studied, random)
        elif kind == QUESTIONS:
            sample = self.questions(document, random, times)
        if sample is not None:
            if sample.windows:
                return sample
            kind = self._continuing(random)  # nothing is asked there
        if kind == LONG:
            return self.long_continuation(document, random)
        most = self.recipe.warm_tokens
        before = int(random.integers(min(ASKING_TOKENS, most), most + 1)) if kind == WARM else 0
        return self.continuation(document, random, times, before)

    def continuation(self, document: Document, random: np.random.Generator, times: int = 1, before: int = 0) -> Sample:
        """Windows that go on where the chunks they see end: one after the whole context, others after parts of it.

        No two start at the same place, so a context of fewer chunks than the recipe's windows gives fewer.

        Args:
            before: tokens a window begins with that are not predicted; the context is searched by them.
        """
        chunks, ids = self._cut(document, random)
        C, T = self.recipe.config.chunk_length, self.recipe.window_tokens
        seen = [chunks, *(1 + random.permutation(chunks - 1)[: self.recipe.windows * times - 1]).tolist()]
        context, text = ids[: chunks * C], ids[: chunks * C + before + T]
        if not before:
            windows = [Window(n, ids[n * C : n * C + T], T - 1) for n in seen]
            return Sample(document.kind, document.source, context, windows, "later", text)
        windows = [continued(n, ids[n * C : n * C + before + T], before) for n in seen]
        return Sample(WARM, document.source, context, windows, "continue", text)

    def long_continuation(self, document: Document, random: np.random.Generator) -> Sample:
        """One window of thousands of tokens, of which the second half is predicted.

        There a context is worth what its nearest chunks are: the newest one is thousands of tokens back.
        """
        C, T, chunks = self.recipe.config.chunk_length, self.recipe.long_window_tokens, self.recipe.context_chunks[0]
        tokens = min(document.tokens, chunks * C + T)
        start = int(random.integers(0, document.tokens - tokens + 1))
        ids = np.asarray(self.folder.tokens(document)[start : start + tokens], dtype=np.int64)
        window = ids[chunks * C :]
        windows = [continued(chunks, window, len(window) // 2)]
        return Sample(LONG, document.source, ids[: chunks * C], windows, "continue", ids)

    def retrieval(self, document: Document, random: np.random.Generator, times: int = 1) -> Sample:
        """Needles hidden in the text, and a question window for each; the answer is predicted."""
        chunks, ids = self._cut(document, random)
        recipe = self.recipe
        few = recipe.few_wordings > 0 and random.random() < recipe.few_wordings
        wordings = int(random.integers(FEW[0], FEW[1] + 1)) if few else None
        count, shares = recipe.needle_windows * times, (recipe.pairs, recipe.hops, recipe.counts)
        drawn = draw_facts(random, count, *shares, recipe.distracted, wordings)
        needles, said = self._fitting(drawn, chunks)
        hidden = [said[i] for i in random.permutation(len(said)).tolist()]
        room = chunks * self.recipe.config.chunk_length - sum(map(len, hidden))
        cuts = np.sort(random.integers(0, room + 1, size=len(hidden)))
        pieces, at = [], 0
        for cut, statement in zip(cuts.tolist(), hidden, strict=True):
            pieces += [ids[at:cut], statement]
            at = cut
        context = np.concatenate([*pieces, ids[at:room]])
        windows = []
        for needle in needles:
            opening = self._begun(needle.opening) if needle.opening else self._ids("")
            value = self._ended(self._ids(needle.answer) if needle.opening else self._begun(needle.answer))
            # Most windows are given how the answer begins and learn to copy; some learn to begin it as well.
            given = 0 if random.random() < self.recipe.whole_answers else len(opening)
            windows.append(self._asking(chunks, needle.question, np.concatenate([opening, value]), random, given))
        return Sample(NEEDLES, document.source, context, windows, "query")

    def _fitting(self, drawn: list[Needle], chunks: int) -> tuple[list[Needle], list[np.ndarray]]:
        """Those of some needles that fit the context together, and the token ids of what hides them.

        What is drawn varies in length: too much of it must not end a run, which would draw the same at every start.
        """
        needles: list[Needle] = []
        room = chunks * self.recipe.config.chunk_length
        said: dict[str, np.ndarray] = {}  # keys of one table share its text
        for needle in drawn:
            texts = dict.fromkeys(text for text in (*needle.statements, *needle.distractors) if text not in said)
            more = {text: self._ids(f"\n{text}\n") for text in texts}
            size = sum(map(len, more.values()))
            if size <= room:
                room -= size
                said |= more
                needles.append(needle)
        if not needles:
            raise UsageError(
                f"no needle fits {chunks} chunks of {self.recipe.config.chunk_length} tokens; raise context_chunks, or "
                "lower pairs, needle_windows and reuse."
            )
        return needles, list(said.values())

    def questions(self, document: Document, random: np.random.Generator, times: int = 1) -> Sample:
        """What functions do and terms mean, asked of a text that says so; no windows where it says nothing."""
        chunks, ids = self._cut(document, random)
        context = ids[: chunks * self.recipe.config.chunk_length]
        found = find_questions(self.tokenizer.decode(context.tolist()))
        order = random.permutation(len(found))[: self.recipe.question_windows * times]
        asked = [found[i] for i in sorted(order.tolist())]
        windows = [
            self._asking(chunks, question.text, self._ended(self._begun(question.answer)), random) for question in asked
        ]
        return Sample(QUESTIONS, document.source, context, windows, "query")

    def study(self, study: Study, random: np.random.Generator) -> Sample:
        """What the model asked itself about passages of this context; each is what a teacher is shown.

        One passage is drawn and a context that holds it at any place; its neighbours there are asked about as well. What is
        asked of two of them has two answers, and is left out; no windows where nothing else is asked.
        """
        C, (low, high) = self.recipe.config.chunk_length, self.recipe.context_chunks
        drawn = self.passages[int(random.integers(len(self.passages)))]
        document, P = drawn.document, study.passage_tokens
        chunks = int(random.integers(low, min(high, document.tokens // C) + 1))
        first, last = max(0, drawn.start + P - chunks * C), min(drawn.start, document.tokens - chunks * C)
        start = int(random.integers(first, last + 1))
        context = np.asarray(self.folder.tokens(document)[start : start + chunks * C], dtype=np.int64)
        there = range(start, start + chunks * C - P + 1)
        held = [p for p in self.passages if p.document == document and p.start in there]
        asked_of = Counter(question for p in held for question in {pair.question for pair in p.pairs})
        asked = [(p, pair) for p in held for pair in p.pairs if asked_of[pair.question] == 1]
        windows = []
        for i in sorted(random.permutation(len(asked))[: self.recipe.question_windows].tolist()):
            passage, pair = asked[i]
            answer = np.array(pair.answer_ids, dtype=np.int64)
            window = self._asking(chunks, pair.question, answer, random)
            text = torch.from_numpy(context[passage.start - start : passage.start - start + P])
            shown = np.array(Prompt(self.tokenizer, pair.question).with_text(text), dtype=np.int64)
            windows.append(replace(window, shown=np.concatenate([shown, answer])))
        return Sample(STUDY, document.source, context, windows, "query")

    def _passages(self, study: Study) -> list[Passage]:
        """Passages with pairs, of documents that are long enough for the recipe's contexts."""
        least = self.recipe.context_chunks[0] * self.recipe.config.chunk_length
        passages = [p for p in study.passages if p.pairs and p.document.tokens >= least >= study.passage_tokens]
        if not passages:
            raise UsageError(
                f"the study in {study.path} has no questions about passages of {study.passage_tokens} tokens in documents "
                f"of {least} or more; choose other context_chunks, or write another study."
            )
        return passages

    def _asking(
        self, chunks: int, question: str, answer: np.ndarray, random: np.random.Generator, given: int = 0
    ) -> Window:
        """A question and its answer [A], of which all but the first `given` tokens are predicted."""
        prompt = Prompt(self.tokenizer, question)
        asked = prompt.alone()
        ids = np.concatenate([np.asarray(asked, dtype=np.int64), answer])
        mask = np.zeros(len(ids), dtype=bool)
        mask[: len(asked)] = prompt.question_mask()[0].numpy()
        quoted = self.recipe.quoted > 0 and random.random() < self.recipe.quoted
        return Window(chunks, ids, len(answer) - given, mask, quoted=quoted)

    def _cut(self, document: Document, random: np.random.Generator) -> tuple[int, np.ndarray]:
        """How many chunks of context, and that many chunks of the document's tokens and one more."""
        C, (low, high) = self.recipe.config.chunk_length, self.recipe.context_chunks
        chunks = int(random.integers(low, min(high, document.tokens // C - 1) + 1))
        start = int(random.integers(0, document.tokens - (chunks + 1) * C + 1))
        tokens = self.folder.tokens(document)[start : start + (chunks + 1) * C]
        return chunks, np.asarray(tokens, dtype=np.int64)

    def _begun(self, text: str) -> np.ndarray:
        """Token ids of what an answer begins with: as in any text with a space, where it stands behind `Answer:`."""
        before = Prompt(self.tokenizer, "?").answer_prefix
        if not before:  # a chat template opens the answer
            return self._ids(text)
        opened, whole = self._ids(before), self._ids(f"{before} {text}")
        return whole[len(opened) :] if np.array_equal(whole[: len(opened)], opened) else self._ids(f" {text}")

    def _ended(self, answer: np.ndarray) -> np.ndarray:
        """An answer's tokens and the one that ends it, where the tokenizer has one."""
        end = self.tokenizer.eos_token_id
        return np.append(answer, [] if end is None else [end]).astype(np.int64)

    def _ids(self, text: str) -> np.ndarray:
        return np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)
