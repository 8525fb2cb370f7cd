"""Questions found in documents: the right name, the answer word for word, nothing ambiguous."""

from __future__ import annotations

import pytest

from sharedllm.data.questions import find_questions, first_sentence

CODE = '''
import os

def hidden():
    return 1

class Shelf(Furniture):
    """A shelf that holds books in alphabetical order. It never falls."""

    def __init__(self):
        """Build the shelf out of nothing but good wood."""

    def add(self, book: Book, *, at: int = 0) -> None:
        """
        Put a book on the shelf at the place it belongs to,
        and push the others aside.

        More words follow here.
        """

    def short(self):
        """Nope."""

    async def fetch(
        self,
        name: str,
    ) -> Book:
        r"""Fetch a book from the shelf by its name and wait for it."""
'''

MANUAL = """# Options

-v --verbose
    Print every step while the program is at work. This is slow.

PGDATA
    Default data directory location of the server.

if x == 1:
    Run this command when the value is one of these.

output.txt
    the file in lower case is not a definition we take.

A whole sentence that ends with a stop.
    Indented text that follows a sentence is a quotation only.
"""


def test_functions_and_classes():
    asked = {q.text: q.answer for q in find_questions(CODE)}
    assert set(asked.values()) == {
        "A shelf that holds books in alphabetical order.",
        "Put a book on the shelf at the place it belongs to, and push the others aside.",
        "Fetch a book from the shelf by its name and wait for it.",
    }
    assert any("class Shelf" in question for question in asked)
    assert any("function add" in question for question in asked)
    assert any("function fetch" in question for question in asked)


def test_definitions():
    questions = find_questions(MANUAL)
    assert [q.answer for q in questions] == [
        "Print every step while the program is at work.",
        "Default data directory location of the server.",
    ]
    assert "-v --verbose" in questions[0].text and "PGDATA" in questions[1].text
    for q in questions:
        assert q.answer in " ".join(MANUAL[q.start : q.end].split())


def test_what_is_explained_twice_is_not_asked():
    twice = MANUAL + "\nPGDATA\n    Another meaning of the same variable name.\n"
    assert len(find_questions(MANUAL)) == 2
    assert all("PGDATA" not in q.text for q in find_questions(twice))


def test_what_is_defined_twice_is_not_asked_though_it_is_explained_once():
    """Nobody could tell which of the two is meant, of methods of two classes for instance."""
    silent = CODE + "\nclass Box:\n    def add(self, book):\n        self.books.append(book)\n"
    assert {q.text for q in find_questions(CODE)} - {q.text for q in find_questions(silent)} == {
        q.text for q in find_questions(CODE) if "function add" in q.text
    }
    twice = MANUAL + "\nPGDATA\n    a second meaning, in lower case, that is no answer itself.\n"
    assert not any("PGDATA" in q.text for q in find_questions(twice))


def test_the_same_text_gives_the_same_questions():
    assert find_questions(CODE + MANUAL) == find_questions(CODE + MANUAL)
    assert [q.start for q in find_questions(CODE + MANUAL)] == sorted(q.start for q in find_questions(CODE + MANUAL))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("Return the\n    value of it all. More.", "Return the value of it all."),
        ("No stop here at all but many words", ""),
        ("Short one.", ""),
        ("Give one of the values, i.e. a number or a name. More.", "Give one of the values, i.e. a number or a name."),
        ("Take a thing (cf. Knuth) for what it is. More.", "Take a thing (cf. Knuth) for what it is."),
        ("= = = = = = = = = = = = = = = = = = = .", ""),
        ("A very long one " * 30 + ".", ""),
        ("", ""),
    ],
)
def test_first_sentences(text, sentence):
    assert first_sentence(text) == sentence
