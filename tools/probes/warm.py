"""What should a window search by that goes on, rather than asks? Gain of its last tokens, by search and prior.

The last 256 of 8,192 tokens in a window of 1,024, so that each has 768 before it at least; gain in nats over the same window
alone, of the same adapter under each setting, with 95 % bootstrap interval over passages. To choose, passages of the data's
held-out documents; to confirm once, those of texts:

`python tools/probes/warm.py -o docs/results/probe-warm.jsonl` after `sharedllm data build` (10 minutes on two cores), then
`python tools/probes/warm.py --texts -o docs/results/probe-warm-texts.jsonl` after `make texts`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from sharedllm import SharedLLM
from sharedllm.data.folder import TokenFolder
from sharedllm.evaluate.perplexity import GAIN, Passage, cut_passages
from sharedllm.evaluate.statistics import bootstrap
from sharedllm.methods.base import plain_nll, target_nll

TEXTS = ("python-library", "python-reference", "debian-manuals", "anarchist-faq")
LENGTH, WINDOW, TARGETS = 8192, 1024, 256
ASKING = (WINDOW - TARGETS, 256, 64, 0)
"""Of the newest tokens before the targets, how many ask; 0: none do, and the newest chunks are taken in."""
PRIORS = (40.0, 10.0, 0.0)


@contextmanager
def prior_of(llm: SharedLLM, prior: float) -> Iterator[None]:
    """Within the block questions are read under another `search_prior`."""
    trained, llm.config = llm.config, replace(llm.config, search_prior=prior)
    try:
        yield
    finally:
        llm.config = trained


@torch.no_grad()
def gains(llm: SharedLLM, passage: Passage) -> dict[str, float]:
    """Gain over the window alone, by how the window searches."""
    window = passage.ids[-WINDOW:]
    context = llm.reader.new_context()
    context.ids = passage.ids[:-WINDOW].int()
    llm.reader.encode(context)
    alone, found = plain_nll(llm, window, TARGETS).mean(), {}
    for asking, prior in product(ASKING, PRIORS):
        if asking == 0 and prior != PRIORS[0]:
            continue  # without a question there is none
        with prior_of(llm, prior):
            seen = target_nll(logits(llm, window, context, asking), window[None], TARGETS).mean()
        name = f"the last {asking} ask, prior {prior:g}" if asking else "none asks, newest chunks"
        found[name] = float(alone - seen)
    found["full attention"] = float(alone - plain_nll(llm, passage.ids, TARGETS).mean())
    return found


def logits(llm: SharedLLM, window: Tensor, context: object, asking: int) -> Tensor:
    """Logits [1, TARGETS + 1, V] of a window of which so many tokens before the targets ask."""
    place = torch.arange(WINDOW)[None]
    mask = (place < WINDOW - TARGETS) & (place >= WINDOW - TARGETS - asking)
    given = {"search": "query", "question_mask": mask} if asking else {"search": "later"}
    out = llm(window[None], context=context, use_cache=False, logits_to_keep=TARGETS + 1, **given)  # type: ignore[arg-type]
    return out.logits  # type: ignore[no-any-return]


def held_out(llm: SharedLLM, data: Path) -> list[tuple[str, Tensor]]:
    """Documents of a folder of tokens that no adapter was trained on."""
    folder = TokenFolder.open(data, llm.tokenizer)
    documents = [d for d in folder.documents("heldout") if d.tokens >= 2 * LENGTH]
    return [(d.name, torch.from_numpy(folder.tokens(d).astype("int64"))) for d in documents]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="results file; it is written anew")
    parser.add_argument("--samples", type=int, default=16, help="passages")
    parser.add_argument("--data", type=Path, default=Path("data/text"), help="folder of tokens")
    parser.add_argument("--texts", action="store_true", help="take passages of data/heldout instead")
    args = parser.parse_args()
    llm = SharedLLM.from_pretrained()
    if args.texts:
        texts = [(n, llm.reader.token_ids(Path(f"data/heldout/{n}.txt").read_text("utf-8")).long()) for n in TEXTS]
    else:
        texts = held_out(llm, args.data)
    found, passages = [], cut_passages(texts, LENGTH, args.samples)
    for n, passage in enumerate(passages, 1):
        found.append(gains(llm, passage))
        print(f"{n} of {len(passages)}: {passage.source} at {passage.start}", file=sys.stderr)
    with args.output.open("w", encoding="utf-8") as out:
        for name in found[0]:
            values = [gain[name] for gain in found]
            low, high = bootstrap(values)
            row = {"setting": name, "metric": GAIN, "value": sum(values) / len(values), "low": low, "high": high}
            row |= {"samples": len(values), "sources": [p.source for p in passages], "values": values}
            out.write(json.dumps(row) + "\n")
            print(f"{name}: {row['value']:+.4f} [{low:+.4f}, {high:+.4f}]")


if __name__ == "__main__":
    main()
