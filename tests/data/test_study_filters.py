"""What is kept of the questions and answers a model wrote, and why the rest is not."""

from __future__ import annotations

import pytest

from sharedllm.data.study_filters import fault, first_question

PASSAGE = (
    "The cron daemon reads its tables every minute. A table is installed with the crontab command, which checks it "
    "before the file is stored in /var/spool/cron, and Paul Vixie wrote the first version in 1987."
)
QUESTION = "Who wrote the first version of cron?"


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (QUESTION, "Paul Vixie wrote it in 1987."),
        ("When was the first version of cron written?", "1987"),
        ("What does the text say about the crontab command?", "It checks a table before the file is stored."),
    ],
)
def test_good_pairs_are_kept(question, answer):
    assert fault(question, answer, PASSAGE) is None


@pytest.mark.parametrize(
    ("question", "answer", "why"),
    [
        ("Tell me who wrote cron.", "Paul Vixie wrote it.", "no question"),
        ("Cron?", "A daemon.", "no question"),
        ("", "A daemon.", "no question"),
        ("What is the main purpose of this text?", "It is about the cron daemon.", "names nothing of the passage"),
        ("What is the cron table in the given passage?", "A file that is stored.", "names nothing of the passage"),
        ("What is the capital city of France?", "Paul Vixie wrote it.", "names nothing of the passage"),
        (QUESTION, "  ", "empty answer"),
        (QUESTION, "The author of the first version is not mentioned.", "refused"),
        (QUESTION, "The tables are read. The tables are read. The tables are read.", "loop"),
        (QUESTION, "The first version of cron.", "repeats the question"),
        (QUESTION, "Linus Torvalds invented that during his studies.", "answer not of the passage"),
    ],
)
def test_bad_pairs_are_left_out(question, answer, why):
    assert fault(question, answer, PASSAGE) == why


@pytest.mark.parametrize(
    ("written", "question"),
    [
        ("What is cron?\n\nAnswer: a daemon", "What is cron?"),
        ('"What is cron?" is a question.', "What is cron?"),
        ("**Question 1:** What is cron? It is", "What is cron?"),
        ("2. What is cron?", "What is cron?"),
        ("Cron is a daemon.\nWhat is cron?", ""),
        ("", ""),
    ],
)
def test_the_question_alone_is_taken(written, question):
    assert first_question(written) == question
