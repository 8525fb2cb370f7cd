"""Batch equals single: rows of different contexts and windows, padded at either side."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from sharedllm import UsageError
from tests.conftest import CONFIG, tokens
from tests.contexts import assert_one_sentence

TEXTS = [tokens(37, 1), tokens(16, 2), tokens(0), tokens(110, 3), tokens(1, 4)]
WINDOWS = [tokens(n, 10 + n) for n in (7, 2, 9, 1, 5)]


def padded(windows, side):
    """Token ids and mask [B, T] of windows padded at one side, and where each window lies."""
    T = max(map(len, windows))
    ids, mask, places = torch.full((len(windows), T), 258), torch.zeros(len(windows), T, dtype=torch.long), []
    for b, w in enumerate(windows):
        places.append(slice(T - len(w), T) if side == "left" else slice(0, len(w)))
        ids[b, places[b]], mask[b, places[b]] = w, 1
    return ids, mask, places


def assert_near(actual, expected):
    scale = expected.abs().max()
    torch.testing.assert_close(actual / scale, expected / scale, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", ["chunk", "sequence"])
@pytest.mark.parametrize("search", ["query", "continue", "later"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_gives_what_each_row_gives(make, side, search, positions):
    llm = make(dataclasses.replace(CONFIG, positions=positions))
    contexts = [llm.read(t) if len(t) else None for t in TEXTS]
    ids, mask, places = padded(WINDOWS, side)
    with torch.no_grad():
        batch = llm(ids, context=contexts, attention_mask=mask, search=search).logits
        for b, (window, context) in enumerate(zip(WINDOWS, contexts, strict=True)):
            single = llm(window[None], context=context, search=search).logits[0]
            assert_near(batch[b, places[b]], single)


@pytest.mark.parametrize("search_by", ["tokens", "last"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_query_is_each_rows_own(make, side, search_by):
    llm = make(dataclasses.replace(CONFIG, search_by=search_by))
    ids, mask, _ = padded(WINDOWS, side)
    for query, window in zip(llm.query(ids, mask), WINDOWS, strict=True):
        (single,) = llm.query(window[None])
        assert query.shape == single.shape and len(query) == (len(window) if search_by == "tokens" else 1)
        torch.testing.assert_close(query, single, atol=1e-5, rtol=1e-5)


def test_only_the_tokens_that_ask_are_searched_by(make):
    llm = make()
    window, asking = tokens(80, 1)[None], torch.zeros(1, 80, dtype=torch.bool)
    asking[0, [3, 70]] = True
    (every,) = llm.query(window, question_mask=torch.ones(1, 80))
    (last,) = llm.query(window)
    assert torch.equal(last, every[-64:]), "without a mask the last tokens of a long window"
    (query,) = llm.query(window, question_mask=asking)
    assert torch.equal(query, every[[3, 70]])
    with pytest.raises(UsageError, match="question_mask"):
        llm.query(window, question_mask=torch.zeros(1, 80))


@pytest.mark.parametrize("side", ["left", "right"])
def test_one_context_for_all_rows_equals_a_list_of_the_same(make, side):
    llm = make()
    context = llm.read(tokens(110, 3))
    ids, mask, _ = padded(WINDOWS, side)
    with torch.no_grad():
        shared = llm(ids, context=context, attention_mask=mask).logits
        listed = llm(ids, context=[context] * len(WINDOWS), attention_mask=mask).logits
        other = llm(ids, context=llm.read(tokens(110, 5)), attention_mask=mask).logits
    assert torch.equal(shared, listed)
    assert not torch.equal(shared, other)


@pytest.mark.parametrize("side", ["left", "right"])
def test_no_context_at_all_is_the_plain_model(make, side):
    llm = make()
    ids, mask, places = padded(WINDOWS, side)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    plain = llm.model(ids, attention_mask=mask, position_ids=positions).logits
    for context in (None, [None] * len(WINDOWS)):
        assert torch.equal(llm(ids, context=context, attention_mask=mask).logits, plain)
    for b, window in enumerate(WINDOWS):
        assert_near(plain[b, places[b]], llm.model(window[None]).logits[0])


def test_rows_do_not_see_each_others_contexts(make):
    llm = make()
    ids = torch.stack([tokens(6, 1), tokens(6, 2)])
    a, b, c = (llm.read(tokens(80, s)) for s in (1, 2, 3))
    first, second = (llm(ids, context=[a, other]).logits for other in (b, c))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
    swapped = llm(ids, context=[b, a]).logits
    assert (swapped[0] - first[0]).abs().max() > 1e-2


def test_another_count_of_contexts_than_rows_is_refused(make):
    llm = make()
    context = llm.read(tokens(80))
    with pytest.raises(UsageError, match="2 contexts for 3 rows"):
        llm(torch.stack([tokens(6)] * 3), context=[context, context])


def test_an_unknown_search_is_refused(make):
    llm = make()
    with pytest.raises(UsageError, match="Did you mean later"):
        llm(tokens(6)[None], context=llm.read(tokens(80)), search="latter")


def test_a_mask_over_past_and_window_works_as_in_the_model(make):
    # The model's own forward takes past_key_values with a mask over all positions, the past included.
    llm = make()
    context, ids = llm.read(tokens(80)), tokens(7, 1)[None]
    whole = llm(ids, context=context, search="later").logits[:, -1]
    past = llm(ids[:, :-1], context=context, search="later", use_cache=True).past_key_values
    mask = torch.ones_like(ids)
    step = llm(ids[:, -1:], context=context, search="later", past_key_values=past, attention_mask=mask).logits[:, -1]
    assert_near(step, whole)


def test_a_mask_over_past_and_window_works_with_a_query(make):
    llm = make()
    context, ids = llm.read(tokens(80)), tokens(7, 1)[None]
    memory = llm.recall(context, ids[:, -1:])  # the query is the last token given
    past = [llm(ids[:, :-1], context=context, use_cache=True).past_key_values for _ in range(2)]
    with llm.injection.reading(memory):
        expected = llm.model(ids[:, -1:], past_key_values=past[0]).logits
    step = llm(ids[:, -1:], context=context, past_key_values=past[1], attention_mask=torch.ones_like(ids)).logits
    assert_near(step, expected)


def test_a_mask_of_pairs_is_taken_without_a_context_and_refused_with_one(make):
    llm, ids = make(), torch.stack([tokens(5, 1), tokens(5, 2)])
    pairs, context = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril(), llm.read(tokens(80))
    assert torch.equal(llm(ids, attention_mask=pairs).logits, llm.model(ids, attention_mask=pairs).logits)
    for wrong in (pairs, torch.ones(2, 4), torch.ones(1, 5)):
        with pytest.raises(UsageError, match="attention_mask is of shape") as error:
            llm(ids, context=context, attention_mask=wrong)
        assert_one_sentence(error)
    with pytest.raises(UsageError, match="attention_mask is of shape"):
        llm.generate(tokens(70)[None], attention_mask=torch.ones(1, 1, 70, 70), max_new_tokens=2)


def test_a_padded_batch_with_a_cache_gives_what_one_without_gives(make):
    llm = make(dataclasses.replace(CONFIG, moving_query=True))
    contexts = [llm.read(tokens(110, 3)), None, llm.read(tokens(37, 1))]
    ids, mask, _ = padded([tokens(n, 10 + n) for n in (9, 4, 7)], "left")
    cache = DynamicCache()
    with torch.no_grad():
        whole = llm(ids, contexts, mask, "later").logits
        first = llm(ids[:, :6], contexts, mask[:, :6], "later", past_key_values=cache, use_cache=True).logits
        then = llm(ids[:, 6:], contexts, mask, "later", past_key_values=cache, use_cache=True).logits
    assert_near(torch.cat([first, then], dim=1)[mask > 0], whole[mask > 0])


@pytest.mark.parametrize("told", ["model", "argument", "settings"])
def test_padding_is_no_text_without_a_mask(make, told):
    llm = make()
    context, (ids, mask, _) = llm.read(tokens(110, 3)), padded([tokens(3, 13), tokens(9, 19)], "left")
    wanted = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    if told != "model":
        llm.model.generation_config.pad_token_id = 257
    if told == "argument":
        wanted["pad_token_id"] = 258
    if told == "settings":
        wanted = {"generation_config": GenerationConfig(**wanted, eos_token_id=257, pad_token_id=258)}
    masked = llm.generate(ids, context=context, attention_mask=mask, **wanted)
    assert torch.equal(llm.generate(ids, context=context, **wanted), masked)
    text = llm.generate(ids, context=context, attention_mask=torch.ones_like(ids), **wanted)
    assert not torch.equal(text, masked), "padding does not matter here; the test is empty"


def test_a_padding_token_that_ends_answers_is_text_without_a_mask(make):
    llm = make()
    ids, _, _ = padded([tokens(3, 13), tokens(9, 19)], "left")
    ids[ids == 258] = 257
    wanted = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 257}
    text = llm.generate(ids, attention_mask=torch.ones_like(ids), **wanted)
    assert torch.equal(llm.generate(ids, **wanted), text)
