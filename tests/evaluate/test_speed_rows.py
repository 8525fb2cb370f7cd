"""The rows of `sharedllm bench`, with measurements that are made up."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial

import pytest

from sharedllm.cli import main
from sharedllm.errors import WorkError
from sharedllm.evaluate.results import Results, read_rows
from sharedllm.evaluate.speed.limits import estimate
from sharedllm.evaluate.speed.longest import Longest
from sharedllm.evaluate.speed.memory import Memory
from sharedllm.evaluate.speed.phases import Phases
from sharedllm.evaluate.speed.run import Bench
from sharedllm.methods import create
from sharedllm.methods.estimate import cache_bytes
from sharedllm.prompts import Prompt
from tests.evaluate.test_speed import CONTRACT, MEMORY, NEW, RATES, taken


@pytest.fixture
def llm(make):
    return make(max_position_embeddings=512)


def benched(llm, names, monkeypatch, lengths=(96, 192), window=64, **changes):
    """Rows of a bench whose measurements are made up: `full` takes ten times as long at 192 tokens, `streaming` as its `window`
    says."""
    order = []

    def made(method, sample, prompt, new_tokens, now):
        order.append((method.name, len(sample.ids)))
        slow = 10 if method.name == "full" and len(sample.ids) == 192 else 0.5 if method.name == "full" else 1
        slow = method.window / 64 if method.name == "streaming" else slow
        return Phases(1, 80 * slow, 2 * slow, 3 * slow, 0.6, 0.5, 72 if method.name == "shared" else None)

    monkeypatch.setattr("sharedllm.evaluate.speed.run.measure", made)
    given = {"rounds": 3, "against": ["full"], "peak": lambda method, sample: MEMORY, "rates": lambda: RATES, **changes}
    bench = Bench(
        llm=llm, methods=[create(name, llm, window if name == "streaming" else 64) for name in names],
        sample=partial(taken, llm), prompt=Prompt(llm.tokenizer, "Who?"), new_tokens=NEW, seed=0, **given,
    )  # fmt: skip
    return list(bench.rows(lengths)), order


def test_rounds_take_turns(llm, monkeypatch):
    _, order = benched(llm, ["shared", "truncate", "full"], monkeypatch, lengths=(96,))
    turns = [[name for name, _ in order[i : i + 3]] for i in range(0, len(order), 3)]
    assert turns == [
        ["shared", "truncate", "full"],  # warms up
        ["shared", "truncate", "full"], ["truncate", "full", "shared"], ["full", "shared", "truncate"],
    ]  # fmt: skip


def test_rows(llm, monkeypatch):
    rows, _ = benched(llm, ["shared", "full"], monkeypatch)
    assert all(row.keys() >= CONTRACT and row["task"] == "bench" for row in rows)
    json.dumps(rows)
    by = {(row["method"], row["length"], row["metric"]): row for row in rows}
    assert len(by) == len(rows) == 2 * (1 + 3 + 1 + 2 + 1 + 3) + 2 * (1 + 2 + 1 + 2) + 2
    time = by["shared", 96, "seconds_to_first_token"]
    assert (time["value"], time["low"], time["high"], time["samples"]) == (85, 85, 85, 3)
    assert (time["read_seconds"], time["search_seconds"], time["bare_read_seconds"]) == (80, 2, 72)
    assert time["rounds"]["per_token_seconds"] == [0.6] * 3 and time["peak_memory_bytes"] == MEMORY.peak
    full = by["full", 96, "seconds_to_first_token"]
    assert "bare_read_seconds" not in full and "floor_seconds" not in full
    assert time["floor_seconds"] == time["multiply_adds"] / RATES.multiply_adds > time["floor_bytes_seconds"]
    assert time["bytes_a_second"] == RATES.bytes and time["weight_bytes_read"] > 0
    ratio = by["shared", 192, "first_token_speed_over_full"]
    assert (ratio["value"], ratio["ours"], ratio["other"], ratio["against"]) == (pytest.approx(10), 85, 850, "full")
    bare = by["shared", 96, "read_speed_over_bare"]
    assert (bare["goal"], bare["met"], bare["ours"], bare["other"]) == ("at least 0.9", True, 80, 72)
    held = by["shared", 96, "working_peak_bytes"]
    assert (held["value"], held["kept_bytes"], held["attended_bytes"], held["weights_bytes"]) == (5000, 200, 64, 100)
    assert held["full_cache_bytes"] == cache_bytes(llm, 96) and held["reading_bytes"] == 3200
    reading = by["shared", 96, "reading_memory_bytes"]
    assert (reading["value"], reading["ours"], reading["other"], reading["met"]) == (3000, 3200, 200, True)
    growth = by["shared", 192, "reading_memory_growth"]
    assert (growth["value"], growth["lengths"], growth["met"]) == (1, [96, 192], True)
    even = by["shared", 192, "break_even_tokens"]
    assert even["lengths"] == [96, 192] and even["value"] == pytest.approx(96 * 2 ** (1 / (1 + 3.321928)), rel=1e-6)


def test_where_memory_runs_out_the_other_methods_are_timed(llm, monkeypatch):
    def ends(work):
        method, sample, *_ = work.args
        return None if method.name == "full" and len(sample.ids) == 192 else work()

    monkeypatch.setattr("sharedllm.evaluate.speed.run.unless_memory_ends", ends)
    rows, _ = benched(llm, ["full", "shared"], monkeypatch)
    by = {(row["method"], row["length"], row["metric"]): row for row in rows}
    for metric in ("seconds_to_first_token", "working_peak_bytes"):
        assert by["full", 192, metric]["reason"] == "memory ran out" and by["full", 96, metric]["value"]
        assert by["shared", 192, metric]["value"]
    assert by["shared", 192, "first_token_speed_over_full"]["reason"] == "full: memory ran out"


def test_what_takes_too_long_or_does_not_fit_has_a_reason(llm, monkeypatch):
    rows, order = benched(llm, ["shared", "full"], monkeypatch, budget=0.0, peak=None)
    assert {length for _, length in order} == {96}
    late = [row for row in rows if row["length"] == 192]
    assert [(row["method"], row["value"]) for row in late] == [("shared", None), ("full", None)]
    assert all("the budget is 0 s" in row["reason"] and row.keys() >= CONTRACT for row in late)
    rows, order = benched(llm, ["shared", "full"], monkeypatch, free=0.0)
    assert not order and all("GB are free" in r["reason"] for r in rows if r["metric"] != "break_even_tokens")


def test_what_was_measured_is_not_measured_again_and_still_estimates(llm, monkeypatch, tmp_path):
    file = tmp_path / "rows.jsonl"
    rows, _ = benched(llm, ["shared", "full"], monkeypatch, results=Results(file))
    assert read_rows(file) == json.loads(json.dumps(rows, default=str)) and all("run" in row for row in rows)
    again, order = benched(llm, ["shared", "full"], monkeypatch, results=Results(file))
    assert not order and again[-2:] == rows[-2:]
    names = ["shared", "full", "truncate"]
    _, order = benched(llm, names, monkeypatch, results=Results(file))
    assert {name for name, _ in order} == {"truncate"}
    known = {row["length"]: row["seconds"] / 3 for row in rows if row["method"] == "full" and "rounds" in row}
    expected = estimate(known, 400, quadratic=True)
    late, order = benched(
        llm, ["full"], monkeypatch, lengths=(96, 192, 400), budget=expected / 2, against=[], results=Results(file)
    )
    assert not order and f"about {expected:,.0f} s" in late[-1]["reason"]
    _, order = benched(llm, ["full"], monkeypatch, against=[], rounds=2, results=Results(file))
    assert len(order) == 5, "another number of rounds is another measurement"


def test_each_of_several_methods_is_compared_with_and_the_goal_is_at_its_length(llm, monkeypatch):
    names = ["shared", "full", "streaming"]
    rows, _ = benched(llm, names, monkeypatch, lengths=(96, 32_768), against=["full", "streaming"], peak=None)
    found = {(r["method"], r["length"], r["against"]): r for r in rows if r["metric"].startswith("first_token_speed")}
    assert found.keys() == {
        (name, n, other) for n in (96, 32_768) for name in names for other in names[1:] if other != name
    }
    goals = {key: row["goal"] for key, row in found.items() if "goal" in row}
    assert goals == {("shared", 32_768, "full"): "at least 5", ("shared", 32_768, "streaming"): "at least 2"}
    assert [r["against"] for r in rows if r["metric"] == "break_even_tokens" and r["method"] == "shared"] == names[1:]


def test_a_comparison_with_what_was_refused_has_its_reason(llm, monkeypatch):
    monkeypatch.setattr(
        "sharedllm.evaluate.speed.run.too_large", lambda method, *_: "no room" if method.name == "full" else None
    )
    rows, _ = benched(llm, ["shared", "full"], monkeypatch, lengths=(96,), peak=None)
    found = [(r["method"], r["value"], r["reason"]) for r in rows if r["metric"] == "first_token_speed_over_full"]
    assert found == [("shared", None, "full: no room")]


def test_memory_of_reading_that_grows_misses_its_goal(llm, monkeypatch, tmp_path):
    def grows(method, sample):
        return Memory(**{**asdict(MEMORY), "reading": 200 + 10 * len(sample.ids)})

    def row(**changes):
        rows, order = benched(llm, ["shared"], monkeypatch, peak=grows, against=[], **changes)
        return next(r for r in rows if r["metric"] == "reading_memory_growth"), order

    results = Results(tmp_path / "rows.jsonl")
    found, _ = row(results=results)
    assert (found["value"], found["ours"], found["other"], found["met"]) == (2, 1920, 960, False)
    assert found["goal"] == "at most 1.25"
    later, order = row(results=results, lengths=(96, 192, 288))
    assert (later["value"], later["lengths"]) == (3, [96, 288]) and {n for _, n in order} == {288}


LONGEST = Longest(tokens=1_000_000, read=300.0, first_token=0.5, answer="A text.", kept=7, peak=24 * 2**30)


@pytest.mark.parametrize(
    ("found", "met"),
    [
        (LONGEST, True),
        (Longest(**{**asdict(LONGEST), "tokens": 999_999}), False),
        (Longest(**{**asdict(LONGEST), "peak": 24 * 2**30 + 1}), False),
    ],
)
def test_the_longest_text_is_read_once_and_judged(llm, monkeypatch, tmp_path, found, met):
    asked = []

    def measured(method, sample):
        asked.append((method.name, len(sample.ids)))
        return found

    changes = {"lengths": (96,), "longest": (500, measured), "results": Results(tmp_path / "rows.jsonl")}
    rows, _ = benched(llm, ["full", "shared"], monkeypatch, **changes)
    row = rows[-1]
    assert (row["metric"], row["length"], row["value"], row["met"]) == (
        "longest_context_tokens",
        500,
        found.tokens,
        met,
    )
    assert (row["answer"], row["peak_memory_bytes"], row["read_seconds"]) == ("A text.", found.peak, 300.0)
    assert row.keys() >= CONTRACT and row["goal"] == "at least 1,000,000 tokens"
    benched(llm, ["full", "shared"], monkeypatch, **changes)
    assert asked == [("shared", 500)], "it is not measured again"


def test_a_longest_text_that_fails_has_a_reason(llm, monkeypatch):
    def fails(method, sample):
        raise WorkError("it was killed")

    rows, _ = benched(llm, ["shared"], monkeypatch, lengths=(96,), against=[], longest=(500, fails))
    assert (rows[-1]["value"], rows[-1]["reason"]) == (None, "it was killed")
    rows, _ = benched(llm, ["shared"], monkeypatch, lengths=(96,), against=[], longest=(500, fails), free=0.0)
    assert "GB are free" in rows[-1]["reason"]


def test_memory_that_cannot_be_measured_leaves_the_times(llm, monkeypatch):
    def fails(method, sample):
        raise WorkError("it was killed")

    rows, _ = benched(llm, ["full"], monkeypatch, lengths=(96,), against=[], peak=fails)
    assert [(r["metric"], r.get("reason")) for r in rows if r["metric"] == "working_peak_bytes"] == [
        ("working_peak_bytes", "it was killed")
    ]
    assert rows[0]["metric"] == "seconds_to_first_token" and rows[0]["value"] is not None


def test_memory_that_could_not_be_measured_once_is_measured_the_next_time(llm, monkeypatch, tmp_path):
    def fails(method, sample):
        raise WorkError("it was killed")

    measured, changes = [], {"lengths": (96,), "against": [], "results": Results(tmp_path / "rows.jsonl")}
    benched(llm, ["shared"], monkeypatch, peak=fails, **changes)
    for _ in range(2):
        rows, order = benched(llm, ["shared"], monkeypatch, peak=lambda *_: measured.append(1) or MEMORY, **changes)
        assert not order and len(measured) == 1
    by = {row["metric"]: row["value"] for row in read_rows(tmp_path / "rows.jsonl")}
    assert by["working_peak_bytes"] == MEMORY.working_peak and by["reading_memory_bytes"] == 3000
    assert [row["metric"] for row in rows] == ["seconds_to_first_token"]


def test_what_is_compared_with_another_window_is_compared_anew(llm, monkeypatch, tmp_path):
    results = Results(tmp_path / "rows.jsonl")
    for window, ratio in ((64, 1), (32, 0.5), (64, 1), (32, 0.5)):
        rows, order = benched(
            llm, ["shared", "streaming"], monkeypatch, (96,), window, against=["streaming"], results=results
        )
        found = [row["value"] for row in rows if row["metric"] == "first_token_speed_over_streaming"]
        assert found == [pytest.approx(ratio)]
    assert not order and sum("first_token_speed" in row["metric"] for row in read_rows(tmp_path / "rows.jsonl")) == 2


def test_methods_that_were_measured_in_separate_runs_are_compared_too(llm, monkeypatch, tmp_path):
    file = tmp_path / "rows.jsonl"
    for name in ("full", "truncate"):
        benched(llm, [name], monkeypatch, against=[], results=Results(file))
    rows, order = benched(llm, ["shared", "truncate", "full"], monkeypatch, results=Results(file))
    assert {name for name, _ in order} == {"shared"}
    found = {(r["method"], r["length"]): r for r in rows if r["metric"] == "first_token_speed_over_full"}
    assert found.keys() == {(name, n) for name in ("shared", "truncate") for n in (96, 192)}
    assert [found[name, 192]["value"] for name in ("shared", "truncate")] == [pytest.approx(10)] * 2
    assert all(row["separate_runs"] for row in found.values())
    together, _ = benched(llm, ["shared", "full"], monkeypatch)
    assert not any("separate_runs" in row for row in together)


def test_the_longest_text_is_read_by_what_compresses_it(llm, monkeypatch, tmp_path, capsys):
    rows, _ = benched(
        llm, ["retrieval", "shared"], monkeypatch, lengths=(96,), against=[], longest=(500, lambda *_: LONGEST)
    )
    assert (rows[-1]["metric"], rows[-1]["method"]) == ("longest_context_tokens", "shared")
    with pytest.raises(SystemExit):
        main(["bench", "-o", str(tmp_path / "rows.jsonl"), "--methods", "retrieval", "--longest", "500"])
    assert "--longest is for shared" in capsys.readouterr().err
