"""Which of the injected layers earn what they cost? The shipped adapter with some of its branches off, nothing trained.

The last 1,024 of 8,192 tokens, a window of as many, the same passages and the same reading for every choice; share of the gain
over the window alone that is lost. What a layer costs is the same for all: its keys and values kept, attended to and projected
for. Run after `make texts`: `python tools/probes/layers.py 2 > docs/results/probe-layers.jsonl` (passages of each text; 12
minutes on two cores).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from sharedllm import SharedLLM
from sharedllm.evaluate.perplexity import Passage, cut_passages
from sharedllm.memory import build_memory, select_slots
from sharedllm.methods.base import target_nll

TEXTS = ("python-library", "python-reference", "debian-manuals", "anarchist-faq")
TARGETS = 1024


@contextmanager
def silent(llm: SharedLLM, layers: Collection[int]) -> Iterator[None]:
    """Within this block the branches of these layers add nothing."""
    gates = [llm.injection.branches[layer].gate for layer in layers if layer >= llm.config.skipped_layers]
    kept = [gate.detach().clone() for gate in gates]
    try:
        for gate in gates:
            gate.data.zero_()
        yield
    finally:
        for gate, was in zip(gates, kept, strict=True):
            gate.data.copy_(was)


def choices(layers: int) -> dict[str, list[int]]:
    """What is left out, by a name: nothing, all, the lowest so many, each layer alone."""
    found = {"none": [], "all": list(range(layers))}
    found |= {f"the lowest {n}": list(range(n)) for n in range(4, layers, 4)}
    return found | {f"layer {layer}": [layer] for layer in range(layers)}


@torch.no_grad()
def losses(llm: SharedLLM, passage: Passage) -> dict[str, float]:
    """Mean nats of the targets under every choice."""
    context = llm.reader.new_context()
    context.ids = passage.ids[:-TARGETS].int()
    llm.reader.encode(context)
    like, ids = llm.model.get_input_embeddings().weight, passage.ids[-TARGETS - 1 :][None]
    memory = build_memory([select_slots(context.blocks, llm.config, None)], llm.parts, llm.config, like)
    found = {}
    for name, layers in choices(llm.config.injected_layers).items():
        with silent(llm, layers), llm.injection.reading(memory):
            logits = llm.model(input_ids=ids, use_cache=False, logits_to_keep=TARGETS + 1).logits
        found[name] = float(target_nll(logits, ids, TARGETS)[0].mean())
    return found


def main(each: int) -> None:
    llm = SharedLLM.from_pretrained()
    texts = [(n, llm.reader.token_ids(Path(f"data/heldout/{n}.txt").read_text()).long()) for n in TEXTS]
    rows = []
    for passage in cut_passages(texts, 8 * 1024, each * len(texts)):
        rows.append(losses(llm, passage))
        print(f"{len(rows)} of {each * len(texts)} passages", file=sys.stderr)
    mean = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    gain = mean["all"] - mean["none"]
    for name, nll in mean.items():
        lost = (nll - mean["none"]) / gain
        print(json.dumps({"left_out": name, "nll": round(nll, 4), "gain_lost": round(lost, 3), "passages": len(rows)}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
