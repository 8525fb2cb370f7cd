"""Several processes that train together end after the recipe's minutes at the same step, and go on together."""

from __future__ import annotations

import pytest

from sharedllm.train.checkpoint import checkpoints
from tests.conftest import CONFIG
from tests.launches import PATIENCE, started, stop, write_model, write_recipe
from tests.train.test_loop import write_data

pytestmark = pytest.mark.processes


def test_all_processes_end_at_the_same_step_and_go_on(tmp_path):
    write_model(tmp_path)
    values = dict(
        output=str(tmp_path / "run"),
        data=str(write_data(tmp_path)),
        model=str(tmp_path / "model"),
        steps=3,
        accumulate=2,
        windows=2,
        window_tokens=12,
        context_chunks=[1, 3],
        validate_samples=0,
        device="cpu",
        dtype="float32",
        minutes=1e-9,
        config=CONFIG.to_dict(),
    )
    file = write_recipe(tmp_path / "recipe.yaml", values)
    for step, settings in ((1, []), (3, ["minutes=0"])):
        process = started(2, "sharedllm.train", str(file), *settings)
        try:
            said, _ = process.communicate(timeout=PATIENCE)
        finally:
            stop(process)
        assert checkpoints(tmp_path / "run")[-1].name == f"step-00000{step}", said
        assert (process.returncode == 0) == (step == 3), said
        assert ("not finished: step 1 of 3" in said) == (step == 1)
