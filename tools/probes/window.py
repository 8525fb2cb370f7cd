"""How should a large window take the context in? Rate of the null logit's growth, and what chunks are searched by.

The last 1,024 of 16,384 tokens, a window of 4,096, an adapter trained on windows of 384 tokens (recipe `finer`); gain in
nats over the same window alone. Nothing is trained: all heads get the same rate. Run after `make texts`:
`python tools/probes/window.py runs/finer/adapter > docs/results/probe-window.jsonl` (15 minutes on two cores).
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from sharedllm import SharedLLM
from sharedllm.adapter import load_weights, read_adapter_config
from sharedllm.evaluate.perplexity import Passage, cut_passages
from sharedllm.methods.base import plain_nll, target_nll

TEXTS = ("python-library", "python-reference", "debian-manuals", "anarchist-faq")
LENGTH, WINDOW, TARGETS = 16 * 1024, 4096, 1024
RATES = (0.0, 3.0, 6.0, 12.0)


@torch.no_grad()
def gains(llm: SharedLLM, passage: Passage) -> dict[tuple[str, float], float]:
    """Gain over the window alone by (search, rate); and of the model's own 8,192 positions."""
    window = passage.ids[-WINDOW:]
    context = llm.reader.new_context()
    context.ids = passage.ids[:-WINDOW].int()
    llm.reader.encode(context)
    alone = plain_nll(llm, window, TARGETS).mean()
    found = {("8,192 positions", 0.0): float(alone - plain_nll(llm, passage.ids[-llm.window :], TARGETS).mean())}
    asking = torch.arange(WINDOW)[None] < WINDOW - TARGETS
    for search in ("later", "query"):
        for rate in RATES:
            for branch in llm.injection.branches[llm.config.skipped_layers :]:
                branch.null_growth.data.fill_(rate)
            kwargs = {"search": search, "question_mask": asking, "logits_to_keep": TARGETS + 1}
            logits = llm(window[None], context=context, use_cache=False, **kwargs).logits
            found[search, rate] = float(alone - target_nll(logits, window[None], TARGETS).mean())
    return found


def main(adapter: Path) -> None:
    config = replace(read_adapter_config(adapter)["config"], null_growth=True)
    llm = SharedLLM.from_pretrained(adapter="none", config=config)
    load_weights(adapter, llm.injection, partly=True)
    texts = [(n, llm.reader.token_ids(Path(f"data/heldout/{n}.txt").read_text()).long()) for n in TEXTS]
    rows = []
    for passage in cut_passages(texts, LENGTH, len(texts)):
        rows.append(gains(llm, passage))
        print(f"{passage.source} at {passage.start}", file=sys.stderr)
    for search, rate in rows[0]:
        values = [row[search, rate] for row in rows]
        print(json.dumps({"search": search, "rate": rate, "gain": sum(values) / len(values), "values": values}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
