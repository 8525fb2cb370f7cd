"""A branch as few operations is the branch, in outputs and in what it says it attended to."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sharedllm import branch as branch_file
from tests.conftest import CONFIG, tokens
from tests.contexts import encoded
from tests.test_generate import counted

CONFIGS = {
    "as it is": CONFIG,
    "low rank": dataclasses.replace(CONFIG, rank=3),
    "no null slot": dataclasses.replace(CONFIG, null_slot=False),
    "a null logit that grows, and a prior": dataclasses.replace(CONFIG, null_growth=True, search_prior=5.0),
    "no gate": dataclasses.replace(CONFIG, init="zero"),
    "skipped layers": dataclasses.replace(CONFIG, skipped_layers=1, rank=3),
}


def read(llm, memory, window, heard=None):
    with torch.no_grad(), llm.injection.reading(memory, heard):
        return llm.model(window).logits


def both(llm, monkeypatch, memory, window):
    """Logits and what was attended to, folded and not."""
    folds = counted(monkeypatch, branch_file, "folded")
    heard: dict[str, list[torch.Tensor]] = {"folded": [], "plain": []}
    once = read(llm, memory, window, heard["folded"].append)
    assert len(folds) == llm.config.branches
    monkeypatch.setattr(branch_file, "MERGED", 0)
    plain = read(llm, memory, window, heard["plain"].append)
    assert len(folds) == llm.config.branches, "the large are not folded"
    monkeypatch.undo()
    return once, plain, heard


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("length", [1, 7, 70])
def test_folded_and_not_are_the_same(make, monkeypatch, name, length):
    llm = make(CONFIGS[name])
    contexts = [encoded(llm, tokens(110, 3)), encoded(llm, tokens(40, 4)), None]
    window = torch.stack([tokens(length, seed) for seed in range(3)])
    memory = llm.recall(contexts, window)
    once, plain, heard = both(llm, monkeypatch, memory, window)
    torch.testing.assert_close(once, plain, atol=2e-4, rtol=1e-4)
    for a, b in zip(heard["folded"], heard["plain"], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{"attention_bias": True}, {"head_dim": 16}], ids=str)
def test_with_other_shapes_and_a_bias(make, monkeypatch, changes):
    llm = make(**changes)
    window = tokens(5)[None]
    once, plain, _ = both(llm, monkeypatch, llm.recall(encoded(llm, tokens(110, 3)), window), window)
    torch.testing.assert_close(once, plain, atol=2e-4, rtol=1e-4)


def test_what_is_folded_follows_the_weights(make, monkeypatch):
    llm = make(dataclasses.replace(CONFIG, rank=3))
    window = tokens(5)[None]
    memory = llm.recall(encoded(llm, tokens(110, 3)), window)
    before = read(llm, memory, window)
    folds = counted(monkeypatch, branch_file, "folded")
    assert torch.equal(read(llm, memory, window), before) and not folds
    with torch.no_grad():
        llm.injection.branches[1].gate.mul_(2)
    assert not torch.allclose(read(llm, memory, window), before) and len(folds) == 1


def test_learning_folds_nothing(make, monkeypatch):
    llm = make()
    window = tokens(5)[None]
    memory = llm.recall(encoded(llm, tokens(110, 3)), window)
    folds = counted(monkeypatch, branch_file, "folded")
    with llm.injection.reading(memory):
        llm.model(window).logits.sum().backward()
    assert not folds and llm.injection.branches[0].gate.grad is not None


def test_in_bf16_they_agree_as_far_as_bf16_does(make, monkeypatch):
    llm = make(dataclasses.replace(CONFIG, rank=3, null_growth=True))
    window = tokens(5)[None]
    memory = llm.recall(encoded(llm, tokens(110, 3)), window)
    exact = read(llm, memory, window)
    llm.model.bfloat16()
    llm.injection.bfloat16()
    for projection in (p for b in llm.injection.branches for p in (b.query, b.output)):
        projection.frozen = [w.bfloat16() for w in projection.frozen]
    half = dataclasses.replace(
        memory, keys=[k.bfloat16() for k in memory.keys], values=[v.bfloat16() for v in memory.values]
    )
    once, plain, _ = both(llm, monkeypatch, half, window)
    error = [(x.float() - exact).square().mean().sqrt() for x in (once, plain)]
    assert error[0] < 1.2 * error[1]
