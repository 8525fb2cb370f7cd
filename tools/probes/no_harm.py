"""Does the adapter leave the plain model as it was: without a context, on a text that fits the window, and after `detach`?

Logits of 512 tokens of five held-out texts, and answers about texts of 1,500 characters, by a model that nothing was ever attached
to and by the same weights with the adapter, before and after another text was read with it. Run after `make texts`:
`python tools/probes/no_harm.py -o docs/results/no-harm.jsonl` (two minutes on two cores).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from sharedllm import SharedLLM
from sharedllm.hardware import processor_name
from sharedllm.loading import load_model
from sharedllm.prompts import Prompt

TEXTS = ("python-library", "python-reference", "debian-manuals", "anarchist-faq", "novels")
AT, TOKENS, CHARACTERS, NEW = 50_000, 512, 1_500, 24
QUESTION = "What is this text about?"


def first(tokenizer: Any, text: str) -> torch.Tensor:
    """Its first tokens, [1, T]."""
    ids: torch.Tensor = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[:, :TOKENS]
    return ids


@torch.no_grad()
def plain(model: Any, tokenizer: Any, text: str) -> tuple[torch.Tensor, str]:
    """Logits of a text, and what a model with nothing attached answers about it."""
    ids = first(tokenizer, text)
    whole = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids[0]
    prompt = torch.tensor([Prompt(tokenizer, QUESTION).with_text(whole)])
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW, do_sample=False)
    return model(ids).logits, tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True).strip()


@torch.no_grad()
def attached(llm: SharedLLM, text: str) -> tuple[torch.Tensor, str]:
    """The same of a model with the adapter and no context, or one that fits the window."""
    return llm(first(llm.tokenizer, text)).logits, llm.ask(llm.read(text), QUESTION, NEW)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    output = parser.parse_args().output
    texts = [Path(f"data/heldout/{name}.txt").read_text(encoding="utf-8")[AT:] for name in TEXTS]
    llm = SharedLLM.from_pretrained()
    untouched, tokenizer, _ = load_model(None, str(llm.device), llm.dtype)
    long = llm.read(texts[0][: 40 * CHARACTERS])
    assert llm.ask(long, QUESTION, NEW)  # the adapter was at work
    difference, same = 0.0, 0
    for text in texts:
        logits, answer = plain(untouched, tokenizer, text[:CHARACTERS])
        with_it = attached(llm, text[:CHARACTERS])
        difference = max(difference, float((logits - with_it[0]).abs().max()))
        same += answer == with_it[1]
    model = llm.detach()
    with torch.no_grad():
        firsts = [first(tokenizer, text[:CHARACTERS]) for text in texts]
        after = max(float((untouched(ids).logits - model(ids).logits).abs().max()) for ids in firsts)
    row = {
        "probe": "no harm",
        "texts": list(TEXTS),
        "tokens": TOKENS,
        "largest_difference_of_logits": difference,
        "answers_equal": same,
        "answers": len(texts),
        "largest_difference_after_detach": after,
        "dtype": str(llm.dtype).removeprefix("torch."),
        "machine": processor_name(llm.device),
    }
    output.write_text(json.dumps(row) + "\n", encoding="utf-8")
    print(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
