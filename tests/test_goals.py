"""The page of goals: made-up rows in the places where they belong; the commands that measure them; the page in step."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from sharedllm.evaluate.speed import limits

ROOT = Path(__file__).parent.parent
K = 1024
COMMON = {
    "task": "bench",
    "model": "tiny",
    "adapter": "first",
    "dtype": "float32",
    "device": "cpu",
    "processor": "tiny",
    "threads": 2,
}


@pytest.fixture
def goals(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import fill_goals

    return fill_goals


def row(metric: str, length: int, value: float | None, method: str = "shared", **more: object) -> dict:
    given = {"metric": metric, "length": length, "value": value, "low": value, "high": value, "samples": 1}
    return {**COMMON, "method": method, **given, **more}


def ratio(metric: str, length: int, value: float, ours: float, other: float, goal: str, met: bool, **more) -> dict:
    return row(metric, length, value, **{"ours": ours, "other": other, "unit": "s", "goal": goal, "met": met, **more})


def read_speed(length: int, value: float, met: bool, **more: object) -> dict:
    return ratio("read_speed_over_bare", length, value, 40.0, 40 * value, "at least 0.9", met, **more)


SIZES = {"unit": "bytes"}
COMPACT = "shared-compact"
ROWS = [
    read_speed(8 * K, 0.5, False),
    read_speed(16 * K, 0.95, True),
    read_speed(128 * K, 0.92, True, samples=3, low=0.91, high=0.93),
    ratio("first_token_speed_over_full", 32 * K, 6.5, 10.0, 65.0, "at least 5", True, against="full"),
    ratio("first_token_speed_over_streaming", 32 * K, 1.5, 10.0, 15.0, "at least 2", False, against="streaming"),
    ratio("first_token_speed_over_full", 32 * K, 9, 1.0, 9.0, "at least 5", True, against="full", method="truncate"),
    row("first_token_speed_over_encoder-decoder", 8 * K, 9.0, ours=1, other=9, unit="s"),
    ratio("full_cache_over_attended", 128 * K, 100.0, 131072 * 20, 131072 * 2000, "at least 30", True, **SIZES),
    ratio("full_cache_over_kept", 128 * K, 16.0, 131072 * 140, 131072 * 2240, "at least 10", True, method=COMPACT, **SIZES),
    ratio("second_over_first", 128 * K, 0.025, 2.0, 80.0, "at most 0.05", True, method=COMPACT),
    ratio("per_token_over_alone", 128 * K, 1.3, 0.039, 0.03, "at most 1.25", False),
    ratio("per_token_over_alone", 8 * K, 1.9, 0.057, 0.03, "at most 1.25", False),
    row(limits.READING, 128 * K, None, reason="it was killed"),
    ratio(limits.READING, 128 * K, 250e6, 950e6, 700e6, "at most 300,000,000 bytes", True, **SIZES),
    ratio(limits.GROWTH, 128 * K, 1.02, 250e6, 245e6, "at most 1.25", True, **SIZES),
    row(
        limits.LONGEST, 10**6, 10**6, read_seconds=333.3, peak_memory_bytes=5 * 2**30, allowed_bytes=24 * 2**30,
        goal="at least 1,000,000 tokens", met=True,
    ),
    row(
        "break_even_tokens", 8 * K, None, against="full", lengths=[K, 8 * K],
        reason="faster at every length measured, from 1,024 tokens",
    ),
    row(
        "break_even_tokens", 32 * K, None, against="full", lengths=[4 * K, 32 * K],
        reason="faster at every length measured, from 4,096 tokens",
    ),
    row("break_even_tokens", 32 * K, 5000.0, against="streaming", lengths=[K, 32 * K]),
    row(
        "seconds_to_first_token", 128 * K, 44.0, read_seconds=43.5, bare_read_seconds=40.0, floor_seconds=31.0,
        multiply_adds=11e12, weight_bytes_read=22e9, multiply_adds_a_second=355e9, bytes_a_second=12e9,
    ),
]  # fmt: skip


def lines(page: str) -> list[str]:
    return [line for line in page.splitlines() if re.match(r"\| (\d|– )", line)]


def test_each_goal_has_the_row_that_answers_it(goals):
    page = goals.page(ROWS)
    found = lines(page)[: len(goals.GOALS)]
    assert [line.rsplit(" | ", 5)[1:] for line in found] == [
        ["40 s", "36.8 s", "0.92 [0.91, 0.93]", "at least 0.9", "met |"],
        ["10 s", "65 s", "6.5, one round", "at least 5", "met |"],
        ["10 s", "15 s", "1.5, one round", "at least 2", "missed |"],
        ["not measured", "", "", "", " |"],
        ["20 bytes", "2,000 bytes", "100", "at least 30", "met |"],
        ["not measured", "", "", "", " |"],
        ["140 bytes", "2,240 bytes", "16", "at least 10", "met |"],
        ["0.039 s", "0.03 s", "1.3, one round", "at most 1.25", "missed |"],
        ["not measured", "", "", "", " |"],
        ["2 s", "80 s", "0.025, one round", "at most 0.05", "met |"],
        *[["not measured", "", "", "", " |"]] * 6,
        ["950 MB", "700 MB", "250 MB more", "at most 300 MB", "met |"],
        ["250 MB", "245 MB", "1.02", "at most 1.25", "met |"],
        ["1,000,000 tokens in 333 s, 5.0 GiB", "24 GiB", "", "at least 1,000,000 tokens", "met |"],
        ["–", "", "", "", " |"],
    ]
    assert "from: faster at every length measured, from 1,024 tokens.\n" in page
    assert "Model tiny, adapter first, float32, on cpu (tiny) with 2 threads." in page
    assert "| 131,072 | 43.5 s | 40 s | 31 s | 11 T | 22 GB | 355 G/s, 12.0 GB/s |" in page


def test_what_was_measured_later_and_with_the_same_model_counts(goals):
    other = {"model": "large"}
    page = goals.page([read_speed(16 * K, 0.4, False, **other), *ROWS, read_speed(128 * K, 0.99, True, samples=3)])
    assert "| 0.95, one round | at least 0.9 | met |" in page and "0.4" not in page and "0.92" not in page
    crossed = row("break_even_tokens", 4 * K, 1500.0, against="full", lengths=[K, 4 * K])
    assert lines(goals.page([crossed, *ROWS]))[19].endswith("| 1,500 tokens |  |  |  |  |")
    assert "| 1 |" in goals.page([]) and "Nothing measured yet." in goals.page([])


def test_a_further_question_has_figures_without_a_goal(goals):
    """Of the most rounds, whatever was measured once after them."""
    about = {"unit": "s", "against": "full"}
    often = row("second_question_speed_over_full", 8 * K, 0.412, ours=0.69, other=0.28, **about)
    often |= {"samples": 3, "low": 0.369, "high": 0.415}
    once = {**often, "value": 0.298, "samples": 1}
    even = row("second_question_speed_over_full", 32 * K, 1.0048, ours=0.853, other=0.857, **about)
    page, short = (made([*ROWS, often, once, even]) for made in (goals.page, goals.short_table))
    assert (
        "| – | A further question at 8K; other: `full`, whose cache is kept | 0.69 s | 0.28 s | 0.412 [0.369, 0.415] |  |  |"
        in page
    )
    assert "| 0.853 s | 0.857 s | 1.00, one round |  |  |" in page and "0.298" not in page
    assert "full attention, whose cache is kept | 0.412 [0.369, 0.415] times |  |  |" in short
    assert "| The same at 32K | 1.00 times, one round |  |  |" in short
    assert (
        goals.best([often, once], often["metric"], 8 * K) == often
        and goals.best([even], often["metric"], 8 * K) is None
    )


def test_the_crossing_says_that_short_texts_are_read_plainly_by_ask(goals):
    assert all(
        "`ask` reads as the plain model does what fits" in made(ROWS) for made in (goals.page, goals.short_table)
    )


def test_a_ratio_of_two_runs_says_so(goals):
    apart = ratio(
        "first_token_speed_over_full", 32 * K, 7.5, 10.0, 75.0, "at least 5", True, against="full", separate_runs=True
    )
    assert "| 7.5, one round, both sides in separate runs | at least 5 | met |" in goals.page([*ROWS, apart])
    assert "| 7.5 times, one round, both sides in separate runs | at least 5 | met |" in goals.short_table(
        [*ROWS, apart]
    )
    for made in (goals.page(ROWS), goals.short_table(ROWS)):
        assert "separate runs" not in made
    assert "Goal 1 compares with the lowest layers run to their end" in goals.page(ROWS)


def test_the_floor_is_said_beside_the_median_of_most_rounds(goals):
    (timed,) = (row for row in ROWS if row["metric"] == "seconds_to_first_token")
    thrice, once = {**timed, "read_seconds": 42.5, "samples": 3}, {**timed, "read_seconds": 47.5}
    page = goals.page([*ROWS, thrice, once])
    assert "| 131,072 | 42.5 s |" in page and "47.5 s" not in page


def test_the_goals_are_metrics_of_bench(goals):
    known = (
        {limit.metric for limit in limits.LIMITS}
        | limits.KEPT.keys()
        | {f"{which}_speed_over_{n}" for n in limits.FASTER for which in ("first_token", "second_question")}
    )
    known |= {limits.READING, limits.GROWTH, limits.LONGEST, "break_even_tokens"}
    assert {asked.metric for asked in goals.GOALS} == known
    assert {asked.number for asked in goals.GOALS} == {*range(1, 10), None}
    assert all(asked.low == limits.FASTER_LENGTH for asked in goals.GOALS if "first_token" in asked.metric)


def steps() -> list[list[str]]:
    """The arguments of every `bench` of `make goals`."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8").replace("\\\n", " ")
    recipe = re.search(r"^goals:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert recipe is not None
    return [shlex.split(line)[1:] for line in recipe[1].splitlines() if line.startswith("\t$(BIN)/sharedllm")]


def test_make_goals_measures_every_goal(goals):
    from sharedllm.cli import app, common

    bench = typer.main.get_command(app).commands["bench"]
    measured = set()
    *rounds, (plot, rows_file, *_) = steps()
    assert (plot, rows_file) == ("plot", "$(GOALS)")
    for command, *arguments in rounds:
        given = bench.make_context("bench", arguments).params
        assert command == "bench" and given["output"] == Path("$(GOALS)")
        names, against = common.method_names(given["methods"]), (given["against"] or "").split(",")
        assert {"shared", "shared-compact"} & {*names}
        for n in common.positive_numbers("--lengths", given["lengths"]):
            measured |= {("time", n) if "shared" in names else ("compact", n)} | {
                (name, n) for name in names if name in against
            }
            measured |= {("memory", n)} if given["memory"] else set()
        measured |= {("longest", given["longest"])}
    wanted = {("time", n * K) for n in (16, 128)} | {("memory", n * K) for n in (16, 128)}
    wanted |= (
        {("compact", 128 * K)}
        | {(name, limits.FASTER_LENGTH) for name in limits.FASTER}
        | {("longest", int(limits.LONGEST_GOAL.value))}
    )
    assert wanted <= measured


def test_the_page_says_what_the_results_file_says(goals):
    if goals.ROWS.is_file():
        from sharedllm.evaluate.results import read_rows

        assert goals.PAGE.read_text(encoding="utf-8") == goals.page(read_rows(goals.ROWS)), (
            "run python tools/fill_goals.py"
        )


def test_the_page_says_which_rows_are_of_other_weights(goals, monkeypatch, tmp_path):
    """Those that ship are what the rows of `make measure` were measured with; another adapter is told by its name."""
    measured = tmp_path / "adapter.jsonl"
    measured.write_text(json.dumps({"method": "shared", "adapter": "first", "adapter_weights": "now"}) + "\n")
    monkeypatch.setattr(goals, "MEASURED", measured)
    now, before = ROWS[1] | {"adapter_weights": "now"}, ROWS[3] | {"adapter_weights": "before"}
    said = "earlier adapter of that name"
    assert f"Measured with an {said}" in goals.page([before]) and f"Measured with an {said}" in goals.page(ROWS[1:3])
    assert f"Partly measured with an {said}" in goals.page([before, now])
    assert said not in goals.page([now]) and said not in goals.page([before | {"adapter": "another"}])
    without = [row for row in ROWS if row["value"] is None]
    assert said not in goals.page([now, *without]), "a row without a value is of no weights"
