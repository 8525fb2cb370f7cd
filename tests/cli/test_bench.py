"""`bench` as a user meets it: its rows with memory measured apart, what it prints, one sentence for every mistake."""

from __future__ import annotations

import json

import pytest
import torch

from sharedllm.cli import main


@pytest.fixture
def bench(home, monkeypatch, capsys):
    """Run `bench` in `home`; gives exit code, stdout and stderr."""
    monkeypatch.chdir(home)
    threads = torch.get_num_threads()

    def call(*arguments: str) -> tuple[int, str, str]:
        model = ("--model", "model", "--adapter", "adapter", "--dtype", "float32", "--text", "long.txt")
        with pytest.raises(SystemExit) as ended:
            main(["bench", "-o", "bench.jsonl", *model, *arguments])
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    yield call
    torch.set_num_threads(threads)


def test_rows_and_table(bench, home):
    code, out, err = bench(
        "--methods", "shared,full", "--lengths", "4000,100", "--rounds", "2", "--new-tokens", "3", "--no-memory"
    )
    assert code == 0, err
    rows = [json.loads(line) for line in (home / "bench.jsonl").read_text().splitlines()]
    times = [row for row in rows if row["metric"] == "seconds_to_first_token"]
    assert [(row["method"], row["length"], row["samples"]) for row in times] == [
        ("shared", 100, 2), ("full", 100, 2), ("shared", 4000, 2), ("full", 4000, 2),
    ]  # fmt: skip
    assert all(0 < row["low"] <= row["value"] <= row["high"] for row in times)
    assert rows[-1]["metric"] == "break_even_tokens" and rows[-1]["against"] == "full"
    assert "tokenise" in out and "bare read" in out and "; floor " in out
    assert "goal at most 1.25: met" in out or "goal at most 1.25: missed" in out
    bare = next(row for row in rows if row["metric"] == "read_speed_over_bare")
    assert f"; {bare['ours']:.3f} s, other {bare['other']:.3f} s; goal at least 0.9" in out
    ours = next(row for row in times if row["method"] == "shared")
    assert ours["multiply_adds_a_second"] > 1e6 and ours["bytes_a_second"] > 1e6
    assert "is repeated up to 4,000" in err and "full at 4,000: round 2 of 2" in err


def test_memory_is_measured_in_a_process_of_its_own(bench, home):
    (home / "bench.jsonl").unlink(missing_ok=True)
    code, out, err = bench("--methods", "shared", "--lengths", "300", "--rounds", "1", "--new-tokens", "2", "--json")
    assert code == 0 and json.loads(out.splitlines()[-1])["results"] == "bench.jsonl", err
    rows = {row["metric"]: row for row in map(json.loads, (home / "bench.jsonl").read_text().splitlines())}
    held = rows["working_peak_bytes"]
    assert held.get("reason") is None and min(held["kept_bytes"], held["attended_bytes"]) > 0
    assert held["peak_memory_bytes"] > held["weights_bytes"] and rows.keys() >= {"full_cache_over_kept"}
    assert rows["seconds_to_first_token"]["peak_memory_bytes"] == held["peak_memory_bytes"]


def test_several_methods_are_compared_with(bench, home):
    (home / "bench.jsonl").unlink(missing_ok=True)
    names = "shared,truncate,full"
    code, _, err = bench(
        "--methods", names, "--against", "full, truncate", "--lengths", "300", "--rounds", "1", "--new-tokens", "2",
        "--no-memory",
    )  # fmt: skip
    assert code == 0, err
    rows = [json.loads(line) for line in (home / "bench.jsonl").read_text().splitlines()]
    pairs = [(row["method"], row["against"]) for row in rows if row["metric"].startswith("first_token_speed")]
    assert pairs == [("shared", "full"), ("shared", "truncate"), ("truncate", "full"), ("full", "truncate")]


def test_the_longest_text_is_read_in_a_process_of_its_own(bench, home):
    (home / "bench.jsonl").unlink(missing_ok=True)
    code, out, err = bench(
        "--methods",
        "shared",
        "--lengths",
        "100",
        "--rounds",
        "1",
        "--new-tokens",
        "2",
        "--no-memory",
        "--longest",
        "5000",
    )
    assert code == 0, err
    row = json.loads((home / "bench.jsonl").read_text().splitlines()[-1])
    assert (row["metric"], row["value"], row["met"]) == ("longest_context_tokens", 5000, False)
    assert row["read_seconds"] > 0 and row["answer"] and row["peak_memory_bytes"] < row["allowed_bytes"]
    assert "5,000 read in" in out and "goal at least 1,000,000 tokens: missed" in out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--methods", "shard"), "Did you mean shared?"),
        (("--methods", "shared", "--against", "full"), "--against is 'full'"),
        (("--methods", "shared,full", "--against", "full,yarn"), "--against is 'yarn'"),
        (("--longest", "0"), "--longest is 0"),
        (("--methods", "full", "--longest", "100"), "--longest is for shared"),
        (("--lengths", "0"), "--lengths is 0"),
        (("--rounds", "0"), "--rounds is 0"),
        (("--new-tokens", "1"), "--new-tokens is 1"),
        (("--budget", "0"), "--budget is 0"),
        (("--window", "yarn=8"), "--window names 'yarn'"),
        (("--window", "16", "--methods", "truncate", "--lengths", "100", "--no-memory"), "raise --window"),
    ],
)
def test_mistakes_are_one_sentence(bench, home, arguments, word):
    (home / "bench.jsonl").unlink(missing_ok=True)
    code, out, err = bench(*arguments)
    assert code == 2 and word in err and "Traceback" not in err and out == ""
    assert not (home / "bench.jsonl").exists(), "something was written"
