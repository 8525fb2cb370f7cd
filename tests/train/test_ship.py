"""`make ship` puts a run's adapter, its metrics and the manifest of its data where they are shipped from."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.train.test_loop import trainer, write_data

MAKEFILE = Path(__file__).parents[2] / "Makefile"
ADAPTER = "src/sharedllm/adapters/smollm2-135m-instruct"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("kept", [True, False])
def test_what_a_run_was_trained_on_is_shipped_with_it(tmp_path, kept):
    data = write_data(tmp_path)
    trainer(data, tmp_path / "runs/mine", steps=1).train()
    for folder in (ADAPTER, "docs/results"):
        (tmp_path / folder).mkdir(parents=True)
    manifest = json.loads((data / "manifest.json").read_text())
    if not kept:
        shutil.rmtree(data)
    subprocess.run(["make", "-f", MAKEFILE, "ship", "RUN=runs/mine"], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / ADAPTER / "adapter_model.safetensors").is_file()
    results = {file.name for file in (tmp_path / "docs/results").iterdir()}
    assert results == {"mine-metrics.jsonl", *(["data-manifest.json"] if kept else [])}
    assert not kept or json.loads((tmp_path / "docs/results/data-manifest.json").read_text()) == manifest
