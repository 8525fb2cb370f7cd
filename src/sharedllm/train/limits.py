"""What a recipe may ask of a model: no sample longer than the positions the model was made for."""

from __future__ import annotations

from sharedllm.data.study import Study
from sharedllm.errors import UsageError
from sharedllm.train.recipe import Recipe


def check_lengths(recipe: Recipe, positions: int, study: Study | None = None) -> None:
    """Raise `UsageError` where a chunk, a window or what a teacher reads is longer than the model's `positions`."""
    C, (fewest, most) = recipe.config.chunk_length, recipe.context_chunks
    told = [("config.chunk_length is", C)]  # no window but a long one is longer than a chunk
    if recipe.long_windows:
        told.append(("long_window_tokens is", recipe.long_window_tokens))
    if recipe.distill:
        windows = recipe.window_tokens + (recipe.warm_tokens if recipe.warm else 0)
        told.append(("distill has a teacher read context_chunks and window_tokens,", most * C + windows))
        if recipe.long_windows:
            both = fewest * C + recipe.long_window_tokens
            told.append(("distill has a teacher read context_chunks and long_window_tokens,", both))
    if study is not None:
        told.append(("study_data has passages of", study.passage_tokens))
    for what, tokens in told:
        if tokens > positions:
            raise UsageError(
                f"{what} {tokens} tokens, more than the {positions} positions of the model; lower the setting, or take a "
                "model with more."
            )
