"""Documents too short for a recipe's contexts are left out of training, and that is said once."""

from __future__ import annotations

import logging

import pytest

from sharedllm import UsageError
from sharedllm.data import TokenFolder, build, recipe_from_dict
from sharedllm.train.samples import Sampler
from sharedllm.train.too_short import left_out
from tests.conftest import byte_tokenizer
from tests.contexts import assert_one_sentence
from tests.train.test_loop import recipe, trainer

BASE = {"type": "files", "kind": "prose", "licence": "CC0-1.0"}


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Token folder of a source with a long text and a short one, one with short texts alone, and a held-out one."""
    folder = tmp_path_factory.mktemp("texts")
    sizes = {"long.txt": 400, "brief.txt": 12, "note1.txt": 13, "note2.txt": 14, "held.txt": 400}
    for name, lines in sizes.items():
        (folder / name).write_text(" ".join(f"{name} {i}: the colour of item {i} is blue." for i in range(lines)))
    sources = {
        "books": {**BASE, "paths": ["long.txt", "brief.txt"]},
        "notes": {**BASE, "paths": ["note1.txt", "note2.txt"]},
        "held": {**BASE, "paths": ["held.txt"], "split": "heldout"},
    }
    build(recipe_from_dict({"name": "t", "sources": sources}, folder), folder / "data", byte_tokenizer())
    return folder / "data"


def test_what_is_left_out_is_said_once(mixed, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "sharedllm.train"):
        trainer(mixed, tmp_path / "run", context_chunks=[60, 70]).train(until=1)
    (said,) = [record.getMessage() for record in caplog.records]
    documents = TokenFolder.open(mixed).documents(split="train")
    share = 1 - max(d.tokens for d in documents) / sum(d.tokens for d in documents)
    assert f"3 of 4 documents, with {100 * share:.1f} % of the tokens, have fewer than 976 tokens" in said
    assert "all of notes among them; lower context_chunks" in said and "books" not in said


def test_where_all_are_long_enough_nothing_is_said(mixed, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "sharedllm.train"):
        trainer(mixed, tmp_path / "run")
    assert not caplog.records
    folder = TokenFolder.open(mixed)
    assert "among them" not in str(left_out(folder, recipe(mixed, tmp_path, context_chunks=[32, 40])))


def test_where_none_is_long_enough_it_is_said_how_they_become_so(mixed, tmp_path):
    with pytest.raises(UsageError, match=r"join more of a source's texts \(join_below\)") as error:
        Sampler(TokenFolder.open(mixed), recipe(mixed, tmp_path, context_chunks=[5000, 6000]), "train")
    assert_one_sentence(error)
