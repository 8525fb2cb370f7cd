"""The adapter that training starts from: where it lies, and whether its weights are of what is trained."""

from __future__ import annotations

from pathlib import Path

from sharedllm.adapter import KIND, check_adapter, read_described, shipped_adapter
from sharedllm.config import SharedConfig
from sharedllm.errors import UsageError
from sharedllm.methods import encoder_decoder
from sharedllm.model import SharedLLM
from sharedllm.train.recipe import Recipe

DEFAULT = "default"  # as a start: the adapter that ships for the model


def start_folder(recipe: Recipe, llm: SharedLLM) -> Path | None:
    """Folder of the adapter that a recipe starts from; None where it starts from the model's own weights.

    Weights are taken over by their names. Those of another method or rank have other names: they would silently be left out.

    Raises:
        UsageError: no adapter there, or one of another method, for a model of other sizes, or of another rank.
        WorkError: its configuration is broken.
    """
    if recipe.start is None:
        return None
    folder = shipped_adapter(llm.fingerprint) if recipe.start == DEFAULT else Path(recipe.start)
    if folder is None:
        raise UsageError("start is default, but no adapter ships for this model; name a folder, or leave start out.")
    described = read_described(folder, KIND if recipe.method == "shared" else encoder_decoder.KIND)
    check_adapter(described, llm.parts, folder)
    if recipe.method == "shared":
        rank, wanted = SharedConfig.from_dict(described["config"]).rank, recipe.config.rank
        if rank != wanted:
            raise UsageError(
                f"the adapter in {folder} has config.rank {rank} and the recipe {wanted}; set config.rank={rank}, "
                "since training on keeps the rank."
            )
    return folder
