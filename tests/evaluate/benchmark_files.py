"""Tiny files in the formats of LongBench and InfiniteBench, with made-up content."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

STORY = "The blue door was painted by Tamsin in the spring. " * 4


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def longbench(**changes: Any) -> dict[str, Any]:
    """A row of `hotpotqa.jsonl` with some fields changed; a field given as `...` is left out."""
    row = {
        "input": "Who painted the {blue} door?", "context": STORY, "answers": ["Tamsin", "Tamsin Rowe"], "length": 40,
        "dataset": "hotpotqa", "language": "en", "all_classes": None, "_id": "h1",
    }  # fmt: skip
    return without({**row, **changes})


def longbench_2(**changes: Any) -> dict[str, Any]:
    row = {
        "_id": "v1", "domain": "Fiction", "sub_domain": "Doors", "difficulty": "easy", "length": "short",
        "question": " Who painted the door? ", "choice_A": "Jory", "choice_B": "Tamsin ", "choice_C": "Nobody",
        "choice_D": "The wind", "answer": "B", "context": f"\n{STORY}\n",
    }  # fmt: skip
    return without({**row, **changes})


def infinitebench(**changes: Any) -> dict[str, Any]:
    """A row of `passkey.jsonl` with some fields changed."""
    row = {
        "id": 0, "context": f"{STORY}The pass key is 71432. Remember it. {STORY}", "input": "What is the pass key?",
        "answer": ["71432"], "options": [],
    }  # fmt: skip
    return without({**row, **changes})


def without(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not ...}
