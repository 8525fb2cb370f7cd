"""Runs a notebook from top to bottom and shows what its cells print: `python examples/run_notebook.py FILE`.

The file itself stays without outputs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient


def run(file: Path, seconds: int = 900) -> nbformat.NotebookNode:
    """The notebook with its outputs; raises `CellExecutionError` where a cell fails."""
    notebook = nbformat.read(file, as_version=4)
    return NotebookClient(notebook, timeout=seconds, kernel_name="python3").execute(cwd=str(file.parent))


def printed(notebook: nbformat.NotebookNode) -> str:
    """All that the cells printed on stdout."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.get("name") == "stdout")


def pictures(notebook: nbformat.NotebookNode) -> int:
    """How many figures the cells drew."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


if __name__ == "__main__":
    done = run(Path(sys.argv[1]))
    print(f"{printed(done)}{pictures(done)} figures")
