"""Where in a window is a context worth something? Gain over the window alone, by the tokens that stand before a target.

The last 1,024 of 8,192 tokens, once in a window of as many, where the first targets have nothing before them, and once in
a window of 2,048, where all have more than 1,024. Gain in nats over the same window alone, of `shared` and of the same
model reading all 8,192 tokens, with 95 % bootstrap interval over passages.

Run after `make texts`: `python tools/probes/distance.py -o docs/results/probe-distance.jsonl` (20 minutes on two cores).
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from sharedllm import SharedLLM
from sharedllm.evaluate.perplexity import GAIN, Passage, cut_passages
from sharedllm.evaluate.statistics import bootstrap
from sharedllm.methods import create

TEXTS = ("python-library", "python-reference", "debian-manuals", "anarchist-faq")
LENGTH, TARGETS = 8192, 1024
WINDOWS = (TARGETS + 1, 2 * TARGETS)
EDGES = (0, 128, 256, 512, TARGETS)


def nll(llm: SharedLLM, method: str, passage: Passage, window: int) -> Tensor:
    """Nats of each target, [TARGETS]."""
    scorer = create(method, llm, window)
    return scorer.score(scorer.prepare(passage.ids[:-window]), passage.ids[-window:], TARGETS)


@torch.no_grad()
def gains(llm: SharedLLM, passage: Passage) -> dict[tuple[str, int, int], float]:
    """Mean gain over the window alone by (method, fewest, most tokens before a target in the window)."""
    full, found = nll(llm, "full", passage, LENGTH), {}
    for window in WINDOWS:
        alone, first = nll(llm, "truncate", passage, window), window - TARGETS
        for method, seen in (("shared", nll(llm, "shared", passage, window)), ("full", full)):
            for start, end in pairwise(EDGES):
                gain = (alone - seen)[start:end].mean()
                found[method, first + start, first + end - 1] = float(gain)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="results file; it is written anew")
    parser.add_argument("--samples", type=int, default=24, help="passages")
    parser.add_argument("--adapter", default="default", help="as for `sharedllm eval`")
    args = parser.parse_args()
    llm = SharedLLM.from_pretrained(adapter=args.adapter)
    texts = [(n, llm.reader.token_ids(Path(f"data/heldout/{n}.txt").read_text("utf-8")).long()) for n in TEXTS]
    passages = cut_passages(texts, LENGTH, args.samples)
    found = []
    for n, passage in enumerate(passages, 1):
        found.append(gains(llm, passage))
        print(f"{n} of {len(passages)}: {passage.source} at {passage.start}", file=sys.stderr)
    with args.output.open("w", encoding="utf-8") as out:
        for method, fewest, most in found[0]:
            values = [gain[method, fewest, most] for gain in found]
            row = {"method": method, "adapter": args.adapter, "before_fewest": fewest, "before_most": most}
            low, high = bootstrap(values)
            row |= {"metric": GAIN, "value": sum(values) / len(values), "low": low, "high": high}
            out.write(json.dumps({**row, "samples": len(values), "values": values}) + "\n")


if __name__ == "__main__":
    main()
