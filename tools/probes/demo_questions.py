"""What the model makes of the demo's questions without the text, shown the passage that answers, and with all of the text.

The first two say what of the demo is the small model's, the third is the method's. Run
`python tools/probes/demo_questions.py --text > docs/results/probe-demo-questions.jsonl` (4 minutes on two cores; without `--text`
the first two alone; the name of an adapter's folder asks with another one).
"""

from __future__ import annotations

import json
import sys

import torch

from sharedllm import SharedLLM
from sharedllm.answering import written
from sharedllm.demo import QUESTIONS, reference_text
from sharedllm.prompts import Prompt

PASSAGE = 1024  # tokens
NEW_TOKENS = 32
SENTENCES = (  # of the text, one a question: pieces of those that answer
    "is a null operation",
    "raise AssertionError",
    "Execution of Python coroutines",
    "interactive source code debugger",
    "sometimes called lambda forms",
    "an attempt to evaluate it",
    "represented by integers in the",
    "test for membership",
    "terminates the nearest enclosing loop",
    "only used when defining a",
)


def plain_answer(llm: SharedLLM, ids: list[int]) -> str:
    new = written(llm, torch.tensor([ids], device=llm.device), None, NEW_TOKENS, {})
    return str(llm.tokenizer.decode(new, skip_special_tokens=True)).strip()


def main(whole: bool, adapter: str) -> None:
    llm = SharedLLM.from_pretrained(adapter=adapter)
    text = reference_text()
    context = None
    if whole:
        context = llm.read(reference_text(lambda part: len(llm.reader.token_ids(part)), 131072))
    for question, sentence in zip(QUESTIONS, SENTENCES, strict=True):
        prompt = Prompt(llm.tokenizer, question.text)
        at = text.index(sentence)
        before = llm.reader.token_ids(text[:at])[-PASSAGE // 2 :]
        passage = torch.cat([before, llm.reader.token_ids(text[at : at + 4 * PASSAGE])])[:PASSAGE]
        answers = {
            "shown": plain_answer(llm, prompt.with_text(passage)),
            "without": plain_answer(llm, prompt.alone()),
        }
        if context is not None:
            answers["compressed"] = llm.ask(context, question.text, NEW_TOKENS)
        found = {name: question.right(answer) for name, answer in answers.items()}
        row = {"question": question.text, "expected": question.expected, "right": found, "answers": answers}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    main("--text" in given, next((name for name in given if name != "--text"), "default"))
