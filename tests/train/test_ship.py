"""`make ship` puts a run's adapter, its metrics and the manifest of its data where they are shipped from, or changes nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.train.test_loop import trainer, write_data

MAKEFILE = Path(__file__).parents[2] / "Makefile"
ADAPTER = "src/sharedllm/adapters/smollm2-135m-instruct"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the places that are shipped from, and a command that notes how it is called."""
    for folder in (ADAPTER, "docs/results", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    command = tmp_path / "bin/sharedllm"
    command.write_text('#!/bin/sh\necho "$@" >> called\n')
    command.chmod(0o755)
    return tmp_path


def ship(place: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-f", MAKEFILE, "ship", "BIN=bin", *settings]
    return subprocess.run(command, cwd=place, capture_output=True, text=True)


@pytest.mark.parametrize("kept", [True, False])
def test_what_a_run_was_trained_on_is_shipped_with_it_and_its_curve_drawn(place, kept):
    data = write_data(place)
    trainer(data, place / "runs/mine", steps=1).train()
    manifest = json.loads((data / "manifest.json").read_text())
    if not kept:
        shutil.rmtree(data)
    done = ship(place, "RUN=runs/mine/" if kept else "RUN=runs/mine")
    assert done.returncode == 0, done.stderr
    assert (place / ADAPTER / "adapter_model.safetensors").is_file()
    results = {file.name for file in (place / "docs/results").iterdir()}
    assert results == {"mine-metrics.jsonl", *(["data-manifest.json"] if kept else [])}
    assert not kept or json.loads((place / "docs/results/data-manifest.json").read_text()) == manifest
    assert (place / "called").read_text() == "plot docs/results/mine-metrics.jsonl -o docs/figures/training.png\n"


@pytest.mark.parametrize("settings", [["RUN=runs/mien"], [], ["RUN=runs/half"]])
def test_a_run_without_an_adapter_leaves_everything_as_it_was(place, settings):
    (place / "runs/half/adapter").mkdir(parents=True)
    (place / "runs/half/adapter/adapter_config.json").write_text("{}")
    for name in (
        f"{ADAPTER}/adapter_model.safetensors",
        f"{ADAPTER}/adapter_config.json",
        "docs/results/adapter.jsonl",
    ):
        (place / name).write_text("of the one that ships")
    before = {file: file.read_bytes() for file in place.rglob("*") if file.is_file()}
    done = ship(place, *settings)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(said) == 1 and "name the folder of a finished run, such as make ship RUN=runs/default." in said[0]
    assert {file: file.read_bytes() for file in place.rglob("*") if file.is_file()} == before
