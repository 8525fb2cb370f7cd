"""Questions whose answer stands in the text: what a function does, what a term means; scored by token F1.

The questions are drawn by rule from the documents themselves (`data.questions`), never from texts trained on if the
texts given are not. The ceiling is the same model shown only the passage that holds the answer.
"""

from __future__ import annotations

import re
import string
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sharedllm.data.questions import Question, find_questions
from sharedllm.errors import UsageError
from sharedllm.evaluate.perplexity import cut_passages
from sharedllm.evaluate.row import measured
from sharedllm.methods import Method
from sharedllm.methods.full import Full
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt

CEILING, CEILING_TOKENS = "passage", 1024
ANSWER_CHARACTERS = 300  # of an answer kept in a row


@dataclass(frozen=True)
class Asking:
    """A question, and the token of the text at which the passage that answers it starts."""

    question: Question
    start: int


@dataclass(frozen=True)
class Examined:
    """Token ids [length] of a text and what is asked of it."""

    source: str
    ids: Tensor
    asked: list[Asking]


@dataclass
class Answers:
    """What a method answered so far, and what it cost."""

    answers: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    encode_seconds: list[float] = field(default_factory=list)
    ask_seconds: list[float] = field(default_factory=list)


def normalised(text: str) -> list[str]:
    """Words as SQuAD (arXiv 1606.05250) counts them: lower case, without punctuation and articles."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def token_f1(given: str, expected: str) -> float:
    """Harmonic mean of precision and recall over the words of an answer, 0 to 1."""
    a, b = normalised(given), normalised(expected)
    same = sum((Counter(a) & Counter(b)).values())
    if not a or not b or not same:
        return float(a == b)
    precision, recall = same / len(a), same / len(b)
    return 2 * precision * recall / (precision + recall)


def examine(
    texts: Sequence[tuple[str, Tensor]], length: int, samples: int, per_text: int, tokenizer: Any
) -> list[Examined]:
    """Passages of `length` tokens with `samples` questions in all, spread evenly in each, at most `per_text` of one.

    Raises:
        UsageError: no text is long enough, or none of the passages explains anything.
    """
    examined, wanted = [], samples
    for passage in cut_passages(texts, length, -(-samples // per_text)):
        text = tokenizer.decode(passage.ids.tolist())
        found = find_questions(text)
        count = min(per_text, wanted, len(found))
        chosen = [found[len(found) * (2 * k + 1) // (2 * count)] for k in range(count)]
        places = [len(tokenizer(text[: q.start], add_special_tokens=False, verbose=False)["input_ids"]) for q in chosen]
        wanted -= count
        if chosen:
            asked = [Asking(q, at) for q, at in zip(chosen, places, strict=True)]
            examined.append(Examined(passage.source, passage.ids, asked))
    if not examined:
        raise UsageError("no passage explains a function or a term; give --text that does, such as manuals or code.")
    return examined


def around(text: Examined, asking: Asking, tokens: int) -> Examined:
    """The `tokens` tokens of a text around one answer, to ask for it alone."""
    start = max(0, min(asking.start - tokens // 2, len(text.ids) - tokens))
    return Examined(text.source, text.ids[start : start + tokens], [Asking(asking.question, asking.start - start)])


def run(
    llm: SharedLLM,
    methods: Sequence[Method],
    texts: Sequence[Examined],
    max_new_tokens: int,
    seed: int,
    progress: Callable[[str], None],
    ceiling: bool = False,
) -> Iterator[dict[str, Any]]:
    """Ask all questions (of texts of one length) by all methods; yields a row a method.

    A row's `value` is the mean token F1; `low` and `high` bound it (95 % bootstrap over questions). `questions`,
    `expected`, `answers` and `scores` have an entry a question.

    Args:
        ceiling: also ask the plain model shown only the tokens around the answer; a row of method `passage`.
    """
    for method in methods:
        yield {
            **method.settings(),
            **_row(llm, method.name, texts, _ask(method, texts, max_new_tokens, progress), seed),
        }
    if ceiling:
        passages = [around(text, asking, CEILING_TOKENS) for text in texts for asking in text.asked]
        answers = _ask(Full(llm, CEILING_TOKENS), passages, max_new_tokens, progress)
        yield _row(llm, CEILING, texts, answers, seed)


def _ask(method: Method, texts: Sequence[Examined], max_new_tokens: int, progress: Callable[[str], None]) -> Answers:
    llm, answers, total = method.llm, Answers(), sum(len(text.asked) for text in texts)
    for text in texts:
        started = time.perf_counter()
        past = method.prepare(text.ids)
        answers.encode_seconds.append(time.perf_counter() - started)
        for asking in text.asked:
            prompt, started = Prompt(llm.tokenizer, asking.question.text), time.perf_counter()
            given = llm.tokenizer.decode(method.ask(past, prompt, max_new_tokens), skip_special_tokens=True).strip()
            answers.ask_seconds.append(time.perf_counter() - started)
            answers.answers.append(given)
            answers.scores.append(token_f1(given, asking.question.answer))
            mean = sum(answers.scores) / len(answers.scores)
            progress(f"{method.name}: question {len(answers.scores)} of {total}, F1 {mean:.2f}")
    return answers


def _row(llm: SharedLLM, name: str, texts: Sequence[Examined], answers: Answers, seed: int) -> dict[str, Any]:
    asked = [asking.question for text in texts for asking in text.asked]
    return {
        "task": "questions",
        **measured(llm, answers.scores, seed),
        "method": name,
        "length": len(texts[0].ids),
        "metric": "f1",
        "seconds": round(sum(answers.encode_seconds) + sum(answers.ask_seconds), 3),
        "encode_seconds": round(sum(answers.encode_seconds) / len(answers.encode_seconds), 3),
        "ask_seconds": round(sum(answers.ask_seconds) / len(answers.ask_seconds), 3),
        "sources": [text.source for text in texts],
        "questions": [question.text for question in asked],
        "expected": [question.answer for question in asked],
        "answers": [answer[:ANSWER_CHARACTERS] for answer in answers.answers],
        "scores": [round(score, 4) for score in answers.scores],
    }
