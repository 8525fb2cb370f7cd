"""Study folders: what is written, that a stopped run goes on to the same bytes, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest

from sharedllm import UsageError, WorkError
from sharedllm.data import TokenFolder
from sharedllm.data.study import Study
from sharedllm.data.study_build import Plan, write_study
from tests.conftest import byte_tokenizer
from tests.data.study_helpers import PLAN, MadeUp
from tests.train.test_loop import write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return TokenFolder.open(write_data(tmp_path_factory.mktemp("texts")))


def write(out, folder, plan=PLAN, model="m", stop_after=10**9):
    author = MadeUp(byte_tokenizer(), stop_after)
    try:
        write_study(out, folder, author, model, plan)
    except KeyboardInterrupt:
        pass
    return author


def content(out):
    return {file.name: file.read_bytes() for file in out.iterdir()}


def test_a_study_holds_pairs_and_where_their_passages_are(folder, tmp_path):
    lines = []
    about = write_study(tmp_path / "s", folder, MadeUp(byte_tokenizer()), "m", PLAN, lines.append)
    study = Study.open(tmp_path / "s", folder, "m")
    assert len(study.passages) == about["counts"]["passages"] == 6 and study.passage_tokens == 64
    assert about["counts"]["pairs"] == 6 and about["counts"]["left_out"] == {"no question": 6}
    for passage in study.passages:
        assert passage.document.split == "train" and passage.left_out == {"no question": 1}
        text = byte_tokenizer().decode(folder.tokens(passage.document)[passage.start : passage.start + 64].tolist())
        (pair,) = passage.pairs
        assert pair.question.split()[-1].rstrip("?") in text
        assert byte_tokenizer().decode(pair.answer_ids) == pair.answer
    assert all(b.start - a.start == 64 for a, b in zip(study.passages[::2], study.passages[1::2], strict=True))
    assert len(lines) == 3 and "6 of 6 passages" in lines[-1]


def test_a_stopped_study_goes_on_to_the_same_bytes(folder, tmp_path):
    whole = write(tmp_path / "whole", folder)
    first = write(tmp_path / "parts", folder, stop_after=2)
    with pytest.raises(UsageError, match="not finished"):
        Study.open(tmp_path / "parts", folder, "m")
    with (tmp_path / "parts/passages.jsonl").open("a") as file:
        file.write('{"source": "a", "docu')  # what a killed process leaves
    second = write(tmp_path / "parts", folder)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    assert first.seeds + second.seeds == whole.seeds


def test_a_finished_study_can_be_made_longer(folder, tmp_path):
    write(tmp_path / "whole", folder)
    write(tmp_path / "parts", folder, dataclasses.replace(PLAN, passages=2))
    assert len(Study.open(tmp_path / "parts", folder, "m").passages) == 2
    more = write(tmp_path / "parts", folder)
    assert len(more.seeds) == 2 and content(tmp_path / "parts") == content(tmp_path / "whole")


def test_another_model_other_data_and_other_settings_are_refused(folder, tmp_path):
    write(tmp_path / "s", folder)
    before = content(tmp_path / "s")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/extra").mkdir()
    other = TokenFolder.open(write_data(tmp_path / "texts"))
    manifest = other.path / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "recipe": "other"}))
    for where, model, word in ((folder, "n", "another model"), (other, "m", "other data")):
        for attempt in (
            lambda w=where, m=model: Study.open(tmp_path / "s", w, m),
            lambda w=where, m=model: write(tmp_path / "s", w, model=m),
        ):
            with pytest.raises(UsageError, match=word) as caught:
                attempt()
            assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="seed 0"):
        write(tmp_path / "s", folder, dataclasses.replace(PLAN, seed=1))
    assert content(tmp_path / "s") == before


def test_a_study_by_a_model_with_other_upper_layers_is_refused(folder, tmp_path):
    write(tmp_path / "s", folder, model="f+1")
    with pytest.raises(UsageError, match=r"by another model \(fingerprint f\+1, not f\+2\)"):
        Study.open(tmp_path / "s", folder, "f+2")
    for known in ("f+1", "f"):  # a fingerprint alone says less, as it did in earlier releases
        assert Study.open(tmp_path / "s", folder, known).passages


def test_what_is_no_study_is_left_alone(folder, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for attempt in (lambda: Study.open(tmp_path, folder, "m"), lambda: write(tmp_path, folder)):
        with pytest.raises(UsageError, match="not a study"):
            attempt()
    assert content(tmp_path) == {"mine.txt": b"mine"}
    with pytest.raises(UsageError, match="not a study"):
        Study.open(folder.path, folder, "m")


def test_a_changed_study_is_found(folder, tmp_path):
    write(tmp_path / "s", folder)
    file = tmp_path / "s/passages.jsonl"
    file.write_text(file.read_text().replace("blue", "pink", 1))
    with pytest.raises(WorkError, match="not the one"):
        Study.open(tmp_path / "s", folder, "m")


def test_plans_that_cannot_be(folder, tmp_path):
    for settings, word in (
        ({"passages": 0}, "passages is 0"),
        ({"passages": 1, "per_passage": 9}, "per_passage is 9"),
        ({"passages": 1, "seed": -1}, "seed is -1"),
    ):
        with pytest.raises(UsageError, match=word):
            Plan(**settings)
    with pytest.raises(UsageError, match="no train document of 99999 tokens"):
        write(tmp_path / "s", folder, dataclasses.replace(PLAN, least_tokens=99999))
    assert not (tmp_path / "s").exists()
