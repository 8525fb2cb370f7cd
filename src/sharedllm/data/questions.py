"""Questions drawn from the structure of real documents: what a function does, what a term means.

Found by rule: the docstring of a Python function or class, and the entries of definition lists (a short line, then
an indented paragraph). The answer is the first sentence of what stands there, word for word, so that it can be scored
and learned without anybody's judgement.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

MAX_ANSWER, MIN_ANSWER = 240, 25  # characters

DOCSTRING = re.compile(
    r"^[ \t]*(?:async )?(?P<kind>def|class)[ \t]+(?P<name>\w+)[^\n]*?(?:\([^()]*\))?[^\n:]*:[ \t]*\n"
    r"\s*[rRuU]?(?P<quote>\"\"\"|''')(?P<text>.+?)(?P=quote)",
    re.MULTILINE | re.DOTALL,
)
DEFINITION = re.compile(
    r"^(?P<name>\S[^\n]{1,60})\n(?P<text>(?: {3,8}|\t)\S[^\n]*(?:\n(?: {3,8}|\t)\S[^\n]*)*)", re.MULTILINE
)
DEFINED = re.compile(r"^[ \t]*(?:async )?(?:def|class)[ \t]+(\w+)", re.MULTILINE)
SENTENCE = re.compile(r"(.+?(?<!\bi\.e)(?<!\be\.g)(?<!\bcf)(?<!\bvs)[.!?])(?:\s|$)")
TERM = re.compile(r"[\w\-./:$%@<>*+=,|\[\]()\" ]+")

ASKED = {
    "def": ("What does the function {name} do?", "What is the function {name} for?"),
    "class": ("What is the class {name}?", "What does the class {name} stand for?"),
    "term": ("What is said about {name}?", "What does {name} mean?", "What is {name}?"),
}


@dataclass(frozen=True)
class Question:
    """A question, its answer word for word, and where in the text that answer's passage starts and ends."""

    text: str
    answer: str
    start: int
    end: int


def find_questions(text: str) -> list[Question]:
    """All questions of a text in its order; what is defined twice is not asked for, wherever it is explained.

    The wording is chosen by the name alone, so that the same text gives the same questions.
    """
    found: list[tuple[str, str, str, int, int]] = []
    for match in DOCSTRING.finditer(text):
        if not match["name"].startswith("__") and (answer := first_sentence(match["text"])):
            found.append((match["kind"], match["name"], answer, match.start(), match.end()))
    defined = Counter(DEFINED.findall(text))
    for match in DEFINITION.finditer(text):
        name = match["name"].strip().rstrip(":").strip("`*\"' ")
        defined[name] += 1
        answer = first_sentence(match["text"])
        if answer and answer[0].isupper() and _is_term(name):
            found.append(("term", name, answer, match.start(), match.end()))
    questions = []
    for kind, name, answer, start, end in sorted(found, key=lambda item: item[3]):
        if defined[name] == 1:
            wordings = ASKED[kind]
            wording = wordings[sum(map(ord, name)) % len(wordings)]
            questions.append(Question(wording.format(name=name), answer, start, end))
    return questions


def first_sentence(text: str) -> str:
    """The first sentence of the first paragraph on one line; empty where there is none of a fitting length."""
    paragraph = " ".join(text.strip().split("\n\n", 1)[0].split())
    match = SENTENCE.match(paragraph)
    sentence = match[1] if match else ""
    words = re.findall(r"[A-Za-z]{2,}", sentence)
    return sentence if MIN_ANSWER <= len(sentence) <= MAX_ANSWER and len(words) >= 4 else ""


def _is_term(name: str) -> bool:
    """A name, an option or a short heading, not a sentence or a line of a program."""
    return (
        TERM.fullmatch(name) is not None
        and len(name.split()) <= 5
        and re.search(r"[A-Za-z]{2}", name) is not None
        and not name.endswith((".", ",", ";", "{", "(", "="))
        and not name.startswith(
            ("def ", "class ", "if ", "for ", "while ", "return ", "with ", "try", "else", "import ", "from ")
        )
    )
