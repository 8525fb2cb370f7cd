"""Processes of one launch that read a text together: what they must agree on, and how they part; without a launch."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sharedllm import SharedLLM, UsageError
from sharedllm.processes import Processes, ProcessGone
from tests.conftest import CONFIG, byte_tokenizer, tiny_model
from tests.contexts import assert_one_sentence


def llm_of(upper: float) -> SharedLLM:
    """A model whose last layer's weights are multiplied by `upper`."""
    model = tiny_model()
    with torch.no_grad():
        for weight in model.model.layers[-1].parameters():
            weight.mul_(upper)
    return SharedLLM.from_pretrained(model, adapter="none", config=CONFIG, tokenizer=byte_tokenizer())


def test_processes_whose_models_differ_in_upper_layers_alone_do_not_read_together(tmp_path, monkeypatch):
    from sharedllm.reading import read

    llms, told = [llm_of(1), llm_of(-1)], []

    class Alone:
        device, dtype, main = "cpu", None, True

        def __init__(self, **_options):
            pass

        def agree(self, _what, value):
            told.append(value)
            raise UsageError("it goes no further.")

    monkeypatch.setattr("sharedllm.processes.Processes", Alone)
    for llm in llms:
        monkeypatch.setattr("sharedllm.cli.common.load", lambda *_, llm=llm: llm)
        with pytest.raises(UsageError, match="no further"):
            read([str(tmp_path / "a.txt")], tmp_path / "out", device="cpu")
    assert llms[0].fingerprint == llms[1].fingerprint and told[0] != told[1]


def test_a_process_whose_others_are_gone_when_it_ends_says_so():
    def gone():
        raise RuntimeError("Connection closed by peer")

    processes = Processes.__new__(Processes)
    processes.accelerator = SimpleNamespace(wait_for_everyone=gone)
    with pytest.raises(ProcessGone, match="another process of this run ended") as error:
        processes.end()
    assert_one_sentence(error)
