"""RULER's own files, and its scores."""

from __future__ import annotations

import json

import pytest

from sharedllm import UsageError
from sharedllm.evaluate.ruler.files import find_file, read_samples
from sharedllm.evaluate.ruler.run import effective_length
from sharedllm.evaluate.ruler.scoring import match_all, match_part

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
    "line",
    ["{", "[]", '{"input": "x"}', json.dumps({**NIAH, "input": "no question"}), json.dumps({**NIAH, "outputs": []})],
)
def test_lines_that_are_no_samples(tmp_path, line):
    file = tmp_path / "niah_single_1.jsonl"
    file.write_text(f"{json.dumps(NIAH)}\n{line}\n")
    assert len(read_samples(file, "niah_single_1", 1)) == 1
    with pytest.raises(UsageError, match=r"line 2 is no sample of niah_single_1"):
        read_samples(file, "niah_single_1", 2)
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
    with pytest.raises(UsageError, match=r"vt.jsonl cannot be read as text in UTF-8"):
        read_samples(file, "vt", 1)
