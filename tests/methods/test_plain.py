"""What the methods beside `shared` generate is the plain model's, past its trained positions too."""

from __future__ import annotations

import pytest
import torch

from sharedllm.methods import create
from sharedllm.prompts import Prompt
from tests.conftest import tokens


@pytest.mark.parametrize("name", ["full", "truncate", "retrieval", "encoder-decoder"])
def test_nothing_is_compressed_past_the_window(make, name):
    llm = make()
    ids = tokens(llm.window + 20)
    method = create(name, llm, len(ids) + 40)
    batch = ids[None]
    plain = llm.model.generate(batch, attention_mask=torch.ones_like(batch), max_new_tokens=4, do_sample=False)
    expected = plain[0, len(ids) :]
    assert torch.equal(method.generate(method.prepare(ids[:0]), ids, 4), expected)
    assert llm.generate(batch, max_new_tokens=4, do_sample=False)[0, len(ids) :].tolist() != expected.tolist()


def test_a_question_on_a_text_past_the_window_is_asked_of_the_plain_model(make):
    llm = make()
    full, prompt, ids = create("full", llm, 8), Prompt(llm.tokenizer, "Who?"), tokens(llm.window)
    shown = torch.tensor([prompt.with_text(ids)])
    plain = llm.model.generate(shown, attention_mask=torch.ones_like(shown), max_new_tokens=4, do_sample=False)
    assert full.ask(full.prepare(ids), prompt, 4).tolist() == plain[0, shown.shape[1] :].tolist()
