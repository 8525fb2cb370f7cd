"""Where does a wrong answer go wrong: is the chunk not found, the value not begun, or not copied to its end?

The needles of `sharedllm eval needle` with the words that lead to the answer given. A row an adapter: how often the
right chunk ranks first, and nats of the value's first token that is not a space and of those after it. Run after `make texts`:
`python tools/probes/first_token.py runs/finer/adapter ... > docs/results/probe-first-token.jsonl` (2 minutes an adapter).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sharedllm import SharedLLM
from sharedllm.context import Context
from sharedllm.data.needles import Needle
from sharedllm.evaluate.needle import Hidden, build_haystacks
from sharedllm.prompts import Prompt
from sharedllm.relevance import compare, node_scores
from sharedllm.tree import tree_borders

TEXTS = ("python-library", "anarchist-faq")
LENGTH, SAMPLES, PER_TEXT = 8192, 24, 12


def rank(llm: SharedLLM, context: Context, spot: Hidden) -> int:
    """Of the best chunk that holds the needle, by its nearness to the question; 0 is the first."""
    prompt, C = Prompt(llm.tokenizer, spot.needle.question), llm.config.chunk_length
    asked = llm.query(torch.tensor([prompt.alone()]), question_mask=prompt.question_mask())[0]
    near = zip(compare(context.blocks, llm.config, asked), context.blocks, strict=True)
    roots = [node_scores(n.spans(tree_borders(b.lengths, llm.config.tree_depth)), n.by)[0][:, 0] for n, b in near]
    order = torch.cat(roots).argsort(descending=True).tolist()
    return min(order.index(spot.start // C), order.index((spot.start + spot.tokens - 1) // C))


def nats(llm: SharedLLM, context: Context, needle: Needle) -> Tensor:
    """Of each token of the value, given the words that lead to it."""

    def ids(text: str) -> list[int]:
        return llm.tokenizer(text, add_special_tokens=False)["input_ids"]

    prompt = Prompt(llm.tokenizer, needle.question)
    given, value = prompt.alone() + ids(needle.opening), ids(needle.answer)
    asking = torch.zeros(1, len(given) + len(value), dtype=torch.bool)
    asking[:, : len(prompt.alone())] = prompt.question_mask()
    window = torch.tensor([given + value])
    logits = llm(window, context=context, search="query", question_mask=asking, use_cache=False).logits[0]
    predicted = logits[len(given) - 1 : -1].float().log_softmax(-1)
    lost = -predicted[torch.arange(len(value)), torch.tensor(value)]
    return lost[1:] if not llm.tokenizer.decode(value[:1]).strip() else lost  # digits follow a space of their own


@torch.no_grad()
def measure(adapter: str) -> dict[str, Any]:
    llm = SharedLLM.from_pretrained(adapter=adapter)
    texts = [(n, llm.reader.token_ids(Path(f"data/heldout/{n}.txt").read_text())) for n in TEXTS]
    first, later, ranks = [], [], []
    for haystack in build_haystacks(texts, LENGTH, SAMPLES, PER_TEXT, 0, llm.reader.token_ids):
        context = llm.reader.new_context()
        context.ids = haystack.ids.int()
        llm.reader.encode(context)
        for spot in haystack.hidden:
            lost = nats(llm, context, spot.needle)
            ranks.append(rank(llm, context, spot))
            first.append(round(float(lost[0]), 3))
            later.append(round(float(lost[1:].mean()), 3))
            print(f"{spot.needle.value}: {ranks[-1]} {first[-1]} {later[-1]}", file=sys.stderr)
    found = sum(r == 0 for r in ranks) / len(ranks)
    means = {"first": sum(first) / len(first), "later": sum(later) / len(later)}
    return {"adapter": adapter, "ranked_first": found, **means, "ranks": ranks, "firsts": first, "laters": later}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(json.dumps(measure(name)), flush=True)
