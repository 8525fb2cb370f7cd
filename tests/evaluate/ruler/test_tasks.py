"""RULER's samples against the definitions of its tasks."""

from __future__ import annotations

import json
import re
from collections import Counter
from random import Random

import pytest

from sharedllm import UsageError
from sharedllm.evaluate import real
from sharedllm.evaluate.ruler.corpus import NOISE, Corpus
from sharedllm.evaluate.ruler.tasks import TASKS
from tests.evaluate.ruler.helpers import PROSE, WORDS, characters, documents, make, small_corpus

NEEDLE = re.compile(r"One of the special magic (numbers|uuids) for (\S+) is: (\S+)\.")
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", TASKS)
def test_samples_fill_the_length_repeat_and_differ(name, corpus):
    first, again, other = make(name, corpus), make(name, corpus), make(name, corpus, seed=1)
    assert first == again and first != other and len({s.context for s in first}) == 3
    for sample in first:
        assert 0.9 * 12_000 < characters(name)(sample) <= 12_000
        assert sample.asks in sample.question and sample.between.isspace()


@pytest.mark.parametrize("name", TASKS)
def test_all_answers_stand_in_the_context(name, corpus):
    for sample in make(name, corpus):
        assert sample.outputs and all(output in sample.context for output in sample.outputs)
        assert TASKS[name].score(f"It is {' and '.join(sample.outputs).upper()}.", sample.outputs) == 100


@pytest.mark.parametrize(
    ("name", "keys", "values", "asked", "uuids"),
    [
        ("niah_single_1", 1, 1, 1, ()),
        ("niah_single_2", 1, 1, 1, ()),
        ("niah_single_3", 1, 1, 1, ("value",)),
        ("niah_multikey_1", 4, 1, 1, ()),
        ("niah_multikey_2", None, 1, 1, ()),
        ("niah_multikey_3", None, 1, 1, ("key", "value")),
        ("niah_multivalue", 1, 4, 1, ()),
        ("niah_multiquery", 4, 1, 4, ()),
    ],
)
def test_needles(name, keys, values, asked, uuids, corpus):
    for sample in make(name, corpus):
        found: dict[str, list[str]] = {}
        for kind, key, value in NEEDLE.findall(sample.context):
            found.setdefault(key, []).append(value)
            assert bool(UUID.fullmatch(key)) == ("key" in uuids) and bool(UUID.fullmatch(value)) == ("value" in uuids)
            assert kind == ("uuids" if "value" in uuids else "numbers")
            assert "value" in uuids or re.fullmatch(r"\d{7}", value)
        assert len(found) == keys if keys else len(found) > 20
        wanted = [key for key in found if key in sample.question]
        assert len(wanted) == asked and {len(found[key]) for key in wanted} == {values}
        assert sorted(sample.outputs) == sorted(value for key in wanted for value in found[key])
        one = values * asked == 1
        assert sample.question.startswith("What is the" if one else "What are all the")
        assert sample.answer_prefix.endswith("provided text is" if one else "provided text are")
        assert sample.context.startswith("A special" if one else "Some special")


def test_what_the_needles_are_hidden_in(corpus):
    (noise,), (prose,), (needles,) = (
        make(name, corpus, samples=1) for name in ("niah_single_1", "niah_multikey_1", "niah_multikey_2")
    )
    lines = noise.context.split("\n")[1:]
    assert Counter(lines)[NOISE] == len(lines) - 1 > 30
    rest = NEEDLE.sub("", prose.context.split("\n", 1)[1]).split()
    assert rest == (PROSE.split() * 9)[: len(rest)], "the text from its beginning, and again where it ends"
    assert all(NEEDLE.fullmatch(line) for line in needles.context.split("\n")[1:])


def test_a_needle_in_prose_never_splits_a_sentence(corpus):
    for sample in make("niah_multiquery", corpus, samples=8):
        *parts, last = NEEDLE.split(sample.context.split("\n", 1)[1])[::4]
        ends = [part.strip()[-1:] for part in (parts if last else parts[:-1])]  # at the very end the text is cut
        assert all(end in ("", ".", "?") for end in ends), ends


def test_variables(corpus):
    for sample in make("vt", corpus):
        example, context = sample.context.split("\n\nMemorize", 1)
        value = re.search(r"assigned the value (\d{5})", sample.question)[1]
        assigned = dict(re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)", context))
        chain = [name for name, given in assigned.items() if given == value]
        while following := [name for name, given in assigned.items() if given == chain[-1]]:
            chain += following
        assert list(assigned) == chain == list(sample.outputs), "one chain, in its order"
        assert len(chain) == 5, "a variable with the value and four hops"
        assert f"5 variables are assigned the value {value}" in sample.answer_prefix
        names = re.findall(r"VAR ([A-Z]{3}) = ", example)
        assert example.split()[-5:] == names and value not in example
        assert example.startswith("Memorize and track")


@pytest.mark.parametrize(("length", "often", "seldom"), [(12_000, 30, 3), (4000, 6, 1)])
def test_common_words(corpus, length, often, seldom):
    for sample in make("cwe", corpus, length):
        example, context = re.findall(
            r"one?s? that appear most often\.\n(.+)\nQuestion", sample.context + sample.between + "Question"
        )
        numbers, words = zip(*(item.split(". ") for item in re.split(r" (?=\d+\. )", context)), strict=True)
        assert list(map(int, numbers)) == list(range(1, len(words) + 1))
        counts = Counter(words)
        assert set(sample.outputs) == {word for word, count in counts.items() if count == often}
        assert len(sample.outputs) == 10 and set(counts.values()) == {often, seldom}
        solved = sample.context.split("Answer: The top 10 words that appear most often in the list are: ")[1].split(
            "\n"
        )[0]
        solution = [item.split(". ")[1] for item in re.split(r" (?=\d+\. )", solved)]
        shown = Counter(item.split(". ")[1] for item in re.split(r" (?=\d+\. )", example))
        assert set(solution) == {word for word, _ in shown.most_common(10)}


def test_frequent_words(corpus):
    for sample in make("fwe", corpus):
        words = Counter(sample.context.split("coded words. ")[1].split())
        (dots, most), (_, second), (_, third), (_, fourth), (_, fifth) = words.most_common(5)
        assert dots == "..." and [word for word, _ in words.most_common(4)][1:] == list(sample.outputs)
        assert all(re.fullmatch(r"[a-z]{6}", word) for word in words if word != "...")
        assert (second / most, third / most, fourth / most) == pytest.approx((1 / 4, 1 / 9, 1 / 16), abs=0.01)
        assert fourth > fifth


def test_documents(corpus):
    squad, hotpot = make("qa_1", corpus, 1500), make("qa_2", corpus, 1500)
    for i, sample in enumerate(squad):
        assert sample.asks == f"What is 0.{i}?" and sample.outputs == (f"item 0{i}",)
    for i, sample in enumerate(hotpot):
        assert sample.asks == f"Who made {i}?" and sample.outputs == (f"Maker {i}",)
        assert all(f"Title {i}{j}\nFact {j} of {i}." in sample.context for j in range(3))
    for sample in squad + hotpot:
        numbers = list(map(int, re.findall(r"Document (\d+):\n", sample.context)))
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 5
        assert sample.question.endswith(f"Question: {sample.asks}")


def test_squads_own_article_comes_before_other_documents(corpus):
    sample = TASKS["qa_1"].maker.make(3, 600, 4, Random(0), corpus)
    assert set(re.findall(r"meaning of (\d\.\d)", sample.context)) == {"1.0", "1.1", "1.2"}


def test_more_questions_than_there_are(corpus):
    with pytest.raises(UsageError, match="has 5 questions"):
        make("qa_2", corpus, samples=6)


def test_lengths_too_short_are_refused(corpus):
    with pytest.raises(UsageError, match=r"smallest sample of vt has [\d,]+ tokens; raise --lengths from 500"):
        make("vt", corpus, 500)


def test_documents_may_be_too_few_to_fill_the_length(tmp_path):
    row = {"question": "Who?", "answer": "Maker", "context": [["Title", ["Maker made it."]]]}
    (tmp_path / "hotpotqa.json").write_text(json.dumps([row]))
    (sample,) = make("qa_2", Corpus([], tmp_path), 2000, samples=1)
    assert sample.context.endswith("Document 1:\nTitle\nMaker made it.")


def test_more_words_than_there_are_become_pairs(corpus):
    words = corpus.different_words(1000, Random(0))
    assert len(set(words)) == 1000 and set(words) > {word for kind in WORDS for word in kind}


def test_without_a_text_the_prose_is_the_one_that_ships():
    corpus = Corpus()
    assert corpus.prose == real.load().text.split() and corpus.prose_from == real.load().name
    given = Corpus([PROSE])
    assert given.prose == PROSE.split() and given.prose_from == "given"


def test_what_is_lacking_is_said(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wonderwords", None)
    corpus = Corpus()
    assert "--text" in Corpus([" \n"]).lacks(["prose"])
    assert "pip install wonderwords" in corpus.lacks(TASKS["cwe"].maker.needs)
    assert "squad.json with --data" in corpus.lacks(TASKS["qa_1"].maker.needs)
    for name in ("vt", "fwe", "niah_multikey_3"):
        assert corpus.lacks(TASKS[name].maker.needs) is None
    (documents(tmp_path) / "squad.json").write_text("{}")
    assert "not the file of squad" in Corpus([], tmp_path).lacks(["squad"])
