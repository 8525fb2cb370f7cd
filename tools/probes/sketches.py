"""By what little of a document does a question still find it? Needles in documents; which document ranks first?

Every way keeps some vectors a document of the values of the layer that is searched, and scores a question by late
interaction over them. Nothing is trained. Run after `make texts`: `python tools/probes/sketches.py data/heldout`
(160 documents of 1,024 tokens, 120 questions; 5 minutes on two cores).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sharedllm import SharedLLM
from sharedllm.collection.sketch import by_token
from sharedllm.data.needles import Needle, draw_needles
from sharedllm.prompts import Prompt
from sharedllm.relevance import token_reps

TEXTS = ("python-library", "python-reference", "debian-manuals", "anarchist-faq")
EACH, QUESTIONS, C = 40, 120, 1024
Way = Callable[[Tensor, Tensor], Tensor]
"""From token ids [C] and their values less the document's mean [C, R] to the vectors kept, [V, R]."""


def documents(llm: SharedLLM, data: Path) -> tuple[Tensor, list[Needle], Tensor]:
    """Token ids [documents, C], some with a needle in them; the needles; the document of each."""
    rows = []
    for name in TEXTS:
        ids = llm.reader.token_ids((data / f"{name}.txt").read_text(encoding="utf-8")[:1_400_000])
        step = (len(ids) - C) // EACH
        rows += [ids[i * step : i * step + C] for i in range(EACH)]
    random = np.random.default_rng(3)
    needles, gold = draw_needles(random, QUESTIONS), random.choice(len(rows), QUESTIONS, replace=False)
    for needle, at in zip(needles, gold.tolist(), strict=True):
        said = llm.reader.token_ids(f"\n{needle.statement}\n")
        cut = int(random.integers(0, C - len(said)))
        rows[at] = torch.cat([rows[at][:cut], said, rows[at][cut:]])[:C]
    return torch.stack(rows).long(), needles, torch.from_numpy(gold)


def farthest(values_CR: Tensor, count: int) -> Tensor:
    """Tokens each of which is least like those taken before, the first the longest."""
    directions, taken = F.normalize(values_CR, dim=1), [int(values_CR.norm(dim=1).argmax())]
    nearest = torch.full((len(values_CR),), -2.0)
    for _ in range(count - 1):
        nearest = torch.maximum(nearest, directions @ directions[taken[-1]])
        taken.append(int(nearest.argmin()))
    return values_CR[taken]


def clusters(values_CR: Tensor, count: int) -> Tensor:
    """Centres of k-means by cosine."""
    directions = F.normalize(values_CR, dim=1)
    centres = directions[torch.linspace(0, len(directions) - 1, count).long()]
    for _ in range(4):
        nearest = (directions @ centres.T).argmax(1)
        centres = F.normalize(centres * 1e-6 + torch.zeros_like(centres).index_add_(0, nearest, directions), dim=1)
    return centres


def largest(values_CR: Tensor, count: int) -> Tensor:
    return values_CR[values_CR.norm(dim=1).topk(count).indices]


def signs(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1.0, -1.0)


def turned_signs(values: Tensor, bits: int) -> Tensor:
    """Signs in `bits` random directions, back in the space they come from."""
    size = values.shape[1]
    turn = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(0)))[0][:, :bits]
    return signs(values @ turn) @ turn.T


WAYS: dict[str, Way] = {
    "all tokens": lambda ids, v: v,
    "every fourth token": lambda ids, v: v[::4],
    "means of 8 spans": lambda ids, v: v.unflatten(0, (8, -1)).mean(1),
    "64 clusters": lambda ids, v: clusters(v, 64),
    "128 clusters": lambda ids, v: clusters(v, 128),
    "64 farthest": lambda ids, v: farthest(v, 64),
    "128 farthest": lambda ids, v: farthest(v, 128),
    "128 largest": lambda ids, v: largest(v, 128),
    "signs of all tokens": lambda ids, v: signs(v),
    "distinct tokens": lambda ids, v: by_token(v, ids),
    "signs of distinct tokens": lambda ids, v: signs(by_token(v, ids)),
    "signs of the larger half of them": lambda ids, v: signs(largest(by_token(v, ids), len(ids.unique()) // 2)),
    "96 signs of distinct tokens": lambda ids, v: turned_signs(by_token(v, ids), 96),
    "64 signs of distinct tokens": lambda ids, v: turned_signs(by_token(v, ids), 64),
}


@torch.no_grad()
def main() -> None:
    llm = SharedLLM.from_pretrained(adapter="none")
    ids, needles, gold = documents(llm, Path(sys.argv[1]))
    layer = llm.config.representing_layer
    values = [token_reps(llm.lower.values(row[None], None, layer))[0] for row in ids]
    asked = []
    for needle in needles:
        prompt = Prompt(llm.tokenizer, needle.question)
        every = token_reps(llm.lower.values(torch.tensor([prompt.alone()]), None, layer))[0]
        asked.append(every[prompt.question_mask()[0]])
    for name, way in WAYS.items():
        scores, kept = [], 0
        for row, value in zip(ids, values, strict=True):
            mean = value.mean(0)
            vectors = F.normalize(way(row, value - mean), dim=1)
            kept += len(vectors)
            scores.append([float((F.normalize(q - mean, dim=1) @ vectors.T).amax(1).sum()) for q in asked])
        found = torch.tensor(scores).T
        ranks = (found > found.gather(1, gold[:, None])).sum(1)
        shares = "  ".join(f"among {n}: {(ranks < n).float().mean():.2f}" for n in (1, 4, 16))
        print(f"{name:34} {kept / len(ids):6.0f} vectors  {shares}", flush=True)


if __name__ == "__main__":
    main()
