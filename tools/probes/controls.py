"""How much of what the adapter answers is the compressed text, and how much a habit of answering that training gave it?

It was trained on facts and questions, and the plain model beside it was not. So the same questions once more with the adapter at
work on slots of another text, which can tell it nothing: behind the same quotes, and behind the 1,024 tokens around the answer. And
the plain model with room for 128 tokens of an answer instead of 32, where only the right words in it count.

Facts hidden in 8,192 tokens, questions drawn from documents of 32,768 and those written by hand about the Jargon File. Run after
`make texts`: `python tools/probes/controls.py -o docs/results/probe-controls.jsonl` (20 minutes on two cores with AVX512-BF16).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from quoting import texts

from sharedllm import SharedLLM
from sharedllm.adapter import weights_digest
from sharedllm.answering import written
from sharedllm.branch import Memory
from sharedllm.context import Context
from sharedllm.evaluate.asking import CEILING_TOKENS, Question, Text, around
from sharedllm.evaluate.statistics import bootstrap
from sharedllm.hardware import choose_threads
from sharedllm.methods.shared import Shared

OTHER = "data/heldout/novels.txt"
OTHER_TOKENS = 32768
NEW, MORE = 32, 128
Place = tuple[Text, Context, Question]


@dataclass(frozen=True)
class Asker:
    """Asks one question of one text, by several ways of showing it."""

    llm: SharedLLM
    other: Context

    def memory(self, context: Context, question: Question) -> Memory | None:
        """What a question takes in of a context."""
        ids = torch.tensor([question.prompt.alone()], device=self.llm.device)
        return self.llm.recall(context, ids, question_mask=question.prompt.question_mask())

    def answered(self, shown: list[int], memory: Memory | None, question: Question, new: int) -> float:
        ids = torch.tensor([shown], device=self.llm.device)
        found = written(self.llm, ids, memory, new, {"pad_token_id": question.prompt.pad_id})
        return question.score(self.llm.tokenizer.decode(found, skip_special_tokens=True))

    def quotes(self, context: Context, question: Question) -> list[int]:
        """Token ids of a question behind the passages nearest to it."""
        return Shared(self.llm, 1024).shown(context, question.prompt, MORE)

    def passage(self, text: Text, question: Question) -> list[int]:
        """Token ids of a question behind the tokens around its answer."""
        return question.prompt.with_text(around(text, question, CEILING_TOKENS).ids)


def ways(asker: Asker) -> dict[str, Callable[[Text, Context, Question], float]]:
    """What a question is worth by each way of asking it."""

    def way(show: Callable[..., list[int]], of: str, new: int = NEW) -> Callable[[Text, Context, Question], float]:
        def ask(text: Text, context: Context, question: Question) -> float:
            shown = show(text, context, question)
            memory = {"its text": context, "another text": asker.other}.get(of)
            found = None if memory is None else asker.memory(memory, question)
            return asker.answered(shown, found, question, new)

        return ask

    def quotes(_: Text, context: Context, question: Question) -> list[int]:
        return asker.quotes(context, question)

    def passage(text: Text, _: Context, question: Question) -> list[int]:
        return asker.passage(text, question)

    return {
        "shared": way(quotes, "its text"),
        "quotes, slots of another text": way(quotes, "another text"),
        "quotes, plain model": way(quotes, ""),
        f"quotes, plain model, {MORE} tokens": way(quotes, "", MORE),
        "right passage, slots of another text": way(passage, "another text"),
        "right passage, plain model": way(passage, ""),
        f"right passage, plain model, {MORE} tokens": way(passage, "", MORE),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="results file; it is written anew")
    parser.add_argument("--adapter", default="default")
    parser.add_argument("--only", help="one benchmark: needles, questions or real")
    args = parser.parse_args()
    torch.set_num_threads(int(choose_threads().value))
    llm = SharedLLM.from_pretrained(adapter=args.adapter)
    other = llm.read(llm.reader.token_ids(Path(OTHER).read_text(encoding="utf-8"))[:OTHER_TOKENS])
    rows: list[dict[str, Any]] = []
    for benchmark, asked in texts(llm).items():
        if args.only not in (None, benchmark):
            continue
        places: list[Place] = []
        for text in asked:
            context = Shared(llm, 1024).prepare(text.ids)
            assert context is not None
            places += [(text, context, question) for question in text.questions]
        ours: list[float] = []
        for name, way in ways(Asker(llm, other)).items():
            scores = [way(*place) for place in places]
            ours = ours or scores
            low, high = bootstrap([a - b for a, b in zip(ours, scores, strict=True)])
            rows.append({"benchmark": benchmark, "way": name, "value": sum(scores) / len(scores), "samples": len(scores),
                         "scores": scores, "shared_more_low": low, "shared_more_high": high, "dtype": str(llm.dtype),
                         "adapter": llm.adapter, "adapter_weights": weights_digest(llm.injection)})  # fmt: skip
            print(json.dumps({k: v for k, v in rows[-1].items() if k != "scores"}), flush=True)
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
