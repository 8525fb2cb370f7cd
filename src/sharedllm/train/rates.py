"""The learning rates of a run: their share at a step, and what they were from which step on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sharedllm.train.recipe import Recipe

FAST = ("gate", "null_logit", "null_growth")  # learn at the gates' rate
RATES = ("learning_rate", "gate_learning_rate", "final_rate")
"""Settings that may differ when a run goes on, as a loss that is not a number needs lower ones; a run notes them by step."""


def parameter_groups(module: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Parameters for an optimizer, with their rates at the top of the schedule."""
    fast = [p for n, p in module.named_parameters() if n.endswith(FAST)]
    slow = [p for n, p in module.named_parameters() if not n.endswith(FAST)]
    return [
        {"params": slow, "top": recipe.learning_rate},
        {"params": fast, "top": recipe.gate_learning_rate, "weight_decay": 0.0},
    ]


def set_rates(optimizer: torch.optim.Optimizer, recipe: Recipe, step: int) -> float:
    """Give an optimizer's groups their rates of the step after `step`; returns that of norms and projections."""
    share = _share(recipe, step)
    for group in optimizer.param_groups:
        group["lr"] = group["top"] * share
    return float(optimizer.param_groups[0]["lr"])


def _share(recipe: Recipe, step: int) -> float:
    """Share of the top rates when `step` steps are done: rising in the warmup, then a cosine down to `final_rate`."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.final_rate + (1 - recipe.final_rate) * 0.5 * (1 + math.cos(math.pi * done))


def rates_from(step: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The rates among a recipe's settings, as those of `step` and all later ones."""
    return {"from_step": step, **{name: settings[name] for name in RATES}}


def rates_by_step(before: list[dict[str, Any]], settings: Mapping[str, Any], step: int) -> list[dict[str, Any]]:
    """What a run's rates were from which step on, as it goes on after `step` with those of `settings`.

    Args:
        before: the same as noted earlier; what it says of steps after `step` is dropped, as those are done again.
    """
    kept = [row for row in before if row["from_step"] <= step]
    if kept and rates_from(kept[-1]["from_step"], settings) == kept[-1]:
        return kept
    return [*kept, rates_from(step + 1, settings)]
