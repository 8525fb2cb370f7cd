"""Asking questions of texts, for every benchmark that does: each text is read once, each answer timed and scored.

A benchmark makes `Text`s with their `Question`s and gives them to `ask_methods`, which keeps a row a method.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sharedllm.errors import UsageError
from sharedllm.evaluate.peak import reset_peak
from sharedllm.evaluate.results import Results
from sharedllm.evaluate.row import RAN_OUT, measured, refusal, refused, unless_memory_ends
from sharedllm.evaluate.stopping import ending, stopping, without_penalties
from sharedllm.methods import Method
from sharedllm.methods.base import no_room
from sharedllm.methods.full import Full
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt

CEILING = "passage"
"""The method of the ceiling's rows: the plain model shown only the tokens around the answer."""
CEILING_TOKENS = 1024
ANSWER_CHARACTERS = 300
"""Of an answer kept in a row."""


@dataclass(frozen=True)
class Question:
    """A question on a text, with what its answer is worth."""

    prompt: Prompt
    score: Callable[[str], float]
    """Of an answer without special tokens, but with its white space, in the unit of the benchmark's metric."""
    max_new_tokens: int
    expected: tuple[str, ...] = ()
    """The right answers, for the results row."""
    start: int | None = None
    """The token of the text at which what answers it starts; None: not known, or in many places."""
    tokens: int = 0
    """How many tokens from `start` answer it; 0: not known."""
    stop: str = ""
    """What ends an answer besides the model's own end, see `stopping`."""


@dataclass(frozen=True)
class Text:
    """Token ids [P] of a text, where it comes from, and what is asked of it."""

    source: str
    ids: Tensor
    questions: Sequence[Question]


@dataclass
class Asked:
    """What a method answered so far, what that was worth, and what it cost.

    `answers`, `scores` and `ask_seconds` have an entry a question, `encode_seconds` one a text. `window` is
    the most positions that text, question and answer took in the model's own attention.
    """

    answers: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    encode_seconds: list[float] = field(default_factory=list)
    ask_seconds: list[float] = field(default_factory=list)
    window: int = 0

    def add(self, more: Asked) -> None:
        """Take in what was answered after this."""
        for name in ("answers", "scores", "encode_seconds", "ask_seconds"):
            getattr(self, name).extend(getattr(more, name))
        self.window = max(self.window, more.window)


def mean_score(scores: Sequence[float]) -> str:
    """What progress says of the scores so far."""
    return f"mean {sum(scores) / len(scores):.2f}"


@dataclass(frozen=True)
class Examination:
    """Texts of one length with what is asked of them, and what the rows say of it.

    `more` gives the benchmark's own fields of a row, `about` those that also a row without a value has; `summary` is
    what progress says of the scores so far.
    """

    task: str
    metric: str
    length: int
    texts: Sequence[Text]
    more: Callable[[Asked], dict[str, Any]] = lambda asked: {}
    summary: Callable[[Sequence[float]], str] = mean_score
    about: Mapping[str, Any] = field(default_factory=dict)
    most: float = 1.0
    """The score of a right answer, the highest there is; 0 is the lowest."""
    reason: str | None = None
    """Why nothing of it is asked; None: it is."""
    longest: int | None = None
    """Tokens of its longest text, where `length` is a mean; None: all have `length`."""
    alone: bool = True
    """Whether nothing else is asked in the run, so that it is refused where no method can hold its questions."""


def ask_methods(
    llm: SharedLLM,
    methods: Sequence[Method],
    examination: Examination,
    seed: int,
    progress: Callable[[str], None],
    results: Results,
    ceiling: bool = False,
    free: float = math.inf,
) -> Iterator[dict[str, Any]]:
    """Ask all questions by every method in turn, unless `results` has its row already; yields a row a method.

    A method that would not fit into memory or runs out of it, whose limit cannot hold a question and its answer, or whose
    answers would say nothing, gives a row without a value and with a `reason`.

    Args:
        progress: takes a line after each answer.
        ceiling: at last also ask the plain model shown only the passage around each answer; a row of method `passage`.
        free: memory that can be taken, in bytes.
    Raises:
        UsageError: no method's limit can hold all questions and their answers, and the examination is `alone`; nothing
            was asked then.
    """
    if examination.alone and not examination.reason:
        lacking = [lacks_room(method, examination.texts) for method in methods]
        if all(lacking):
            raise UsageError(f"{lacking[0]}.")
    read = hash_of(examination.texts)
    common = {"length": examination.length, "metric": examination.metric, "texts": read}
    greedily = without_penalties(llm.model)
    entries = [(m.name, {**m.settings(), **m.rules(scored=False), **greedily}, m) for m in methods]
    if ceiling:
        full = Full(llm, CEILING_TOKENS)
        full.spread = methods[0].spread
        entries.append((CEILING, greedily, full))
    for name, depends, method in entries:
        compute = partial(_examine, name, method, examination, read, seed, progress, free)
        yield results.keep({"method": name, **depends, **common, **examination.about}, compute)


def _examine(
    name: str,
    method: Method,
    examination: Examination,
    read: str,
    seed: int,
    progress: Callable[[str], None],
    free: float,
) -> dict[str, Any]:
    """The row of a method that is called `name`, or the one that says why it is not asked; `read` is a hash of the texts."""
    llm, task, metric, length = method.llm, examination.task, examination.metric, examination.length
    texts = around_answers(examination.texts, CEILING_TOKENS) if name == CEILING else examination.texts
    said = {**(without_penalties(llm.model) if name == CEILING else asked_with(method)), **examination.about}
    reason = examination.reason or lacks_room(method, texts)
    reason = reason or refusal(method, examination.longest or length, most_tokens(texts), 0, free)
    asked: Asked | None = None
    if reason is None:
        reset_peak(llm.device)
        work = partial(ask_all, method, texts, progress, f"{name} at {length:,}", examination.summary)
        asked = unless_memory_ends(work)
    if asked is None:
        return {**said, **refused(llm, task, metric, name, length, reason or RAN_OUT, seed)}
    return {**said, "texts": read, **row(llm, examination, name, asked, seed), **examination.more(asked)}


def asked_with(method: Method) -> dict[str, Any]:
    """What a row of questions says of a method: its settings and rules, what of the model's own settings does not hold (see
    `without_penalties`), and its window once more as `given_window`, since `window` is there what was used of the model's
    positions."""
    rules = {**method.rules(scored=False), **without_penalties(method.llm.model)}
    return {**method.settings(), **rules, "given_window": method.window}


def lacks_room(method: Method, texts: Sequence[Text]) -> str | None:
    """Why a method's limit cannot hold one of the questions with its answer, or None: it can, or has none."""
    if method.limit is None:
        return None
    for text in texts:
        for question in text.questions:
            last = text.ids[-1:]
            alone = len(question.prompt.with_text(last)) - len(last)
            if reason := no_room(method.limit, alone, question.max_new_tokens):
                return reason
    return None


def most_tokens(texts: Sequence[Text]) -> int:
    """Tokens of a text, a question on it and its longest answer, where they are most."""
    return max(len(text.ids) + len(q.prompt.alone()) + q.max_new_tokens for text in texts for q in text.questions)


def ask_all(
    method: Method,
    texts: Sequence[Text],
    progress: Callable[[str], None],
    name: str,
    summary: Callable[[Sequence[float]], str] = mean_score,
) -> Asked:
    """Read each text once and ask its questions; `name` opens the lines of progress.

    Raises:
        UsageError: the method's limit cannot hold a question and its answer, see `lacks_room`.
    """
    asked, total = Asked(), sum(len(text.questions) for text in texts)
    for more in method.each(_read_and_ask, texts):
        asked.add(more)
        if more.scores:
            progress(f"{name}: question {len(asked.scores)} of {total}, {summary(asked.scores)}")
    return asked


def hash_of(texts: Sequence[Text]) -> str:
    """A hash of all that is read and asked, so that a row is known again only where both are the same."""
    made = hashlib.sha256()
    for text in texts:
        made.update(text.ids.numpy().tobytes())
        for question in text.questions:
            asked = [question.prompt.alone(), question.prompt.asks, question.max_new_tokens, question.expected]
            asked += [question.stop] if question.stop else []
            made.update(json.dumps(asked).encode())
    return made.hexdigest()


def _read_and_ask(method: Method, text: Text) -> Iterator[Asked]:
    """What reading a text took, then what came of each question."""
    started = _now(method.llm)
    past = method.prepare_to_ask(text.ids, text.questions[0].prompt)
    yield Asked(encode_seconds=[_now(method.llm) - started])
    for question in text.questions:
        yield _ask(method, past, question)


def _ask(method: Method, past: Any, question: Question) -> Asked:
    """What came of one question."""
    llm, prompt, new = method.llm, question.prompt, question.max_new_tokens
    started = _now(llm)
    with stopping(llm, question.stop), ending(llm.model, **without_penalties(llm.model)):
        answer = llm.tokenizer.decode(method.ask(past, prompt, new), skip_special_tokens=True)
    seconds = _now(llm) - started
    window = (
        len(method.shown(past, prompt, new)) + new
    )  # not before: what it reads again, the next question has at hand
    return Asked([answer.strip()], [question.score(answer)], ask_seconds=[seconds], window=window)


def _now(llm: SharedLLM) -> float:
    """Seconds, once the device has done all it was given."""
    if llm.device.type == "cuda":
        torch.cuda.synchronize(llm.device)
    return time.perf_counter()


def around(text: Text, question: Question, tokens: int) -> Text:
    """The `tokens` tokens of a text around one answer (fewer in a shorter text), to ask for it alone.

    Raises:
        ValueError: the question does not say where its answer stands.
    """
    if question.start is None:
        raise ValueError("the question does not say where its answer stands.")
    start = question.start + question.tokens // 2 - tokens // 2
    start = max(0, min(start, len(text.ids) - tokens))
    inside = replace(question, start=question.start - start)
    return Text(text.source, text.ids[start : start + tokens], [inside])


def around_answers(texts: Sequence[Text], tokens: int) -> list[Text]:
    """A passage for every question of all texts, in their order."""
    return [around(text, question, tokens) for text in texts for question in text.questions]


def tokens_beside(prompt: Prompt, max_new_tokens: int) -> int:
    """Tokens of a question's own and of the longest answer, where it is put after a text."""
    return sum(map(len, prompt.around_text())) + max_new_tokens


def row(llm: SharedLLM, examination: Examination, method: str, asked: Asked, seed: int) -> dict[str, Any]:
    """What a row of every question benchmark says.

    `value` is the mean score; `low` and `high` bound it (95 %, over questions; see `statistics.bounds`). `answers` and `scores` have
    an entry a question, `sources` one a text; beside them a row has `texts`, see `hash_of`. `window` is the most positions used of the model's own attention and
    `beyond_window` says whether they are more than it was trained for; a method's own is `given_window`, see `asked_with`.
    `encode_seconds` is the mean of a text, `ask_seconds` that of a question, `seconds` all of both.
    """
    return {
        "task": examination.task,
        **measured(llm, asked.scores, seed, examination.most),
        "method": method,
        "length": examination.length,
        "metric": examination.metric,
        "window": asked.window,
        "beyond_window": asked.window > llm.window,
        "max_new_tokens": max(question.max_new_tokens for text in examination.texts for question in text.questions),
        "seconds": round(sum(asked.encode_seconds) + sum(asked.ask_seconds), 3),
        "encode_seconds": round(sum(asked.encode_seconds) / len(asked.encode_seconds), 3),
        "ask_seconds": round(sum(asked.ask_seconds) / len(asked.ask_seconds), 3),
        "sources": [text.source for text in examination.texts],
        "answers": [answer[:ANSWER_CHARACTERS] for answer in asked.answers],
        "scores": [round(score, 4) for score in asked.scores],
    }
