"""InfiniteBench's scores, against cases worked out by hand."""

from __future__ import annotations

import pytest

from sharedllm.evaluate.examples import read_tasks
from sharedllm.evaluate.infinitebench.files import ANSWERS
from sharedllm.evaluate.infinitebench.metrics import SCORES

OPTION = ("Mr. Bell", "B")
FUNCTION = ("pkg.run", "C")


@pytest.mark.parametrize(
    ("metric", "given", "expected", "score"),
    [
        ("first_integer", " is 71432. Remember 5", "71432", 1),
        ("first_integer", "05 71432", "71432", 0),
        ("first_integer", "0071432", "71432", 0),  # digits, not a value
        ("first_integer", "none", "71432", 0),
        ("word", '"ab-12-cd", "key"', "ab-12-cd", 1),
        ("word", "ab-12-cde", "ab-12-cd", 0),
        ("name", "It is Ripley.", "RIPLEY", 1),
        ("name", "RIPLEYS", "RIPLEY", 0),
        ("last_word", "The value is: -14.", -14, 1),
        ("last_word", "-14 is the value", -14, 0),
        ("last_word", "", -14, 0),
        ("first_number", "It is 12, not 3", 12, 1),
        ("first_number", "12.0", 12, 0),  # a whole number must be written as one
        ("first_number", "12.5", 12.5, 1),
        ("first_number", "12", 12.0, 1),
        ("first_number", "twelve", 12, 0),
        ("correct_prefix", "[1, 4, 8, 9]", [1, 4, 8, 7], 0.75),
        ("correct_prefix", "2, 4, 8, 7", [1, 4, 8, 7], 0),
        ("correct_prefix", "1 4", [1, 4, 8, 7], 0.5),
        ("correct_prefix", "01 4", [1, 4, 8, 7], 0.5),
        ("correct_prefix", "1 " + "7" * 9000, [1, 4, 8, 7], 0.25),  # a model that loops; `int` takes no so long number
        ("correct_prefix", "1 4 8 7 9", [1, 4, 8, 7], 1),
        ("f1", "the red car", ["bus", "red car"], 1),
        ("f1_zh", "红色的车。", ["红车", "蓝"], 2 * 2 / 6),  # 2 characters shared of 4 and 2
    ],
)
def test_scores(metric, given, expected, score):
    assert SCORES[metric](given, expected) == pytest.approx(score)


@pytest.mark.parametrize(
    ("given", "score"),
    [
        ("B", 1),
        ("B. Mr. Bell", 1),
        ("A. Mr. Bell", 0),  # the first letter decides
        ("Mr. Bell", 1),
        ("the answer is: B", 1),
        ("the answer is C, or B", 0),
        ("my option is B", 1),
        ("the answer is", 0),
        ("it is B or C", 1),  # no such words: the first letter that stands alone
        ("it is C or B", 0),
        ("it is AB, or B", 0),  # two letters of the alphabet's beginning pass for a choice, and a wrong one
        ("perhaps Mr. Bell", 0),
        ("", 0),
    ],
)
def test_choice(given, score):
    assert SCORES["choice"](given, OPTION) == score


@pytest.mark.parametrize(
    ("given", "score"),
    [
        ("C. pkg.run", 1),
        (" C: yes", 1),
        ("C", 0),  # a bare letter is no answer
        ("D. pkg.run", 0),
        ("The correct option is: C", 1),
        ("The error is: `pkg.run`", 1),
        ("The answer is: D, not C", 0),
        ("answer: option C", 1),
        ("The answer is:", 0),
    ],
)
def test_option(given, score):
    assert SCORES["option"](given, FUNCTION) == score


def test_summaries_count_by_the_best_reference():
    pytest.importorskip("rouge_score")
    # 2 of 2 and 2 of 3 words in order
    assert SCORES["rouge_lsum"]("a book", ["x", "a good book"]) == pytest.approx(4 / 5)


def test_every_score_of_the_prompts_is_there():
    metrics = {task.metric for task in read_tasks("sharedllm.evaluate.infinitebench").values()}
    assert metrics == set(SCORES) == set(ANSWERS)
