"""Loading by name: nothing that a model brings is run, what is damaged is one sentence, and nothing else is changed."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from transformers.utils import logging

from sharedllm import UsageError, WorkError
from sharedllm.loading import load_model, load_tokenizer
from tests.conftest import byte_tokenizer, tiny_model
from tests.contexts import assert_one_sentence


@pytest.fixture
def saved(tmp_path):
    """A folder with a tiny model and its tokenizer."""
    tiny_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_code_that_a_model_brings_is_neither_run_nor_asked_about(saved, monkeypatch):
    about = json.loads((saved / "config.json").read_text())
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (saved / "config.json").write_text(json.dumps({**about, "model_type": "unheard-of", "auto_map": classes}))
    told = json.loads((saved / "tokenizer_config.json").read_text())
    told |= {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}}
    (saved / "tokenizer_config.json").write_text(json.dumps(told))
    (saved / "own.py").write_text("raise SystemExit('it was run')\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("standard input was read"))
    for load in (lambda: load_model(saved, "cpu", torch.float32), lambda: load_tokenizer(saved)):
        with pytest.raises(UsageError, match="brings code of its own") as error:
            load()
        assert_one_sentence(error)


@pytest.mark.parametrize("shown", [True, False])
def test_progress_bars_of_other_code_are_as_they_were(saved, shown):
    try:
        (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
        load_model(saved, "cpu", torch.float32)
        assert logging.is_progress_bar_enabled() == shown
    finally:
        logging.enable_progress_bar()


def test_a_damaged_tokenizer_is_one_sentence(saved):
    file = saved / "tokenizer.json"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(WorkError, match=r"tokenizer of .* cannot be loaded: .* Give a Hugging Face name"):
        load_tokenizer(saved)


def test_an_error_without_words_is_named(saved, monkeypatch):
    def fail(*_, **__):
        raise ValueError

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(WorkError, match="cannot be loaded: ValueError"):
        load_tokenizer(saved)
    with pytest.raises(UsageError, match="cannot be loaded: ValueError"):
        load_tokenizer("nowhere/at-all")
