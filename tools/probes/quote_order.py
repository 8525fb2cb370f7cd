"""In which order should quoted passages stand before a question: as in the text, or the nearest last, next to the question?

Facts hidden in 8,192 tokens, questions drawn from documents of 32,768 and those written by hand about the Jargon File; the adapter that
ships, which was trained with the order of the text. Run after `make texts`:
`python tools/probes/quote_order.py -o docs/results/probe-quote-order.jsonl` (20 minutes on two cores).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import torch
from quoting import ask, texts

from sharedllm import SharedLLM
from sharedllm.evaluate.statistics import bootstrap
from sharedllm.hardware import choose_threads
from sharedllm.keep import Span
from sharedllm.methods.shared import Shared
from sharedllm.quote import joined


def nearest_last(spans: Sequence[Span]) -> list[Span]:
    """Spans of which those that touch are one, the one with the nearest of them last; `spans` begins with the nearest."""
    return sorted(joined(spans), key=lambda whole: -next(i for i, s in enumerate(spans) if whole[0] <= s[0] < whole[1]))


ORDERS: dict[str, Callable[[Sequence[Span]], list[Span]]] = {"text": joined, "nearest last": nearest_last}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="results file; it is written anew")
    args = parser.parse_args()
    torch.set_num_threads(int(choose_threads().value))
    llm = SharedLLM.from_pretrained()
    method, rows = Shared(llm, 1024), []
    for name, asked in texts(llm).items():
        pasts = [method.prepare(text.ids) for text in asked]
        scores: dict[str, list[float]] = {}
        for order, function in ORDERS.items():
            with mock.patch("sharedllm.quote.joined", function):
                scores[order] = [
                    ask(method, p, q, True) for p, t in zip(pasts, asked, strict=True) if p for q in t.questions
                ]
            low, high = bootstrap([a - b for a, b in zip(scores[order], scores["text"], strict=True)])
            rows.append(
                {
                    "benchmark": name,
                    "order": order,
                    "value": sum(scores[order]) / len(scores[order]),
                    "samples": len(scores[order]),
                    "over_text_low": low,
                    "over_text_high": high,
                    "dtype": str(llm.dtype),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
