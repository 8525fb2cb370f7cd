"""What does each setting of the tree and the depth of the injection give, with the shipped adapter as it is?

The last 1,024 of 8,192 tokens, a window of as many, the same passages and the same reading for every setting; share of
the gap between the window alone and the model that reads everything itself. Nothing is trained, so settings far
from those the adapter was trained with are at a disadvantage. Run after `make texts`:
`python tools/probes/settings.py 2 > docs/results/probe-settings.jsonl` (passages of each text; 20 minutes on two cores).
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from layers import silent
from torch import Tensor

from sharedllm import SharedLLM
from sharedllm.evaluate.perplexity import Passage, cut_passages
from sharedllm.memory import build_memory, select_slots
from sharedllm.methods.base import plain_nll, target_nll

TEXTS = ("python-library", "python-reference", "debian-manuals", "anarchist-faq")
TARGETS = 1024
SETTINGS = [
    *({"injected_layers": m} for m in (4, 8, 12, 16, 20, 24)),
    *({"slots_per_leaf": s} for s in (4, 8, 16, 32, 64, 128)),
    *({"tree_depth": d} for d in (1, 2, 4, 5)),
    *({"fine_chunks": f} for f in (0, 2, 7)),
    *({"read_chunks": r} for r in (1, 2, 4)),
]


@torch.no_grad()
def scores(llm: SharedLLM, passage: Passage) -> dict[str, float]:
    """Mean nats of the targets under every setting, of the window alone and of the model that reads everything."""
    past, window = passage.ids[:-TARGETS], passage.ids[-TARGETS:]
    context = llm.reader.new_context()
    context.ids = past.int()
    llm.reader.encode(context)
    found = {"window alone": mean_of(plain_nll(llm, passage.ids[-TARGETS - 1 :], TARGETS)),
             "everything": mean_of(plain_nll(llm, passage.ids, TARGETS))}  # fmt: skip
    like, ids = llm.model.get_input_embeddings().weight, passage.ids[-TARGETS - 1 :][None]
    M = llm.config.injected_layers
    for setting in ({}, *SETTINGS):
        config = replace(llm.config, **{k: v for k, v in setting.items() if k != "injected_layers"})
        memory = build_memory([select_slots(context.blocks, config, None)], llm.parts, llm.config, like)
        with silent(llm, range(setting.get("injected_layers", M), M)), llm.injection.reading(memory):
            logits = llm.model(input_ids=ids, use_cache=False, logits_to_keep=len(window) + 1).logits
        name = ", ".join(f"{k} {v}" for k, v in setting.items()) or "as shipped"
        found[name] = mean_of(target_nll(logits, ids, TARGETS)[0])
    return found


def mean_of(nats: Tensor) -> float:
    return float(nats.mean())


def main(each: int) -> None:
    llm = SharedLLM.from_pretrained()
    texts = [(n, llm.reader.token_ids(Path(f"data/heldout/{n}.txt").read_text()).long()) for n in TEXTS]
    rows: list[dict[str, float]] = []
    for passage in cut_passages(texts, 8 * 1024, each * len(texts)):
        rows.append(scores(llm, passage))
        print(f"{passage.source} at {passage.start}", file=sys.stderr)
    alone, everything = (sum(row[name] for row in rows) for name in ("window alone", "everything"))
    for name in rows[0]:
        nll = sum(row[name] for row in rows)
        share = (alone - nll) / (alone - everything)
        print(json.dumps({"setting": name, "nll": nll / len(rows), "share_of_gap": share, "passages": len(rows)}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
