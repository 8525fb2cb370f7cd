"""Scores that benchmarks share, against cases worked out by hand."""

from __future__ import annotations

import sys

import pytest

from sharedllm import UsageError
from sharedllm.evaluate import metrics
from sharedllm.evaluate.metrics import (
    best,
    chinese_words,
    edit_similarity,
    f1,
    normalised,
    normalised_chinese,
    rouge_l,
    rouge_lsum,
    token_f1,
    word_f1,
)


def test_words_are_normalised():
    assert normalised("The  Cat's (an) answer!") == ["cats", "answer"]
    assert normalised_chinese(" 他说：“Hello， 世界。” ") == "他说hello世界"


@pytest.mark.parametrize(
    ("given", "expected", "score"),
    [
        ("The cat sat.", "a cat sat", 1.0),
        ("cat", "the cat sat", 2 / 3),  # precision 1, recall 1/2
        ("cat cat cat", "cat", 0.5),  # a repeated word counts once: precision 1/3, recall 1
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
    ],
)
def test_word_f1(given, expected, score):
    assert word_f1(given, expected) == pytest.approx(score)
    assert token_f1(given, expected) == pytest.approx(score)


def test_where_no_word_is_left_squad_and_the_long_benchmarks_differ():
    assert token_f1("The", "a") == 1.0
    assert word_f1("The", "a") == 0.0


def test_f1_over_other_parts():
    assert f1("abca", "abd") == pytest.approx(2 * 2 / 7)


def test_best_of_several_answers():
    assert best(word_f1, "red car", ["blue", "a car", "red bus stop"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("given", "expected", "score"),
    [
        ("return x", "return x", 1.0),
        ("", "", 1.0),
        ("", "x", 0.0),
        ("abcd", "bcde", 0.75),
        ("a-b-c==", "==a.b.c", 0.29),  # the longest run "==" first, and nothing beside it; not "abc", which is 0.43
        ("ab", "abc", 0.8),
        ("a", "ab", 0.67),  # hundredths, as fuzzywuzzy rounds
    ],
)
def test_edit_similarity(given, expected, score):
    assert edit_similarity(given, expected) == score


def test_rouge_l_of_one_sentence():
    pytest.importorskip("rouge")
    # the common subsequence "the cat on" has 3 of 5 and 3 of 4 words
    assert rouge_l("the cat sat on it", "the cat lay on") == pytest.approx(2 * 3 / 9, abs=1e-6)
    assert rouge_l("", "the cat") == rouge_l("...", "the cat") == 0.0


def test_rouge_lsum_takes_lines_for_sentences():
    pytest.importorskip("rouge_score")
    # each expected line is covered by the union of what it shares with all given lines: all 4 words, whatever the order
    assert rouge_lsum("on the mat\nthe cat", "the cat\non the mat") == pytest.approx(1.0)
    assert rouge_lsum("on the mat the cat", "the cat on the mat") == pytest.approx(3 / 5)


def test_chinese_words():
    pytest.importorskip("jieba")
    assert chinese_words("我来到北京清华大学") == ["我", "来到", "北京", "清华大学"]


@pytest.mark.parametrize(
    ("module", "score"),
    [
        ("rouge", lambda: rouge_l("a", "a")),
        ("rouge_score", lambda: rouge_lsum("a", "a")),
        ("jieba", lambda: chinese_words("a")),
    ],
)
def test_a_missing_package_is_named_with_the_command(monkeypatch, module, score):
    metrics._jieba.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.rouge_scorer", None)
    with pytest.raises(UsageError, match=rf"needs {module}; run pip install 'sharedllm\[eval\]' \(in a checkout: "):
        score()
