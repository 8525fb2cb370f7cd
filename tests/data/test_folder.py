"""Opening a token folder: what is damaged, foreign or missing is named; what is whole is read without a copy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharedllm.data import DataRecipe, TokenFolder, build, fingerprint
from sharedllm.errors import UsageError, WorkError

from .helpers import byte_level


@pytest.fixture
def built(tmp_path: Path, make_recipe: Callable[..., DataRecipe], tokenizer: Any) -> Path:
    build(make_recipe(), tmp_path / "out", tokenizer)
    return tmp_path / "out"


def test_tokens_are_a_view_of_the_shard_and_cannot_be_changed(built: Path, tokenizer: Any) -> None:
    folder = TokenFolder.open(built, tokenizer)
    first, second = folder.documents(split="train")
    tokens = folder.tokens(second)
    assert tokens.shape == (second.tokens,) and tokens.dtype == np.dtype("<u2")
    assert second.start == first.tokens and isinstance(tokens, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_a_truncated_shard_is_named_with_both_sizes(built: Path) -> None:
    shard = built / "train-0.bin"
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(WorkError) as caught:
        TokenFolder.open(built)
    assert "train-0.bin" in str(caught.value)
    assert f"{size - 3:,} bytes; expected {size:,}" in str(caught.value)


def test_a_missing_shard_is_named(built: Path) -> None:
    (built / "heldout-0.bin").unlink()
    with pytest.raises(WorkError, match=r"heldout-0\.bin"):
        TokenFolder.open(built)


def test_a_changed_byte_is_found_when_hashes_are_verified(built: Path) -> None:
    shard = built / "train-0.bin"
    data = bytearray(shard.read_bytes())
    data[10] ^= 1
    shard.write_bytes(data)
    TokenFolder.open(built)
    with pytest.raises(WorkError, match=r"train-0\.bin has changed"):
        TokenFolder.open(built, verify_hashes=True)


def test_a_changed_listing_is_found(built: Path) -> None:
    listing = built / "documents.jsonl"
    listing.write_text("".join(listing.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(WorkError, match=r"documents\.jsonl"):
        TokenFolder.open(built)


def test_another_tokenizer_is_refused(built: Path, tokenizer: Any) -> None:
    TokenFolder.open(built, fingerprint(tokenizer))
    with pytest.raises(UsageError, match="another tokenizer"):
        TokenFolder.open(built, byte_level(("<other>",)))
    with pytest.raises(UsageError, match="no fast backend"):
        TokenFolder.open(built, object())


def test_a_folder_of_another_sort_is_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a data folder"):
        TokenFolder.open(tmp_path)
    manifest = json.loads((built / "manifest.json").read_text())
    (built / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(UsageError, match="format 99"):
        TokenFolder.open(built)
    (built / "manifest.json").write_text("{cut sho")
    with pytest.raises(WorkError, match="cannot be read"):
        TokenFolder.open(built)


def test_a_split_whose_sources_have_no_weight_is_refused(tmp_path: Path, make_recipe: Any, tokenizer: Any) -> None:
    source = {"type": "files", "kind": "prose", "licence": "CC0-1.0", "paths": ["rivers.txt"], "weight": 0}
    build(make_recipe({"water": source}), tmp_path / "out", tokenizer)
    folder = TokenFolder.open(tmp_path / "out")
    with pytest.raises(UsageError, match=r"\(water\) have weight 0"):
        folder.shares(folder.documents())


def test_asking_for_what_is_not_there_is_an_error(built: Path) -> None:
    folder = TokenFolder.open(built)
    assert folder.documents(kind="code") == []
    with pytest.raises(UsageError, match="it has water, stone, held"):
        folder.documents(source="fire")
    with pytest.raises(UsageError, match="train, heldout"):
        folder.documents(split="test")
