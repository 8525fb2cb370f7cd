"""Words in the search: BM25 by hand, and a part with a rare word of the question comes first."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from sharedllm.words import Words
from tests.conftest import CONFIG, tokens

# Two blocks: a chunk of 8 tokens in spans of 4 and 4, a chunk of 4 in spans of 2 and 2.
TEXT = torch.tensor([1, 2, 7, 7, 1, 2, 3, 4, 1, 9, 2, 3], dtype=torch.int32)
LENGTHS = [torch.tensor([8]), torch.tensor([4])]
BORDERS = [torch.tensor([[0, 4, 8]]), torch.tensor([[0, 2, 4]])]


def shares(*asking):
    first, second = Words(TEXT, torch.tensor(asking, dtype=torch.long)).shares(LENGTHS, BORDERS)
    assert first.shape == second.shape == (1, 2)
    return torch.cat([first, second]).flatten().tolist()


def bm25(held, count, length):
    """Of one word that `held` of 4 spans have; the mean length is 3."""
    return math.log(1 + (4 - held + 0.5) / (held + 0.5)) * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * length / 3))


def test_shares_are_those_of_bm25_by_hand():
    ones = [bm25(3, 1, 4), bm25(3, 1, 4), bm25(3, 1, 2), 0.0]
    twos = [bm25(3, 1, 4), bm25(3, 1, 4), 0.0, bm25(3, 1, 2)]
    sevens = [bm25(1, 2, 4), 0.0, 0.0, 0.0]
    every = [sum(some) for some in zip(ones, twos, sevens, strict=True)]
    assert shares(7, 1, 2) == pytest.approx([score / max(every) for score in every])


def test_a_word_that_is_asked_twice_counts_once():
    assert shares(1, 7) == shares(1, 7, 7)


@pytest.mark.parametrize("asking", [(), (200,), (5, 6)])
def test_without_a_word_in_common_nothing_is_added(asking):
    assert shares(*asking) == [0.0] * 4


def test_a_rare_word_of_the_question_brings_its_part_to_the_front(make):
    config = dataclasses.replace(
        CONFIG, fine_chunks=1, read_chunks=1, search_prior=5.0, search_words=1e3, quoted_tokens=4
    )
    llm = make(config)
    text = tokens(6 * 16, 1) % 200
    text[40] = 222
    context, window = llm.read(text), torch.cat([tokens(6, 2) % 200, torch.tensor([222])])[None]
    asking = torch.zeros_like(window)
    asking[0, -1] = 1
    start, end = llm.recall(context, window, question_mask=asking).nearest[0][0]
    assert start <= 40 < end


def test_what_explains_a_question_reads_it_with_its_words(make):
    config = dataclasses.replace(CONFIG, fine_chunks=1, read_chunks=1, search_prior=5.0, search_words=1e3)
    llm = make(config)
    text = "".join("Q" if i == 70 else chr(97 + i % 23) for i in range(200))
    assert llm.explain(llm.read(text), "Q", passages=1, max_new_tokens=1)[0].chunk == 70 // 16 + 1


def test_words_are_not_asked_for_where_nothing_asks(make):
    """Without a question the newest chunks are read, whatever words they have."""
    config = dataclasses.replace(CONFIG, read_chunks=2, search_prior=5.0, search_words=1e3)
    text, window = tokens(6 * 16, 1), tokens(7, 2)[None]
    plain = dataclasses.replace(config, search_words=0.0)
    first, second = (make(c).recall(make(c).read(text), window, search="later") for c in (config, plain))
    assert all(torch.equal(a, b) for a, b in zip(first.keys, second.keys, strict=True))
