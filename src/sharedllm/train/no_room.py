"""Memory that runs out within a step: what is said, so that the run goes on with less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sharedllm.errors import SharedLLMError, WorkError, out_of_memory
from sharedllm.train.recipe import Recipe
from sharedllm.train.samples import Sample


class NoRoom(WorkError):
    """Memory ran out within a step, before it changed any weights."""


@contextmanager
def room_for(sample: Sample, recipe: Recipe, step: int) -> Iterator[None]:
    """A block that learns from a sample of a step.

    Raises:
        NoRoom: memory ran out there.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, SharedLLMError) or not out_of_memory(error):
            raise
        tokens = len(sample.windows) * max(len(w.ids) for w in sample.windows)
        if 0 < recipe.recompute_from <= tokens:
            remedy = "layers are computed again for it already: choose fewer windows or shorter ones, in another output"
        else:
            remedy = f"set recompute_from={tokens} or lower and train on"
        raise NoRoom(
            f"memory ran out at step {step} ({sample.title}, windows of {tokens:,} tokens together); {remedy}."
        ) from error
