"""Which questions are fit for the demo? Those whose answer the model gives when it is shown the passage, and not without.

Of those it is then the method that is tested, not what a small model understands. Run
`python docs/probes/demo_questions.py > docs/results/probe-demo-questions.jsonl` (3 minutes on two cores; `--text` also
reads all of the demo's text and asks with it, 6 minutes).
"""

from __future__ import annotations

import json
import sys

import torch

from sharedllm import SharedLLM
from sharedllm.answering import written
from sharedllm.demo import Question, reference_text
from sharedllm.prompts import Prompt

PASSAGE = 1024  # tokens
NEW_TOKENS = 32
CANDIDATES = [  # and a piece of the sentence that answers; written before any was asked
    ("In Python, what happens when a pass statement is executed?", ("nothing", "null operation", "no effect"), "is a null operation"),
    ("In Python, which exception does the assert statement raise when it fails?", ("AssertionError",), "raise AssertionError"),
    ("In Python, which keyword defines a coroutine function?", ("async",), "Execution of Python coroutines"),
    ("Which module defines an interactive source code debugger for Python programs?", ("pdb",), "interactive source code debugger"),
    ("What are lambda expressions used to create?", ("anonymous function",), "sometimes called lambda forms"),
    ("Which exception is raised when a name that is not bound is evaluated?", ("NameError",), "an attempt to evaluate it"),
    ("In which range are the integers that represent the items of a bytes object?", ("256",), "represented by integers in the"),
    ("What do the operators in and not in test for?", ("membership",), "test for membership"),
    ("What does the break statement terminate?", ("enclosing loop",), "terminates the nearest enclosing loop"),
    ("In which functions are yield expressions used?", ("generator",), "only used when defining a"),
]  # fmt: skip


def plain_answer(llm: SharedLLM, ids: list[int]) -> str:
    new = written(llm, torch.tensor([ids], device=llm.device), None, NEW_TOKENS, {})
    return str(llm.tokenizer.decode(new, skip_special_tokens=True)).strip()


def main(whole: bool) -> None:
    llm = SharedLLM.from_pretrained()
    text = reference_text()
    context = None
    if whole:
        context = llm.read(reference_text(lambda part: len(llm.reader.token_ids(part)), 131072))
    for asked, expected, sentence in CANDIDATES:
        question, prompt = Question(asked, expected), Prompt(llm.tokenizer, asked)
        at = text.index(sentence)
        before = llm.reader.token_ids(text[:at])[-PASSAGE // 2 :]
        passage = torch.cat([before, llm.reader.token_ids(text[at : at + 4 * PASSAGE])])[:PASSAGE]
        answers = {
            "shown": plain_answer(llm, prompt.with_text(passage)),
            "without": plain_answer(llm, prompt.alone()),
        }
        if context is not None:
            answers["compressed"] = llm.ask(context, asked, NEW_TOKENS)
        found = {name: question.right(answer) for name, answer in answers.items()}
        print(json.dumps({"question": asked, "expected": expected, "right": found, "answers": answers}), flush=True)


if __name__ == "__main__":
    main("--text" in sys.argv[1:])
