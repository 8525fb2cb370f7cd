"""Several processes that train together end after the recipe's minutes, or a signal to one, at the same step, and go on together."""

from __future__ import annotations

import os
import re
import signal
from types import SimpleNamespace

import pytest

from sharedllm.train.checkpoint import checkpoints
from sharedllm.train.distributed import DistributedTrainer
from tests.conftest import CONFIG
from tests.launches import PATIENCE, started, stop, write_model, write_recipe
from tests.test_distributed_training import process_of_rank
from tests.train.test_loop import recipe, write_data


def recipe_file(folder, **changes) -> str:
    write_model(folder)
    values = dict(
        output=str(folder / "run"),
        data=str(write_data(folder)),
        model=str(folder / "model"),
        accumulate=2,
        windows=2,
        window_tokens=12,
        context_chunks=[1, 3],
        validate_samples=0,
        device="cpu",
        dtype="float32",
        config=CONFIG.to_dict(),
    )
    return write_recipe(folder / "recipe.yaml", {**values, **changes})


def test_one_that_is_told_to_end_ends_all(tmp_path):
    t = DistributedTrainer.__new__(DistributedTrainer)
    t.recipe, t.step, t._validation, t.started, t.stopping = recipe(tmp_path, tmp_path), 1, None, 0.0, False
    for other in (False, True):
        t.processes = SimpleNamespace(listed=lambda mine, other=other: [*mine, other])
        assert t._late() == other


@pytest.mark.processes
def test_sigterm_to_one_process_ends_all_with_a_checkpoint(tmp_path):
    launch, said = started(2, "sharedllm.train", recipe_file(tmp_path, steps=500, checkpoint_every=1000)), ""
    try:
        for line in launch.stdout:
            said += line
            if line.startswith("step 2 of"):
                os.kill(process_of_rank(1, launch.pid), signal.SIGTERM)
                break
        said += launch.communicate(timeout=PATIENCE)[0]
    finally:
        stop(launch)
    found = re.search(r"not finished: step (\d+) of 500 is done and kept", said)
    assert found is not None and launch.returncode != 0, said
    assert [c.name for c in checkpoints(tmp_path / "run")] == [f"step-{int(found[1]):06d}"]


@pytest.mark.processes
def test_all_processes_end_at_the_same_step_and_go_on(tmp_path):
    file = recipe_file(tmp_path, steps=3, minutes=1e-9)
    for step, settings in ((1, []), (3, ["minutes=0"])):
        process = started(2, "sharedllm.train", file, *settings)
        try:
            said, _ = process.communicate(timeout=PATIENCE)
        finally:
            stop(process)
        assert checkpoints(tmp_path / "run")[-1].name == f"step-00000{step}", said
        assert (process.returncode == 0) == (step == 3), said
        assert ("not finished: step 1 of 3" in said) == (step == 1)
