"""The context tree: borders and their noise, the search, the tokens that survive."""

from __future__ import annotations

import itertools

import pytest
import torch

from sharedllm.tree import candidate_tokens, search, slot_tokens, tree_borders

MANY = torch.full((4000,), 1024)


def borders_of(length, depth):
    return tree_borders(torch.tensor([length]), depth)


def test_borders_without_noise_halve_every_node():
    assert borders_of(16, 2).tolist() == [[0, 4, 8, 12, 16]]
    assert borders_of(13, 2).tolist() == [[0, 3, 6, 9, 13]]
    assert tree_borders(torch.tensor([8, 5, 1, 0]), 1).tolist() == [[0, 4, 8], [0, 2, 5], [0, 0, 1], [0, 0, 0]]
    assert torch.equal(tree_borders(MANY, 3, noise=0.0), tree_borders(MANY, 3))


@pytest.mark.parametrize("noise", [0.05, 0.2, 0.49])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_borders_with_noise_stay_ordered_and_halves_are_never_empty(noise, depth):
    lengths = torch.arange(0, 70).repeat(20)
    generator = torch.Generator().manual_seed(depth)
    borders = tree_borders(lengths, depth, noise, generator)
    assert borders.shape == (len(lengths), 2**depth + 1)
    assert (borders[:, 0] == 0).all() and torch.equal(borders[:, -1], lengths)
    assert (borders.diff(dim=1) >= 0).all()
    for level in range(depth):
        width = 2**depth >> level
        nodes, halves = borders[:, ::width], borders[:, :: width // 2].diff(dim=1)
        large = nodes.diff(dim=1).repeat_interleave(2, dim=1) >= 2
        assert (halves[large] >= 1).all()


def test_noise_moves_the_split_of_every_level():
    generator = torch.Generator().manual_seed(0)
    noisy, even = tree_borders(MANY, 3, 0.05, generator), tree_borders(MANY, 3)
    assert (noisy[:, 4] != even[:, 4]).float().mean() > 0.95
    for level in range(3):
        width = 8 >> level
        start, middle, end = noisy[:, :-1:width], noisy[:, width // 2 :: width], noisy[:, width::width]
        moved = middle - (start + end) // 2
        assert (moved != 0).float().mean() > 0.9
        share = moved / (end - start)
        assert abs(float(share.mean())) < 0.003  # near the middle
        assert float(share.std()) == pytest.approx(0.05, rel=0.1)


def test_noise_is_drawn_where_its_generator_is():
    """On a GPU the chunks are there and the generator is not; here `meta` stands for it."""
    moved = tree_borders(MANY.to("meta"), 3, 0.05, torch.Generator().manual_seed(1))
    assert moved.device.type == "meta" and moved.shape == (len(MANY), 9)


def test_noise_is_drawn_for_each_chunk_and_repeats_with_the_generator():
    drawn = [tree_borders(MANY, 3, 0.05, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len(drawn[0][:, 4].unique()) > 50
    state = torch.get_rng_state()
    tree_borders(MANY, 3, 0.05, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state), "a given generator must be the only one used"


def by_last(nearness):
    """Scores of all nodes where a node is as near as its last finest span."""
    spans = nearness.shape[1]
    return [nearness[:, width - 1 :: width] for width in (spans >> level for level in range(spans.bit_length()))]


def test_the_later_half_is_chosen_without_a_query():
    assert search(borders_of(16, 3), None)[0].tolist() == [[0, 8], [8, 12], [12, 14], [14, 16]]


def test_the_nearest_half_is_chosen_at_each_level():
    nearness = torch.tensor([[0.0, 0.9, 0.0, 0.5, 0.0, 0.1, 0.0, 0.2]])
    # halves end in spans 3 and 7 (left is nearer), quarters in 1 and 3 (left), eighths 0 and 1.
    assert search(borders_of(16, 3), by_last(nearness))[0].tolist() == [[0, 2], [2, 4], [4, 8], [8, 16]]


def test_each_chunk_is_searched_on_its_own():
    borders = tree_borders(torch.tensor([16, 16, 5, 1]), 2)
    nearness = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    together = search(borders, by_last(nearness))
    for x in range(4):
        assert torch.equal(together[x], search(borders[x : x + 1], by_last(nearness[x : x + 1]))[0])


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_leaves_are_in_text_order_and_cover_the_chunk_once(depth, noise):
    generator = torch.Generator().manual_seed(depth)
    lengths = torch.arange(0, 60).repeat(5)
    borders = tree_borders(lengths, depth, noise, generator)
    leaves = search(borders, by_last(torch.rand(len(lengths), 2**depth, generator=generator)))
    for length, spans in zip(lengths.tolist(), leaves.tolist(), strict=True):
        assert len(spans) == depth + 1
        covered = [t for start, end in spans for t in range(start, end)]
        assert covered == list(range(length))


def test_an_empty_half_is_never_gone_into():
    # Three tokens at depth 3: below one token there is nothing, whatever the similarity says.
    for bits in itertools.product((0.0, 1.0), repeat=8):
        spans = search(borders_of(3, 3), by_last(torch.tensor([bits])))[0]
        assert sorted(t for s, e in spans.tolist() for t in range(s, e)) == [0, 1, 2]


def test_slots_are_the_last_tokens_of_equal_parts():
    def kept(start, end, slots):
        tokens, mask = slot_tokens(torch.tensor([[start, end]]), slots)
        return tokens[mask].tolist()

    assert kept(8, 16, 4) == [9, 11, 13, 15]
    assert kept(8, 15, 3) == [9, 11, 14]
    assert kept(8, 11, 4) == [8, 9, 10]
    assert kept(8, 8, 4) == []


@pytest.mark.parametrize("slots", [1, 2, 5, 32])
def test_slots_ascend_end_with_the_span_and_have_an_even_stride(slots):
    for length in range(1, 80):
        tokens, mask = slot_tokens(torch.tensor([[100, 100 + length]]), slots)
        kept = tokens[mask]
        assert len(kept) == min(length, slots) and int(kept[-1]) == 100 + length - 1
        strides = torch.cat([torch.tensor([99]), kept]).diff()
        assert int(strides.min()) >= 1 and int(strides.max() - strides.min()) <= 1
        assert (tokens[~mask] == 100).all()


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_candidates_are_exactly_what_some_search_could_keep(depth, slots):
    generator = torch.Generator().manual_seed(depth)
    for length in [*range(1, 20), 27, 32]:
        draws = 60 * 2**depth
        nearness = torch.rand(draws, 2**depth, generator=generator)
        tokens, mask = slot_tokens(search(borders_of(length, depth).expand(draws, -1), by_last(nearness)), slots)
        reachable = set(tokens[mask].tolist())
        candidates = candidate_tokens(length, depth, slots)
        assert candidates.tolist() == sorted(reachable), f"length {length}"


def test_candidates_end_with_the_last_token_and_never_repeat():
    for length in (1, 2, 9, 100, 1000, 1023, 1024):
        found = candidate_tokens(length, 3, 32).tolist()
        assert found == sorted(set(found)) and found[-1] == length - 1 and found[0] >= 0
    assert candidate_tokens(7, 3, 32).tolist() == list(range(7))
