"""Scaled positions: the same as a model loaded with them, and gone without a trace."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM

from sharedllm import SharedLLM, UsageError
from sharedllm.methods import create, yarn
from sharedllm.methods.base import target_nll
from sharedllm.prompts import Prompt
from tests.conftest import CONFIG, byte_tokenizer, tiny_model, tokens
from tests.test_families import family_model

SCALED = {
    "yarn": lambda n: {"rope_type": "yarn", "factor": n / 64, "original_max_position_embeddings": 64},
    "dynamic-ntk": lambda n: {"rope_type": "dynamic", "factor": 1.0},
}


def loaded_with(model, rope):
    """The same weights in a model made anew under another rotary configuration."""
    config = copy.deepcopy(model.config)
    config.rope_parameters = {"rope_theta": model.config.rope_parameters["rope_theta"], **rope}
    other = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    other.load_state_dict(model.state_dict())
    return other.eval()


def nats(model, ids, targets):
    with torch.no_grad():
        return target_nll(model(ids[None], logits_to_keep=targets + 1).logits, ids[None], targets)[0]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("name", SCALED)
def test_scores_are_those_of_a_model_loaded_with_scaled_positions(family, name):
    model, ids = family_model(family), tokens(150)
    before = model(ids[None]).logits
    method = create(name, SharedLLM.from_pretrained(model, adapter="none", config=CONFIG), 16)
    found = method.score(method.prepare(ids[:100]), ids[100:], 40)
    assert torch.equal(found, nats(loaded_with(model, SCALED[name](150)), ids, 40))
    assert not torch.allclose(found, nats(model, ids, 40), atol=1e-3), "nothing was scaled; the test is empty"
    assert torch.equal(model(ids[None]).logits, before)


@pytest.mark.parametrize("name", SCALED)
def test_answers_are_those_of_a_model_loaded_with_scaled_positions(make, name):
    llm, past = make(random=False), tokens(90)
    method, prompt = create(name, llm, 16), Prompt(byte_tokenizer(), "Which?")
    ids = torch.tensor([prompt.with_text(past)])
    other = loaded_with(llm.model, SCALED[name](ids.shape[1] + 6))
    expected = other.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert torch.equal(method.ask(method.prepare(past), prompt, 6), expected[0, ids.shape[1] :])
    assert torch.equal(method.generate(past, ids[0, 90:], 6), expected[0, ids.shape[1] :])


def test_a_text_beyond_the_positions_is_read_once_and_asked_often(make, monkeypatch):
    llm, past = make(random=False), tokens(90)
    method, prompts = (
        create("yarn", llm, 16),
        [Prompt(byte_tokenizer(), asked) for asked in ("Which?", "And where, then?")],
    )
    read = method.prepare_to_ask(past, prompts[0])
    kept = [layer.keys.clone() for layer in read.cache.layers]
    other = loaded_with(llm.model, SCALED["yarn"](90 + yarn.ROOM))
    for prompt in prompts:
        ids = torch.tensor([prompt.with_text(past)])
        expected = other.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert torch.equal(method.ask(read, prompt, 6), expected[0, ids.shape[1] :])
    assert all(torch.equal(a, layer.keys) for a, layer in zip(kept, read.cache.layers, strict=True))
    monkeypatch.setattr(yarn, "ROOM", 10)
    assert torch.equal(method.ask(read, prompts[1], 6), method.ask(past, prompts[1], 6)), "no room: read again"
    assert (
        method.prepare_to_ask(past[:60], prompts[0]) is not read
        and len(method.prepare_to_ask(past[:60], prompts[0])) == 60
    )
    assert torch.equal(create("dynamic-ntk", llm, 16).prepare_to_ask(past, prompts[0]), past), (
        "older keys change with the length"
    )


@pytest.mark.parametrize("name", SCALED)
def test_what_fits_is_read_by_the_model_as_it_is(make, name):
    llm, ids = make(), tokens(64)
    method = create(name, llm, 16)
    assert torch.equal(method.score(ids[:40], ids[40:], 20), nats(llm.model, ids, 20))
    assert method.positions(64) == 64 and method.positions(1000) == 1000


def test_the_model_is_given_back_after_an_error_too(make, monkeypatch):
    llm = make()
    method, rotary = create("yarn", llm, 16), llm.parts.base.rotary_emb
    with pytest.raises(IndexError):
        method.score(tokens(100), torch.full((20,), 10**6), 10)
    assert llm.parts.base.rotary_emb is rotary and llm.model.config.rope_parameters["rope_type"] == "default"


def test_positions_that_are_scaled_already_are_refused():
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    llm = SharedLLM.from_pretrained(tiny_model(rope_parameters=rope), adapter="none", config=CONFIG)
    with pytest.raises(UsageError, match="of the type 'linear' already"):
        create("yarn", llm, 16)


def test_layers_with_rotary_embeddings_of_their_own_are_refused_rather_than_left_as_they_are():
    llm = SharedLLM.from_pretrained(family_model("gemma3_text"), adapter="none", config=CONFIG)
    with pytest.raises(UsageError, match="this model's layers have several; use full"):
        create("dynamic-ntk", llm, 16)
