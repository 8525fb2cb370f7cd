"""What should a question be compared with? Needles in a long text; which chunk does each way of comparing rank first?

Nothing is trained. Run after `make texts`: `python tools/probes/search.py data/heldout/python-library.txt 120 90`
(text, chunks, needles; 6 minutes on two cores).
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sharedllm import SharedLLM
from sharedllm.data.needles import draw_needles
from sharedllm.encoder import LowerModel, Wanted
from sharedllm.prompts import Prompt

C = 1024
HIDDEN, STORED = (1, 2, 4, 8), (1, 2, 4, 6, 8, 10, 12)  # layers counted from 1 (hidden states), from 0 (keys, values)


def hide(llm: SharedLLM, text: Tensor, chunks: int, count: int) -> tuple[Tensor, list[tuple[Any, set[int]]]]:
    """The text with needles in it, cut to `chunks` chunks; each needle with the chunks that hold it."""
    random = np.random.default_rng(1)
    pieces: list[Tensor] = []
    where, at, length = [], 0, 0
    cuts = np.sort(random.integers(0, chunks * C, size=count)).tolist()
    for cut, needle in zip(cuts, draw_needles(random, count), strict=True):
        statement = llm.reader.token_ids(f"\n{needle.statement}\n")
        start = length + cut - at
        pieces += [text[at:cut], statement]
        length, at = start + len(statement), cut
        if length <= chunks * C:
            where.append((needle, {start // C, (length - 1) // C}))
    return torch.cat([*pieces, text[at:]])[: chunks * C].long(), where


@torch.no_grad()
def representations(llm: SharedLLM, ids_XC: Tensor) -> dict[str, Tensor]:
    """Of every token, by name, [X, C, R]."""
    found: dict[str, list[Tensor]] = {}
    lower = LowerModel(llm.parts, max(*HIDDEN, max(STORED) + 1))
    every = torch.arange(ids_XC.shape[1])[None]

    def keep(name: str) -> Any:
        def hook(_module: Any, _args: Any, out: Any) -> None:
            found.setdefault(name, []).append((out[0] if isinstance(out, tuple) else out).float())

        return hook

    handles = [llm.parts.layers[n - 1].register_forward_hook(keep(f"hidden state after layer {n}")) for n in HIDDEN]
    try:
        for row in ids_XC:
            block = lower.encode(row[None], torch.tensor([len(row)]), Wanted(every, every[:, :0]))
            for layer in STORED:
                for name, x in (("keys", block.keys), ("values", block.values)):
                    found.setdefault(f"{name} of layer {layer}", []).append(x[layer].float().transpose(1, 2).flatten(2))
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(rows) for name, rows in found.items()}


def bm25(chunks: list[Counter[int]], question: list[int]) -> Tensor:
    def idf(token: int) -> float:
        n = sum(token in chunk for chunk in chunks)
        return math.log(1 + (len(chunks) - n + 0.5) / (n + 0.5))

    return torch.tensor([sum(idf(t) * c[t] * 2.2 / (c[t] + 1.2) for t in set(question)) for c in chunks])


def main() -> None:
    file, chunks, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    llm = SharedLLM.from_pretrained(adapter="none")
    text = llm.reader.token_ids(Path(file).read_text(encoding="utf-8"))[5000:]
    ids, needles = hide(llm, text, chunks, count)
    reps = representations(llm, ids.view(-1, C))
    means = {name: rep.mean((0, 1)) for name, rep in reps.items()}
    for name, rep in reps.items():
        rep.sub_(means[name]).div_(rep.norm(dim=2, keepdim=True))
    counts = [Counter(chunk.tolist()) for chunk in ids.view(-1, C)]
    ranks: dict[str, list[int]] = {}

    def note(name: str, scores: Tensor, gold: set[int]) -> None:
        ranks.setdefault(name, []).append(int((scores > max(scores[g] for g in gold)).sum()))

    for needle, gold in needles:
        prompt = Prompt(llm.tokenizer, needle.question)
        whole, mask = torch.tensor(prompt.alone()), prompt.question_mask()[0]
        note("BM25, the question's tokens", bm25(counts, whole[mask].tolist()), gold)
        for name, asked in representations(llm, whole[None]).items():
            asked = F.normalize(asked[0] - means[name], dim=1)
            for of, tokens in ((", the question's tokens", asked[mask]), (", the prompt's last token", asked[-1:])):
                note(name + of, torch.einsum("qr,xcr->xqc", tokens, reps[name]).amax(2).sum(1), gold)
    for name, found in sorted(ranks.items(), key=lambda item: float(np.mean(item[1]))):
        first, two = (np.mean([r < n for r in found]) for n in (1, 2))
        print(f"{name:55} first {first:.2f}  among two {two:.2f}", flush=True)


if __name__ == "__main__":
    main()
