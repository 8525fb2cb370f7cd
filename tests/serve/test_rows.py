"""Rows that join and leave a batch get the tokens they would have got alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers.cache_utils import DynamicLayer

from sharedllm.serve.batch import Batch, take_in
from sharedllm.serve.sampling import Sampler, Sampling
from sharedllm.serve.written import Written
from tests.conftest import CONFIG, byte_tokenizer, tokens
from tests.contexts import encoded
from tests.test_families import attach, family_model


def run_to_end(slices):
    while True:
        try:
            next(slices)
        except StopIteration as end:
            return end.value


def taken(llm, ids, context, most=512):
    memory = None if context is None else llm.recall(context, ids[None])
    return run_to_end(take_in(llm, ids.tolist(), memory, most))


@pytest.mark.parametrize("config", [CONFIG, dataclasses.replace(CONFIG, null_growth=True, moving_query=True)])
def test_rows_that_join_and_leave_decode_as_alone(make, config):
    llm = make(config)
    starts = [
        (tokens(n, n), c) for n, c in ((7, None), (19, encoded(llm, tokens(110, 3))), (3, encoded(llm, tokens(37, 4))))
    ]
    alone = [
        llm.generate(ids[None], context=c, max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=258)[
            0, len(ids) :
        ]
        for ids, c in starts
    ]
    batch, rows, got = Batch(llm), [], {0: [], 1: [], 2: []}

    def choose(logits):
        logits[257] = -torch.inf
        return int(logits.argmax())

    for step in range(30):
        if step in (0, 2, 4):  # one joins while the others are on their way
            i = step // 2
            first = taken(llm, *starts[i], most=5)
            batch.join(first)
            rows.append(i)
            got[i].append(choose(first.logits))
        logits = batch.step([got[i][-1] for i in rows])
        for row, i in enumerate(rows):
            got[i].append(choose(logits[row]))
        stay = [row for row, i in enumerate(rows) if len(got[i]) < 12]
        if len(stay) < len(rows):
            batch.keep(stay)
            rows = [rows[row] for row in stay]
        if step > 4 and not rows:
            break
    for i, expected in enumerate(alone):
        assert got[i][:12] == expected.tolist(), f"row {i}"
    assert batch.rows == 0


def test_logits_of_a_batch_are_those_of_a_forward_pass(make):
    llm = make()
    context = encoded(llm, tokens(110, 3))
    long, short = tokens(20, 1), tokens(6, 2)
    batch = Batch(llm)
    batch.join(taken(llm, long, None))
    batch.join(taken(llm, short, context), 2)
    logits = batch.step([5, 6, 7])
    memory = llm.recall(context, short[None])
    for row, (ids, new, read) in enumerate([(long, 5, None), (short, 6, memory), (short, 7, memory)]):
        with torch.no_grad(), llm.injection.reading(read):
            whole = llm.model(torch.cat([ids, torch.tensor([new])])[None]).logits[0, -1]
        torch.testing.assert_close(logits[row], whole, atol=1e-4, rtol=1e-4)


def test_a_step_adds_a_token_to_the_cache_and_copies_it_no_other_time(make, monkeypatch):
    llm = make()
    batch, update, sizes = Batch(llm), DynamicLayer.update, []
    for rows in (2, 1):
        batch.join(taken(llm, tokens(9, rows), encoded(llm, tokens(110, 3))), rows)
    batch.keep([2, 0])

    def watched(layer, keys, *rest):
        sizes.append(keys.shape[2])
        return update(layer, keys, *rest)

    monkeypatch.setattr(DynamicLayer, "update", watched)
    for _ in range(3):
        batch.step([5, 6])
    assert sizes == [1] * 3 * len(llm.parts.layers)


def test_whether_rows_have_slots_is_asked_when_they_change_and_not_for_every_token(make, monkeypatch):
    llm = make()
    batch, any_of, asked = Batch(llm), torch.Tensor.any, []
    context = encoded(llm, tokens(110, 3))
    batch.join(taken(llm, tokens(9, 1), None))
    batch.join(taken(llm, tokens(9, 2), context))
    slots = batch._memory.mask[:, 1:].shape

    def counted(x, *rest):
        asked.append(x.shape)
        return any_of(x, *rest)

    monkeypatch.setattr(torch.Tensor, "any", counted)
    batch.step([5, 6])
    assert slots not in asked and batch._reads is batch._memory
    batch.keep([0])
    assert asked and batch._reads is None, "the row that is left has no context"


@pytest.mark.parametrize("family", ["mistral, sliding", "gemma3_text"])
def test_rows_of_a_model_whose_layers_see_a_few_tokens_back_decode_as_alone(family):
    llm = attach(family_model(family).requires_grad_(False))
    long, short = tokens(20, 1), tokens(6, 2)  # the layers see 4
    batch, told = Batch(llm), [[5, 6, 7, 8, 9], [15, 16, 17]]
    batch.join(taken(llm, long, None, most=7))
    for new in told[0][:2]:
        batch.step([new])
    batch.join(taken(llm, short, None))
    for news in zip(told[0][2:], told[1], strict=True):
        logits = batch.step(news)
    batch.keep([1])
    logits = [logits[0], batch.step([18])[0]]
    for row, ids in enumerate([[*long.tolist(), *told[0]], [*short.tolist(), *told[1], 18]]):
        with torch.no_grad():
            whole = llm.model(torch.tensor([ids])).logits[0, -1]
        torch.testing.assert_close(logits[row] / whole.abs().max(), whole / whole.abs().max(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3])
def test_tokens_are_drawn_as_often_as_they_are_likely(top_p):
    """Against a plain sort, with a vocabulary whose first tokens have less than `top_p` of the probability."""
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 0.5
    shares, order = logits.softmax(0).sort(descending=True)
    kept = shares.cumsum(0) - shares < top_p
    wanted = torch.zeros(1000).index_put((order[kept],), shares[kept] / shares[kept].sum())
    sampler = Sampler(Sampling(1.0, top_p, 0))
    drawn = torch.bincount(torch.tensor([sampler.choose(logits).token for _ in range(8000)]), minlength=1000)
    assert not drawn[wanted == 0].any()
    spread = (8000 * wanted * (1 - wanted)).sqrt()
    assert ((drawn - 8000 * wanted).abs() <= 5 * spread + 1).all()


def test_sampling_keeps_to_top_p_and_repeats_with_a_seed():
    logits = torch.tensor([3.0, 2.0, 1.0, -4.0]).log_softmax(0)
    kept = {Sampler(Sampling(1.0, 0.8, seed)).choose(logits).token for seed in range(60)}
    assert kept == {0, 1}, "0.66 and 0.25 of the probability"
    assert Sampler(Sampling(0.0)).choose(logits).token == 0
    draws = [[Sampler(Sampling(2.0, 1.0, 5), row).choose(logits).token for row in range(9)] for _ in range(2)]
    assert draws[0] == draws[1] and len(set(draws[0])) > 1
    chosen = Sampler(Sampling(logprobs=2)).choose(logits)
    assert chosen.logprob == pytest.approx(float(logits[0])) and [t for t, _ in chosen.likeliest] == [0, 1]


@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-40, 9e-4])
def test_a_tiny_temperature_takes_the_likeliest_token(temperature):
    logits = torch.tensor([3.0, 3.001, 1.0, -torch.inf])
    assert Sampler(Sampling(temperature, 1.0, 0)).choose(logits).token == 1


def test_large_logits_are_drawn_from_at_a_low_temperature():
    logits = torch.tensor([1e37, 3e37, -torch.inf])
    assert Sampler(Sampling(1e-3, 1.0, 0)).choose(logits).token == 1


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("ab END cd", [" END"], "ab"),
        ("abEN", ["END"], "abEN"),
        ("häßlich 😀!", ["!"], "häßlich 😀"),
        ("aab", ["ab", "b"], "a"),
    ],
)
def test_text_comes_in_pieces_and_ends_before_a_stop_string(text, stops, expected):
    written, pieces = Written(byte_tokenizer(), stops), []
    for byte in byte_tokenizer()(text)["input_ids"]:
        pieces.append(written.push(byte))
        if written.stopped:
            break
    pieces.append(written.finish())
    assert "".join(pieces) == expected and "\ufffd" not in "".join(pieces)
