"""What is it worth to quote the passages nearest to a question before it, and is the compressed whole still worth anything then?

Facts hidden in 8,192 tokens, questions drawn from documents of 32,768 and those written by hand about the Jargon File; for each number of
quoted tokens the score with the compressed text taken in and without it (retrieval alone, by the same search). Run after
`make texts`: `python tools/probes/quoting.py > docs/results/probe-quoting.jsonl` (20 minutes on two cores with AMX).
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from sharedllm import SharedLLM
from sharedllm.answering import written
from sharedllm.context import Context
from sharedllm.evaluate import needle, questions, real
from sharedllm.evaluate.asking import Question, Text
from sharedllm.methods.shared import Shared

QUOTED = (0, 256, 512, 1024)


def held_out(llm: SharedLLM, *names: str) -> list[tuple[str, torch.Tensor]]:
    """Token ids of texts that no adapter was trained on."""
    return [(n, llm.reader.token_ids(Path(f"data/heldout/{n}.txt").read_text()).long()) for n in names]


def texts(llm: SharedLLM) -> dict[str, list[Text]]:
    """What is read and asked, by benchmark."""

    def ids(text: str) -> torch.Tensor:
        return llm.reader.token_ids(text).long()

    facts = needle.build_haystacks(held_out(llm, "python-library", "anarchist-faq"), 8192, 24, 12, 0, ids)
    drawn = questions.examine(held_out(llm, "python-library", "debian-manuals"), 32768, 24, 12, llm.tokenizer, 48)
    return {
        "needles": [needle.as_text(haystack, llm.tokenizer, 24) for haystack in facts],
        "questions": drawn,
        "real": [real.as_text(llm, real.load(), 48)],
    }


def ask(method: Shared, past: Context, question: Question, compressed: bool) -> float:
    """What the answer is worth, with the compressed text or with the quotes alone."""
    if compressed:
        ids = method.ask(past, question.prompt, question.max_new_tokens)
    else:
        shown = torch.tensor([method.shown(past, question.prompt, question.max_new_tokens)])
        ids = written(method.llm, shown, None, question.max_new_tokens, {"pad_token_id": question.prompt.pad_id})
    return question.score(method.llm.tokenizer.decode(ids, skip_special_tokens=True))


def main() -> None:
    llm = SharedLLM.from_pretrained()
    method, shipped = Shared(llm, 1024), llm.config
    for name, asked in texts(llm).items():
        pasts = [method.prepare(text.ids) for text in asked]
        for quoted in QUOTED:
            llm.config = replace(shipped, quoted_tokens=quoted)
            for compressed in (True, False):
                scores = [
                    ask(method, p, q, compressed) for p, t in zip(pasts, asked, strict=True) if p for q in t.questions
                ]
                row = {"benchmark": name, "quoted_tokens": quoted, "compressed": compressed}
                print(json.dumps({**row, "value": sum(scores) / len(scores), "samples": len(scores)}), flush=True)
                print(name, quoted, compressed, file=sys.stderr)


if __name__ == "__main__":
    main()
