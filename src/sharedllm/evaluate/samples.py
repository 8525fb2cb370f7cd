"""Samples in a file, for other systems: what a benchmark gives its methods, as token ids, and what `shared` keeps of it.

A line is one question in kvpress's common row (context, question, answer_prefix, answer, max_new_tokens), or one
passage whose last tokens are scored. Both have the token ids, so that no other tokenizer or template comes between,
and the bytes that another method may keep of the same past: `stored_bytes` of the context that answers any question,
`attended_bytes` of the slots that one question selects and of what is quoted for it, the most of all on a text.
`peers/kvpress_rows.py` reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sharedllm.evaluate.asking import Question, Text
from sharedllm.evaluate.perplexity import Passage
from sharedllm.evaluate.results import append_row
from sharedllm.methods.base import opened
from sharedllm.methods.estimate import attended_bytes
from sharedllm.methods.shared import Shared
from sharedllm.model import SharedLLM


def write_samples(file: Path, samples: Iterable[dict[str, Any]]) -> int:
    """Write samples in place of what `file` held; returns how many.

    Raises:
        WorkError: the file cannot be written.
    """
    count = 0
    for count, sample in enumerate(samples, 1):
        if count == 1:
            file.unlink(missing_ok=True)
        append_row(file, sample)
    return count


def question_samples(
    llm: SharedLLM, task: str, metric: str, length: int, texts: Sequence[Text]
) -> Iterator[dict[str, Any]]:
    """A sample for every question; those on one text follow each other and have the same `context_ids`.

    The whole prompt is `before_ids`, `context_ids`, `after_ids`; the last holds the question. `depth` is where in the text
    the answer stands, 0 at its beginning and 1 at its end, null where that is not known.
    """
    for text in texts:
        about = {**_about(llm, task, metric, length, text.source), **bytes_kept(llm, text.ids, text.questions)}
        context = llm.tokenizer.decode(text.ids.tolist())
        for question in text.questions:
            before, after = question.prompt.around_text()
            yield {
                **about,
                "context": context,
                "question": question.prompt.question,
                "answer_prefix": question.prompt.answer_prefix,
                "answer": list(question.expected),
                "max_new_tokens": question.max_new_tokens,
                "depth": None if question.start is None else question.start / max(1, len(text.ids) - question.tokens),
                "before_ids": before,
                "context_ids": text.ids.tolist(),
                "after_ids": after,
            }


def passage_samples(
    llm: SharedLLM, passages: Sequence[Passage], lengths: Sequence[int], window: int, targets: int
) -> Iterator[dict[str, Any]]:
    """A sample for every passage and length: `past_ids`, and `window_ids` of which the last `targets` are scored.

    The same tokens are scored at every length, as `perplexity.run` scores them: fewer than `targets` where a length has fewer.
    What the tokenizer puts before a text stands before the first of them.
    """
    targets = min(targets, min(lengths) - 1)
    for length in lengths:
        seen = min(length, max(window, targets + 1))
        for passage in passages:
            ids = passage.ids[len(passage.ids) - length :]
            whole = opened(llm, ids).tolist()
            cut = len(whole) - seen if length > seen else 0
            yield {
                **_about(llm, "perplexity", "nll", length, passage.source),
                **bytes_kept(llm, ids[: length - seen]),
                "start": passage.start,
                "targets": targets,
                "past_ids": whole[:cut],
                "window_ids": whole[cut:],
            }


def bytes_kept(llm: SharedLLM, past: Tensor, questions: Sequence[Question] = ()) -> dict[str, int]:
    """What `shared` keeps of a past [P], of the whole context, and the most of it that one of these questions attends to, or
    what is taken in without a question."""
    shared = Shared(llm, 1)
    context = shared.prepare(past)
    if context is None:
        return {"stored_bytes": 0, "attended_bytes": 0}
    attended = [shared.attended_bytes(context, question.prompt, question.max_new_tokens) for question in questions]
    return {
        "stored_bytes": context.nbytes,
        "attended_bytes": max(attended, default=attended_bytes(llm, context.slots)),
    }


def _about(llm: SharedLLM, task: str, metric: str, length: int, source: str) -> dict[str, Any]:
    dtype = str(llm.dtype).removeprefix("torch.")
    return {"task": task, "metric": metric, "length": length, "source": source, "model": llm.name, "dtype": dtype}
