"""A recipe's mistakes are one clear sentence each; the shipped recipe is valid and names only free sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sharedllm
from sharedllm.data import read_recipe, recipe_from_dict
from sharedllm.errors import UsageError

SHIPPED = Path(sharedllm.__path__[0]) / "recipes" / "data-text.yaml"
SOURCE = {"type": "files", "kind": "prose", "licence": "CC0-1.0", "paths": ["a.txt"]}


def recipe(**changes: Any) -> dict[str, Any]:
    body = {key: value for key, value in {**SOURCE, **changes}.items() if value != "DROP"}
    return {"name": "r", "sources": {"mine": body}}


def test_reads_a_file_and_fills_in_defaults(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: r\nsources:\n  mine: {type: files, kind: code, licence: MIT, paths: [src], weight: 2}\n")
    read = read_recipe(path)
    assert read.folder == tmp_path
    (source,) = read.sources
    assert (source.name, source.paths, source.weight, source.split, source.max_tokens) == (
        "mine", ("src",), 2.0, "train", None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (recipe(licens="MIT"), "Unknown key 'licens' in source 'mine'; did you mean 'licence'?"),
        ({**recipe(), "source": {}}, "Unknown key 'source' in the recipe; did you mean 'sources'?"),
        (recipe(licence="DROP"), "Source 'mine' lacks the key 'licence'"),
        (recipe(kind="technicl"), "did you mean 'technical'?"),
        (recipe(split="test"), "expected one of train, heldout"),
        (recipe(weight="much"), "expected a number"),
        (recipe(weight=-1), "expected a number of zero or more"),
        (recipe(weight=float("nan")), "expected a number of zero or more"),
        (recipe(weight=float("inf")), "expected a number of zero or more"),
        (recipe(max_tokens=0), "expected at least 1"),
        (recipe(max_tokens=True), "expected a whole number"),
        (recipe(include="*.txt"), "expected a list of texts"),
        (recipe(paths=[]), "names no 'paths'"),
        (recipe(type="pypi", package="p"), "pin one"),
        (recipe(type="pypi", package="p", version=1.5), "put quotes around it"),
        (recipe(type="debian"), "names no 'package'"),
        ({"name": "r", "sources": {}}, "names no source"),
        ({"name": "r", "sources": ["a"]}, "must be a mapping"),
        ({**recipe(), "shard_tokens": 2**24 + 1}, "expected 1 to 16777216 tokens"),
        (["a"], "is a mapping"),
    ],
)
def test_a_mistake_is_one_clear_sentence(tree: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        recipe_from_dict(tree)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    body = "{type: files, kind: code, licence: MIT, paths: [a]}"
    path.write_text(f"name: r\nsources:\n  mine: {body}\n  mine: {body}\n")
    with pytest.raises(UsageError, match="'mine' is given twice"):
        read_recipe(path)


@pytest.mark.parametrize("text", [None, "name: [unclosed", "\xff"])
def test_an_unreadable_recipe_is_a_usage_error(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "r.yaml"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match="data recipe"):
        read_recipe(path)


def test_the_shipped_recipe_is_valid_and_holds_out_whole_sources() -> None:
    sources = read_recipe(SHIPPED).sources
    held = {source.kind for source in sources if source.split == "heldout"}
    assert held == {"technical", "code", "reference"}
    packages: dict[str, set[str]] = {}
    for source in sources:
        packages.setdefault(source.package, set()).add(source.split)
        assert source.licence
    assert all(len(splits) == 1 for splits in packages.values())
