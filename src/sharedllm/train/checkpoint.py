"""Checkpoints: adapter, optimizer state and step, as safetensors and JSON, whole or not at all.

A run folder holds `checkpoints/step-000050/` and so on; the last three are kept.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sharedllm.errors import WorkError
from sharedllm.files import replaced_folder

KEPT = 3
NAME = re.compile(r"step-(\d+)")
BEGUN = re.compile(r"\.step-\d+-[a-z0-9_]{8}")  # what a killed process was writing, as `replaced_folder` names it
ASIDE = re.compile(r"\.step-\d+-old-[a-z0-9_]{8}")  # what it had put aside to write anew
WEIGHTS, OPTIMIZER, STATE = "adapter.safetensors", "optimizer.safetensors", "state.json"


def save_checkpoint(run: Path, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
    """Write `checkpoints/step-N`, N from `state["step"]`, and drop all but the last three, and what killed processes left."""
    folder = run / "checkpoints" / f"step-{state['step']:06d}"
    _remove(folder.parent, BEGUN)  # first, since its room may be needed
    with replaced_folder(folder) as temporary:
        save_file({n: p.detach().cpu().contiguous() for n, p in module.named_parameters()}, temporary / WEIGHTS)
        save_file(_optimizer_tensors(module, optimizer), temporary / OPTIMIZER)
        (temporary / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    for old in checkpoints(run)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    _remove(folder.parent, ASIDE)
    return folder


def _remove(place: Path, named: re.Pattern[str]) -> None:
    for left in place.glob(".step-*"):
        if named.fullmatch(left.name):
            shutil.rmtree(left, ignore_errors=True)


def checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    found = {p: NAME.fullmatch(p.name) for p in (run / "checkpoints").glob("step-*") if (p / STATE).is_file()}
    steps = {p: int(name[1]) for p, name in found.items() if name is not None}
    return sorted(steps, key=lambda p: steps[p])  # as numbers: a name of seven digits is sorted before one of six


def load_checkpoint(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint's weights and optimizer state back; returns what was saved as `state`.

    Raises:
        WorkError: a file is broken or does not fit the adapter; the sentence says which folder to remove.
    """
    try:
        weights = load_file(folder / WEIGHTS)
        moments = load_file(folder / OPTIMIZER)
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(weights[name])
                for key in ("step", "exp_avg", "exp_avg_sq"):
                    if f"{name}.{key}" in moments:
                        tensor = moments[f"{name}.{key}"]
                        optimizer.state[parameter][key] = tensor if key == "step" else tensor.to(parameter.device)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise WorkError(
            f"the checkpoint {folder} is broken ({error}); remove it and train on from the one before."
        ) from error
    return state


def _optimizer_tensors(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": value.detach().cpu().clone()
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
