"""LongBench's scores (arXiv 2308.14508), each of an answer against one right answer, 0 to 1."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sharedllm.evaluate.metrics import (
    chinese_words,
    edit_similarity,
    f1,
    normalised_chinese,
    rouge_l,
    word_f1,
)

PARAGRAPH = re.compile(r"Paragraph (\d+)")
PARAGRAPH_CHINESE = re.compile(r"段落(\d+)")


def chinese_word_f1(given: str, expected: str) -> float:
    """F1 over jieba's words, each normalised; those that were only punctuation do not count."""
    a, b = ([w for w in map(normalised_chinese, chinese_words(text)) if w] for text in (given, expected))
    return f1(a, b)


def chinese_rouge_l(given: str, expected: str) -> float:
    """ROUGE-L over jieba's words."""
    return rouge_l(" ".join(chinese_words(given)), " ".join(chinese_words(expected)))


def number_share(given: str, expected: str) -> float:
    """Share of the numbers in the answer that are the expected one, digit by digit; 0 where there is none."""
    numbers = re.findall(r"\d+", given)
    return numbers.count(expected) / len(numbers) if numbers else 0.0


def paragraph_share(given: str, expected: str, pattern: re.Pattern[str]) -> float:
    """`number_share` for the number of a paragraph that `expected` names, such as `Paragraph 7`."""
    found = pattern.search(expected)
    assert found, f"{expected!r} names no paragraph"  # the reader refuses such files
    return number_share(given, found[1])


def code_similarity(given: str, expected: str) -> float:
    """Edit similarity of the answer's first line that is neither comment nor fence: without backquote, `#` and `//`."""
    lines = given.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return edit_similarity(line, expected)


def classification(given: str, expected: str, classes: Sequence[str]) -> float:
    """1 / the number of classes that the answer names, if the right one is among them.

    A class whose name is part of the right one's does not count. (LongBench's own loop misses every second such class in
    a row, which its data sets do not have.)
    """
    named = [name for name in classes if name in given and (name == expected or name not in expected)]
    return 1 / len(named) if expected in named else 0.0


def first_line(given: str) -> str:
    """The first line that is not empty to the last character."""
    return given.lstrip("\n").split("\n")[0]


def chosen(given: str) -> str | None:
    """The letter of LongBench v2 (arXiv 2412.15204) that the answer chooses, None where it chooses none."""
    plain = given.replace("*", "")
    found = re.search(r"The correct answer is \(([A-D])\)", plain) or re.search(r"The correct answer is ([A-D])", plain)
    return found[1] if found else None


def choice(given: str, expected: str) -> float:
    """Whether the letter chosen is the right one."""
    return float(chosen(given) == expected)


def scorer(metric: str, classes: Sequence[str] = ()) -> Callable[[str, str], float]:
    """The score of that name in `prompts.yaml`.

    Args:
        classes: all classes of a classification.
    """
    return {
        "f1": word_f1,
        "f1_zh": chinese_word_f1,
        "rouge_l": rouge_l,
        "rouge_l_zh": chinese_rouge_l,
        "classification": lambda given, expected: classification(given, expected, classes),
        "retrieval": lambda given, expected: paragraph_share(given, expected, PARAGRAPH),
        "retrieval_zh": lambda given, expected: paragraph_share(given, expected, PARAGRAPH_CHINESE),
        "count": number_share,
        "code_similarity": code_similarity,
        "choice": choice,
    }[metric]
