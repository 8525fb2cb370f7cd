"""Training by several real processes equals training by one, also after one of them was killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sharedllm.train.checkpoint import WEIGHTS, checkpoints
from sharedllm.train.loop import Trainer
from sharedllm.train.recipe import recipe_from_dict
from tests.conftest import CONFIG, tiny_model
from tests.launches import PATIENCE, launched, started, stop, write_model, write_recipe
from tests.train.test_loop import write_data

pytestmark = pytest.mark.processes

STEPS = 20
FSDP = ("--use_fsdp", "--fsdp_version", "2")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    write_model(folder)
    longer = tiny_model(max_position_embeddings=128)  # a teacher reads five chunks and a window
    longer.save_pretrained(folder / "model")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def values(home) -> dict[str, Any]:
    """A recipe with samples of three windows and of one, two losses, and fewer samples a step than four processes."""
    return dict(
        output=str(home / "one"),
        data=str(home / "data"),
        model=str(home / "model"),
        steps=STEPS,
        accumulate=3,
        learning_rate=1e-3,
        gate_learning_rate=1e-2,
        warmup_steps=1,
        weight_decay=0.01,
        windows=3,
        window_tokens=12,
        long_windows=0.3,
        long_window_tokens=40,
        context_chunks=[3, 5],
        distill=0.25,
        checkpoint_every=5,
        validate_every=10,
        validate_samples=3,
        device="cpu",
        dtype="float32",
        config=CONFIG.to_dict(),
    )


@pytest.fixture(scope="module")
def one(values) -> Path:
    """The run of one process."""
    return alone(values, values["output"])


def alone(values: dict[str, Any], output: Path | str, **changes: Any) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        Trainer(recipe_from_dict({**values, **changes, "output": str(output)})).train()
    finally:
        torch.set_num_threads(threads)
    return Path(output)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(run: Path, other: Path) -> None:
    """Equal metrics and weights at the end, to rounding."""
    a, b = rows(run), rows(other)
    assert [r["step"] for r in a] == [r["step"] for r in b] and len(a) >= 8 + 2
    for here, there in zip(a, b, strict=True):
        for name in here.keys() & there.keys() - {"tokens_a_second", "received_bytes"}:
            if name == "kinds" or "tokens" in name:
                assert here[name] == there[name], name
            else:
                assert here[name] == pytest.approx(there[name], abs=1e-5, rel=1e-5), (name, here["step"])
    ends = [load_file(checkpoints(r)[-1] / WEIGHTS) for r in (run, other)]
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name], atol=1e-5, rtol=1e-5, msg=name)
    assert (run / "adapter/adapter_model.safetensors").is_file()


def process_of_rank(rank: int, launcher: int) -> int:
    """The process of a launch by its rank, as its environment says."""
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1]) if entry.name.isdigit() else 0
            if parent == launcher and f"\0RANK={rank}\0".encode() in b"\0" + (entry / "environ").read_bytes():
                return int(entry.name)
        except (OSError, ValueError):  # gone meanwhile, or another user's
            continue
    raise AssertionError(f"no process of rank {rank}")


@pytest.fixture(scope="module")
def killed(home, values) -> Path:
    """What is left of a run of two processes of which the second was killed after the twelfth step."""
    run = home / "killed"
    file = write_recipe(home / "killed.yaml", {**values, "output": str(run)})
    launch = started(2, "sharedllm.train", file, "accumulate=3")
    said = []
    try:
        for line in launch.stdout:
            said.append(line)
            if line.startswith("step 12 of"):
                os.kill(process_of_rank(1, launch.pid), signal.SIGKILL)
                break
        since = time.monotonic()
        said.append(launch.communicate(timeout=PATIENCE)[0])
    finally:
        stop(launch)
    assert launch.returncode != 0, "".join(said)
    assert time.monotonic() - since < PATIENCE / 2, "the other process waited for the killed one"
    assert "samples of a step leave some of 2 processes idle" in "".join(said)
    return run


def copied(run: Path, to: Path) -> Path:
    """A run, to go on with in another folder."""
    shutil.copytree(run, to)
    recipe = json.loads((run / "recipe.json").read_text())
    (to / "recipe.json").write_text(json.dumps({**recipe, "output": str(to)}))
    return to


def test_a_killed_process_ends_the_run_and_one_process_goes_on(home, values, one, killed):
    assert 10 <= int(checkpoints(killed)[-1].name.removeprefix("step-")) < STEPS
    assert_same_run(alone(values, copied(killed, home / "on by one")), one)


@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_equal_one_and_go_on_where_two_ended(home, values, one, killed, count):
    samples, chunks, onward = (home / f"{count} by {shared}" for shared in ("samples", "chunks", "both"))
    copied(killed, onward)
    request = {
        "train": [
            {**values, "output": str(samples)},
            {**values, "output": str(chunks), "parallel": "chunks"},
            {**values, "output": str(onward), "parallel": "chunks"},
        ],
        "read": [str(home / "model"), str(home / "adapter"), 37, 5],
        "note": str(home),
    }
    launched(count, "tests.distributed_worker", write_recipe(home / f"{count}.yaml", request))
    for run in (samples, chunks, onward):
        assert_same_run(run, one)
    noted = [json.loads((home / f"{rank}.json").read_text()) for rank in range(count)]
    assert all(other == noted[0] for other in noted[1:]), "the processes ended with different adapters"
    # 37 chunks are read 8 at a time four times, then 5, equally many by each process, and the ragged one by all; each time
    # the processes agree on one number of 8 bytes.
    whole = 4 * -(-8 // count) + -(-5 // count)
    assert noted[0]["read"] == (count - 1) * (whole * stored_bytes(16) + stored_bytes(5) + 6 * 8)
    # In a ring of R, a sum of n bytes takes each process 2 * (R - 1) / R * n.
    weights = sum(w.numel() for w in load_file(checkpoints(one)[-1] / WEIGHTS).values())
    assert {row["received_bytes"] for row in rows(samples) if "loss" in row} == {2 * (count - 1) * 4 * weights // count}


def stored_bytes(n: int) -> int:
    """Bytes kept of a chunk of `n` tokens by hand: 3 layers of 2 heads of 8 dimensions in fp32, keys and values."""
    slots = {16: 8, 5: 5}[n]  # of 16 tokens those that a leaf may keep, of 5 all
    return 8 + 8 * slots + 2 * 3 * 2 * slots * 8 * 4  # with the chunk's length, and which tokens they are


def zero(file: Path, stage: int) -> dict[str, str]:
    """What `accelerate launch` tells its processes of DeepSpeed's settings (it starts them only where that is installed)."""
    file.write_text(json.dumps({"zero_optimization": {"stage": stage, "offload_param": {"device": "none"}}}))
    return {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}


@pytest.mark.parametrize("kind", ["fsdp", "zero3"])
def test_two_processes_that_divide_the_frozen_weights_equal_one(home, values, kind):
    short = {**values, "steps": 8, "accumulate": 1, "validate_every": 4}
    low = {**short, "config": {**values["config"], "rank": 2}, "recompute_from": 1}
    request = {
        "train": [
            {**short, "output": str(home / kind), "parallel": "chunks"},
            {**low, "output": str(home / f"{kind} low"), "parallel": "chunks"},
        ],
        "refused": {**values, "output": str(home / "never")},
        "note": str(home),
    }
    by: dict[str, Any] = {"options": FSDP} if kind == "fsdp" else {"settings": zero(home / "deepspeed.json", 3)}
    said = launched(2, "tests.distributed_worker", write_recipe(home / f"{kind}.yaml", request), **by)
    assert said.count("of DeepSpeed's settings the ZeRO stage counts (3") == (kind == "zero3")
    assert_same_run(home / kind, alone(short, home / f"{kind} alone"))
    assert_same_run(home / f"{kind} low", alone(low, home / f"{kind} low alone"))
    noted = [json.loads((home / f"{rank}.json").read_text()) for rank in range(2)]
    assert noted[0] == noted[1] and "need parallel=chunks" in noted[0]["refused"]
    # Of a layer's matrices each holds a half; in the three injected layers the low-rank adapter reads q and o whole.
    matrices, read = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48, 2 * 32 * 32
    assert noted[0]["held"] == (4 * matrices - 3 * read) // 2
