"""Would the adapter's own attention find the right chunk as well as the search does?

Every chunk of a text of some 32 thousand tokens is taken in coarsely, as its tree has it without a question and without the search's
prior, and the question is read by the model with the shipped adapter. A chunk's rank is by how much its slots were attended to by
the tokens that ask, over all heads (times their gates) and layers: the first step of "attend coarsely, then descend". Beside
it the rank that the search gives the chunk. Two ways to place the slots: `chunk`, each chunk at its index, as trained with up to
eight; `none`, all at one place. Facts hidden in the text, questions drawn from it and those written by hand; share of questions whose
chunk is first, among two and among eight. Run after `make texts`:
`python tools/probes/own_search.py > docs/results/probe-own-search.jsonl` (5 minutes on two cores with AVX512-BF16).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from quoting import held_out
from torch import Tensor

from sharedllm import SharedLLM
from sharedllm.context import Context
from sharedllm.evaluate import needle, questions, real
from sharedllm.evaluate.asking import Question, Text
from sharedllm.memory import build_memory, find, select_slots
from sharedllm.methods.shared import Shared
from sharedllm.relevance import asked
from sharedllm.words import Words

LENGTH = 32768
FIRST = (1, 2, 8)


def texts(llm: SharedLLM) -> dict[str, list[Text]]:
    """What is read and asked, by benchmark."""

    def ids(text: str) -> Tensor:
        return llm.reader.token_ids(text).long()

    facts = needle.build_haystacks(held_out(llm, "python-library", "anarchist-faq"), LENGTH, 24, 12, 0, ids)
    return {
        "facts": [needle.as_text(haystack, llm.tokenizer, 32) for haystack in facts],
        "drawn": questions.examine(
            held_out(llm, "python-library", "debian-manuals"), LENGTH, 24, 12, llm.tokenizer, 32
        ),
        "by hand": [real.as_text(llm, real.load(), 32)],
    }


def by_search(llm: SharedLLM, context: Context, ids: Tensor, mask: Tensor) -> Tensor:
    """How near the search finds each chunk, [X]."""
    (question,) = asked(llm.lower, llm.config, ids, question_mask=mask)
    found = find(context.blocks, llm.config, question, words=Words(context.ids, ids[mask.bool()]))
    return torch.cat([some.scores for some in found if some.scores is not None])


def by_attention(llm: SharedLLM, context: Context, ids: Tensor, mask: Tensor, positions: str) -> Tensor:
    """How much the tokens that ask attend to each chunk, [X]."""
    config = replace(llm.config, read_chunks=0, fine_chunks=0, search_prior=0.0, quoted_tokens=0, positions=positions)
    slots = select_slots(context.blocks, config, None)
    assert slots is not None
    memory = build_memory([slots], llm.parts, config, llm.model.get_input_embeddings().weight)
    chunks = torch.zeros(slots.chunks)

    def heard(weights: Tensor) -> None:
        to_slots = weights[0, :, mask[0].bool(), 1:].float().sum((0, 1))
        chunks.index_add_(0, slots.chunk - 1, to_slots)

    with llm.injection.reading(memory, heard):
        llm.model(input_ids=ids, use_cache=False, logits_to_keep=1)
    return chunks


def ranks(llm: SharedLLM, context: Context, question: Question) -> dict[str, int]:
    """Chunks that each way ranks before the one in which the answer begins."""
    assert question.start is not None
    ids, mask = torch.tensor([question.prompt.alone()]), question.prompt.question_mask()
    scores = {"search": by_search(llm, context, ids, mask)}
    for positions in ("chunk", "none"):
        scores[f"attention, positions {positions}"] = by_attention(llm, context, ids, mask, positions)
    right = question.start // llm.config.chunk_length
    return {way: int((some > some[right]).sum()) for way, some in scores.items()}


@torch.no_grad()
def rows(llm: SharedLLM) -> Iterator[dict[str, Any]]:
    for benchmark, some in texts(llm).items():
        found: list[dict[str, int]] = []
        for text in some:
            context = Shared(llm, 1024).prepare(text.ids)
            assert context is not None
            found += [ranks(llm, context, question) for question in text.questions if question.start is not None]
            print(benchmark, text.source, len(found), file=sys.stderr)
        for way in found[0]:
            places = [one[way] for one in found]
            shares = {f"first {n}": sum(place < n for place in places) / len(places) for n in FIRST}
            yield {"benchmark": benchmark, "way": way, **shares, "samples": len(places), "ranks": places}


def main() -> None:
    for row in rows(SharedLLM.from_pretrained()):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
