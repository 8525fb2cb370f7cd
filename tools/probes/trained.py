"""What does each choice of what is trained, how and how deep give, from nothing, at equal tokens and on the same samples?

Short runs side by side, each with weights of its own on a model of its own: every step draws one sample, whose context is read once
for all of them. Continuations alone, windows of 384 tokens after each of some chunks. Then held-out loss on samples of other sources,
paired with the first way's. Too short for an adapter that is any good; long enough to see what learns faster. Run after
`sharedllm data build data-text -o data/text`:
`python tools/probes/trained.py 30 -o docs/results/probe-trained.jsonl` (50 minutes and 7 GB on two cores with AVX512-BF16).
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sharedllm import SharedLLM
from sharedllm.branch import WIDER, Memory
from sharedllm.config import SharedConfig
from sharedllm.context import Context
from sharedllm.evaluate.statistics import bootstrap
from sharedllm.hardware import choose_threads, processor_name
from sharedllm.train import loop
from sharedllm.train.learner import SharedLearner
from sharedllm.train.newest import Newest
from sharedllm.train.recipe import Recipe
from sharedllm.train.validation import Compared

CONFIG = SharedConfig(injected_layers=24, fine_chunks=1, read_chunks=8, rank=64, null_growth=True)
HELD_OUT = 12


@dataclass(frozen=True)
class Way:
    """What is changed of the base way."""

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    slots_rank: int = 0


WAYS = [
    Way("base: 24 layers, queries and outputs at rank 64"),
    Way("8 layers", {"injected_layers": 8}),
    Way("16 layers", {"injected_layers": 16}),
    Way("half of the loss KL to the model that reads everything", recipe={"distill": 0.5}),
    Way("keys and values of the slots too, at rank 32", slots_rank=32),
    Way("positions none", {"positions": "none"}),
    Way("positions sequence", {"positions": "sequence"}),
    Way("positions chunk+inner", {"positions": "chunk+inner"}),
    Way("4 layers", {"injected_layers": 4}),
    Way("12 layers", {"injected_layers": 12}),
    Way("64 slots a leaf", {"slots_per_leaf": 64}),
    Way("one chunk more at every token", {"fine_chunks": 2}),
]


class SlotsLearner(SharedLearner):
    """Learns a change of low rank of every layer's keys and one of its values as well, across the heads; both start at none.

    It is applied to rotated keys: these are turned by a few positions at most.
    """

    rank = 0

    def __init__(self, llm: SharedLLM, recipe: Recipe) -> None:
        super().__init__(llm, recipe)
        width = llm.parts.kv_heads * llm.parts.head_dim
        generator = torch.Generator().manual_seed(0)
        self.module.changes = nn.ModuleList()
        for _ in range(2 * recipe.config.injected_layers):
            change = nn.Sequential(nn.Linear(width, self.rank, bias=False), nn.Linear(self.rank, width, bias=False))
            nn.init.normal_(change[0].weight, std=width**-0.5, generator=generator)
            nn.init.zeros_(change[1].weight)
            self.module.changes.append(change)

    def memory(self, *args: Any, **kwargs: Any) -> Memory:
        memory = super().memory(*args, **kwargs)
        changes = list(self.module.changes)
        M, D = len(memory.keys), memory.keys[0].shape[-1] - WIDER
        keys = [changed(x, changes[j], D) for j, x in enumerate(memory.keys)]
        values = [changed(x, changes[M + j], D) for j, x in enumerate(memory.values)]
        return replace(memory, keys=keys, values=values)


def changed(x: Tensor, change: nn.Module, D: int) -> Tensor:
    """Keys or values [B, K, S, D + WIDER] with a change across heads."""
    heads = x[..., :D].transpose(1, 2)
    more = change(heads.flatten(2).float()).to(x.dtype).view_as(heads).transpose(1, 2)
    return torch.cat([x[..., :D] + more, x[..., D:]], dim=3)


def stored_as(read: Newest[Context], llm: SharedLLM, ids: np.ndarray) -> Context:
    """A context with every token, read once for all ways, as this way's settings would have it stored."""
    context = copy.copy(read.of(ids))
    context.shape = {**context.shape, "slots_per_leaf": llm.config.slots_per_leaf}
    return context


def trainer(way: Way, steps: int, data: str, folder: Path) -> loop.Trainer:
    config = replace(CONFIG, **way.config)
    recipe = Recipe(
        output=str(folder / way.name.replace(" ", "-").replace(":", "")[:40]), data=data, steps=steps, warmup_steps=5, windows=2,
        context_chunks=[4, 7], validate_samples=HELD_OUT, config=config, **way.recipe,
    )  # fmt: skip
    SlotsLearner.rank = way.slots_rank
    loop.learner = SlotsLearner if way.slots_rank else SharedLearner
    return loop.Trainer(recipe)


def summed_up(
    way: Way, run: loop.Trainer, losses: list[float], seconds: float, pairs: list[Compared], base: list[Compared]
) -> dict[str, Any]:
    """The row of a way: its losses in training, and those held out, paired with the base way's."""
    held, without = [loss for _, (_, loss) in pairs], [loss for _, (loss, _) in pairs]
    if not all(map(math.isfinite, held)):
        raise SystemExit(f"{way.name}: a loss is not a number")
    better = [was - now for (_, (_, was)), now in zip(base, held, strict=True)]
    low, high = bootstrap(better)
    return {
        "way": way.name, "steps": len(losses), "target_tokens": run.tokens, "parameters": sum(p.numel() for p in run.module.parameters()),
        "gain": sum(without) / len(held) - sum(held) / len(held), "better_than_base": sum(better) / len(better), "better_low": low,
        "better_high": high, "samples": len(held), "kinds": [kind for kind, _ in pairs], "values": held, "without": without,
        "last_ten_losses": sum(losses[-10:]) / len(losses[-10:]), "seconds": round(seconds, 1), "dtype": str(run.llm.dtype),
        "processor": processor_name(run.llm.device),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("steps", type=int)
    parser.add_argument("--data", default="data/text")
    parser.add_argument("--runs", type=Path, default=Path("runs/probe-trained"), help="folders of the runs; new ones")
    parser.add_argument("--ways", type=int, default=len(WAYS), help="so many of the ways")
    parser.add_argument("-o", "--output", type=Path, required=True, help="results file; it is written anew")
    args = parser.parse_args()
    torch.set_num_threads(int(choose_threads().value))
    trainers = [trainer(way, args.steps, args.data, args.runs) for way in WAYS[: args.ways]]
    contexts = Newest(1, lambda ids: trainers[0].learner.encode(torch.from_numpy(ids)))
    losses: list[list[float]] = [[] for _ in trainers]
    seconds = [0.0] * len(trainers)
    for some in trainers:
        some._contexts = Newest(1, partial(stored_as, contexts, some.llm))
    for step in range(args.steps):
        for number, some in enumerate(trainers):
            started = time.perf_counter()
            losses[number].append(some._one_step()["loss"])
            seconds[number] += time.perf_counter() - started
        print(step + 1, [round(some[-1], 3) for some in losses], file=sys.stderr, flush=True)
    compared: list[list[Compared]] = [[] for _ in trainers]
    for i in range(HELD_OUT):
        for number, some in enumerate(trainers):
            with torch.no_grad():
                compared[number].append(some._compare(i))
        print("held out", i + 1, [round(some[-1][1][1], 3) for some in compared], file=sys.stderr, flush=True)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", encoding="utf-8") as file:
        for way, run, some, took, pairs in zip(WAYS, trainers, losses, seconds, compared, strict=False):
            row = summed_up(way, run, some, took, pairs, compared[0])
            file.write(json.dumps(row) + "\n")
            print(json.dumps({k: v for k, v in row.items() if k not in ("values", "without", "kinds")}))


if __name__ == "__main__":
    main()
