"""The demonstration: read the Python language reference, and more, then answer from it.

Every Python brings the text: `pydoc_data.topics`, then docstrings of the standard library as far as
needed. None of it is ever trained on.
"""

from __future__ import annotations

import ast
import importlib
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sharedllm.context import Context
from sharedllm.evaluate.statistics import bootstrap
from sharedllm.methods.base import target_nll
from sharedllm.model import SharedLLM


@dataclass(frozen=True)
class Question:
    """A question and words of which a right answer has at least one."""

    text: str
    expected: tuple[str, ...]

    def right(self, answer: str) -> bool:
        return any(word.lower() in answer.lower() for word in self.expected)


# Written before any was asked (docs/LOG.md); `tools/probes/demo_questions.py` asks them without the text and of the right passage.
QUESTIONS = (
    Question("In Python, what happens when a pass statement is executed?", ("nothing", "null operation", "no effect")),
    Question("In Python, which exception does the assert statement raise when it fails?", ("AssertionError",)),
    Question("In Python, which keyword defines a coroutine function?", ("async",)),
    Question("Which module defines an interactive source code debugger for Python programs?", ("pdb",)),
    Question("What are lambda expressions used to create?", ("anonymous function",)),
    Question("Which exception is raised when a name that is not bound is evaluated?", ("NameError",)),
    Question("In which range are the integers that represent the items of a bytes object?", ("256",)),
    Question("What do the operators in and not in test for?", ("membership",)),
    Question("What does the break statement terminate?", ("enclosing loop",)),
    Question("In which functions are yield expressions used?", ("generator",)),
)


def reference_text(count: Callable[[str], int] = len, enough: int | None = None) -> str:
    """The language reference, and docstrings of the standard library: all, or until `count` of it is `enough`."""
    topics = importlib.import_module("pydoc_data.topics").topics
    parts = ["\n\n".join(topics[name] for name in sorted(topics))]
    counted = count(parts[0])
    for docstring in docstrings(Path(sysconfig.get_paths()["stdlib"])):
        if enough is not None and counted >= enough:
            break
        parts.append(docstring)
        counted += count(docstring)
    return "\n\n".join(parts)


def docstrings(folder: Path) -> Iterator[str]:
    """Docstrings of all modules of a folder, file by file; the files are parsed, never run."""
    for file in sorted(folder.glob("*.py")):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (OSError, SyntaxError, ValueError):
            continue
        found = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring:
                    found.append(f"{getattr(node, 'name', file.stem)}: {docstring}")
        if found:
            yield "\n\n".join(found)


def deep_passages(llm: SharedLLM, context: Context, count: int = 6) -> dict[str, Any]:
    """Mean nats of passages of one chunk in the second half of a context, with what lies before and without.

    Returns `nll_without`, `nll_with`, and the paired gain with its 95 % bootstrap interval.
    """
    C, full_chunks = llm.config.chunk_length, context.tokens // llm.config.chunk_length
    numbers = [full_chunks - 1 - i * (full_chunks // 2) // count for i in range(count)]
    pairs = []
    for n in numbers:
        ids = context.ids[None, n * C : (n + 1) * C].long().to(llm.device)
        with torch.no_grad():
            logits = [
                llm(ids, context=past, search="later", use_cache=False).logits for past in (None, context.first(n))
            ]
        pairs.append([target_nll(x, ids, C - 1).mean().item() for x in logits])
    gains = [without - with_it for without, with_it in pairs]
    low, high = bootstrap(gains)
    return {
        "passages": count,
        "nll_without": sum(p[0] for p in pairs) / count,
        "nll_with": sum(p[1] for p in pairs) / count,
        "nll_gain": sum(gains) / count,
        "nll_gain_low": low,
        "nll_gain_high": high,
    }


def ask_all(llm: SharedLLM, context: Context, show: Callable[[str], None]) -> list[dict[str, Any]]:
    """The questions with answers, seconds, and whether a right word is in the answer."""
    rows = []
    for question in QUESTIONS:
        started = time.perf_counter()
        answer = llm.answer(context, question.text, max_new_tokens=48)
        right = question.right(answer.text)
        rows.append(
            {
                "question": question.text,
                "answer": answer.text,
                "expected": list(question.expected),
                "right": right,
                "search_seconds": round(answer.search_seconds, 3),
                "generate_seconds": round(answer.generate_seconds, 3),
                "seconds": round(time.perf_counter() - started, 3),
                "slots": answer.slots,
            }
        )
        show(
            f"\nQ: {question.text}\nA: {answer.text}\n   ({'has' if right else 'lacks'} {' or '.join(question.expected)})"
        )
    return rows
