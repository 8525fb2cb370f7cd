"""Results files: the same run goes on where it was stopped, another is computed."""

from __future__ import annotations

import hashlib
import json

import pytest

from sharedllm.adapter import weights_digest
from sharedllm.cli.evaluate.command import _results
from sharedllm.errors import UsageError, WorkError
from sharedllm.evaluate.results import PLAIN, Results, read_rows
from sharedllm.methods import METHODS


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


def test_a_row_is_appended_to_a_last_line_that_has_no_end(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"value": 1}')
    Results(file).keep({"length": 5}, lambda: {"value": 2})
    assert [row["value"] for row in read_rows(file)] == [1, 2]


def test_a_folder_is_refused_before_anything_is_computed(tmp_path):
    with pytest.raises(UsageError, match="is a folder; give a file name for the results"):
        Results(tmp_path)


def test_rows_of_another_machine_are_not_known_where_it_matters(tmp_path):
    file, unit = tmp_path / "rows.jsonl", {"length": 5}
    for name, value in (("A", 1), ("B", 2)):
        kept = Results(file, same={"processor": name}).keep(unit, lambda v=value, n=name: {"value": v, "processor": n})
        assert kept["value"] == value
    assert [Results(file, same={"processor": name}).find(unit)["value"] for name in "AB"] == [1, 2]
    assert Results(file).find(unit)["value"] == 2


def test_known_rows_of_other_versions_are_said_once(tmp_path):
    file, said = tmp_path / "rows.jsonl", []
    here = {"sharedllm": "1", "torch": "3"}
    before = [{"versions": {"torch": "2", "sharedllm": "1"}}] * 2 + [{"versions": here}, {}]
    for n, row in enumerate(before):
        Results(file).keep({"n": n}, lambda row=row: row)
    results = Results(file, say=said.append, versions=here)
    for n in range(len(before)):
        results.keep({"n": n}, fail)
    told = [line for line in said if "found in" not in line]
    assert told == ["known rows were made with torch 2, and here is torch 3; --fresh computes all rows again"]
    results.keep({"n": 9}, lambda: {"versions": {"torch": "1"}})
    assert len(said) == len(before) + 1


def test_a_row_without_a_value_says_nothing_of_the_workers(tmp_path):
    results = Results(besides=lambda: {"peak_memory_bytes": 7})
    assert results.keep({"n": 1}, lambda: {"reason": "no", "peak_memory_bytes": None})["peak_memory_bytes"] is None
    assert results.keep({"n": 2}, lambda: {"value": 1})["peak_memory_bytes"] == 7


def test_a_row_made_of_others_says_what_it_has_from_them(tmp_path):
    results = Results(besides=lambda: {"peak_memory_bytes": 7})
    made = results.keep({"n": 1}, lambda: {"value": 1, "peak_memory_bytes": 9}, of_others=True)
    assert made["peak_memory_bytes"] == 9


def test_rows_of_methods_that_read_no_adapter_are_known_after_another(tmp_path):
    file, full = tmp_path / "rows.jsonl", {"method": "full"}

    def with_adapter(weights, model="m"):
        return Results(file, {"model": model, "adapter": ["default", weights]}, plain={"full"})

    def row_of(method, weights):
        row = {"method": method, "adapter": "default", "adapter_weights": weights}
        return with_adapter(weights).keep({"method": method}, lambda: row)

    first, ours = row_of("full", "a"), row_of("shared", "a")
    depends = json.dumps([{"model": "m", "adapter": ["default", "a"]}, full], sort_keys=True)
    assert first["run"] == hashlib.sha256(depends.encode()).hexdigest()[:16], "as rows have been known before"
    later = with_adapter("b")
    assert later.find(full) == later.keep(full, fail) == first and later.find({"method": "shared"}) is None
    assert with_adapter("a").find({"method": "shared"}) == ours and with_adapter("b", "n").find(full) is None
    assert row_of("shared", "b")["run"] != ours["run"]
    file.write_text(json.dumps({name: value for name, value in first.items() if name != "adapter_weights"}))
    assert with_adapter("b").find(full) is None, "its row does not say whose it is"
    assert with_adapter("a").find(full) is not None


def test_a_row_of_the_adapter_in_use_comes_before_those_of_others(tmp_path):
    file, full = tmp_path / "rows.jsonl", {"method": "full"}

    def results(weights, plain=()):
        return Results(file, {"adapter": ["default", weights]}, plain=plain)

    for weights in "abc":  # before such rows were known whatever the adapter
        results(weights).keep(full, lambda w=weights: {"value": w, "adapter": "default", "adapter_weights": w})
    assert [results(weights, {"full"}).find(full)["value"] for weights in "abcd"] == ["a", "b", "c", "c"]


def test_eval_knows_rows_of_the_model_alone_whatever_the_adapter(make, tmp_path):
    file, llm, other = tmp_path / "rows.jsonl", make(), make(random=False)
    said = {"adapter": llm.adapter, "adapter_weights": weights_digest(llm.injection)}
    for method in ("truncate", "retrieval"):
        _results(file, "needle", llm, 0, False).keep({"method": method}, lambda m=method: {"method": m, **said})
    known = _results(file, "needle", other, 0, False)
    assert known.find({"method": "truncate"}) is not None and known.find({"method": "retrieval"}) is None
    assert PLAIN - {"passage"} < METHODS.keys()
