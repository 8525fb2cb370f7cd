"""Samples for other systems: the very tokens the benchmarks give their methods, and the bytes `shared` keeps."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from sharedllm.cli import main
from sharedllm.evaluate.asking import Question, Text
from sharedllm.evaluate.needle import is_found
from sharedllm.evaluate.perplexity import cut_passages, run
from sharedllm.evaluate.samples import passage_samples, question_samples, write_samples
from sharedllm.methods import create
from sharedllm.methods.estimate import attended_bytes, cache_bytes
from sharedllm.prompts import Prompt
from tests.conftest import CONFIG, tokens
from tests.methods.test_plain import begun


def asked_of(llm, *questions):
    ids = llm.reader.token_ids("It was 4821 here. " * 12).long()
    return Text("a.txt", ids, [Question(Prompt(llm.tokenizer, q), len, 5, ("4821",)) for q in questions])


def test_questions_come_back_from_the_file_with_the_tokens_that_full_is_shown(make, tmp_path):
    llm = make()
    text = asked_of(llm, "Which number?", "What was it?")
    file = tmp_path / "samples.jsonl"
    file.write_text("of an earlier run\n")
    assert write_samples(file, question_samples(llm, "needle", "found", 999, [text])) == 2
    samples = [json.loads(line) for line in file.read_text().splitlines()]
    full = create("full", llm, 64)
    for sample, question in zip(samples, text.questions, strict=True):
        whole = sample["before_ids"] + sample["context_ids"] + sample["after_ids"]
        assert whole == full.shown(text.ids, question.prompt, 5)
        assert sample["context"] == llm.tokenizer.decode(text.ids.tolist())
        assert (sample["question"], sample["answer"]) == (question.prompt.question, ["4821"])
        assert (sample["max_new_tokens"], sample["length"], sample["dtype"]) == (5, 999, "float32")
        assert is_found(sample["answer"][0], sample["context"])


@pytest.mark.parametrize("fine_chunks", [0, 1])
def test_the_bytes_are_those_of_the_context_and_of_what_a_question_attends_to(make, fine_chunks):
    llm = make(config=replace(CONFIG, fine_chunks=fine_chunks))
    text = asked_of(llm, "Which number?", "What was it?")
    assert len(text.ids) % CONFIG.chunk_length, "the last chunk is short"
    samples = list(question_samples(llm, "needle", "found", 999, [text]))
    context, attended = llm.read(text.ids), []
    for question in text.questions:
        ids, mask = torch.tensor([question.prompt.alone()]), question.prompt.question_mask()
        memory = llm.recall(context, ids, question_mask=mask)
        attended.append(sum(x[:, :, 1:].nbytes for x in (*memory.keys, *memory.values)))
    assert [s["stored_bytes"] for s in samples] == [context.nbytes] * 2
    assert [s["attended_bytes"] for s in samples] == [max(attended)] * 2, "the most of all on the text"
    without = attended_bytes(llm, context.slots)
    assert max(attended) > without if fine_chunks else max(attended) == without


def test_passages_are_cut_where_shared_cuts_them(make):
    llm = make()
    passages = cut_passages([("a.txt", tokens(200, 1))], 120, 2)
    samples = list(passage_samples(llm, passages, [120, 60, 7], window=8, targets=9))
    assert len(samples) == 6
    for sample, passage in zip(samples, passages * 3, strict=True):
        assert sample["past_ids"] + sample["window_ids"] == passage.ids[-sample["length"] :].tolist()
        assert len(sample["window_ids"]) == min(8, sample["length"])
        assert (sample["targets"], sample["start"]) == (6, passage.start), "as many at every length as the shortest has"
    assert samples[-1]["stored_bytes"] == samples[-1]["attended_bytes"] == 0  # no past
    (one, *_) = passage_samples(llm, passages, [120, 60], window=8, targets=9)
    assert (len(one["window_ids"]), one["targets"]) == (10, 9)  # one token before the first target


def test_passages_begin_as_the_tokenizer_begins_a_text(make):
    llm, passages = begun(make(max_position_embeddings=512)), cut_passages([("a.txt", tokens(200, 1))], 120, 1)
    long, short = passage_samples(llm, passages, [120, 8], window=8, targets=6)
    ids = passages[0].ids.tolist()
    assert (long["past_ids"], long["window_ids"]) == ([256, *ids[:-8]], ids[-8:])
    assert (short["past_ids"], short["window_ids"]) == ([], [256, *ids[-8:]])


def test_passages_have_the_targets_that_the_rows_beside_them_have(make):
    llm = make()
    passages = cut_passages([("a.txt", tokens(200, 1))], 120, 2)
    rows = run([create("truncate", llm, 8)], passages, [120, 60, 7], 9, 0, lambda line: None)
    samples = passage_samples(llm, passages, [120, 60, 7], window=8, targets=9)
    assert {row["length"]: row["targets"] for row in rows} == {s["length"]: s["targets"] for s in samples}


def test_a_task_without_samples_says_which_have_some(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["eval", "ruler", "-o", str(tmp_path / "r"), "--write-samples", str(tmp_path / "s")])
    assert "--write-samples is for perplexity, needle" in capsys.readouterr().err


def test_a_question_attends_to_what_is_quoted_too(make):
    llm, quoting = make(), make(config=replace(CONFIG, quoted_tokens=20))
    plain, more = (next(question_samples(m, "needle", "found", 9, [asked_of(m, "Which?")])) for m in (llm, quoting))
    text, method = asked_of(quoting, "Which?"), create("shared", quoting, 1)
    prompt = text.questions[0].prompt
    quoted = len(method.shown(method.prepare(text.ids), prompt, 5)) - len(prompt.alone())
    assert more["attended_bytes"] - plain["attended_bytes"] == cache_bytes(llm, quoted) and quoted >= 20
    assert more["stored_bytes"] == plain["stored_bytes"]


def test_samples_are_not_written_over_the_results(tmp_path, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text("{}\n")
    with pytest.raises(SystemExit):
        main(["eval", "needle", "--text", str(file), "-o", str(file), "--write-samples", str(file)])
    assert "would write over the results" in capsys.readouterr().err and file.read_text() == "{}\n"


@pytest.mark.parametrize("source", ["book.txt", "."])
def test_samples_are_not_written_over_a_text(tmp_path, monkeypatch, capsys, source):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "book.txt").write_text("It was a dark night.")
    with pytest.raises(SystemExit):
        main(["eval", "needle", "--text", source, "-o", "rows.jsonl", "--write-samples", str(tmp_path / "book.txt")])
    assert "which is read with --text; name another file." in capsys.readouterr().err
    assert (tmp_path / "book.txt").read_text() == "It was a dark night."


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["needle", "--text", "a.txt", "--stride", "9"], "--stride is for perplexity, and does nothing for needle"),
        (["perplexity", "--text", "a.txt", "--ceiling"], "--ceiling is for needle, questions, real, ruler, and"),
        (
            ["ruler", "--max-new-tokens", "9"],
            "--max-new-tokens is for needle, questions, real, longbench, infinitebench",
        ),
        (["ruler", "--variant", "e"], "--variant is for longbench"),
        (["real", "--text", "a.txt"], "--text is for perplexity, needle, questions, ruler"),
        (["questions", "--text", "a.txt", "--data", "."], "--data is for ruler, longbench, infinitebench"),
        (["ruler", "--variant", "v1"], "--variant is for longbench, and does nothing for ruler; leave it out."),
        (
            ["real", "--lengths", "8192"],
            "--lengths is for perplexity, needle, questions, ruler, and does nothing for real",
        ),
        (["longbench", "--data", ".", "--lengths", "4096"], "and does nothing for longbench"),
        (["infinitebench", "--data", ".", "--lengths", "4096"], "and does nothing for infinitebench"),
        (["needle", "--text", "a.txt", "--targets", "9"], "--targets is for perplexity, and does nothing for needle"),
        (
            ["ruler", "--needles-per-text", "3"],
            "--needles-per-text is for needle, questions, and does nothing for ruler",
        ),
        (["perplexity", "--text", "a.txt", "--stride", "9", "--samples", "8"], "leave out --samples"),
        (["real", "--cross", "weights"], "--cross is for encoder-decoder, which is not among the methods"),
    ],
)
def test_options_that_would_do_nothing_are_refused(tmp_path, capsys, arguments, said):
    with pytest.raises(SystemExit):
        main(["eval", *arguments, "-o", str(tmp_path / "rows.jsonl")])
    assert said in capsys.readouterr().err
