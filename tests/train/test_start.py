"""The adapter that training starts from has to be one of what is trained: its weights are taken over by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sharedllm import SharedLLM, UsageError
from sharedllm.train.loop import Trainer
from sharedllm.train.start import _check_settings
from tests.conftest import CONFIG, byte_tokenizer, tiny_model
from tests.contexts import assert_one_sentence
from tests.train.test_loop import recipe, trainer, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("texts"))


def written(data, folder, **changes) -> str:
    trainer(data, folder, steps=1, **changes).train()
    return str(folder / "adapter")


@pytest.mark.parametrize("method", ["shared", "encoder-decoder"])
def test_an_adapter_of_another_method_is_refused(data, tmp_path, method):
    other = {"shared": "encoder-decoder", "encoder-decoder": "shared"}[method]
    start = written(data, tmp_path / "first", method=other)
    with pytest.raises(UsageError, match="adapter of another kind") as error:
        trainer(data, tmp_path / "run", start=start, method=method)
    assert_one_sentence(error)
    assert trainer(data, tmp_path / "same", start=start, method=other).step == 0


def test_an_adapter_of_another_rank_is_refused(data, tmp_path):
    """Its projections have other names, and would be left out without a word."""
    start = written(data, tmp_path / "first")
    low = dataclasses.replace(CONFIG, rank=2)
    llm = SharedLLM.from_pretrained(tiny_model(), adapter="none", config=low, tokenizer=byte_tokenizer())
    with pytest.raises(UsageError, match=r"config\.rank 0 and the recipe 2; set config\.rank=0") as error:
        Trainer(recipe(data, tmp_path / "run", config=low, start=start), llm)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"init": "zero"}, r"config\.init copied and the recipe zero; set config\.init=copied"),
        ({"chunk_length": 32}, r"config\.chunk_length 16 and the recipe 32; set config\.chunk_length=16"),
        ({"positions": "none"}, r"config\.positions chunk and the recipe none; set config\.positions=chunk"),
        ({"injected_layers": 2}, r"config\.injected_layers 3 and the recipe 2; set config\.injected_layers=3 or more"),
    ],
)
def test_an_adapter_whose_weights_would_mean_something_else_is_refused(data, tmp_path, changes, words):
    start = written(data, tmp_path / "first")
    other = dataclasses.replace(CONFIG, **changes)
    llm = SharedLLM.from_pretrained(tiny_model(), adapter="none", config=other, tokenizer=byte_tokenizer())
    with pytest.raises(UsageError, match=words) as error:
        Trainer(recipe(data, tmp_path / "run", config=other, start=start), llm)
    assert_one_sentence(error)


@pytest.mark.parametrize("name", ["null_slot", "null_growth"])
def test_what_a_start_learnt_of_its_null_logit_is_not_dropped(name):
    on, off = (dataclasses.replace(CONFIG, **{name: held}) for held in (True, False))
    with pytest.raises(
        UsageError, match=rf"config\.{name} true and the recipe false; set config\.{name}=true"
    ) as error:
        _check_settings(on, off, Path("first/adapter"))
    assert_one_sentence(error)
    _check_settings(off, on, Path("first/adapter"))


def test_more_layers_than_the_start_has_are_trained_on(data, tmp_path):
    start = written(data, tmp_path / "first")
    deeper = dataclasses.replace(CONFIG, injected_layers=4)
    llm = SharedLLM.from_pretrained(tiny_model(), adapter="none", config=deeper, tokenizer=byte_tokenizer())
    assert Trainer(recipe(data, tmp_path / "run", config=deeper, start=start), llm).step == 0


def test_an_adapter_for_a_model_of_other_sizes_is_refused(data, tmp_path):
    start = written(data, tmp_path / "first")
    longer = tiny_model(num_hidden_layers=5)
    llm = SharedLLM.from_pretrained(longer, adapter="none", config=CONFIG, tokenizer=byte_tokenizer())
    with pytest.raises(UsageError, match="trained for a model with layers 4, this one has 5"):
        Trainer(recipe(data, tmp_path / "run", start=start), llm)
