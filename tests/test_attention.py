"""Both ways to attend give the same, and the one that is chosen is the one that is faster there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from sharedllm import attention
from sharedllm.attention import FEW_QUERIES, attend, attend_plainly


def drawn(T: int, S: int = 33) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(T)
    query, keys, values = (
        torch.randn(*shape, generator=generator) for shape in ((4, 3, T, 8), (4, 1, S, 8), (4, 1, S, 8))
    )
    bias = torch.zeros(4, 1, 1, S).masked_fill(torch.rand(4, 1, 1, S, generator=generator) < 0.3, -torch.inf)
    return query, keys, values, bias


@pytest.mark.parametrize("T", [1, 2, FEW_QUERIES, FEW_QUERIES + 1])
@pytest.mark.parametrize("biased", [True, False])
def test_every_number_of_queries_attends_alike(T, biased):
    query, keys, values, bias = drawn(T)
    expected = torch.empty_like(query)
    for x in range(4):
        for g in range(3):
            logits = query[x, g] @ keys[x, 0].T * 0.4 + (bias[x, 0] if biased else 0)
            expected[x, g] = logits.softmax(1) @ values[x, 0]
    with torch.no_grad():
        found = attend(query, keys, values, bias if biased else None, 0.4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
def test_gradients_are_those_of_the_plain_way(frozen):
    gradients = []
    for way in (lambda *x: attend(*x, 0.4, frozen=frozen), lambda *x: attend_plainly(*x, 0.4)):
        query, keys, values, bias = drawn(FEW_QUERIES + 9)
        leaves = [query.requires_grad_(), *(x.requires_grad_(not frozen) for x in (keys, values))]
        way(*leaves, bias).square().sum().backward()
        gradients.append([x.grad for x in leaves if x.requires_grad])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_fused_attention_is_used_where_it_is_faster(monkeypatch):
    fused, plain = [], []
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda query, *_, **__: fused.append(query.shape[2]) or query
    )
    monkeypatch.setattr(attention, "attend_plainly", lambda query, *_, **__: plain.append(query.shape[2]) or query)
    with torch.no_grad():
        for T in (1, FEW_QUERIES, FEW_QUERIES + 1):
            attend(*drawn(T), 0.4)
        attend(*drawn(99), 0.4, softcap=5.0)
    attend(*drawn(98), 0.4)
    attend(*drawn(97), 0.4, frozen=False)
    assert (fused, plain) == ([FEW_QUERIES + 1, 97], [1, FEW_QUERIES, 99, 98])
