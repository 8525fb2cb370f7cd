"""The adapter that training starts from: where it lies, whether its weights are of what is trained, and how much is kept of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from sharedllm.adapter import KIND, check_adapter, load_weights, read_described, shipped_adapter
from sharedllm.config import SharedConfig
from sharedllm.errors import UsageError
from sharedllm.methods import encoder_decoder
from sharedllm.model import SharedLLM
from sharedllm.train.recipe import Recipe

DEFAULT = "default"  # as a start: the adapter that ships for the model
SAME = ("rank", "init", "chunk_length", "positions")  # settings without which weights are of something else
HELD = ("null_slot", "null_growth")  # those whose weights are lost where they are false


def start_folder(recipe: Recipe, llm: SharedLLM) -> Path | None:
    """Folder of the adapter that a recipe starts from; None where it starts from the model's own weights.

    Weights are taken over by their names. Those of another method or rank, or of layers that are not injected, have other
    names: they would silently be left out. Those learnt in chunks of another length would be read in others.

    Raises:
        UsageError: no adapter there, or one of another method, for a model of other sizes, or of settings that do not go
            with the recipe's.
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
        _check_settings(SharedConfig.from_dict(described["config"]), recipe.config, folder)
    return folder


def _check_settings(trained: SharedConfig, config: SharedConfig, folder: Path) -> None:
    """Raise `UsageError` where weights `trained` under some settings mean something else, or are lost, under `config`."""
    for name in SAME:
        before, wanted = getattr(trained, name), getattr(config, name)
        if before != wanted:
            raise UsageError(
                f"the adapter in {folder} has config.{name} {before} and the recipe {wanted}; set config.{name}={before}, "
                "since training on keeps it, or leave start out."
            )
    for name in HELD:
        if getattr(trained, name) and not getattr(config, name):
            raise UsageError(
                f"the adapter in {folder} has config.{name} true and the recipe false; set config.{name}=true, since what was "
                "learnt of it would be lost, or leave start out."
            )
    layers = trained.injected_layers
    if config.injected_layers < layers:
        raise UsageError(
            f"the adapter in {folder} has config.injected_layers {layers} and the recipe {config.injected_layers}; set "
            f"config.injected_layers={layers} or more, since the weights of the others would be lost, or leave start out."
        )


@contextmanager
def start_mixed_in(folder: Path | None, module: nn.Module, share: float) -> Iterator[None]:
    """Within this block the weights of `module` are a mean: `share` of the start's in `folder`, the rest of the trained ones."""
    if folder is None or not share:
        yield
        return
    trained = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    try:
        load_weights(folder, module, partly=True)
        with torch.no_grad():
            for name, weight in module.named_parameters():
                weight.lerp_(trained[name], 1 - share)
        yield
    finally:
        with torch.no_grad():
            for name, weight in module.named_parameters():
                weight.copy_(trained[name])
