"""LongBench's files: prompts to the letter, limits, what is scored; one sentence for what is wrong with a file."""

from __future__ import annotations

import hashlib
import json

import pytest

from sharedllm import UsageError
from sharedllm.evaluate.examples import read_tasks
from sharedllm.evaluate.longbench import averages, datasets
from tests.evaluate.benchmark_files import STORY, longbench, longbench_2, write

TASKS = read_tasks("sharedllm.evaluate.longbench")
QA_WORDING = (
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
    "The following are given passages.\n{}\n\n"
    "Answer the question based on the given passages. Only give me the answer and do not output any other words.\n\n"
    "Question: {}\nAnswer:"
)


def test_the_wording_is_that_of_the_benchmark():
    wording = {name: task.prompt for name, task in TASKS.items()}
    digest = hashlib.sha256(json.dumps(wording, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    assert digest == "87918bc9345a110e180441dce4edfe80dfb409e8d3132f7be93bda5c381184f8"


def test_settings():
    new = {512: "gov_report qmsum multi_news vcsum", 128: "narrativeqa qasper dureader samsum longbench_v2"}
    new[64] = "multifieldqa_en multifieldqa_zh trec lsht lcc repobench-p"
    new[32] = "hotpotqa 2wikimqa musique triviaqa passage_count passage_retrieval_en passage_retrieval_zh"
    assert {n: t.max_new_tokens for n, t in TASKS.items()} == {d: k for k, names in new.items() for d in names.split()}
    plain = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
    assert {name for name, task in TASKS.items() if not task.chat} == plain
    assert {name for name, task in TASKS.items() if task.first_line} == plain - {"lcc", "repobench-p"}
    assert sum(task.e for task in TASKS.values()) == 13


def test_a_row_becomes_an_example(tmp_path):
    write(tmp_path / "hotpotqa.jsonl", longbench(), longbench(_id="h2"))
    (dataset,) = datasets(tmp_path)
    one = dataset.examples[0]
    assert one.before + one.context + one.after == QA_WORDING.format(STORY, "Who painted the {blue} door?")
    assert (one.id, one.asks, one.groups) == ("h1", "Who painted the {blue} door?", ())
    assert one.score("The Tamsin") == 1 and one.score("Rowe") == pytest.approx(2 / 3)


def test_only_the_first_line_of_some_answers_counts(tmp_path):
    write(tmp_path / "trec.jsonl", longbench(answers=["City"], all_classes=["City", "Date"]))
    write(tmp_path / "hotpotqa.jsonl", longbench(answers=["City"]))
    by_name = {dataset.task.name: dataset.examples[0] for dataset in datasets(tmp_path)}
    assert by_name["trec"].score("\nCity\nDate") == 1
    assert by_name["hotpotqa"].score("\nCity\nDate") == pytest.approx(2 / 3)


@pytest.mark.parametrize(("length", "name"), [(3999, "0-4k"), (4000, "4-8k"), (7999, "4-8k"), (8000, "8k+")])
def test_longbench_e_goes_by_length(tmp_path, length, name):
    write(tmp_path / "hotpotqa_e.jsonl", longbench(length=length))
    write(tmp_path / "hotpotqa.jsonl", longbench())
    (dataset,) = datasets(tmp_path, ["hotpotqa"], "e")
    assert [example.groups for example in dataset.examples] == [(name,)]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_version_2(tmp_path, name):
    rows = [longbench_2(), longbench_2(_id="v2", difficulty="hard", length="long", answer="D")]
    if name == "data.json":
        (tmp_path / name).write_text(json.dumps(rows))
    else:
        write(tmp_path / name, *rows)
    (dataset,) = datasets(tmp_path, variant="v2")
    one, two = dataset.examples
    assert (one.before + one.context + one.after).endswith(
        f"<text>\n{STORY.strip()}\n</text>\n\nWhat is the correct answer to this question: Who painted the door?\n"
        "Choices:\n(A) Jory\n(B) Tamsin\n(C) Nobody\n(D) The wind\n\n"
        'Format your response as follows: "The correct answer is (insert answer here)".'
    )
    assert one.score("The correct answer is (B)") == 1 == two.score("The correct answer is D")
    assert (one.groups, two.groups, one.traces) == (("easy", "short"), ("hard", "long"), ("Tamsin",))


def test_code_counts_in_the_averages_of_both_languages():
    tasks = [TASKS[name] for name in ("hotpotqa", "musique", "dureader", "lcc")]
    assert averages(tasks) == {
        "average-en": {"multi-document QA": ["hotpotqa", "musique"], "code": ["lcc"]},
        "average-zh": {"multi-document QA": ["dureader"], "code": ["lcc"]},
    }
    assert averages([TASKS["longbench_v2"]]) == {}


def test_code_alone_is_the_average_of_no_language():
    code = [TASKS["lcc"], TASKS["repobench-p"]]
    assert averages(code) == {}
    assert averages([*code, TASKS["dureader"]]).keys() == {"average-zh"}
    assert averages([*code, *(TASKS[name] for name in ("hotpotqa", "gov_report"))]).keys() == {"average-en"}


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("hotpotqa", longbench(answers=...), "line 2: the field 'answers' is missing; it must be a list of text"),
        ("hotpotqa", longbench(answers="Tamsin"), "line 2: 'answers' is \"Tamsin\"; it must be a list of text"),
        ("hotpotqa", longbench(answers=[]), r"'answers' is \[\]; it must be a list of text, not empty"),
        ("hotpotqa", longbench(answers=[3]), r"'answers' is \[3\]"),
        ("hotpotqa", longbench(context=7), "'context' is 7; it must be text, not empty"),
        ("hotpotqa", longbench(input=" "), "'input' is \" \"; it must be text, not empty"),
        ("trec", longbench(), "'all_classes' is null; it must be a list of text"),
        ("passage_retrieval_en", longbench(), "must be texts such as 'Paragraph 7'"),
        ("hotpotqa", [1], "line 2 is no JSON object"),
    ],
)
def test_a_wrong_row_is_named_with_file_line_and_field(tmp_path, name, row, said):
    good = longbench(answers=["Paragraph 1"], all_classes=["x"])
    write(tmp_path / f"{name}.jsonl", good, row)
    with pytest.raises(UsageError, match=said) as error:
        datasets(tmp_path)
    assert f"{name}.jsonl" in str(error.value)


def test_wrong_rows_of_the_other_variants(tmp_path):
    write(tmp_path / "qasper_e.jsonl", longbench(length="40"))
    with pytest.raises(UsageError, match="'length' is \"40\"; it must be a whole number"):
        datasets(tmp_path, variant="e")
    (tmp_path / "data.json").write_text(json.dumps([longbench_2(answer="E")]))
    with pytest.raises(UsageError, match=r"data.json, row 1: 'answer' is \"E\"; it must be one of A, B, C, D"):
        datasets(tmp_path, variant="v2")
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(UsageError, match="no JSON list"):
        datasets(tmp_path, variant="v2")


def test_what_is_no_json_or_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"has none of the benchmark's files, such as narrativeqa.jsonl"):
        datasets(tmp_path)
    with pytest.raises(UsageError, match=r"'hotpotq'.* Did you mean hotpotqa"):
        datasets(tmp_path, ["hotpotq"])
    with pytest.raises(UsageError, match="the data set is 'musique'"):
        datasets(tmp_path, ["musique"], "e")  # LongBench-E has none
    with pytest.raises(UsageError, match=r"has no hotpotqa_e.jsonl"):
        datasets(tmp_path, ["hotpotqa"], "e")
    with pytest.raises(UsageError, match=r"has no data.json"):
        datasets(tmp_path, variant="v2")
    with pytest.raises(UsageError, match="the variant is 'v3'"):
        datasets(tmp_path, variant="v3")
    with pytest.raises(UsageError, match="is no folder"):
        datasets(tmp_path / "nowhere")
    (tmp_path / "lcc.jsonl").write_text('{"input": "x"\n')
    with pytest.raises(UsageError, match=r"lcc.jsonl, line 1 is not JSON"):
        datasets(tmp_path)
    (tmp_path / "lcc.jsonl").write_text("\n")
    with pytest.raises(UsageError, match=r"has no rows"):
        datasets(tmp_path)
    (tmp_path / "lcc.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not text in UTF-8"):
        datasets(tmp_path)
