"""What only the real model can show: the shipped adapter is found, small, and makes a text it never saw more predictable."""

from __future__ import annotations

import inspect
import statistics

import pytest
import torch

from sharedllm import SharedLLM
from sharedllm.adapter import SHIPPED, WEIGHTS_FILE, read_adapter_config
from sharedllm.methods import create


@pytest.fixture(scope="module")
def llm():
    return SharedLLM.from_pretrained()


def test_the_shipped_adapter_is_found_and_small(llm):
    assert llm.adapter == "smollm2-135m-instruct"
    assert (SHIPPED / llm.adapter / WEIGHTS_FILE).stat().st_size < 25e6
    assert llm.config == read_adapter_config(SHIPPED / llm.adapter)["config"] and llm.window == 8192


def test_lower_and_upper_model_are_the_same_weights(llm):
    own = {p.data_ptr() for p in llm.model.parameters()}
    assert {p.data_ptr() for p in llm.lower.module.parameters()} <= own


def test_the_context_helps_on_the_standard_library(llm):
    ids = llm.reader.token_ids(inspect.getsource(statistics)).long()[: 4 * 1024]
    past, window = ids[: 3 * 1024], ids[3 * 1024 :]
    nll = {}
    for name in ("truncate", "shared"):
        method = create(name, llm, len(window))
        nll[name] = method.score(method.prepare(past), window, len(window) - 1).mean().item()
    assert nll["shared"] < nll["truncate"] - 0.02, nll


def test_answers_over_a_text_longer_than_the_window(llm):
    text = inspect.getsource(statistics)
    context = llm.read(text)
    llm.reader.encode(context)
    assert context.nbytes < context.tokens * 30 * 2 * 3 * 64 * llm.dtype.itemsize / 4  # a quarter of the full cache
    ids = torch.tensor([llm.tokenizer("def ", add_special_tokens=False)["input_ids"]])
    out = llm.generate(ids, context=context, max_new_tokens=4, do_sample=False)
    assert out.shape[1] == ids.shape[1] + 4
