"""What the methods beside `shared` generate is the plain model's, past its trained positions too; what all of them score stands
behind what the tokenizer puts before a text."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tokenizers.processors import TemplateProcessing

from sharedllm import SharedLLM
from sharedllm.methods import create
from sharedllm.methods.base import opened, plain_nll
from sharedllm.prompts import Prompt
from tests.conftest import tokens

FIRST = torch.tensor([256])


def begun(llm: SharedLLM) -> SharedLLM:
    """The model with a tokenizer that begins a text with `<s>`, token 256."""
    begins = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    llm.tokenizer.backend_tokenizer.post_processor = begins
    return llm


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


@pytest.mark.parametrize("name", ["truncate", "full", "yarn", "retrieval", "encoder-decoder", "shared"])
@torch.no_grad()
def test_what_is_scored_stands_behind_what_begins_a_text(make, name):
    llm, ids = begun(make(max_position_embeddings=512)), tokens(60)
    past, window = ids[:-9], ids[-9:]
    method = create(name, llm, 9)
    context = method.prepare(past)
    seen = torch.cat([past, window]) if name in ("full", "yarn") else window
    if name == "retrieval":
        seen = method._behind_passages(context, ids[:-5], window)
    batch = torch.cat([FIRST, seen])[None]
    logits = (llm(batch, context=context, search="later") if name == "shared" else llm.model(batch)).logits
    expected = F.cross_entropy(logits[0, -6:-1], window[-5:], reduction="none")
    torch.testing.assert_close(method.score(context, window, 5), expected, atol=1e-4, rtol=0)


def test_what_begins_a_text_takes_no_position_that_the_model_lacks(make):
    llm, plain, ids = begun(make()), make(), tokens(100)
    assert torch.equal(opened(llm, ids[:63]), torch.cat([FIRST, ids[:63]]))
    assert torch.equal(opened(llm, ids[:64]), torch.cat([FIRST, ids[1:64]])), "of 64 positions"
    assert torch.equal(opened(llm, ids), torch.cat([FIRST, ids])), "past the positions all the same"
    assert opened(plain, ids) is ids
    for name in ("full", "yarn"):
        scored = create(name, llm, 16).score(ids[:40], ids[40:64], 20)
        assert torch.equal(scored, plain_nll(llm, torch.cat([FIRST, ids[1:64]]), 20))


def test_what_begins_a_text_is_not_searched_by(make, monkeypatch):
    monkeypatch.setattr("sharedllm.methods.shared.ASKING_TOKENS", 4)
    llm, given = begun(make()), []
    monkeypatch.setattr(llm, "recall", lambda past, ids, **how: given.append((ids, how)))
    create("shared", llm, 9).score(None, tokens(9), 5)
    ((ids, how),) = given
    assert ids[0].tolist() == [256, *tokens(9).tolist()] and how["search"] == "continue"
    assert how["question_mask"].tolist() == [[False, *[True] * 4, *[False] * 5]]
