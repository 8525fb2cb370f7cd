"""What a step is trained on: the right tokens in the right places, the same for the same step."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from sharedllm import UsageError
from sharedllm.data import TokenFolder, build, recipe_from_dict
from sharedllm.data.needles import Needle
from sharedllm.data.retrieval import draw_facts
from sharedllm.train import samples
from sharedllm.train.samples import Sampler
from tests.conftest import CONFIG, byte_tokenizer
from tests.train.test_loop import recipe, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return TokenFolder.open(write_data(tmp_path_factory.mktemp("texts")))


def sampler(folder, tmp_path, **changes):
    return Sampler(folder, recipe(tmp_path, tmp_path, **changes), "train", byte_tokenizer())


def text(ids) -> str:
    return byte_tokenizer().decode(ids.tolist())


def test_windows_go_on_where_their_chunks_end(folder, tmp_path):
    C = CONFIG.chunk_length
    for step in range(10):
        sample = sampler(folder, tmp_path, windows=4).draw(step)
        starts = [window.chunks for window in sample.windows]
        assert starts[0] * C == len(sample.context)
        assert len(starts) == len(set(starts)) == min(4, starts[0])
        whole = text(folder.tokens(folder.documents(split="train")[0]))
        for window in sample.windows:
            assert text(sample.context[: window.chunks * C]) + text(window.ids) in whole
            assert window.targets == len(window.ids) - 1


def test_the_same_step_gives_the_same_sample(folder, tmp_path):
    a, b = (sampler(folder, tmp_path, needles=0.5, context_chunks=[60, 70]).draw(3, 1) for _ in range(2))
    assert np.array_equal(a.context, b.context) and len(a.windows) == len(b.windows)
    other = sampler(folder, tmp_path, needles=0.5, context_chunks=[60, 70]).draw(4, 1)
    assert not np.array_equal(a.context, other.context)


@pytest.fixture
def hidden(monkeypatch) -> dict[str, Needle]:
    """The needles that were drawn last, by their questions."""
    drawn: dict[str, Needle] = {}

    def draw(*args):
        needles = draw_facts(*args)
        drawn.clear()
        drawn.update({n.question: n for n in needles})
        return needles

    monkeypatch.setattr(samples, "draw_facts", draw)
    return drawn


def whole_answer(needle: Needle) -> str:
    """What stands behind `Answer:`, with the token that ends it."""
    return f" {needle.opening} {needle.value}.</s>" if needle.opening else f" {needle.value}.</s>"


@pytest.mark.parametrize("shares", [{}, {"pairs": 0.3, "hops": 0.4, "counts": 0.3}])
def test_needles_are_in_the_context_and_their_values_are_targets(folder, tmp_path, hidden, shares):
    whole_answers = 0
    for step in range(8):
        sample = sampler(folder, tmp_path, needles=1.0, needle_windows=3, context_chunks=[120, 120], **shares).draw(
            step
        )
        assert sample.search == "query" and len(sample.context) % CONFIG.chunk_length == 0
        for window in sample.windows:
            needle = hidden[text(window.ids[window.question])]
            for statement in (*needle.statements, *needle.distractors):
                assert f"\n{statement}\n" in text(sample.context)
            answer, whole = text(window.ids[-window.targets :]), whole_answer(needle)
            assert answer in (f" {needle.value}.</s>", whole)
            assert text(window.ids).endswith(f"Answer:{whole}")
            whole_answers += answer == whole and needle.opening != ""
    assert 0 < whole_answers < 24


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_answers_are_predicted_whole_as_often_as_the_recipe_says(folder, tmp_path, hidden, share):
    made = sampler(folder, tmp_path, needles=1.0, needle_windows=8, context_chunks=[120, 120], whole_answers=share)
    begun = 0
    for window in made.draw(0).windows:
        needle = hidden[text(window.ids[window.question])]
        begun += needle.opening != ""
        expected = whole_answer(needle) if share else f" {needle.value}.</s>"
        assert text(window.ids[-window.targets :]) == expected
    assert begun > 2


def test_a_long_window_follows_the_fewest_chunks(folder, tmp_path):
    C = CONFIG.chunk_length
    sample = sampler(folder, tmp_path, long_windows=1.0, long_window_tokens=50, context_chunks=[3, 5]).draw(0)
    (window,) = sample.windows
    assert (len(sample.context), window.chunks, len(window.ids), window.targets) == (3 * C, 3, 50, 25)
    assert sample.search == "continue" and window.question.tolist() == [True] * 25 + [False] * 25
    whole = text(folder.tokens(folder.documents(split="train")[0]))
    assert text(sample.context) + text(window.ids) in whole


def test_a_warm_window_begins_with_what_is_searched_by(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sharedllm.relevance.CONTINUED_TOKENS", 4)
    monkeypatch.setattr(samples, "ASKING_TOKENS", 6)
    C = CONFIG.chunk_length
    changes = dict(warm=1.0, warm_tokens=6, window_tokens=5, windows=3, context_chunks=[3, 5])
    made = sampler(folder, tmp_path, **changes)
    whole = text(folder.tokens(folder.documents(split="train")[0]))
    for step in range(5):
        sample = made.draw(step)
        assert (sample.kind, sample.search, len(sample.windows)) == ("warm window", "continue", 3)
        for window in sample.windows:
            assert (len(window.ids), window.targets) == (11, 5)
            assert window.question.tolist() == [False] * 2 + [True] * 4 + [False] * 5
            assert text(sample.context[: window.chunks * C]) + text(window.ids) in whole
    cold = sampler(folder, tmp_path, **{**changes, "warm": 0.0, "warm_tokens": 0}).draw(0)
    assert cold.search == "later" and {len(window.ids) for window in cold.windows} == {5}
    some = sampler(folder, tmp_path, **{**changes, "warm": 0.4, "reuse": 2})
    assert [some.draw(step).kind for step in range(300)].count("warm window") / 300 == pytest.approx(0.4, abs=0.12)


def terms(tmp_path, every=1):
    """Token folder of a text that explains a term in one of `every` paragraphs."""
    entries = (f"term {i}x\n    The meaning of this entry number {i} is a kind of thing.\n" for i in range(300))
    plain = "and so it went on, as it had before, with nothing said about what any word might mean.\n"
    (tmp_path / "train.txt").write_text("\n".join(e if i % every == 0 else plain for i, e in enumerate(entries)))
    source = {"type": "files", "kind": "reference", "licence": "CC0-1.0", "paths": ["train.txt"]}
    build(recipe_from_dict({"name": "t", "sources": {"a": source}}, tmp_path), tmp_path / "data", byte_tokenizer())
    return TokenFolder.open(tmp_path / "data")


@pytest.mark.parametrize("reuse", [2, 3])
def test_kinds_have_their_shares_also_where_steps_share_a_context(folder, tmp_path, reuse):
    """A long window is one alone: it does not go round among the steps of a group."""
    settings = dict(needles=0.2, needle_windows=3, long_windows=0.4, long_window_tokens=50, context_chunks=[40, 45])
    kinds = {}
    for r in (1, reuse):
        made = sampler(folder, tmp_path, reuse=r, **settings)
        kinds[r] = [made.draw(step).kind for step in range(600)]
    for kind, share in (("needles", 0.2), ("long window", 0.8 * 0.4), ("prose", 0.8 * 0.6)):
        for r, drawn in kinds.items():
            assert drawn.count(kind) / len(drawn) == pytest.approx(share, abs=0.08), (kind, r)


def test_steps_of_a_group_keep_its_kind_and_its_document_where_they_draw_for_themselves(folder, tmp_path):
    made = sampler(folder, tmp_path, reuse=2, long_windows=0.5, long_window_tokens=50, context_chunks=[9, 12])
    pairs = [(made.draw(step), made.draw(step + 1)) for step in range(0, 40, 2)]
    assert all((a.kind, a.source) == (b.kind, b.source) for a, b in pairs)
    long = [(a, b) for a, b in pairs if a.kind == "long window"]
    assert 4 < len(long) < 16 and all(not np.array_equal(a.context, b.context) for a, b in long)


def test_questions_that_do_not_go_round_are_asked_in_every_step(tmp_path):
    made = sampler(
        terms(tmp_path, every=6), tmp_path, questions=1.0, question_windows=1, reuse=3, context_chunks=[30, 30]
    )
    groups = [[made.draw(step) for step in range(first, first + 3)] for first in range(0, 60, 3)]
    assert all(len({sample.kind for sample in group}) == 1 for group in groups)
    assert {group[0].kind for group in groups} == {"questions", "reference"}
    asked = [group for group in groups if group[0].kind == "questions"]
    assert any(not np.array_equal(a.context, b.context) for a, b, _ in asked), "no group drew for each of its steps"


def test_too_little_context_for_the_needles(folder, tmp_path):
    with pytest.raises(UsageError, match="needle_windows"):
        sampler(folder, tmp_path, needles=1.0, needle_windows=8, context_chunks=[1, 1]).draw(0)


def test_of_too_many_needles_those_are_hidden_that_fit(folder, tmp_path):
    """A run would else end at the first sample that drew long ones, and again at every start."""
    crowded = sampler(folder, tmp_path, needles=1.0, needle_windows=64, hops=1.0, context_chunks=[40, 40])
    for step in range(3):
        sample = crowded.draw(step)
        assert sample.kind == "needles" and 0 < len(sample.windows) < 64
        assert len(sample.context) == 40 * CONFIG.chunk_length


@pytest.mark.parametrize(("split", "words"), [("train", "join_below"), ("heldout", "validate_samples=0")])
def test_a_split_without_long_documents_says_what_can_be_done(folder, tmp_path, split, words):
    with pytest.raises(UsageError, match=f"no {split} document of .*{words}"):
        Sampler(folder, recipe(tmp_path, tmp_path, context_chunks=[5000, 6000]), split, byte_tokenizer())


def test_questions_are_asked_of_the_text_that_answers_them(tmp_path):
    folder = terms(tmp_path)
    made = sampler(folder, tmp_path, questions=1.0, question_windows=2, context_chunks=[20, 20])
    sample = made.draw(0)
    assert (sample.kind, sample.search, len(sample.windows)) == ("questions", "query", 2)
    for window in sample.windows:
        answer = text(window.ids[-window.targets : -1])
        assert answer in " ".join(text(sample.context).split())
        assert f"term {answer.split(' number ')[1].split()[0]}x" in text(window.ids[window.question])
        assert window.ids[-1] == byte_tokenizer().eos_token_id


def test_a_text_that_explains_nothing_is_continued_instead(folder, tmp_path):
    sample = sampler(folder, tmp_path, questions=1.0).draw(0)
    assert sample.search == "later" and sample.windows


@pytest.mark.parametrize(
    ("template", "behind", "begun"),
    [(None, "Answer:", " The meaning"), ("{{ messages[0].content + '\\nSaid:\\n' }}", "Said:\n", "The meaning")],
)
def test_an_answer_begins_with_a_space_only_behind_a_prompt_that_ends_in_none(tmp_path, template, behind, begun):
    """As a word does in any text, so that its first token is the one that stands there."""
    folder, tokenizer = terms(tmp_path), byte_tokenizer()
    tokenizer.chat_template = template
    settings = recipe(tmp_path, tmp_path, questions=1.0, question_windows=2, context_chunks=[20, 20])
    for window in Sampler(folder, settings, "train", tokenizer).draw(0).windows:
        assert f"{behind}{begun}" in text(window.ids)
        assert text(window.ids[-window.targets :]).startswith(begun)


def test_no_second_space_is_put_where_a_tokenizer_puts_one_before_every_text(folder, tmp_path):
    characters = sorted({*"\n\u2581: .?Answerblue"})
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(characters)}, merges=[]))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    made = Sampler(folder, recipe(tmp_path, tmp_path), "train", tokenizer)
    assert tokenizer.convert_ids_to_tokens(made._begun("blue.")) == [*"\u2581blue."]
