"""The fast path equals the naive twin: outputs and every gradient."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sharedllm import SharedConfig, naive
from sharedllm.tree import search, slot_tokens, tree_borders
from tests.conftest import CONFIG, tokens
from tests.test_tree import by_last

CONFIGS = {
    "default": CONFIG,
    "not a power of two": dataclasses.replace(CONFIG, chunk_length=13, slots_per_leaf=3),
    "deep, all layers": SharedConfig(injected_layers=4, chunk_length=16, tree_depth=4, slots_per_leaf=1),
    "no null slot": dataclasses.replace(CONFIG, null_slot=False),
    "growing null logit": dataclasses.replace(CONFIG, null_growth=True),
    "moving query": dataclasses.replace(CONFIG, moving_query=True, null_growth=True, fine_chunks=1),
    "moving query, sequence": dataclasses.replace(CONFIG, moving_query=True, positions="sequence"),
    "zero output": dataclasses.replace(CONFIG, init="zero"),
    "a skipped layer": dataclasses.replace(CONFIG, skipped_layers=1, fine_chunks=1),
    "two skipped layers": dataclasses.replace(CONFIG, skipped_layers=2, search_layer=0, search_prior=5.0, rank=3),
    "low rank": dataclasses.replace(CONFIG, rank=3),
    "sequence": dataclasses.replace(CONFIG, positions="sequence"),
    "chunk+inner": dataclasses.replace(CONFIG, positions="chunk+inner"),
    "none": dataclasses.replace(CONFIG, positions="none"),
    "by last token": dataclasses.replace(CONFIG, search_by="last"),
    "one fine chunk": dataclasses.replace(CONFIG, fine_chunks=1),
    "fine by last token": dataclasses.replace(CONFIG, fine_chunks=1, search_by="last"),
    "two chunks read": dataclasses.replace(CONFIG, fine_chunks=1, read_chunks=2),
    "one chunk read, at other positions": dataclasses.replace(CONFIG, read_chunks=1, positions="chunk+inner"),
    "prior": dataclasses.replace(CONFIG, search_prior=20.0),
    "prior, fine": dataclasses.replace(CONFIG, search_prior=5.0, fine_chunks=1, read_chunks=2, null_growth=True),
    "prior with words": dataclasses.replace(CONFIG, search_prior=5.0, search_words=2.0, fine_chunks=1, read_chunks=2),
    "prior by last token": dataclasses.replace(CONFIG, search_prior=2.0, search_by="last", chunk_length=13),
    "more fine chunks than some rows have": dataclasses.replace(CONFIG, fine_chunks=2, search_layer=1),
}


def split(ids, length):
    return [ids[i : i + length].tolist() for i in range(0, len(ids), length)]


def run_naive(llm, windows, texts, search):
    C = llm.config.chunk_length
    return [naive.forward(llm, w.tolist(), split(t, C), search) for w, t in zip(windows, texts, strict=True)]


def run_fast(llm, windows, texts, search):
    """One left-padded batch, each row with its own context (or none)."""
    T = max(map(len, windows))
    ids = torch.full((len(windows), T), 258)
    mask = torch.zeros_like(ids)
    for b, w in enumerate(windows):
        ids[b, T - len(w) :] = w
        mask[b, T - len(w) :] = 1
    contexts = [llm.read(t) if len(t) else None for t in texts]
    logits = llm(ids, context=contexts, attention_mask=mask, search=search).logits
    return [logits[b, T - len(w) :] for b, w in enumerate(windows)]


@pytest.mark.parametrize("search", ["query", "continue", "later"])
@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_and_gradients(make, name, search):
    llm = make(CONFIGS[name])
    C = llm.config.chunk_length
    texts = [tokens(2 * C + 5, 1), tokens(C, 2), tokens(0), tokens(3 * C + 1, 3)]
    windows = [tokens(n, 10 + n) for n in (7, 3, 5, 6)]
    grads = []
    outputs = []
    for run in (run_naive, run_fast):
        llm.injection.zero_grad()
        out = run(llm, windows, texts, search)
        outputs.append([o.detach() for o in out])
        sum((o * torch.linspace(-1, 1, o.shape[-1])).sum() for o in out).backward()
        grads.append({n: p.grad.clone() for n, p in llm.injection.named_parameters()})
    for slow, fast in zip(*outputs, strict=True):
        scale = slow.abs().max()  # random weights make large logits
        torch.testing.assert_close(fast / scale, slow / scale, atol=1e-5, rtol=1e-5)
    for n, slow in grads[0].items():
        assert slow.abs().sum() > 0, f"{n} gets no gradient; the comparison would be empty"
        scale = slow.abs().max()
        close = torch.allclose(grads[1][n] / scale, slow / scale, atol=5e-5, rtol=1e-5)
        assert close, f"{n}: off by {((grads[1][n] - slow) / scale).abs().max():.1e} of its largest gradient"


def test_the_context_changes_the_output(make):
    llm = make()
    w = [tokens(5, 1)]
    with_it, other = (run_fast(llm, w, [tokens(40, s)], "query")[0] for s in (2, 3))
    without = run_fast(llm, w, [tokens(0)], "query")[0]
    assert (with_it - without).abs().max() > 1e-2
    assert (with_it - other).abs().max() > 1e-2


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13, 16])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_search_and_compression(length, depth):
    generator = torch.Generator().manual_seed(length * 10 + depth)
    for _ in range(20):
        reps = torch.randn(length, 6, generator=generator)
        query = torch.randn(6, generator=generator)
        borders = tree_borders(torch.tensor([length]), depth)
        similarity = torch.nn.functional.cosine_similarity(reps[(borders[0, 1:] - 1).clamp(min=0)], query[None])[None]

        def near(span, reps=reps, query=query):
            return naive.cosine(reps[span[1] - 1], query)

        for fast, score in ((by_last(similarity), near), (None, None)):
            leaves = search(borders, fast)[0]
            slow = naive.search_tree(length, depth, score)
            assert [tuple(x) for x in leaves.tolist() if x[0] < x[1]] == slow
            kept, mask = slot_tokens(leaves, 2)
            assert kept[mask].tolist() == [t for leaf in slow for t in naive.compress(leaf, 2)]


def test_leaves_cover_the_chunk_and_halve():
    leaves = search(tree_borders(torch.tensor([1024]), 3), None)[0]
    assert leaves.tolist() == [[0, 512], [512, 768], [768, 896], [896, 1024]]
    kept, _ = slot_tokens(leaves, 32)
    assert [int(x[1] - x[0]) for x in kept] == [16, 8, 4, 4]
