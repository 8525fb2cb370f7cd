"""RULER's two scores of an answer, in percent; both look for the references in it, whatever the case."""

from __future__ import annotations

from collections.abc import Sequence


def match_all(answer: str, outputs: Sequence[str]) -> float:
    """The share of `outputs` that stand in the answer."""
    return 100 * sum(output.lower() in answer.lower() for output in outputs) / len(outputs)


def match_part(answer: str, outputs: Sequence[str]) -> float:
    """100 where any of `outputs` stands in the answer, else 0."""
    return 100.0 * any(output.lower() in answer.lower() for output in outputs)
