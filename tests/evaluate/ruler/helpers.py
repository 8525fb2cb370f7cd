"""A small corpus, and samples counted a token a character."""

from __future__ import annotations

import json
from pathlib import Path

from sharedllm.evaluate.ruler.corpus import Corpus
from sharedllm.evaluate.ruler.making import make_samples
from sharedllm.evaluate.ruler.tasks import TASKS
from sharedllm.evaluate.ruler.wording import Sample

PROSE = " ".join(f"Sentence {i} of the text says little. Is number {i} any better?" for i in range(40))
WORDS = [[f"{kind}{i}" for i in range(120)] for kind in ("bright", "lamp", "run")]


def documents(folder: Path) -> Path:
    """Tiny files of SQuAD and HotpotQA; paragraph `a.p` is the only one to say what `a.p` is."""
    articles = [
        {
            "paragraphs": [
                {
                    "context": f"The meaning of {a}.{p} is item {a}{p}.",
                    "qas": [
                        {
                            "question": f"What is {a}.{p}?",
                            "answers": [{"text": f"item {a}{p}"}] * 2,
                            "is_impossible": False,
                        },
                        {"question": "What else?", "answers": [], "is_impossible": True},
                    ],
                }
                for p in range(3)
            ]
        }
        for a in range(4)
    ]
    rows = [
        {
            "question": f"Who made {i}?",
            "answer": f"Maker {i}",
            "context": [[f"Title {i}{j}", [f"Fact {j} of {i}.", f" Maker {i}." if j == 2 else ""]] for j in range(3)],
        }
        for i in range(5)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "squad.json").write_text(json.dumps({"data": articles}))
    (folder / "hotpotqa.json").write_text(json.dumps(rows))
    return folder


def small_corpus(folder: Path) -> Corpus:
    corpus = Corpus([PROSE], documents(folder))
    corpus.words = tuple(WORDS)
    return corpus


def characters(name: str):
    def count(sample: Sample) -> int:
        prompt = f"{sample.context}{sample.between}{sample.question}{sample.answer_prefix}"
        return len(prompt) + TASKS[name].max_new_tokens

    return count


def make(name: str, corpus: Corpus, length: int = 12_000, samples: int = 3, seed: int = 0) -> list[Sample]:
    return make_samples(name, length, samples, seed, corpus, characters(name))
