"""What would the same slots give in the model's own softmax, beside the window's tokens, in place of a branch of their own?

The lowest M layers' own queries attend to slots and window together; nothing is trained and no adapter is at work. A slot's key is
rotated to where its position puts it before the window: `chunk`: whole chunks back, as the branch has it; `rank`: slots follow each
other and the window follows them; `text`: where its token stood. `weighed`: a slot counts as often as the tokens it
stands for, so that log(tokens) is added to its logit; `no first`: without the first four tokens of each chunk, which a model that
begins there attends to as to nothing. The last 1,024 of 8,192 tokens, a window of as many, share of the gap between the
window alone and the model that reads everything; beside it the shipped adapter with the same slots. Run after `make texts`:
`python tools/probes/joint.py 2 > docs/results/probe-joint.jsonl` (passages of each text).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from settings import TARGETS, mean_of, passages, summed_up
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from sharedllm import SharedLLM
from sharedllm.architectures import rotate
from sharedllm.chunks import Stored
from sharedllm.evaluate.perplexity import Passage
from sharedllm.memory import Slots, build_memory, select_slots
from sharedllm.methods.base import plain_nll, target_nll

NAME = "probe_joint"


@dataclass(frozen=True)
class Way:
    """How slots stand in the softmax of the lowest `layers` layers."""

    positions: str
    weighed: bool = False
    first: bool = True
    fine_chunks: int = 1
    layers: int = 24

    def __str__(self) -> str:
        more = " weighed" * self.weighed + " no first" * (not self.first)
        return f"{self.positions}{more}, {self.fine_chunks} whole, {self.layers} layers"


WAYS = [
    Way("chunk"), Way("chunk", first=False), Way("rank"), Way("rank", first=False), Way("text", first=False),
    Way("text", True, False), Way("text", True, False, layers=30), Way("text", first=False, fine_chunks=7),
    Way("text", first=False, fine_chunks=7, layers=30),
]  # fmt: skip


def places(slots: Slots, way: Way, length: int) -> tuple[Tensor, Tensor]:
    """Of each slot [S] its position, before 0 where the window begins, and what is added to its logit."""
    at = (slots.chunk - 1) * length + slots.token
    before = torch.cat([torch.tensor([-1]), at])
    bias = (at - before[:-1]).float().log() if way.weighed else torch.zeros(len(at))
    if not way.first:
        bias[slots.token < 4] = -torch.inf
    found = {
        "chunk": slots.chunk - slots.chunks - 1,
        "rank": torch.arange(len(at)) - len(at),
        "text": at - slots.chunks * length,
    }
    return found[way.positions], bias


@contextmanager
def joined(llm: SharedLLM, slots: Slots, way: Way) -> Iterator[None]:
    """Within this block the model's own attention takes `slots` in."""
    at, bias = places(slots, way, llm.config.chunk_length)
    tables = llm.parts.tables(at, way.layers)
    keys = [rotate(slots.keys[j].float(), *tables[j]).to(llm.dtype)[None] for j in range(way.layers)]
    values = [slots.values[j].to(llm.dtype)[None] for j in range(way.layers)]

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, None]:
        T, layer = query.shape[2], module.layer_idx
        causal = torch.zeros(T, T).masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        if layer < way.layers:
            key, value = torch.cat([keys[layer], key], 2), torch.cat([values[layer], value], 2)
            causal = torch.cat([bias.expand(T, -1), causal], 1)
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for x in (key, value))
        mask = causal.to(query.dtype)[None, None]
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=kwargs["scaling"])
        return found.transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    config = llm.model.config
    was, config._attn_implementation = config._attn_implementation, NAME
    try:
        yield
    finally:
        config._attn_implementation = was


@torch.no_grad()
def scores(llm: SharedLLM, deep: SharedLLM, passage: Passage) -> dict[str, float]:
    """Mean nats of the targets in every way."""
    past, ids = passage.ids[:-TARGETS], passage.ids[-TARGETS - 1 :][None]
    found = {"window alone": mean_of(plain_nll(llm, passage.ids[-TARGETS - 1 :], TARGETS)),
             "everything": mean_of(plain_nll(llm, passage.ids, TARGETS))}  # fmt: skip
    block = deep.reader.encode_rows(past.view(-1, llm.config.chunk_length), stored=Stored(every_token=True))
    like = llm.model.get_input_embeddings().weight
    slots = select_slots([block.layers(0, llm.config.injected_layers)], llm.config, None)
    with llm.injection.reading(build_memory([slots], llm.parts, llm.config, like)):
        logits = llm.model(input_ids=ids, use_cache=False, logits_to_keep=TARGETS + 1).logits
    found["the shipped adapter"] = mean_of(target_nll(logits, ids, TARGETS)[0])
    for way in WAYS:
        slots = select_slots([block], replace(deep.config, fine_chunks=way.fine_chunks), None)
        with joined(deep, slots, way):
            logits = deep.model(input_ids=ids, use_cache=False, logits_to_keep=TARGETS + 1).logits
        found[str(way)] = mean_of(target_nll(logits, ids, TARGETS)[0])
    return found


def main(each: int) -> None:
    llm = SharedLLM.from_pretrained()
    every = replace(llm.config, injected_layers=len(llm.parts.layers), stored_bits=16)
    deep = SharedLLM.from_pretrained(adapter="none", config=every)
    rows: list[dict[str, float]] = []
    for passage in passages(llm, each):
        rows.append(scores(llm, deep, passage))
        print(f"{passage.source} at {passage.start}", file=sys.stderr)
    for said in summed_up(rows, "the shipped adapter"):
        print(json.dumps(said))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
