"""RULER's own files, and its scores."""

from __future__ import annotations

import json

import pytest

from sharedllm import UsageError
from sharedllm.evaluate.results import Results
from sharedllm.evaluate.ruler.files import find_file, read_samples
from sharedllm.evaluate.ruler.making import smallest
from sharedllm.evaluate.ruler.run import _keep_effective_length, _keep_mean, as_text, effective_length, run
from sharedllm.evaluate.ruler.scoring import match_all, match_part
from sharedllm.evaluate.ruler.tasks import TASKS
from sharedllm.methods import create
from tests.evaluate.ruler.helpers import small_corpus

NIAH = {
    "index": 0,
    "input": "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the number afterwards.\nThe grass is green.\nOne of the special magic numbers for old-cat is: 1234567.\n"
    "The grass is green.\nWhat is the special magic number for old-cat mentioned in the provided text?",
    "outputs": ["1234567"],
    "length": 200,
    "answer_prefix": " The special magic number for old-cat mentioned in the provided text is",
}
VT = {
    "index": 0,
    "input": "Memorize ... Question: Find all variables that are assigned the value 11111 in the text above. Answer: they are:  A"
    "\n\nMemorize it.\n\nVAR XYZAB = 12345\nQuestion: Find all variables that are assigned the value 12345 in the text above.",
    "outputs": ["XYZAB"],
    "answer_prefix": " Answer: they are: ",
}


def test_context_and_question_are_parted_at_the_last_question(tmp_path):
    for name, row in (("niah_single_1", NIAH), ("vt", VT)):
        file = tmp_path / f"{name}.jsonl"
        file.write_text(json.dumps(row) + "\n")
        (sample,) = read_samples(file, name, 1)
        assert sample.context + sample.between + sample.question == row["input"]
        assert sample.answer_prefix == row["answer_prefix"] and list(sample.outputs) == row["outputs"]
        assert sample.context.endswith(("The grass is green.", "VAR XYZAB = 12345")) and sample.between == "\n"
    (niah,), (vt,) = (read_samples(tmp_path / f"{name}.jsonl", name, 1) for name in ("niah_single_1", "vt"))
    assert niah.asks == "special magic number for old-cat"
    assert vt.asks == "variables that are assigned the value 12345"


@pytest.mark.parametrize("place", ["4096/data/vt/validation.jsonl", "4096/vt/validation.jsonl", "4096/vt.jsonl"])
def test_where_files_are_looked_for(tmp_path, place):
    assert find_file(tmp_path, "vt", 4096) is None and find_file(None, "vt", 4096) is None
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text("")
    assert find_file(tmp_path, "vt", 4096) == tmp_path / place
    assert find_file(tmp_path, "vt", 8192) is None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "is no JSON object"),
        ('{"input": "x"}', "the field 'outputs' is missing; it must be a list of right answers, not empty"),
        (json.dumps({**NIAH, "outputs": []}), "'outputs' is []; it must be"),
        (json.dumps({**NIAH, "outputs": "1234567"}), "'outputs' is \"1234567\"; it must be"),
        (
            json.dumps({**NIAH, "input": "no question"}),
            "'input' is \"no question\"; it must be a prompt with the question of",
        ),
        (json.dumps({**NIAH, "input": None}), "'input' is null; it must be text, not empty"),
        (json.dumps({**NIAH, "answer_prefix": 3}), "'answer_prefix' is 3; it must be text"),
    ],
)
def test_a_wrong_line_is_named_with_file_line_and_field(tmp_path, line, said):
    file = tmp_path / "niah_single_1.jsonl"
    file.write_text(f"{json.dumps(NIAH)}\n\n{line}\n")
    with pytest.raises(UsageError) as error:
        read_samples(file, "niah_single_1", 2)
    assert f"{file}, line 3" in str(error.value) and said in str(error.value)


def test_a_file_with_too_few_samples_says_how_many_it_has(tmp_path):
    file = tmp_path / "niah_single_1.jsonl"
    file.write_text(f"{json.dumps(NIAH)}\n" * 2)
    assert len(read_samples(file, "niah_single_1", 1)) == 1
    with pytest.raises(UsageError, match="has 2 samples; lower --samples"):
        read_samples(file, "niah_single_1", 3)


@pytest.mark.parametrize(
    ("answer", "outputs", "every", "some"),
    [
        ("It is 12 and AB.", ["12", "ab"], 100, 100),
        ("It is 12.", ["12", "ab"], 50, 100),
        ("", ["12", "ab"], 0, 0),
        ("123", ["12"], 100, 100),
        ("a b c", ["A", "d", "C", "e"], 50, 100),
    ],
)
def test_scores(answer, outputs, every, some):
    assert match_all(answer, outputs) == every and match_part(answer, outputs) == some


def test_effective_length():
    assert effective_length({4096: 90.0, 8192: 85.7, 16384: 85.6}) == 8192
    assert effective_length({4096: 80.0, 8192: 20.0}) == 0


def test_a_file_that_is_no_text_is_named(tmp_path):
    file = tmp_path / "vt.jsonl"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"vt.jsonl is not text in UTF-8"):
        read_samples(file, "vt", 1)


def test_a_task_that_no_window_holds_is_a_row_where_another_is_asked(make, tmp_path):
    llm, corpus = make(max_position_embeddings=4096), small_corpus(tmp_path)
    asked = {name: as_text(llm, name, smallest(name, 1800, 0, corpus)).questions[0] for name in ("fwe", "vt")}
    rooms = {name: len(q.prompt.alone()) + q.max_new_tokens for name, q in asked.items()}
    assert rooms["vt"] < rooms["fwe"]

    def go(window: int, *names: str) -> list[dict]:
        methods = [create(name, llm, window) for name in ("truncate", *names)]
        return list(run(llm, methods, {1800: dict.fromkeys(asked)}, 1, corpus, 0, lambda line: None))

    rows = go(rooms["vt"] + 10)
    assert [row["metric"] for row in rows] == ["ruler_fwe", "ruler_vt", "ruler_mean", "ruler_effective_length"]
    assert "cannot hold the question" in rows[0]["reason"] and rows[1]["value"] is not None
    assert rows[2]["reason"] == f"ruler_fwe: {rows[0]['reason']}"
    with pytest.raises(UsageError, match="cannot hold the question"):
        go(rooms["vt"] - 10)
    means = {row["texts"] for row in go(rooms["fwe"] + 10, "full") if row["metric"] == "ruler_mean"}
    assert len(means) == 1, "the same texts, whatever of them a method sees"


def test_a_mean_over_tasks_has_the_peak_of_its_rows_and_not_that_of_the_last_call(make):
    method, results = create("truncate", make(), 8), Results(besides=lambda: {"peak_memory_bytes": 7})
    same = {"value": 50.0, "low": 40.0, "high": 60.0, "samples": 1, "seconds": 1.0, "window": 8, "beyond_window": False}
    rows = [{**same, "subtask": name, "peak_memory_bytes": peak} for name, peak in (("vt", 9), ("fwe", 5))]
    mean = _keep_mean(method.llm, method, 4096, rows, 0, results)
    assert (mean["value"], mean["peak_memory_bytes"], mean["given_window"]) == (50.0, 9, 8)
    effective = _keep_effective_length(
        method.llm, method, {4096: {**mean, "subtasks": dict.fromkeys(TASKS)}}, 0, results
    )
    assert (effective["metric"], effective["peak_memory_bytes"]) == ("ruler_effective_length", 9)
