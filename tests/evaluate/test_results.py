"""Results files: the same run goes on where it was stopped, another is computed."""

from __future__ import annotations

import json

import pytest

from sharedllm.errors import WorkError
from sharedllm.evaluate.results import Results, read_rows


def fail():
    raise AssertionError("computed again")


def test_known_rows_are_not_computed_again(tmp_path):
    file, said = tmp_path / "rows.jsonl", []
    file.write_text(json.dumps({"task": "older", "value": 1}) + "\n")  # a row of a version without `run`
    unit, about = {"method": "full", "length": 5}, {"model": "m"}
    row = Results(file, about).keep(unit, lambda: {"method": "full", "length": 5, "metric": "x", "value": 1})
    again = Results(file, {"model": "m"}, say=said.append)
    assert again.find(unit) == row and again.keep({"length": 5, "method": "full"}, fail) == row
    assert said == [f"full at 5, x: found in {file}, not computed again (--fresh does)"]
    assert len(read_rows(file)) == 2


@pytest.mark.parametrize(
    ("about", "unit"),
    [({"model": "other"}, {"length": 5}), ({"model": "m"}, {"length": 6}), ({"model": "m"}, {"length": 5, "more": 1})],
)
def test_anything_else_is_another_row(tmp_path, about, unit):
    file = tmp_path / "rows.jsonl"
    Results(file, {"model": "m"}).keep({"length": 5}, dict)
    assert Results(file, about).find(unit) is None


def test_a_row_without_a_value_is_appended_and_computed_again(tmp_path):
    file, unit = tmp_path / "rows.jsonl", {"length": 5}
    results, empty = Results(file), {"value": None, "reason": "too little memory"}
    row = results.keep(unit, lambda: empty)
    assert empty.items() <= row.items() and results.find(unit) is None
    assert Results(file).keep(unit, lambda: empty) == row and len(read_rows(file)) == 1, "told once"
    assert Results(file).keep(unit, lambda: {"value": 1})["value"] == 1


def test_fresh_computes_and_appends(tmp_path):
    file = tmp_path / "rows.jsonl"
    Results(file).keep({"length": 5}, lambda: {"value": 1})
    results = Results(file, fresh=True)
    assert results.find({"length": 5}) is None
    results.keep({"length": 5}, lambda: {"value": 2})
    assert [row["value"] for row in read_rows(file)] == [1, 2]
    assert Results(file).find({"length": 5})["value"] == 2, "the last one counts"


def test_without_a_file_rows_are_kept_for_this_run():
    results = Results()
    results.keep({"length": 5}, lambda: {"method": "a", "length": 5})
    assert results.keep({"length": 5}, fail)["method"] == "a"


def test_a_row_that_failed_is_not_kept(tmp_path):
    results = Results(tmp_path / "rows.jsonl")
    with pytest.raises(AssertionError):
        results.keep({"length": 5}, fail)
    assert results.find({"length": 5}) is None and not (tmp_path / "rows.jsonl").exists()


def test_a_file_that_is_something_else(tmp_path):
    (tmp_path / "rows.jsonl").write_text("hello\n")
    with pytest.raises(WorkError, match="line 1"):
        Results(tmp_path / "rows.jsonl")
