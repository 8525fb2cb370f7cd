"""What would int8 weights, with activations rounded a token at a time, give the lower model on this processor, and what do they cost?

Tokens read a second with the layers' linear maps as they are and in int8 (`torch._int_mm`, alternating, medians), in float32 and
where the processor has it in bfloat16; and the gain over the window alone of the last 1,024 of 8,192 tokens, in nats, with a
context that was read either way and the window in full. Run after `make texts`:
`python tools/probes/int8.py -o docs/results/probe-int8.jsonl` (10 minutes on two cores).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from sharedllm import SharedLLM
from sharedllm.evaluate.perplexity import cut_passages
from sharedllm.evaluate.row import machine
from sharedllm.evaluate.statistics import bootstrap
from sharedllm.hardware import choose_dtype, choose_threads
from sharedllm.methods import create

TEXTS = ("python-library", "python-reference", "debian-manuals", "anarchist-faq")
LENGTH, TARGETS, ROUNDS, CHUNKS = 8192, 1024, 5, 4


class Rounded(nn.Module):
    """A linear map with int8 weights, one scale a row of them and one a token of what goes in."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        self.scale = weight.abs().amax(1).clamp(min=1e-12) / 127
        self.codes = (weight / self.scale[:, None]).round().to(torch.int8).T.contiguous()
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, -2)
        scale = flat.abs().amax(1, keepdim=True).clamp(min=1e-6) / 127
        codes = (flat / scale).round_().to(torch.int8)
        out = (torch._int_mm(codes, self.codes) * (scale * self.scale)).to(x.dtype)
        out = out.unflatten(0, x.shape[:-1])
        return out if self.bias is None else out + self.bias


@contextmanager
def rounded(layers: nn.ModuleList) -> Iterator[None]:
    """The linear maps of some layers in int8."""
    places = [
        (part, name, child)
        for layer in layers
        for part in layer.modules()
        for name, child in part.named_children()
        if isinstance(child, nn.Linear)
    ]
    made = [Rounded(child) for _, _, child in places]
    for (part, name, _), new in zip(places, made, strict=True):
        setattr(part, name, new)
    try:
        yield
    finally:
        for part, name, child in places:
            setattr(part, name, child)


def seconds(llm: SharedLLM, rows: Tensor) -> float:
    started = time.perf_counter()
    llm.reader.encode_rows(rows)
    return time.perf_counter() - started


def speed(llm: SharedLLM) -> dict[str, float]:
    """Tokens read a second, as they are and in int8."""
    rows, layers = torch.randint(0, 20_000, (CHUNKS, 1024)), llm.parts.layers[: llm.config.injected_layers]
    times: dict[str, list[float]] = {"plain": [], "int8": []}
    for turn in range(ROUNDS + 1):
        plain = seconds(llm, rows)
        with rounded(layers):
            if not turn:
                seconds(llm, rows)
            small = seconds(llm, rows)
        if turn:  # the first one warms up
            times["plain"].append(plain)
            times["int8"].append(small)
    return {name: round(rows.numel() / statistics.median(taken), 1) for name, taken in times.items()}


@torch.no_grad()
def gains(llm: SharedLLM, data: Path, passages: int) -> dict[str, object]:
    """Gain over the window alone, the context read as it is and in int8; and the paired difference of both."""
    found: dict[str, list[float]] = {"plain": [], "int8": []}
    window, layers = TARGETS + 1, llm.parts.layers[: llm.config.injected_layers]
    alone, shared = (create(name, llm, window) for name in ("truncate", "shared"))
    for name in TEXTS:
        ids = llm.reader.token_ids((data / f"{name}.txt").read_text(encoding="utf-8")).long()
        for passage in cut_passages([(name, ids)], LENGTH, passages):
            past, seen = passage.ids[:-window], passage.ids[-window:]
            without = alone.score(alone.prepare(past), seen, TARGETS).mean()
            plain = shared.prepare(past)
            with rounded(layers):
                small = shared.prepare(past)
            for kind, prepared in (("plain", plain), ("int8", small)):
                found[kind].append(float(without - shared.score(prepared, seen, TARGETS).mean()))
    differ = [a - b for a, b in zip(found["plain"], found["int8"], strict=True)]
    low, high = bootstrap(differ)
    mean = {kind: round(sum(rows) / len(rows), 5) for kind, rows in found.items()}
    return {
        "gain": mean,
        "lost": round(sum(differ) / len(differ), 5),
        "lost_low": low,
        "lost_high": high,
        "passages": len(differ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="results file; it is written anew")
    parser.add_argument("--data", type=Path, default=Path("data/heldout"))
    parser.add_argument("--passages", type=int, default=2, help="of each text")
    args = parser.parse_args()
    torch.set_num_threads(int(choose_threads().value))
    best, rows = choose_dtype("cpu").value, []
    for dtype in sorted({"float32", best}):
        llm = SharedLLM.from_pretrained(device="cpu", dtype=dtype)
        row: dict[str, object] = {"task": "int8", **machine(llm), "tokens_a_second": speed(llm)}
        if dtype == best:
            row |= gains(llm, args.data, args.passages)
        rows.append(row)
        print(json.dumps(row), flush=True)
    args.output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
