"""Held-out loss with the context and without: when it is due, and what is noted of it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sharedllm.train.recipe import Recipe

GAIN = "held_out_gain"
"""By kind of text, how much less the loss is with the context; only a row of a validation has it."""
UNKNOWN = 0.2
"""Share of a run's minutes that must be left for a validation of which it is not known yet how long it takes."""
Compared = tuple[str, tuple[float, float]]
"""A sample's kind, and its loss without the context and with it."""


def due(recipe: Recipe, step: int) -> bool:
    """Whether a recipe has held-out texts looked at after a step."""
    return bool(recipe.validate_samples and recipe.validate_every and step) and step % recipe.validate_every == 0


def seconds_kept(recipe: Recipe, step: int, took: float | None) -> float:
    """Seconds that must be left after a step for its validation, of which the last one took so many; 0 where none is due."""
    if not due(recipe, step):
        return 0.0
    return UNKNOWN * recipe.minutes * 60 if took is None else took


def summed_up(step: int, compared: Iterable[Compared]) -> dict[str, Any]:
    """The row of metrics of a validation."""
    kinds: dict[str, list[tuple[float, float]]] = {}
    for kind, pair in compared:
        kinds.setdefault(kind, []).append(pair)
    rows = [pair for pairs in kinds.values() for pair in pairs]
    return {
        "step": step,
        "held_out_without": sum(a for a, _ in rows) / len(rows),
        "held_out_with": sum(b for _, b in rows) / len(rows),
        GAIN: {kind: sum(a - b for a, b in pairs) / len(pairs) for kind, pairs in kinds.items()},
    }
