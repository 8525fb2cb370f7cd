"""A run's folder: its recipe, metrics and checkpoints, which say where a run that was stopped goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from filelock import BaseFileLock, FileLock
from torch import nn

from sharedllm.data.study import SHOWN
from sharedllm.errors import UsageError, WorkError
from sharedllm.files import replaced_file
from sharedllm.loading import same_model
from sharedllm.locks import taken
from sharedllm.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from sharedllm.train.origin import MODEL
from sharedllm.train.rates import RATES, rates_by_step, rates_from
from sharedllm.train.recipe import Recipe, recipe_from_dict
from sharedllm.train.validation import GAIN

RECIPE, METRICS, ADAPTER, LOCK = "recipe.json", "metrics.jsonl", "adapter", ".lock"
PLACES = {"output", "data", "study_data"}
"""Settings that say where things lie; that they are the same things, the fingerprints in a checkpoint say."""
FREE = {
    *("device", "validate_every", "validate_samples", "checkpoint_every", "parallel", "minutes", "recompute_from"),
    *PLACES,
}
"""Settings that may differ when a run goes on: none of them changes what is learned."""


class RunFolder:
    """The folder of one run.

    Args:
        writes: False for all but one of the processes that train together; they only read here.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path, self.writes = path, writes
        self._lock: BaseFileLock | None = None
        self.rates: list[dict[str, Any]] = []  # from which step on, as noted when the run last began or went on

    def open(self, recipe: Recipe) -> None:
        """Note the recipe, or check that it is the one noted before; one under which no step was done is replaced.

        Learning rates may differ: `go_on` notes them. Until `close` no other process that writes can open the folder.

        Raises:
            UsageError: the folder holds a run of another recipe, or one whose recipe is missing, or another process trains there.
            WorkError: the recipe noted there cannot be read, or the folder cannot be written to.
        """
        if self.writes:
            self._hold()
        file = self.path / RECIPE
        same = _as_json(recipe)
        if self._begun():
            before, self.rates = self._noted(file)
            self._refuse_changes(before, same, {*FREE, *RATES})
        else:
            self.rates = [rates_from(1, same)]
            if self.writes:
                _replace(file, json.dumps(same, indent=2) + "\n")

    def _hold(self) -> None:
        """Keep other processes out; in this one, as in a notebook, a run may be opened again."""
        busy = f"another process trains in {self.path}; wait until it ends, or choose another output."
        self._lock = taken(FileLock(self.path / LOCK, thread_local=False, is_singleton=True), busy)

    def close(self) -> None:
        """Let other processes in."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def go_on(self, recipe: Recipe, step: int) -> None:
        """Note learning rates that differ from those noted before: the recipe's, of the steps after `step`.

        Raises:
            UsageError: all steps were done with the rates before.
        """
        file, same = self.path / RECIPE, _as_json(recipe)
        rates = rates_by_step(self.rates, same, step)
        if rates == self.rates:
            return
        before, _ = self._noted(file)
        if step >= recipe.steps:
            self._refuse_changes(before, same, FREE)
        self.rates = rates
        if self.writes:
            noted = {**before, **{k: same[k] for k in RATES}, **({"rates": rates} if len(rates) > 1 else {})}
            _replace(file, json.dumps(noted, indent=2) + "\n")

    def _refuse_changes(self, before: dict[str, Any], now: dict[str, Any], free: set[str]) -> None:
        """Raise `UsageError` where a setting that is not `free` differs from the one before."""
        was = _by_whole_names(before)
        for name, value in _by_whole_names(now).items():
            if name not in free and was[name] != value:
                raise UsageError(
                    f"{self.path} holds a run of another recipe ({name} was {was[name]!r}); "
                    "choose another output, or remove that folder to start afresh."
                )

    def _begun(self) -> bool:
        """Whether there is anything of the run that the noted recipe began: metrics, a checkpoint or an adapter."""
        if not (self.path / RECIPE).is_file():
            if checkpoints(self.path):
                raise UsageError(
                    f"{self.path / RECIPE} is missing, which says by what recipe the checkpoints beside it were made; copy it "
                    "there, or remove that folder to start afresh."
                )
            return False
        return any((self.path / name).exists() for name in (METRICS, ADAPTER)) or bool(checkpoints(self.path))

    @staticmethod
    def _noted(file: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The settings of the recipe in a file, as JSON has them, and the rates from which step on."""
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            rates = values.pop("rates", None)
        except (OSError, ValueError, AttributeError) as error:
            raise WorkError(f"{file} cannot be read ({error}); remove that folder to start afresh.") from error
        settings = _as_json(recipe_from_dict(values, str(file)))
        return settings, rates or [rates_from(1, settings)]

    def resume(self, module: nn.Module, optimizer: torch.optim.Optimizer, origin: dict[str, str]) -> dict[str, Any]:
        """Put the last checkpoint back and drop metrics past it; gives its state, that of step 0 where there is none.

        Args:
            origin: by name, what a run must go on with; a checkpoint of an earlier release does not say.
        Raises:
            UsageError: the checkpoint is of another model or other data.
        """
        found = checkpoints(self.path)
        state = load_checkpoint(found[-1], module, optimizer) if found else {"step": 0, "tokens": 0}
        for name, value in origin.items():
            noted = str(state.get(name, value))
            if not (same_model(noted, value) if name == MODEL else noted == value):
                raise UsageError(
                    f"{self.path} holds a run with another {name} (fingerprint {noted[:SHOWN]}, not {value[:SHOWN]}); "
                    f"go on with that {name}, or choose another output."
                )
        file = self.path / METRICS
        if self.writes and file.is_file():
            lines = file.read_text(encoding="utf-8").splitlines()
            _replace(file, "".join(f"{row}\n" for row in lines if _step_of(row) <= state["step"]))
        return state

    def save(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Write a checkpoint.

        Raises:
            WorkError: it cannot be written; those before are kept.
        """
        if not self.writes:
            return
        try:
            save_checkpoint(self.path, module, optimizer, state)
        except WorkError as error:
            raise WorkError(
                f"the checkpoint of step {state['step']} cannot be written ({error.__cause__}); the one before is kept, "
                "make room and train on."
            ) from error

    def validated(self, step: int) -> bool:
        """Whether the metrics have a validation after a step."""
        file = self.path / METRICS
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        return any(GAIN in line and _step_of(line) == step for line in lines)

    def log(self, row: dict[str, Any]) -> None:
        """Append a row of metrics.

        Raises:
            WorkError: it cannot be written.
        """
        if not self.writes:
            return
        file = self.path / METRICS
        try:
            with file.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(row) + "\n")
        except OSError as error:
            raise WorkError(
                f"cannot write to {file}: {error.strerror or error}; the last checkpoint is kept, make room and train on."
            ) from error


def _as_json(recipe: Recipe) -> dict[str, Any]:
    """The settings of a recipe as JSON has them: lists for tuples."""
    settings: dict[str, Any] = json.loads(json.dumps(recipe.to_dict()))
    return settings


def _by_whole_names(settings: dict[str, Any]) -> dict[str, Any]:
    """The same with every setting of `config` by its whole name, such as `config.rank`."""
    nested = {f"config.{name}": value for name, value in settings["config"].items()}
    return {**{name: value for name, value in settings.items() if name != "config"}, **nested}


def _replace(file: Path, text: str) -> None:
    """Write a file in one step, so that a process that is killed, or a machine that stops, leaves the one before."""
    with replaced_file(file) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 2**62
