"""Fixtures: a byte-level tokenizer, a folder of made-up texts, and recipes over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from sharedllm.data import DataRecipe, recipe_from_dict

from .helpers import byte_level, sentences


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for topic in ("rivers", "mountains"):
        (folder / f"{topic}.txt").write_text(sentences(topic))
    (folder / "held.md").write_text(sentences("islands"))
    return folder


@pytest.fixture
def make_recipe(texts: Path) -> Callable[..., DataRecipe]:
    """A recipe over `texts`: rivers and mountains to train on, islands held out; arguments change the recipe."""

    def make(sources: dict[str, Any] | None = None, **changes: Any) -> DataRecipe:
        base = {"type": "files", "kind": "prose", "licence": "CC0-1.0"}
        tree = {
            "water": {**base, "paths": ["rivers.txt"]},
            "stone": {**base, "paths": ["mountains.txt"], "kind": "technical", "weight": 2},
            "held": {**base, "paths": ["held.md"], "split": "heldout"},
        }
        return recipe_from_dict({"name": "test", "sources": tree if sources is None else sources, **changes}, texts)

    return make
