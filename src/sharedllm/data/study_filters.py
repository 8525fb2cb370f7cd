"""Which of the questions and answers a model wrote are worth learning from, by rule.

A small model asks about "this text", repeats the question, goes round in circles or makes things up. What is kept is a
question that can be put to the whole document, and an answer in words of the passage that says something new.
"""

from __future__ import annotations

import re

WORD = re.compile(r"[^\W_]+")
LABEL = re.compile(r"^(?:(?:question|q)\s*\d*\s*[:.]|\d+[.)]|[-*])\s*", re.IGNORECASE)
HERE = re.compile(
    r"\b(?:this|given|provided|following|above|below) (?:\w+ )?(?:text|passage|part|section|paragraph|excerpt|code|document)s?\b"
    r"|\b(?:the|this) (?:passage|excerpt|paragraph|text above)\b|\bhere\b",
    re.IGNORECASE,
)
REFUSED = re.compile(
    r"\b(?:sorry|as an ai|i (?:cannot|can't|don't)|not (?:mentioned|provided|specified|stated|given|clear))\b",
    re.IGNORECASE,
)
# Words that say nothing about which passage is meant.
COMMON = frozenset(
    "a about after all also an and any are as at author be been before but by can chapter code did do document does each "
    "example for from given had has have he her his how if in into is it its main many mean mentioned more most much name "
    "no not of on one only or other part passage person point purpose say says section she should so some statement "
    "such text than that the their them then there these they this those to topic used was were what when where which "
    "who whom whose why will with would you your".split()
)
QUESTION_WORDS, LOOP_WORDS, LOOPS = (4, 40), 3, 3


def first_question(text: str) -> str:
    """The first line of what was written, without a label and quotes, up to its first question mark; "" without one."""
    line = text.strip().split("\n", 1)[0].strip()
    line = LABEL.sub("", line.strip("\"'“”*` ")).strip("\"'“”*` ")
    asked, mark, _ = line.partition("?")
    return asked + mark if mark else ""


def content_words(text: str) -> set[str]:
    """Words in lower case, without those that any text has."""
    return set(WORD.findall(text.lower())) - COMMON


def fault(question: str, answer: str, passage: str) -> str | None:
    """Why a pair is left out, in a few words; None for one that is kept."""
    said, here = content_words(passage), content_words(answer)
    low, high = QUESTION_WORDS
    if not question.endswith("?") or not low <= len(question.split()) <= high:
        return "no question"
    if HERE.search(question) or not content_words(question) & said:
        return "names nothing of the passage"
    if not answer.strip():
        return "empty answer"
    if REFUSED.search(answer):
        return "refused"
    if loops(answer):
        return "loop"
    if not here - content_words(question):
        return "repeats the question"
    if 2 * len(here & said) < len(here):
        return "answer not of the passage"
    return None


def loops(text: str) -> bool:
    """Whether some three words in a row come three times."""
    words = WORD.findall(text.lower())
    runs = [tuple(words[i : i + LOOP_WORDS]) for i in range(len(words) - LOOP_WORDS + 1)]
    return any(runs.count(run) >= LOOPS for run in set(runs))
