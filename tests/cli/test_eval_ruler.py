"""`eval ruler` as a user meets it: its rows, samples of RULER's own, one sentence for every mistake."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from sharedllm import __version__
from sharedllm.evaluate.ruler.tasks import TASKS

ROW_FIELDS = {
    "task", "method", "length", "metric", "value", "samples", "seconds", "peak_memory_bytes",
    "model", "adapter", "device", "dtype", "seed",
}  # fmt: skip
VERSIONS = {"sharedllm": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
OWN = {
    "input": "A special magic number is hidden.\nOne of the special magic numbers for old-cat is: 1234567.\n"
    "What is the special magic number for old-cat mentioned in the provided text?",
    "outputs": ["1234567"],
    "answer_prefix": " The special magic number is",
}
SMALL = ("--samples", "2", "--methods", "shared,truncate", "--window", "600")


def rows_of(home) -> list[dict]:
    return [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]


def test_rows_means_and_effective_length(command, home):
    (home / "rows.jsonl").unlink(missing_ok=True)
    wanted = ("ruler", "--tasks", "niah_multikey_3,fwe", "--lengths", "1000", "--ceiling", *SMALL)
    code, out, err = command(*wanted)
    assert code == 0, err
    rows = rows_of(home)
    assert all(row.keys() >= ROW_FIELDS and row["task"] == "ruler" and row["length"] == 1000 for row in rows)
    assert [(r["method"], r["metric"]) for r in rows] == [
        ("shared", "ruler_niah_multikey_3"), ("truncate", "ruler_niah_multikey_3"), ("passage", "ruler_niah_multikey_3"),
        ("shared", "ruler_fwe"), ("truncate", "ruler_fwe"), ("shared", "ruler_mean"), ("truncate", "ruler_mean"),
        ("shared", "ruler_effective_length"), ("truncate", "ruler_effective_length"),
    ]  # fmt: skip
    for row in rows[:5]:
        assert row["value"] == pytest.approx(sum(row["scores"]) / 2) and row["samples"] == len(row["expected"]) == 2
        assert all(800 < n <= 1000 for n in row["tokens"]) and row["samples_from"] == "made"
    assert rows[0]["subtask"] == "niah_multikey_3" and rows[0]["max_new_tokens"] == 128 and rows[0]["chunk_length"]
    assert rows[5]["value"] == pytest.approx((rows[0]["value"] + rows[3]["value"]) / 2) and rows[5]["samples"] == 4
    assert list(rows[5]["subtasks"]) == ["niah_multikey_3", "fwe"]
    assert rows[-1]["value"] is None and rows[-1]["reason"].endswith("RULER's 13 tasks, and these are 2 of them")
    assert "ruler_mean" in out and "shared at 1,000: question 2 of 2" in err
    assert out.splitlines()[0] == "model model, adapter adapter, float32, cpu; windows: shared 600, truncate 600"
    assert all(row["versions"] == VERSIONS for row in rows) and not any("prose_from" in row for row in rows)
    forecast = [line.split()[:3] for line in err.splitlines() if line.startswith("  ") and " tokens  " in line]
    assert forecast == [[name, "1,000", "tokens"] for name in ("shared", "truncate", "passage")]

    code, _, err = command(*wanted)
    assert code == 0 and err.count("not computed again") == 7 and rows_of(home) == rows


def test_rulers_own_files_come_first(command, home):
    (home / "rows.jsonl").unlink(missing_ok=True)
    file = home / "own" / "600" / "data" / "niah_single_1" / "validation.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(OWN) + "\n")
    code, _, err = command(
        "ruler", "--data", "own", "--tasks", "niah_single_1", "--lengths", "600", "--samples", "1", "--methods", "full"
    )
    assert code == 0, err
    asked = rows_of(home)[0]
    assert asked["samples_from"].endswith("validation.jsonl") and asked["expected"] == [["1234567"]]
    assert asked["tokens"] == [len(OWN["input"] + OWN["answer_prefix"]) + 128]


def test_a_wrong_file_is_named_before_anything_is_asked(command, home):
    (home / "rows.jsonl").unlink(missing_ok=True)
    lacking = {name: value for name, value in OWN.items() if name != "outputs"}
    for length, row in ((600, OWN), (700, lacking)):
        file = home / "wrong" / str(length) / "niah_single_1.jsonl"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(row) + "\n")
    wanted = ("--tasks", "niah_single_1", "--lengths", "600,700", "--samples", "1", "--methods", "full")
    code, out, err = command("ruler", "--data", "wrong", *wanted)
    assert code == 2 and out == "" and not (home / "rows.jsonl").exists()
    assert "700/niah_single_1.jsonl, line 1: the field 'outputs' is missing" in err.splitlines()[-1]


def test_tasks_without_what_they_are_made_of_are_left_out(command, home, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "wonderwords", None)
    (home / "rows.jsonl").unlink(missing_ok=True)
    wanted = ("--lengths", "1000", "--samples", "1", "--methods", "truncate", "--window", "600")
    code, _, err = command("ruler", "--tasks", "qa_1,niah_single_1,fwe", *wanted)
    assert code == 0
    for name, word in (("qa_1", "--data"), ("niah_single_1", "wonderwords")):
        assert sum(line.startswith(f"{name} is left out") and word in line for line in err.splitlines()) == 1
    assert [row["metric"] for row in rows_of(home)] == ["ruler_fwe", "ruler_mean", "ruler_effective_length"]
    code, _, err = command("ruler", "--tasks", "qa_1", *wanted)
    assert code == 2 and err.splitlines()[-1].startswith("sharedllm: qa_1 is left out")


def test_prose_is_of_the_text_that_ships_where_none_is_named(command, home):
    (home / "rows.jsonl").unlink(missing_ok=True)
    wanted = ("--tasks", "niah_single_2", "--lengths", "2000", "--samples", "1", "--methods", "truncate")
    for more, name in (((), "The Jargon File 4.4.7, 29 Dec 2003 (public domain)"), (("--text", "long.txt"), "given")):
        code, _, err = command("ruler", *wanted, "--window", "600", *more)
        assert code == 0, err
        row = next(row for row in reversed(rows_of(home)) if row["metric"] == "ruler_niah_single_2")
        assert row["prose_from"] == name and (f"are hidden in {name}" in err) == (not more)


def test_what_does_not_fit_into_memory_is_said_and_asked_once_it_fits(command, home, monkeypatch):
    (home / "rows.jsonl").unlink(missing_ok=True)
    monkeypatch.setattr("sharedllm.methods.truncate.Truncate.peak_bytes", lambda self, tokens, scored=0: tokens)
    monkeypatch.setattr("sharedllm.evaluate.ruler.run.TASKS", {"fwe": TASKS["fwe"]})  # all that there are
    wanted = ("ruler", "--tasks", "fwe", "--lengths", "900,1200", "--samples", "1", "--methods", "truncate")
    names = ["ruler_fwe", "ruler_mean"] * 2 + ["ruler_effective_length"]

    def values_with(free: int, untold: int = 0) -> list:
        """New rows; `untold` more than those without a value are only printed, since the file says so already."""
        monkeypatch.setattr("sharedllm.hardware.free_memory_bytes", lambda device: free)
        seen = len(rows_of(home)) if (home / "rows.jsonl").exists() else 0
        code, out, err = command(*wanted, "--window", "600")
        assert code == 0, err
        new = rows_of(home)[seen:]
        assert all(row.keys() >= ROW_FIELDS and (row["value"] is None) == ("reason" in row) for row in new)
        assert out.count("not measured") == sum(row["value"] is None for row in new) + untold
        return new

    none = values_with(0)
    assert [row["metric"] for row in none] == names and not any("run" in row for row in none)
    assert none[1]["reason"].startswith("ruler_fwe: it would take") and none[4]["reason"] == none[3]["reason"]
    some = values_with(1300, untold=2)
    assert [row["metric"] for row in some] == ["ruler_fwe", "ruler_mean", "ruler_effective_length"]
    assert some[2]["length"] == 900 and some[2]["means"] == {"900": some[1]["value"], "1200": None}
    more = values_with(10**9)
    assert [row["metric"] for row in more] == names[2:] and more[2]["length"] == 1200, "the rest was known"
    assert values_with(0) == [], "what was measured needs no memory"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("ruler", "--tasks", "niah_singel_1"), "Did you mean niah_single_1?"),
        (("ruler", "--tasks", "vt", "--lengths", "200"), "smallest sample of vt"),
        (("ruler", "--data", "nowhere"), "nowhere"),
        (("needle", "--text", "long.txt", "--tasks", "vt"), "leave out --tasks"),
        (("ruler", "--methods", ","), "name at least one"),
    ],
)
def test_mistakes_are_one_sentence(command, home, arguments, word):
    (home / "rows.jsonl").unlink(missing_ok=True)
    code, out, err = command(*arguments)
    assert code == 2 and word in err and "Traceback" not in err and out == ""
    assert not (home / "rows.jsonl").exists(), "something was written"
