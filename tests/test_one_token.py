"""One token of one row takes other ways through branches and attention, and comes to the same."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch

from sharedllm import own_attention
from sharedllm.branch import Branch
from sharedllm.one_token import OneToken
from tests.conftest import CONFIG, tokens
from tests.contexts import encoded

PLACED = dict(null_growth=True, moving_query=True)
SHIPPED = dict(null_growth=True, search_prior=20.0, search_words=0.1, fine_chunks=1, rank=4, stored_bits=4)
MODELS = {"llama": {}, "with biases": dict(attention_bias=True), "one head each": dict(num_key_value_heads=4)}


def answered(llm, memory, ids, heard=None, together=False) -> torch.Tensor:
    """Logits [T, V] after each of `ids`: the first five at once, the others one at a time, or all `together`."""
    with torch.no_grad(), llm.injection.reading(memory, heard):
        if together:
            return llm.model(ids[None]).logits[0]
        out = llm.model(ids[None, :5], use_cache=True)
        rows = [out.logits[0]]
        for i in range(5, len(ids)):
            out = llm.model(ids[None, i : i + 1], past_key_values=out.past_key_values, use_cache=True)
            rows.append(out.logits[0])
        return torch.cat(rows)


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """Which way each branch went."""
    seen = list[str]()

    def noted(kind: type, name: str, how: str) -> None:
        usual = getattr(kind, name)

        def call(self, *args: Any, **kwargs: Any) -> Any:
            seen.append(how)
            return usual(self, *args, **kwargs)

        monkeypatch.setattr(kind, name, call)

    noted(OneToken, "__call__", "one token")
    noted(Branch, "forward", "plain")
    return seen


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("config", [{}, PLACED, SHIPPED, dict(init="zero"), dict(null_slot=False)], ids=str)
def test_it_is_the_plain_branch(make, calls, model, config):
    llm = make(config=replace(CONFIG, **config), **MODELS[model])
    context, ids = encoded(llm, tokens(70, 3)), tokens(9)
    memory = llm.recall(context, ids[None])
    fast = answered(llm, memory, ids)
    assert calls == ["plain"] * 3 + ["one token"] * 12
    plain = answered(llm, memory, ids, heard=lambda _: None)
    assert calls[15:] == ["plain"] * 15
    torch.testing.assert_close(fast, plain, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(fast, answered(llm, memory, ids, together=True), atol=2e-5, rtol=2e-5)
    assert not torch.allclose(fast[5:], answered(llm, None, ids)[5:], atol=1e-2), "the branches add nothing"


def test_in_bfloat16_it_is_as_near_as_rounding_allows(make):
    llm = make(config=replace(CONFIG, **SHIPPED))
    context, ids = encoded(llm, tokens(70, 3)), tokens(9)
    exact = answered(llm, llm.recall(context, ids[None]), ids)
    llm.model.bfloat16(), llm.injection.bfloat16()
    memory = llm.recall(encoded(llm, tokens(70, 3)), ids[None])
    plain = answered(llm, memory, ids, heard=lambda _: None).float() - exact
    fast = answered(llm, memory, ids).float() - exact
    assert fast.abs().mean() < 1.3 * plain.abs().mean()


def test_weights_that_change_are_seen(make):
    llm, ids = make(config=replace(CONFIG, rank=4)), tokens(9)
    memory = llm.recall(encoded(llm, tokens(70, 3)), ids[None])
    before = answered(llm, memory, ids)
    with torch.no_grad():
        llm.injection.branches[1].gate.mul_(2)
    after = answered(llm, memory, ids)
    assert not torch.allclose(before[5:], after[5:], atol=1e-4)
    torch.testing.assert_close(after, answered(llm, memory, ids, heard=lambda _: None), atol=2e-5, rtol=2e-5)


def test_there_is_no_place_without_a_memory(make):
    one_token = OneToken(list(make().injection.branches))
    with pytest.raises(AssertionError, match="begin comes first"):
        one_token.locate(None)


def test_an_answer_between_the_tokens_of_another_leaves_it_as_it_was(make):
    llm, ids = make(), tokens(9)
    memory = llm.recall(encoded(llm, tokens(70, 3)), ids[None])
    other = llm.recall(encoded(llm, tokens(70, 4)), ids[None])
    expected = answered(llm, memory, ids)[-1]
    with torch.no_grad(), llm.injection.reading(memory):
        past = llm.model(ids[None, :-1], use_cache=True).past_key_values
        answered(llm, other, ids)
        answered(llm, None, ids)
        found = llm.model(ids[None, -1:], past_key_values=past, use_cache=True).logits[0, -1]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("small", [1024, 1023], ids=["small", "large"])
def test_several_rows_several_tokens_learning_and_large_models_go_the_plain_way(make, calls, small, monkeypatch):
    monkeypatch.setattr("sharedllm.one_token.MERGED", small)
    llm, ids = make(), tokens(9)
    context = encoded(llm, tokens(70, 3))
    with llm.injection.reading(llm.recall([context, context], ids.expand(2, -1))), torch.no_grad():
        llm.model(ids.expand(2, -1)[:, :1])
    with llm.injection.reading(llm.recall(context, ids[None])):
        llm.model(ids[None, :1])
        with torch.no_grad():
            llm.model(ids[None, :2])
            calls.append("now")
            llm.model(ids[None, :1])
    one = "one token" if small == 1024 else "plain"
    assert calls == ["plain"] * 9 + ["now"] + [one] * 3


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("model", [{}, dict(num_key_value_heads=4)], ids=["grouped", "one each"])
def test_the_models_own_attention_of_one_token_is_the_fused_one(make, rows, padded, model):
    llm, ids = make(**model), torch.stack([tokens(9, seed) for seed in range(rows)])
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :3] = 0
    with torch.no_grad():
        past = llm.model(ids[:, :-1], attention_mask=mask[:, :-1], use_cache=True).past_key_values
        expected = llm.model(ids[:, -1:], attention_mask=mask, past_key_values=copy.deepcopy(past)).logits
        used = list[int]()
        attend = own_attention.attend_plainly
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(own_attention, "attend_plainly", lambda *args: used.append(1) or attend(*args))
            with own_attention.by_products(llm.parts):
                found = llm.model(ids[:, -1:], attention_mask=mask, past_key_values=past).logits
    assert len(used) == 4, "the model went the usual way; the test is empty"
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=2e-5)


def test_the_models_attention_is_its_own_again_after_an_error(make):
    llm = make()
    with pytest.raises(RuntimeError), own_attention.by_products(llm.parts):
        assert llm.model.config._attn_implementation == own_attention.NAME
        raise RuntimeError
    assert llm.model.config._attn_implementation == "sdpa"


def test_a_model_with_another_attention_keeps_it(make):
    llm = make(attn_implementation="eager")
    with own_attention.by_products(llm.parts):
        assert llm.model.config._attn_implementation == "eager"
