"""Settings of one question, and what it reads, from a store that stays as it is."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sharedllm import Context, UsageError
from sharedllm.resolution import Resolution
from tests.conftest import CONFIG, tokens
from tests.contexts import encoded
from tests.test_generate import counted

FINE = dataclasses.replace(CONFIG, fine_chunks=1, read_chunks=3)
TEXT = (
    "The red box is in the attic. The blue box is in the cellar. The green one is lost, and nobody knows where it is."
)
QUESTION = "Where is the blue box?"


@pytest.fixture
def llm(make):
    return make(FINE)


@pytest.mark.parametrize(
    "change",
    [{"slots_per_leaf": 1}, {"slots_per_leaf": 4}, {"fine_chunks": 2}, {"fine_chunks": 0}, {"read_chunks": 0}],
    ids=str,
)
def test_a_question_reads_as_an_adapter_with_these_settings_would(llm, make, tmp_path, monkeypatch, change):
    llm.read(TEXT).save(tmp_path / "c")
    context, window = Context.load(tmp_path / "c", llm), tokens(8, 3)[None]
    reads = counted(monkeypatch, llm.lower, "encode")
    memory = llm.recall(context, window, resolution=Resolution(**change))
    other = make(dataclasses.replace(FINE, **change))
    wanted = other.recall(other.read(TEXT), window)
    assert torch.equal(memory.mask, wanted.mask)
    assert all(torch.equal(a, b) for a, b in zip(memory.keys + memory.values, wanted.keys + wanted.values, strict=True))
    assert memory.mask.shape != llm.recall(context, window).mask.shape
    assert not reads, "the text was read again"


def test_an_answer_says_how_much_it_read(llm):
    context = llm.read(TEXT)
    few, many = (llm.answer(context, QUESTION, 2, slots_per_leaf=n).slots for n in (1, 4))
    assert few < llm.answer(context, QUESTION, 2).slots < many
    assert llm.ask(context, QUESTION, 3, fine_chunks=7, read_chunks=7) == llm.ask(context, QUESTION, 3, fine_chunks=7)
    assert llm.answer(context, QUESTION, 2, fine_chunks=99).slots == context.tokens


def test_what_a_context_does_not_store_is_read_again(make, llm, monkeypatch):
    coarse = make(dataclasses.replace(CONFIG, slots_per_leaf=4, chunk_length=32))
    context, window = encoded(coarse, tokens(32 * 3 + 5)), tokens(8, 3)[None]
    reads = counted(monkeypatch, coarse.lower, "encode")
    for change, chunks, slots in (({"fine_chunks": 1}, 1, 12 * 2 + 5 + 32), ({"slots_per_leaf": 5}, 3, 3 * 15 + 5)):
        context.again.clear()
        reads.clear()
        memory = coarse.recall(context, window, resolution=Resolution(**change))
        assert len(reads) <= chunks and int(memory.mask.sum()) == slots + 1
    assert coarse.answer(context, QUESTION, 2, read_chunks=1).slots < coarse.answer(context, QUESTION, 2).slots
    for change in ({"fine_chunks": -1}, {"slots_per_leaf": 0}, {"read_chunks": -2}):
        with pytest.raises(UsageError, match=next(iter(change))):
            llm.answer(llm.read(TEXT), QUESTION, 2, **change)


def test_half_the_slots_are_there_where_the_strides_nest(make):
    """At powers of two the tokens of fewer slots are among those stored for more."""
    llm = make(dataclasses.replace(CONFIG, slots_per_leaf=4, chunk_length=32))
    fewer = make(dataclasses.replace(CONFIG, slots_per_leaf=2, chunk_length=32))
    text, window = tokens(32 * 3), tokens(8, 3)[None]
    memory = llm.recall(llm.read(text), window, resolution=Resolution(slots_per_leaf=2))
    assert torch.equal(memory.keys[0], fewer.recall(fewer.read(text), window).keys[0])


# What is read -----------------------------------------------------------------------------------


def test_passages_are_the_finest_first_and_add_up_to_what_is_read(llm):
    context = llm.read(TEXT, keep=[(0, 7)])
    passages = llm.explain(context, QUESTION, passages=99)
    shares = [p.slots / (p.end - p.start) for p in passages]
    assert shares == sorted(shares, reverse=True) and shares[0] == 1
    assert any((p.start, p.end, p.slots, p.text) == (0, 7, 7, TEXT[:7]) for p in passages)
    for p in passages:
        assert p.text == TEXT[p.start : p.end] and (p.chunk - 1) * 16 <= p.start < p.end <= p.chunk * 16
        assert -1 <= p.score <= 1
    alike = [p.score for p in passages if p.slots == p.end - p.start]
    assert alike == sorted(alike, reverse=True)
    nearest = max(llm.explain(context, QUESTION, passages=99, read_chunks=0), key=lambda p: p.score)
    assert nearest.slots == nearest.end - nearest.start  # the one fine chunk is the nearest
    assert len(llm.explain(context, QUESTION, passages=2)) == 2


def test_an_explanation_is_of_the_same_reading_as_the_answer(llm):
    context = llm.read(TEXT)
    chunks = {p.chunk for p in llm.explain(context, QUESTION, passages=99, max_new_tokens=2)}
    assert len(chunks) == 3  # read_chunks
    assert len({p.chunk for p in llm.explain(context, QUESTION, 99, 2, read_chunks=5)}) == 5


def test_a_text_that_fits_is_one_passage(llm):
    context = llm.read("Blue.")
    (passage,) = llm.explain(context, "What?", max_new_tokens=2)
    assert (passage.start, passage.end, passage.slots, passage.score, passage.text) == (0, 5, 5, None, "Blue.")
