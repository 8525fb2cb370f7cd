"""How near nodes are to a question: late interaction over stored values, against loops."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

import sharedllm.memory
import sharedllm.relevance
from sharedllm import Context
from sharedllm.memory import find
from sharedllm.relevance import compare, near_parts, node_scores, priors, token_reps
from sharedllm.tree import tree_borders
from tests.conftest import CONFIG, tokens
from tests.test_generate import counted

FINE = dataclasses.replace(CONFIG, fine_chunks=1)


def encoded(llm, ids):
    context = llm.reader.new_context()
    context.ids = ids.int()
    llm.reader.encode(context)
    return context


def test_a_window_that_goes_on_is_searched_by_more_of_it_and_weighs_nothing(make):
    """The newest 256 tokens instead of 64, and no prior, whatever the adapter has."""
    llm, evenly = (make(dataclasses.replace(CONFIG, search_prior=prior)) for prior in (30.0, 0.0))
    window, masks = tokens(300, 1)[None], [torch.arange(300)[None] >= 300 - n for n in (64, 256)]
    for search, mask, other in (("query", masks[0], llm), ("continue", masks[1], evenly)):
        found = llm.recall(llm.read(tokens(90)), window, search=search)
        expected = other.recall(other.read(tokens(90)), window, question_mask=mask)
        for mine, theirs in zip((*found.keys, found.mask), (*expected.keys, expected.mask), strict=True):
            torch.testing.assert_close(mine, theirs)
    weighed, even = (
        llm.recall(llm.read(tokens(90)), window, search=s, question_mask=masks[0]) for s in ("query", "continue")
    )
    assert not torch.equal(weighed.keys[0], even.keys[0])


def test_scores_of_all_nodes_are_sums_of_best_cosines(make):
    llm = make(FINE)
    context = encoded(llm, tokens(16 * 3 + 5, 1))
    question = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    chunks = [b[i : i + 1] for b in context.blocks for i in range(len(b.lengths))]
    reps = [token_reps(c.values_of(llm.config.representing_layer))[0] for c in chunks]
    mean = torch.cat(reps).mean(0)
    levels = [
        node_scores(near.spans(tree_borders(block.lengths, 2)), near.by)
        for near, block in zip(compare(context.blocks, llm.config, question), context.blocks, strict=True)
    ]
    for depth in range(3):
        scores = torch.cat([level[depth] for level in levels])
        for i, rep in enumerate(reps):
            borders = tree_borders(torch.tensor([len(rep)]), depth)[0].tolist()
            for node, (start, end) in enumerate(zip(borders, borders[1:], strict=False)):
                cosines = F.cosine_similarity(rep[start:end, None] - mean, question[None] - mean, dim=2)
                assert scores[i, node].item() == pytest.approx(cosines.amax(0).sum().item(), abs=1e-5)


def test_a_question_after_the_first_needs_no_mean_of_all_again(make, tmp_path, monkeypatch):
    llm = make(dataclasses.replace(FINE, stored_bits=4))
    text, question = tokens(16 * 20 + 5, 1), torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    context, calls = encoded(llm, text), counted(monkeypatch, sharedllm.relevance, "compared_values")

    def cosines(context, config=llm.config):
        calls.clear()
        return torch.cat([near.cosines.flatten() for near in compare(context.blocks, config, question)])

    first, blocks = cosines(context), len(context.blocks)
    assert blocks == 4 and len(calls) == 2 * blocks
    assert torch.equal(cosines(context), first) and len(calls) == blocks
    whole = Context.compose([context, encoded(llm, tokens(16, 2))])
    assert torch.equal(cosines(whole), cosines(Context.compose([encoded(llm, text), encoded(llm, tokens(16, 2))])))
    assert cosines(whole) is not None and len(calls) == blocks + 1, "composing lost what was counted"
    coarse = dataclasses.replace(llm.config, fine_chunks=0)
    assert torch.equal(cosines(context, coarse), cosines(encoded(llm, text), coarse))
    context.save(tmp_path / "c")
    loaded = Context.load(tmp_path / "c", llm)
    for _ in range(2):
        assert torch.equal(cosines(loaded), first)
    context.append(tokens(40, 3))
    anew = encoded(llm, torch.cat([text, tokens(40, 3)]))  # in other blocks, which are summed one by one
    torch.testing.assert_close(cosines(context), cosines(anew), rtol=0, atol=1e-5)


def test_blocks_of_which_nothing_is_read_are_not_gathered(make, monkeypatch):
    llm = make(dataclasses.replace(FINE, read_chunks=2))
    context, window = encoded(llm, tokens(16 * 40, 1)), tokens(7, 2)[None]
    keys = llm.recall(context, window).keys
    calls = counted(monkeypatch, sharedllm.memory, "gather_slots")
    assert all(map(torch.equal, llm.recall(context, window).keys, keys))
    assert 0 < len(calls) <= 2 < len(context.blocks)
    calls.clear()
    context.keep = [(1, 3)]
    assert llm.recall(context, window).mask.shape[1] > keys[0].shape[2] and len(calls) <= 3


def test_the_chunk_that_holds_the_question_is_read_at_every_token(make):
    llm = make(FINE)
    text = tokens(16 * 6, 2)
    for chunk in range(6):
        context = encoded(llm, text)
        window, asking = text[None, 16 * chunk : 16 * chunk + 11], torch.arange(11)[None] > 2
        (found,) = find(context.blocks, llm.config, llm.query(window, question_mask=asking)[0])
        assert found.slots.tolist() == [16 if i == chunk else 2 for i in range(6)]


def test_without_a_question_the_newest_chunks_are_read_at_every_token(make):
    for fine in (0, 1, 2, 9):
        llm = make(dataclasses.replace(CONFIG, fine_chunks=fine))
        context = encoded(llm, tokens(16 * 3 + 5, 1))
        slots = torch.cat([f.slots for f in find(context.blocks, llm.config)]).tolist()
        assert slots == [2] * max(0, 4 - fine) + [16] * min(4, fine)
        memory = llm.recall(context, tokens(5)[None], search="later")
        assert context.slots == memory.mask.shape[1] - 1


def test_a_question_reads_only_the_nearest_chunks_as_if_there_were_no_others(make):
    llm = make(dataclasses.replace(FINE, read_chunks=2))
    text = tokens(16 * 6, 2)
    context = encoded(llm, text)
    window, asking = text[None, 16 * 3 : 16 * 3 + 11], torch.arange(11)[None] > 2
    (found,) = find(context.blocks, llm.config, llm.query(window, question_mask=asking)[0])
    read = [i for i, slots in enumerate(found.slots.tolist()) if slots]
    assert len(read) == 2 and 3 in read and context.slots == 16 + 6
    memory = llm.recall(context, window, question_mask=asking)
    assert memory.mask.shape[1] - 1 == context.slots
    (newest,) = find(context.blocks, llm.config)
    assert newest.slots.tolist() == [0, 0, 0, 0, 2, 16], "without a question the newest are read"


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_contexts_answer_nearly_as_plain_ones(make, bits):
    plain, packed = (make(dataclasses.replace(FINE, stored_bits=b)) for b in (16, bits))
    text, window = tokens(16 * 6 + 3, 3), tokens(7, 4)[None]
    contexts = [encoded(llm, text) for llm in (plain, packed)]
    assert contexts[1].nbytes < contexts[0].nbytes * (0.65 if bits == 8 else 0.55)
    with torch.no_grad():
        a, b, without = (
            plain(window, context=contexts[0], search="later").logits,
            packed(window, context=contexts[1], search="later").logits,
            plain(window).logits,
        )
    off = (a - b).norm() / (a - without).norm()
    assert 0 < off < (0.05 if bits == 8 else 0.4)


def test_a_packed_context_is_saved_loaded_and_extended(make, tmp_path):
    llm = make(dataclasses.replace(FINE, stored_bits=4))
    whole = llm.read(tokens(100, 5))
    part = llm.read(tokens(100, 5)[:70])
    part.save(tmp_path / "c")
    loaded = Context.load(tmp_path / "c", llm)
    loaded.append(tokens(100, 5)[70:])
    window = tokens(7, 4)[None]
    assert torch.equal(llm(window, context=loaded).logits, llm(window, context=whole).logits)


def test_a_prior_is_what_a_span_with_a_neighbour_lacks_to_the_nearest_pair():
    spans = [
        torch.tensor([[[0.1, 0.9], [0.8, 0.2]]]),
        torch.tensor([[[0.3, 0.4], [0.0, 0.0]]]),
    ]  # 2 blocks, 1 chunk, 2 spans
    first, second = priors(near_parts(spans), 10.0)
    # Pairs: (0.8, 0.9), across the blocks (0.8, 0.4), (0.3, 0.4); means 0.85, 0.6, 0.35.
    assert first.tolist() == [[0.0, 0.0]]
    assert second.tolist() == [[pytest.approx(-2.5), pytest.approx(-5.0)]]
    (alone,) = priors(near_parts([torch.tensor([[[0.3, 0.4]]])]), 10.0)
    assert alone.tolist() == [[0.0]]


def test_attention_goes_to_where_the_search_points(make):
    llm = make(dataclasses.replace(CONFIG, search_prior=1e6))
    context, window = llm.read(tokens(6 * llm.config.chunk_length, 1)), tokens(7, 2)[None]
    memory = llm.recall(context, window)
    changed = [value.clone() for value in memory.values]
    near = memory.keys[0][0, 0, :, llm.parts.head_dim + 1] == 0  # the null slot and the nearest spans
    for value in changed:
        value[:, :, ~near] += 100
    with torch.no_grad():
        before, after = (
            run(llm, window, dataclasses.replace(memory, values=values)) for values in (memory.values, changed)
        )
    assert near.sum() < len(near) and torch.equal(before, after)


def run(llm, window, memory):
    with llm.injection.reading(memory):
        return llm.model(window, use_cache=False).logits
