"""InfiniteBench's scores (arXiv 2402.13718), each of an answer against the right one, 0 to 1.

They follow its scoring to the letter, strictness included, so that scores compare: of `option`, for instance, a bare
letter is not an answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from sharedllm.evaluate.metrics import best, f1, normalised_chinese, rouge_lsum, word_f1

CHOICE_PREFIXES = ("answer is:", "answer:", "answer is", "option is")
OPTION_PREFIXES = ("answer is:", "is:", "answer:", "correct option is:")
SENTENCE_MARKS = "\n\"'.,?!{}"
"""Marks that separate words, with a colon too where a word or a name is looked for."""


def spaced(text: str, marks: Sequence[str]) -> str:
    """`text` with a space in place of each of `marks`."""
    for mark in marks:
        text = text.replace(mark, " ")
    return text


def first_integer(given: str, expected: str) -> float:
    """Whether the answer's first digits are exactly the expected ones, leading zeros too."""
    found = re.search(r"[0-9]+", given)
    return float(found is not None and found[0] == expected)


def word(given: str, expected: str) -> float:
    """Whether the expected one is a word of the answer, once marks are taken away."""
    return float(expected in spaced(given, SENTENCE_MARKS + ":").split())


def name(given: str, expected: str) -> float:
    """The same for the answer in upper case; names in scripts are written so."""
    return word(given.upper(), expected)


def last_word(given: str, expected: int) -> float:
    """Whether the answer's last word is the expected number."""
    words = spaced(given, "\n.`'\":").split()
    try:
        return float(bool(words) and int(words[-1]) == expected)
    except ValueError:
        return 0.0


def first_number(given: str, expected: float) -> float:
    """Whether the answer's first number is the expected one; where that is a whole number, it must be written as one."""
    found = re.search(r"\d+\.\d+|\d+", given)
    if found is None or (isinstance(expected, int) and "." in found[0]):
        return 0.0
    return float(float(found[0]) == expected)


def correct_prefix(given: str, expected: Sequence[int]) -> float:
    """Share of the expected numbers that the answer gives before its first mistake; signs are not read."""
    right = 0
    for number, wanted in zip(re.findall(r"[0-9]+", given), expected, strict=False):
        # Not by `int`, which refuses the thousands of digits that a looping model writes.
        if (number.lstrip("0") or "0") != str(wanted):
            break
        right += 1
    return right / len(expected)


def choice(given: str, expected: tuple[str, str]) -> float:
    """Whether the answer chooses the option `(text, letter)`.

    It does by its first letter if that is one of A to D; by being the text; by what follows `answer is` and the like; or
    else by its first word that is one of the letters.
    """
    given = given.strip()
    if not given:
        return 0.0
    if given[0] in "ABCD":
        return float(given[0] in expected)
    if given in expected:
        return 1.0
    plain = re.sub(" +", " ", spaced(given, SENTENCE_MARKS))
    following = _after_prefix(plain, CHOICE_PREFIXES)
    if following is not None:
        return float(following.startswith(expected))
    letter = next((word for word in plain.split() if word in "ABCD"), None)
    return float(letter in expected)


def option(given: str, expected: tuple[str, str]) -> float:
    """Whether the answer chooses the option `(text, letter)`: it begins `B.` or `B:`, or gives either after `is:` and the like."""
    text, letter = expected
    given = given.strip()
    if given[:2] in (f"{letter}.", f"{letter}:"):
        return 1.0
    plain = re.sub(" +", " ", spaced(given, ("\n", "`", "'", '"', "-", "*", "Option", "option")))
    following = _after_prefix(plain, OPTION_PREFIXES)
    return float(following is not None and following.startswith((letter, text)))


def _after_prefix(text: str, prefixes: Sequence[str]) -> str | None:
    """What stands one character after the first of `prefixes` that the text has, None where it has none."""
    for prefix in prefixes:
        at = text.find(prefix)
        if at >= 0:
            return text[at + len(prefix) + 1 :]
    return None


def word_f1_best(given: str, expected: Sequence[str]) -> float:
    """F1 over words, the best over several right answers."""
    return best(word_f1, given, expected)


def character_f1_best(given: str, expected: Sequence[str]) -> float:
    """F1 over characters without white space and punctuation, the best over several right answers."""
    return best(lambda a, b: f1(normalised_chinese(a), normalised_chinese(b)), given, expected)


def rouge_best(given: str, expected: Sequence[str]) -> float:
    """ROUGE-Lsum, the best over several right summaries."""
    return best(rouge_lsum, given, expected)


SCORES: dict[str, Callable[[str, Any], float]] = {
    "first_integer": first_integer,
    "word": word,
    "name": name,
    "last_word": last_word,
    "first_number": first_number,
    "correct_prefix": correct_prefix,
    "choice": choice,
    "option": option,
    "f1": word_f1_best,
    "f1_zh": character_f1_best,
    "rouge_lsum": rouge_best,
}
"""By their name in `prompts.yaml`; the right answer has the form that `files` gives it."""
