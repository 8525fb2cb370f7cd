"""What does each choice of the mechanism give (depth, tree, positions, which tokens are kept), with the shipped adapter as it is?

The last 1,024 of 8,192 tokens, a window of as many, the same passages and the same reading for every setting; share of
the gap between the window alone and the model that reads everything itself. Nothing is trained, so settings far
from those the adapter was trained with are at a disadvantage. Run after `make texts`:
`python tools/probes/settings.py 1 > docs/results/probe-settings.jsonl` (passages of each text; 12 minutes on two cores);
`python tools/probes/settings.py 4 stored_bits > docs/results/probe-bits.jsonl`: one setting alone, beside the adapter's own
(10 minutes). A row has the values of all passages, and how many nats it is worse than the adapter's settings, paired.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from layers import silent
from torch import Tensor

from sharedllm import SharedLLM
from sharedllm.chunks import Stored
from sharedllm.config import SharedConfig
from sharedllm.encoded import Encoded
from sharedllm.evaluate.perplexity import Passage, cut_passages
from sharedllm.evaluate.statistics import bootstrap
from sharedllm.memory import Slots, build_memory, find, select_slots
from sharedllm.methods.base import plain_nll, target_nll

TEXTS = ("python-library", "python-reference", "debian-manuals", "anarchist-faq")
TARGETS = 1024
SETTINGS = [
    *({"injected_layers": m} for m in (4, 8, 12, 16, 20, 24)),
    *({"slots_per_leaf": s} for s in (4, 8, 16, 32, 64, 128)),
    *({"tree_depth": d} for d in (1, 2, 4, 5)),
    *({"fine_chunks": f} for f in (0, 2, 7)),
    *({"read_chunks": r} for r in (1, 2, 4)),
    *({"positions": p} for p in ("chunk+inner", "sequence", "none")),
    *({"kept": k, "fine_chunks": 0} for k in ("means", "weakest keys", "half of each")),
    *({"kept": k} for k in ("means", "weakest keys")),
    *({"stored_bits": b} for b in (16, 8, 4)),
    *({"chunk_length": 512, "tree_depth": d, "fine_chunks": 2, "read_chunks": 16} for d in (2, 3)),
]
OF_THE_PROBE = ("injected_layers", "kept")  # what `SharedConfig` does not say, or not after the reading


def parts_kept(block: Encoded, config: SharedConfig, kept: str) -> tuple[Tensor, Tensor]:
    """Keys and values [M, K, S, D] of a block's slots, kept otherwise than at an even stride.

    A slot stands for the tokens from the one before it to its own. `means`: the mean of their keys and of their values.
    `weakest keys`: the token of theirs whose keys are smallest, mean over layers and heads, since those draw attention
    (arXiv 2406.11430). `half of each`: half as many parts of twice the length, the last token and the mean of each.
    """
    (found,) = find([block], config)
    taken = found.taken()
    real = torch.arange(taken.shape[1])[None] < block.lengths[:, None]
    chunk, token = real.nonzero(as_tuple=True)
    before = taken.long().cumsum(1) - taken.long() + (taken.sum(1).cumsum(0) - taken.sum(1))[:, None]
    part = before[chunk, token]  # of each token, the slot that stands for it
    keys, values = (x.float() for x in block.at(chunk, token))
    S = int(taken.sum())
    if kept == "means":
        count = torch.zeros(S).index_add_(0, part, torch.ones(len(part)))[:, None]
        sums = (x.new_zeros(*x.shape[:2], S, x.shape[3]).index_add_(2, part, x) / count for x in (keys, values))
        return tuple(sums)
    size = keys.norm(dim=3).mean((0, 1))
    least = torch.full((S,), torch.inf).scatter_reduce(0, part, size, "amin")
    chosen = (size == least[part]).nonzero().flatten()
    first = torch.full((S,), len(part)).scatter_reduce(0, part[chosen], chosen, "amin")
    return keys[:, :, first], values[:, :, first]


def slots_of(block: Encoded, config: SharedConfig, kept: str | None) -> Slots:
    """The slots of a context without a question."""
    if kept == "half of each":
        config = replace(config, slots_per_leaf=config.slots_per_leaf // 2)
    slots = select_slots([block], config, None)
    if kept == "half of each":
        both = zip((slots.keys, slots.values), parts_kept(block, config, "means"), strict=True)
        keys, values = (torch.cat([last.float(), mean], dim=2) for last, mean in both)
        return replace(slots, keys=keys, values=values, chunk=slots.chunk.repeat(2), token=slots.token.repeat(2))
    if kept is not None:
        slots.keys, slots.values = parts_kept(block, config, kept)
    return slots


@torch.no_grad()
def scores(llm: SharedLLM, passage: Passage, settings: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean nats of the targets under every setting, of the window alone and of the model that reads everything."""
    past, window = passage.ids[:-TARGETS], passage.ids[-TARGETS:]
    chunks = {setting.get("chunk_length", llm.config.chunk_length) for setting in ({}, *settings)}
    llm.reader.config = replace(llm.config, stored_bits=16)  # packed below, by each setting
    read = {n: llm.reader.encode_rows(past.view(-1, n), stored=Stored(every_token=True)) for n in chunks}
    found = {"window alone": mean_of(plain_nll(llm, passage.ids[-TARGETS - 1 :], TARGETS)),
             "everything": mean_of(plain_nll(llm, passage.ids, TARGETS))}  # fmt: skip
    like, ids = llm.model.get_input_embeddings().weight, passage.ids[-TARGETS - 1 :][None]
    M = llm.config.injected_layers
    for setting in ({}, *settings):
        config = replace(llm.config, **{k: v for k, v in setting.items() if k not in OF_THE_PROBE})
        block = read[config.chunk_length].packed(config.stored_bits)
        memory = build_memory([slots_of(block, config, setting.get("kept"))], llm.parts, config, like)
        with silent(llm, range(setting.get("injected_layers", M), M)), llm.injection.reading(memory):
            logits = llm.model(input_ids=ids, use_cache=False, logits_to_keep=len(window) + 1).logits
        name = ", ".join(f"{k} {v}" for k, v in setting.items()) or "as shipped"
        found[name] = mean_of(target_nll(logits, ids, TARGETS)[0])
    return found


def mean_of(nats: Tensor) -> float:
    return float(nats.mean())


def passages(llm: SharedLLM, each: int) -> list[Passage]:
    """So many passages of 8,192 tokens of each held-out text."""
    texts = [(n, llm.reader.token_ids(Path(f"data/heldout/{n}.txt").read_text()).long()) for n in TEXTS]
    return cut_passages(texts, 8 * 1024, each * len(texts))


def summed_up(rows: Sequence[Mapping[str, float]], base: str) -> Iterator[dict[str, Any]]:
    """Of each setting in rows of nats a passage: its mean, the share of the gap, and how much worse than `base` it is, paired."""
    alone, everything = (sum(row[name] for row in rows) for name in ("window alone", "everything"))
    for name in rows[0]:
        nll = sum(row[name] for row in rows)
        worse = [row[name] - row[base] for row in rows]
        low, high = bootstrap(worse)
        yield {
            "setting": name, "nll": nll / len(rows), "share_of_gap": (alone - nll) / (alone - everything), "passages": len(rows),
            "worse": sum(worse) / len(worse), "worse_low": low, "worse_high": high, "values": [row[name] for row in rows],
        }  # fmt: skip


def main(each: int, only: str | None = None) -> None:
    settings = [setting for setting in SETTINGS if only is None or only in setting]
    llm = SharedLLM.from_pretrained()
    rows: list[dict[str, float]] = []
    for passage in passages(llm, each):
        rows.append(scores(llm, passage, settings))
        print(f"{passage.source} at {passage.start}", file=sys.stderr)
    for said in summed_up(rows, "as shipped"):
        print(json.dumps(said))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2, sys.argv[2] if len(sys.argv) > 2 else None)
