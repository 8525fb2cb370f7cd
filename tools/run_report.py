"""Runs a profile of the report: `python tools/run_report.py small`; what its results file has already is not run again.

A profile is `tools/report/PROFILE.yaml`: texts of `data/heldout`, and commands of `sharedllm` that measure on them. Rows go
to `docs/results/report-PROFILE.jsonl`, what the machine is and which commands ran beside them. `fill_report.py` makes the page
of it.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parent.parent / "docs"
PROFILES_AT = Path(__file__).parent / "report"
PROFILES = ("small", "full")
SHAREDLLM = [sys.executable, "-c", "from sharedllm.cli import main; main()"]


def read_profile(name: str) -> dict[str, Any]:
    """Texts and commands of a profile."""
    found: dict[str, Any] = yaml.safe_load((PROFILES_AT / f"{name}.yaml").read_text(encoding="utf-8"))
    return found


def rows_file(name: str) -> Path:
    return DOCS / "results" / f"report-{name}.jsonl"


def machine_file(name: str) -> Path:
    return DOCS / "results" / f"report-{name}-machine.json"


def commands(name: str, output: Path) -> list[list[str]]:
    """The arguments of `sharedllm` for every step, its rows in `output`."""
    profile = read_profile(name)
    texts = [part for text in profile["texts"] for part in ("--text", f"data/heldout/{text}.txt")]
    return [[*shlex.split(step), *texts, "-o", str(output)] for step in profile["steps"]]


def as_typed(arguments: Sequence[str]) -> str:
    """A command of `sharedllm` as it is typed in the folder of this project."""
    return " ".join(["sharedllm", *arguments]).replace(f"{DOCS.parent}/", "")


def recorded(name: str) -> dict[str, Any]:
    """What is known of the commands that left a profile's rows: `commands`, those that ran, the last one last; `unrecorded`,
    whether there were rows before commands were recorded."""
    if not rows_file(name).is_file():
        return {"commands": [], "unrecorded": False}
    machine = machine_file(name)
    known: dict[str, Any] = json.loads(machine.read_text(encoding="utf-8")) if machine.is_file() else {}
    return {"commands": known.get("commands", []), "unrecorded": known.get("unrecorded", "commands" not in known)}


def record(name: str, doctor: str, before: dict[str, Any], command: str) -> dict[str, Any]:
    """Write what the machine is, as `doctor` says it in JSON, and that a command runs now; returns what `recorded` would."""
    others = [other for other in before["commands"] if other != command]
    now = {**before, "commands": [*others, command]}
    machine_file(name).write_text(json.dumps({**json.loads(doctor), **now}) + "\n", encoding="utf-8")
    return now


def main() -> None:
    parser = argparse.ArgumentParser(description="Run a profile of the report.")
    parser.add_argument("profile", choices=PROFILES)
    name = parser.parse_args().profile
    doctor = subprocess.run([*SHAREDLLM, "doctor", "--json"], check=True, capture_output=True, text=True)
    known = recorded(name)
    for arguments in commands(name, rows_file(name)):
        print("sharedllm", shlex.join(arguments), flush=True)
        known = record(name, doctor.stdout.splitlines()[-1], known, as_typed(arguments))
        if subprocess.run([*SHAREDLLM, *arguments]).returncode:
            raise SystemExit("the step failed; started again, the report goes on with it.")


if __name__ == "__main__":
    main()
