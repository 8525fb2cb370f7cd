"""Questions whose answer stands in the text: what a function does, what a term means; scored by token F1.

The questions are drawn by rule from the documents themselves (`data.questions`), never from texts trained on if the
texts given are not. The ceiling is the same model shown only the passage that holds the answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from sharedllm.data.questions import Question as Drawn
from sharedllm.data.questions import find_questions
from sharedllm.errors import UsageError
from sharedllm.evaluate.asking import Asked, Examination, Question, Text, ask_methods, tokens_beside
from sharedllm.evaluate.examples import evenly
from sharedllm.evaluate.metrics import token_f1
from sharedllm.evaluate.perplexity import cut_passages
from sharedllm.evaluate.results import Results
from sharedllm.methods import Method
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt


def examine(
    texts: Sequence[tuple[str, Tensor]],
    length: int,
    samples: int,
    per_text: int,
    tokenizer: Any,
    max_new_tokens: int,
) -> list[Text]:
    """Passages that have `length` tokens with the longest question and answer, `samples` questions in all, spread evenly in
    each, at most `per_text` of one; fewer where the passages, none of which shares a token with another, explain less.

    Raises:
        UsageError: no text is long enough, or none of the passages explains anything.
    """
    examined, wanted = [], samples
    for passage in cut_passages(texts, length, -(-samples // per_text), apart=length):
        asked = find_questions(tokenizer.decode(passage.ids.tolist()))
        beside = max((tokens_beside(Prompt(tokenizer, q.text), max_new_tokens) for q in asked), default=0)
        ids = passage.ids[: max(0, length - beside)]
        text = tokenizer.decode(ids.tolist())
        found = find_questions(text)
        chosen = evenly(found, min(per_text, wanted))
        wanted -= len(chosen)
        if chosen:
            questions = [_ask(drawn, text, tokenizer, max_new_tokens) for drawn in chosen]
            examined.append(Text(passage.source, ids, questions))
    if not examined:
        raise UsageError("no passage explains a function or a term; give --text that does, such as manuals or code.")
    return examined


def _ask(drawn: Drawn, text: str, tokenizer: Any, max_new_tokens: int) -> Question:
    """A question drawn from `text`, which is answered from the token on where its passage starts."""
    before = tokenizer(text[: drawn.start], add_special_tokens=False, verbose=False)["input_ids"]
    score = partial(token_f1, expected=drawn.answer)
    return Question(Prompt(tokenizer, drawn.text), score, max_new_tokens, (drawn.answer,), len(before))


def run(
    llm: SharedLLM,
    methods: Sequence[Method],
    length: int,
    texts: Sequence[Text],
    seed: int,
    progress: Callable[[str], None],
    ceiling: bool = False,
    results: Results | None = None,
    free: float = math.inf,
    alone: bool = True,
) -> Iterator[dict[str, Any]]:
    """Ask all questions by all methods; yields a row a method.

    A row says what `asking.row` says; its `value` is the mean token F1. `questions` and `expected` have an entry a
    question.

    Args:
        length: tokens that text, question and answer have together at most.
        ceiling: also ask the plain model shown only the tokens around the answer; a row of method `passage`.
        results: what is known already is taken from there.
        free: memory that can be taken, in bytes; a method that needs more gives a row without a value.
        alone: see `asking.Examination`.
    Raises:
        UsageError: no method's window can hold all questions and their answers, and nothing else is asked.
    """
    questions = [question for text in texts for question in text.questions]

    def more(asked: Asked) -> dict[str, Any]:
        return {
            "questions": [question.prompt.question for question in questions],
            "expected": [question.expected[0] for question in questions],
        }

    examination = Examination("questions", "f1", length, texts, more, alone=alone)
    return ask_methods(llm, methods, examination, seed, progress, results or Results(), ceiling, free)
