"""Which layers must see the context? Full attention, but only the lowest M layers of the window may look at it.

No training, nothing compressed: an upper bound for what any injection into the lowest M layers can carry without
changing the layers above. Run after `make texts`: `python tools/probes/depth_bound.py data/heldout`.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sharedllm import SharedLLM

DEPTHS = (0, 8, 12, 16, 20, 24, 30)
PLACES = ("Lisbon", "Nairobi", "Quito", "Oslo", "Hanoi", "Denver", "Cairo", "Perth")


class SplitAttention:
    """Hooks that give the layers below `depth` one mask and the layers above another."""

    def __init__(self, model: Any) -> None:
        self.depth, self.below, self.above = 0, torch.empty(0), torch.empty(0)
        for j, layer in enumerate(model.model.layers):
            layer.self_attn.register_forward_pre_hook(self._masked(j), with_kwargs=True)

    def _masked(self, layer: int) -> Any:
        def hook(_module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, "attention_mask": self.below if layer < self.depth else self.above}

        return hook

    def set(self, depth: int, tokens: int, context: int, chunk: int | None, dtype: torch.dtype) -> None:
        """`chunk`: tokens of the context see only their own chunk; None: all before them."""
        at = torch.arange(tokens)
        seen = at[None] <= at[:, None]
        if chunk:
            seen &= (at[None] // chunk == at[:, None] // chunk) | (at[:, None] >= context)
        hidden = (at[:, None] >= context) & (at[None] < context)
        for name, mask in (("below", seen), ("above", seen & ~hidden)):
            setattr(self, name, torch.zeros(tokens, tokens, dtype=dtype).masked_fill(~mask, -torch.inf)[None, None])
        self.depth = depth


@torch.no_grad()
def logits(model: Any, ids: Tensor, kept: int) -> Tensor:
    return model(input_ids=ids[None], use_cache=False, logits_to_keep=kept).logits[0].float()


def needles(llm: SharedLLM, split: SplitAttention, text: Tensor) -> None:
    """Share of the digits of a hidden number that are the likeliest next token, by depth."""
    chance = random.Random(0)
    right = dict.fromkeys(DEPTHS, 0.0)
    for place in PLACES:
        number = str(chance.randint(1000000, 9999999))
        start, cut = chance.randint(0, len(text) - 1000), chance.randint(100, 900)
        base = text[start : start + 1000]
        fact = llm.reader.token_ids(f"\nThe access code for the archive in {place} is {number}.\n").long()
        context = torch.cat([base[:cut], fact, base[cut:]])
        asked = (
            f"<|im_start|>user\nWhat is the access code for the archive in {place}?<|im_end|>\n<|im_start|>assistant\n"
        )
        question = llm.reader.token_ids(asked + f"The access code for the archive in {place} is").long()
        answer = llm.reader.token_ids(f" {number}").long()
        ids = torch.cat([context, question, answer])
        for depth in DEPTHS:
            split.set(depth, len(ids), len(context), None, llm.dtype)
            found = logits(llm.model, ids, len(answer) + 1)[:-1].argmax(-1)
            right[depth] += (found == answer).float().mean().item() / len(PLACES)
    print("needle digits right:", {k: round(v, 3) for k, v in right.items()}, flush=True)


def continuation(llm: SharedLLM, split: SplitAttention, name: str, text: Tensor) -> None:
    """Nats a token of a 512-token window after 2,048 tokens of context, two passages, by depth."""
    passages = [text[a : a + 2560] for a in (5000, 20000)]
    for chunk in (None, 1024):
        nats = {}
        for depth in DEPTHS:
            scores = []
            for ids in passages:
                split.set(depth, len(ids), 2048, chunk, llm.dtype)
                scores.append(F.cross_entropy(logits(llm.model, ids, 512)[:-1], ids[2049:]).item())
            nats[depth] = round(sum(scores) / len(scores), 4)
        print(f"{name}, context {'whole' if chunk is None else 'in chunks'}:", nats, flush=True)


def main() -> None:
    llm = SharedLLM.from_pretrained(adapter="none")
    split = SplitAttention(llm.model)
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "data/heldout")
    texts = {
        file.stem: llm.reader.token_ids(file.read_text()[200_000:420_000]).long()
        for file in sorted(folder.glob("*.txt"))
    }
    texts = {name: text for name, text in texts.items() if len(text) > 23_000}
    needles(llm, split, next(iter(texts.values())))
    for name, text in texts.items():
        continuation(llm, split, name, text)


if __name__ == "__main__":
    main()
