"""Numbers at 8 and 4 bits: within half a step of what they were, and small."""

from __future__ import annotations

import pytest
import torch

from sharedllm.encoded import Encoded
from sharedllm.packing import GROUP, group_of, pack_keys, pack_values, unpack


def numbers(*shape, seed=0):
    """Channels of very different sizes, as keys have them."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return x * torch.logspace(-1, 1.5, shape[-1])


def keys_again(codes, low, step, tokens, channels):
    group = group_of(torch.arange(tokens), tokens)
    return unpack(codes, low[..., group, :], step[..., group, :], channels)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("tokens", [1, 3, GROUP - 1, GROUP, GROUP + 1, 3 * GROUP])
def test_keys_come_back_within_half_a_step(tokens, bits):
    keys = numbers(2, 3, 2, tokens, 8)
    codes, low, step = pack_keys(keys, bits)
    assert codes.shape == (2, 3, 2, tokens, 8 * bits // 8) and codes.dtype == torch.uint8
    assert low.shape == step.shape == (2, 3, 2, -(-tokens // GROUP), 8)
    again = keys_again(codes, low, step, tokens, 8)
    half = step[..., group_of(torch.arange(tokens), tokens), :] / 2
    assert ((again - keys).abs() <= half * 1.001 + 1e-6).all()


@pytest.mark.parametrize("bits", [8, 4])
def test_values_come_back_within_half_a_step(bits):
    values = numbers(2, 3, 2, 70, 8)
    codes, low, step = pack_values(values, bits)
    assert codes.shape == (2, 3, 2, 70, bits) and low.shape == step.shape == (2, 3, 2, 70, 1)
    again = unpack(codes, low, step, 8)
    assert ((again - values).abs() <= step / 2 * 1.001 + 1e-6).all()


def test_a_step_is_as_wide_as_its_own_group_or_token_needs():
    keys = torch.zeros(1, 2 * GROUP, 4)
    keys[0, 0] = 100.0  # a token that stands out, as the first of a text does
    _, _, step = pack_keys(keys, 4)
    assert (step[0, 0] > 6).all() and (step[0, 1] == 0).all()
    _, _, step = pack_values(torch.tensor([[[0.0, 15.0], [0.0, 1.5]]]), 4)
    assert step.flatten().tolist() == pytest.approx([1.0, 0.1])


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("pack", [pack_keys, pack_values])
def test_numbers_in_bfloat16_come_back_within_half_a_step(pack, bits):
    there = (numbers(2, 70, 8) + torch.linspace(-40, 40, 8)).bfloat16()
    codes, low, step = pack(there, bits)
    group = torch.arange(70) if pack is pack_values else group_of(torch.arange(70), 70)
    low, step = low[..., group, :], step[..., group, :]
    off = (unpack(codes, low, step, 8).float() - there.float()).abs()
    lost = there.float().abs().clamp(min=float(step.max())) * 2**-8  # what the result itself is rounded by, at most
    assert (off <= step.float() * 0.505 + lost).all()
    exact = codes if bits == 8 else torch.stack([codes & 15, codes >> 4], dim=-1).flatten(-2)
    exact = (exact.double() * step.double() + low.double()).bfloat16()
    assert torch.equal(unpack(codes, low, step, 8), exact), "rounded once, at the end"


def test_what_has_one_value_comes_back_exactly():
    same = torch.full((1, 5, 4), 0.3)
    assert torch.equal(unpack(*pack_values(same, 4), 4), same)


@pytest.mark.parametrize("bits", [8, 4])
def test_packed_chunks_give_what_their_parts_give(bits):
    M, X, K, P, D = 2, 3, 2, 130, 8
    none = torch.zeros(M, X, 0)
    plain = Encoded(
        torch.full((X,), P), torch.arange(P).expand(X, -1), numbers(M, X, K, P, D), numbers(M, X, K, P, D, seed=1),
        none, none, none, none, torch.zeros(X, 0, dtype=torch.long), torch.zeros(X, 0, 4),
        numbers(X, K, P, D, seed=2), none[0], none[0],
    )  # fmt: skip
    packed = plain.packed(bits)
    assert plain.packed(16) is plain
    assert packed.nbytes < plain.nbytes * (0.5 if bits == 8 else 0.35)
    chunk, at = torch.tensor([0, 2, 2, 1]), torch.tensor([0, 129, 64, 63])
    keys, values = packed.at(chunk, at)
    true_keys, true_values = plain.at(chunk, at)
    whole_keys = keys_again(packed.keys, packed.key_low, packed.key_step, P, D)
    assert torch.equal(keys, whole_keys[:, chunk, :, at].permute(1, 2, 0, 3))
    for x, true in ((keys, true_keys), (values, true_values)):
        off = (x - true).abs().amax() / true.abs().amax()
        assert 0 < off < (0.01 if bits == 8 else 0.1)
    for layer in range(M):
        assert torch.equal(packed.values_of(layer)[chunk, :, at], values[layer].transpose(0, 1))
    off = (packed.search_values_on() - plain.search_values).abs().amax() / plain.search_values.abs().amax()
    assert 0 < off < (0.01 if bits == 8 else 0.1)
    assert torch.equal(packed.layers(1, M, compared=0).search_values_on(), packed.values_of(0))
    assert torch.equal(Encoded.cat([packed[:1], packed[1:]]).at(chunk, at)[0], keys)
    assert torch.equal(packed.layers(0, 1).at(chunk, at)[1], values[:1])
    assert torch.equal(packed.layers(1, M).at(chunk, at)[1], values[1:])
