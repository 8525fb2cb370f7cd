"""LongBench's scores, against cases worked out by hand."""

from __future__ import annotations

import pytest

from sharedllm.evaluate.longbench import datasets
from sharedllm.evaluate.longbench.metrics import chosen, first_line, scorer


@pytest.mark.parametrize(
    ("metric", "given", "expected", "score"),
    [
        ("f1", "The Eiffel Tower.", "eiffel tower", 1.0),
        ("retrieval", "Paragraph 7", "Paragraph 7", 1.0),
        ("retrieval", "7, 17 or 3", "Paragraph 7", 1 / 3),  # 17 is another number
        ("retrieval", "the seventh", "Paragraph 7", 0.0),
        ("retrieval_zh", "段落12，不是段落1", "段落12", 0.5),
        ("count", "8, not 9: 8", "8", 2 / 3),
        ("count", "There are 08", "8", 0.0),  # digits are compared, not values
        ("count", "", "8", 0.0),
        ("code_similarity", "```python\n# next\n// next\n    return x\nmore", "    return x", 1.0),
        ("code_similarity", "\n\nabcd", "bcde", 0.75),
        ("code_similarity", "    return x", "return x", 0.8),  # indentation counts: 2 * 8 / 20
        ("code_similarity", "# only a comment", "x", 0.0),
        ("choice", "The correct answer is (B).", "B", 1.0),
        ("choice", "**The correct answer is C**", "C", 1.0),
        ("choice", "The correct answer is (B). The correct answer is (A)", "A", 0.0),  # the first one counts
        ("choice", "(A)", "A", 0.0),
    ],
)
def test_scores(metric, given, expected, score):
    assert scorer(metric)(given, expected) == pytest.approx(score)


@pytest.mark.parametrize(
    ("given", "score"),
    [
        ("Type: Other location", 1.0),  # "location" is part of the right name and does not count
        ("Other location or City", 1 / 2),
        ("City", 0.0),
        ("location", 0.0),
        ("other location", 0.0),  # letters' case matters
    ],
)
def test_classification_divides_by_the_classes_named(given, score):
    assert scorer("classification", ["City", "location", "Other location"])(given, "Other location") == score


def test_the_form_with_parentheses_comes_first():
    assert chosen("The correct answer is A, that is: The correct answer is (D)") == "D"
    assert chosen("The correct answer is E") is None


def test_first_line_after_empty_ones():
    assert first_line("\n\nDate\nType: City") == "Date"
    assert first_line("") == ""


def test_chinese_scores():
    pytest.importorskip("jieba")
    pytest.importorskip("rouge")
    # words 我 来到 北京 against 我 在 北京: 2 of 3 are shared, punctuation apart
    assert scorer("f1_zh")("我来到北京。", "我在北京") == pytest.approx(2 / 3)
    assert scorer("rouge_l_zh")("我来到北京", "我在北京") == pytest.approx(2 / 3, abs=1e-6)
    assert scorer("rouge_l")("a b c", "a x c") == pytest.approx(2 / 3, abs=1e-6)


def test_every_score_of_the_prompts_is_there(tmp_path):
    from sharedllm.evaluate.examples import read_tasks

    for task in read_tasks(datasets.__module__).values():
        assert callable(scorer(task.metric))
