"""The report: its pages say what the results files say, its profiles are commands that exist, its tables mix nothing."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parent.parent
MACHINE = {
    "processor": "a processor",
    "memory_bytes": 2**34,
    "threads": 2,
    "versions": dict.fromkeys(("sharedllm", "torch", "transformers"), "1"),
}
COMMON = {
    "model": "tiny",
    "adapter": "first",
    "dtype": "float32",
    "device": "cpu",
    "threads": 2,
    "seed": 0,
    "processor": "a processor",
}


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import fill_report

    return fill_report


def nll(method: str, length: int, values: list[float], window: int = 1025) -> dict:
    value = sum(values) / len(values)
    return {
        "task": "perplexity", "metric": "nll", "method": method, "length": length, "value": value, "low": value - 0.1,
        "high": value + 0.1, "samples": len(values), "values": values, "sources": ["a"] * len(values),
        "starts": list(range(len(values))), "window": window, "targets": 1024, **COMMON,
    }  # fmt: skip


def other(task: str, metric: str, method: str, length: int, value: float | None, **more: object) -> dict:
    return {
        "task": task, "metric": metric, "method": method, "length": length, "value": value, "low": value,
        "high": value, "samples": 6, **COMMON, **more,
    }  # fmt: skip


ROWS = [
    nll("truncate", 4096, [3.0, 4.0]), nll("shared", 4096, [2.5, 3.7]), nll("full", 4096, [2.0, 3.0]),
    nll("truncate", 8192, [2.8, 3.8], 8192), nll("shared", 8192, [2.9, 3.9], 4096),
    other("perplexity", "nll", "full", 8192, None, reason="it would take 9 GB"),
    other("needle", "found", "shared", 4096, 0.5),
    other("ruler", "ruler_vt", "shared", 4096, 40.0), other("ruler", "ruler_mean", "shared", 4096, 60.0),
    other("bench", "seconds_to_first_token", "shared", 4096, 5.04, search_seconds=0.2, first_token_seconds=0.3),
    other("bench", "working_peak_bytes", "shared", 4096, 50e6, kept_bytes=20e6),
]  # fmt: skip


def test_each_comparison_has_a_table_of_its_own(report):
    page = report.page("small", ROWS, MACHINE, "We win.\n")
    equal, best = page.split("## Likelihood, best use")
    assert "| truncate | 3.500 [3.000, 4.000] |" in equal and "| shared | 3.100 [2.500, 3.700] |" in equal
    assert "| shared | +0.400 [+0.300, +0.500] |" in equal, "paired by passage"
    assert "8,192" in best.split("## Needles")[0] and "| shared | -0.100 [-0.100, -0.100] |" in best
    assert "3.900" not in equal and "| 3.100" not in best
    assert "- `full` at 8,192: it would take 9 GB." in best
    assert (
        "50 % [19, 81] of 6" in page and "| shared | 5.0, then 0.5 |" in page and "| shared | 50, of them 20 |" in page
    )
    assert page.index("Mean over the tasks") < page.index("`vt`")
    assert "a processor, 16 GiB" in page and "## Reading\n\nWe win.\n" in page


def test_few_targets_are_a_comparison_of_their_own(report):
    few = [
        {**nll("truncate", 8192, [1.5, 1.5], 1024), "targets": 256},
        {**nll("shared", 8192, [1.25, 1.5], 1024), "targets": 256},
    ]
    without, page = (report.page("small", rows, MACHINE, "") for rows in (ROWS, [*few, *ROWS]))
    before, rest = page.split("## Likelihood, equal window and fewer targets")
    section, after = rest.split("## Likelihood, best use")
    assert "| shared | 1.375 [1.250, 1.500] |" in section and "+0.125" in section and "4,096" not in section
    assert before + "## Likelihood, best use" + after == without


def test_a_page_is_of_one_setting_and_says_which(report):
    """Rows of another machine stay in the file; neither tables nor header show them."""
    before = [{**row, "processor": "an old one", "threads": 8} for row in ROWS]
    again = [
        {**nll("shared", 4096, [2.0, 3.0]), "versions": {"sharedllm": "2", "torch": "3", "transformers": "4"}},
        other("needle", "found", "full", 4096, None, reason="it would take 9 GB"),
        other("needle", "found", "truncate", 4096, 0.25),
    ]
    del again[1]["threads"]
    page = report.page("small", [*before, *again], MACHINE, "")
    assert "on cpu with 2 threads (a processor, 16 GiB), seed 0; sharedllm 2, torch 3, transformers 4." in page
    assert "| shared | 2.500 [2.000, 3.000] |" in page and "3.100" not in page and "RULER" not in page
    assert "- `full` at 4,096: it would take 9 GB." in page, "its row has no threads"
    elsewhere = report.page("small", before, MACHINE, "")
    assert "with 8 threads (an old one), seed 0." in elsewhere, (
        "the memory and versions of another machine are not said"
    )


def test_what_is_not_measured_is_left_out_and_what_was_measured_later_counts(report):
    rows = [
        nll("truncate", 4096, [3.0]),
        nll("truncate", 4096, [2.0]),
        {**ROWS[5], "length": 4096, "method": "truncate"},
    ]
    page = report.page("small", [*rows, ROWS[6]], MACHINE, "")
    assert "| truncate | 2.000 |" in page, "one passage has no interval"
    assert "Not read yet" in page
    assert "RULER" not in page and "Time" not in page


def test_bounds_are_of_todays_rule_whatever_a_row_has(report):
    """Rows that were written before shares had Wilson's interval, and what their tasks' intervals add up to."""
    stale = {"low": 1.0, "high": 1.0, "scores": [1] * 6}
    tasks = {"niah_single_2": 100.0, "vt": 0.0}
    rows = [
        other("needle", "found", "shared", 4096, 1.0, **stale),
        *(other("ruler", f"ruler_{name}", "shared", 4096, value) for name, value in tasks.items()),
        other("ruler", "ruler_mean", "shared", 4096, 50.0, subtasks=tasks),
        other("ruler", "ruler_mean", "shared", 8192, 50.0, subtasks=tasks),
    ]
    page = report.page("small", rows, MACHINE, "")
    assert "| shared | 100 % [61, 100] of 6 |" in page
    assert "| shared | 100 [61, 100] |" in page and "| shared | 0 [0, 39] |" in page
    assert "| shared | 50 [30, 70] | 50 |" in page, "without its tasks a mean has no interval"


def test_a_table_has_rows_of_the_same_texts_alone(report):
    """Those of our last row; texts that are asked about differ by length, scored passages do not."""
    rows = [
        {**nll("truncate", 4096, [3.0, 4.0]), "starts": [7, 9]}, nll("shared", 4096, [2.5, 3.7]),
        {**nll("truncate", 8192, [3.0, 4.0]), "sources": ["a", "b"]}, nll("full", 8192, [2.0, 3.0]),
        other("needle", "found", "shared", 4096, 1.0, sources=["a", "b"]), other("needle", "found", "full", 4096, 0.5, sources=["a"]),
        other("needle", "found", "shared", 8192, 1.0, sources=["a"]), other("needle", "found", "full", 8192, 0.5, sources=["a"]),
    ]  # fmt: skip
    likelihood, needles = report.page("small", rows, MACHINE, "").split("## Needles")
    assert "| shared | 3.100 [2.500, 3.700] | not measured |" in likelihood and "truncate |" not in likelihood
    assert "| full | not measured | 50 % [19, 81] of 6 |" in needles
    asked = [other("needle", "found", m, 4096, 0.5, sources=["a"], texts=t) for m, t in (("full", "one"), ("streaming", "two"), ("shared", "two"))]  # fmt: skip
    page = report.page("small", [*asked, other("needle", "found", "truncate", 4096, 0.5, sources=["a"])], MACHINE, "")
    assert "| full |" not in page and all(f"| {m} | 50 %" in page for m in ("streaming", "truncate"))
    means = [other("ruler", "ruler_mean", m, 4096, 50.0, subtasks=dict.fromkeys(t, 50.0)) for m, t in (("full", "ab"), ("shared", "a"))]  # fmt: skip
    assert "| full |" not in report.page("small", means, MACHINE, "")


def test_a_table_is_of_the_last_weights_of_the_adapter(report):
    """Rows that do not say theirs stay, and those of methods that do not read it."""

    def of(weights: str, method: str, length: int, values: list[float]) -> dict:
        return {**nll(method, length, values), "adapter_weights": weights}

    rows = [
        of("before", "shared", 4096, [2.0, 3.0]), of("before", "truncate", 4096, [3.0, 4.0]), of("before", "retrieval", 4096, [2.5, 3.5]),
        of("now", "shared", 8192, [2.5, 3.5]), nll("shared", 16384, [2.6, 3.6]),
    ]  # fmt: skip
    page = report.page("small", rows, MACHINE, "")
    assert "| shared | not measured | 3.000 [2.500, 3.500] | 3.100 [2.600, 3.600] |" in page
    assert "| truncate | 3.500 [3.000, 4.000] | not measured | not measured |" in page and "| retrieval |" not in page


def test_a_page_says_of_what_it_shows_whether_an_earlier_adapter_made_it(report, monkeypatch, tmp_path):
    import fill_goals

    measured = tmp_path / "adapter.jsonl"
    measured.write_text(json.dumps({"method": "shared", "adapter": "first", "adapter_weights": "now"}) + "\n")
    monkeypatch.setattr(fill_goals, "MEASURED", measured)
    before, again = nll("shared", 4096, [2.5]), {**nll("shared", 4096, [2.0]), "adapter_weights": "now"}
    without = other("bench", "break_even_tokens", "shared", 8192, None, reason="faster at every length measured")
    assert "Measured with an earlier adapter" in report.page("small", [before], MACHINE, "")
    assert "earlier adapter" not in report.page("small", [before, without, again], MACHINE, "")
    assert "Partly measured" in report.page("small", [before, {**again, "length": 8192}], MACHINE, "")


def test_an_equal_window_says_what_is_seen_besides(report):
    """Slots beside it, and passages, as far as rows say their settings."""
    settings = {"injected_layers": 24, "chunk_length": 1024, "tree_depth": 3, "slots_per_leaf": 32, "fine_chunks": 1, "read_chunks": 8}  # fmt: skip
    ours = [{**nll("shared", n, [2.5, 3.5]), **settings} for n in (4096, 8192)]
    page = report.page("small", [nll("truncate", 4096, [3.0, 4.0]), *ours], MACHINE, "")
    assert "`truncate` sees 1,025 tokens; `shared`" in page and "1,279 to 1,791 slots besides, in 24 layers." in page
    passages = {**nll("retrieval", 4096, [3.0, 4.0]), "quoted_tokens": 256}
    assert "1,025 tokens and `retrieval` 256 more; `shared`" in report.page("small", [passages, *ours], MACHINE, "")
    assert "slots besides" not in report.page("small", ROWS, MACHINE, "")


def test_a_text_that_was_read_again_has_no_time_of_a_further_question(report):
    about = {"search_seconds": 0.1, "first_token_seconds": 6.9}
    row = other("bench", "seconds_to_first_token", "full", 4096, 7.0, **about)
    assert "| full | 7.0, then not measured |" in report.page("small", [row], MACHINE, "")
    assert "| full | 7.0, then 7.0 |" in report.page("small", [{**row, "read_once": True}], MACHINE, "")


def test_a_page_says_what_its_figures_are_of(report):
    """Few passages, and what was measured in a way that is no longer taken."""
    page = report.page("small", ROWS, MACHINE, "")
    few, order, searched = "five passages the interval is their range", "before the prompt", "weighed by nearness"
    assert few in page and order not in page
    equal, best = page.split("## Likelihood, best use")
    assert searched in best and searched not in equal
    rows = [nll(method, 8192, [2.0] * 5, 4096) for method in ("truncate", "shared")]
    rows[1]["searched_by"] = 256
    rows.append(other("needle", "found", "streaming", 4096, 0.5, scores=[1, 0], read_in_prompt=True))
    assert not any(words in report.page("small", rows, MACHINE, "") for words in (few, order, searched))
    del rows[2]["read_in_prompt"]
    assert order in report.page("small", rows, MACHINE, "").split("## Needles")[1]


def test_the_pages_say_what_the_results_files_say(report):
    for name in report.PROFILES:
        file = report.rows_file(name)
        if file.is_file():
            assert file.with_suffix(".md").read_text(encoding="utf-8") == report.made(name), (
                f"run python tools/fill_report.py {name}"
            )


@pytest.mark.parametrize("name", ["small", "full"])
def test_the_steps_are_commands_that_exist(report, name):
    from sharedllm.cli import app, common
    from sharedllm.cli.evaluate.tasks import TASKS

    known = typer.main.get_command(app).commands
    steps = report.commands(name, Path("rows.jsonl"))
    assert {step[0] for step in steps} == {"eval", "bench"}
    for command, *arguments in steps:
        given = known[command].make_context(command, arguments).params
        methods = common.method_names(given["methods"])
        common.windows(given["window"], methods)
        common.numbers_by_method("--at-most", given.get("at_most", ""), methods)
        assert command == "bench" or given["task"] in TASKS
        assert given["text"] and common.positive_numbers("--lengths", given["lengths"])


def test_the_longest_text_is_timed_for_our_method(report):
    """The budget of the full report is above what rows that were left out for it say that `shared` takes."""
    benches = [step for step in report.commands("full", Path("rows.jsonl")) if step[0] == "bench"]
    budget = min(float(bench[bench.index("--budget") + 1]) for bench in benches)
    ours = [row for row in report.read_rows(report.rows_file("full")) if row["method"] == "shared" and "reason" in row]
    taken = [re.match(r"one measurement would take about ([\d,]+) s", row["reason"]) for row in ours]
    assert all(float(found[1].replace(",", "")) < budget for found in taken if found)


def test_times_of_several_rounds_have_their_least_and_most(report):
    rounds = {
        "read_seconds": [4.0, 6.0, 5.0],
        "search_seconds": [0.2, 0.1, 0.3],
        "first_token_seconds": [0.3, 0.4, 0.5],
    }
    about = {"search_seconds": 0.2, "first_token_seconds": 0.4}
    row = other("bench", "seconds_to_first_token", "shared", 4096, 5.8, rounds=rounds, **about)
    assert "| shared | 5.8 (4.5 to 6.5), then 0.6 (0.5 to 0.8) |" in report.page("small", [row], MACHINE, "")
    one = {**row, "rounds": {name: values[:1] for name, values in rounds.items()}}
    assert "| shared | 5.8, then 0.6 |" in report.page("small", [one], MACHINE, "")
    blocks = "blocks of 128 tokens"
    streaming = [{**row, "method": "streaming", **said} for said in ({}, {"block": 256})]
    assert [blocks in report.page("small", [found], MACHINE, "") for found in (row, *streaming)] == [False, True, False]


def test_a_page_says_which_commands_left_its_rows(report, monkeypatch, tmp_path):
    """Those that were recorded as they ran, whatever the profile says today."""
    import run_report

    def how(machine: dict) -> str:
        return report.page("small", ROWS, machine, "").split("## How it was made")[1]

    assert "was not recorded" in how(MACHINE) and "sharedllm bench" in how(MACHINE)
    monkeypatch.setattr(run_report, "DOCS", tmp_path / "docs")
    (tmp_path / "docs/results").mkdir(parents=True)
    known = run_report.recorded("small")
    for command in (["eval", "a", "-o", f"{tmp_path}/docs/a"], ["bench"], ["eval", "a", "-o", f"{tmp_path}/docs/a"]):
        known = run_report.record("small", json.dumps(MACHINE), known, run_report.as_typed(command))
    machine = json.loads(run_report.machine_file("small").read_text())
    assert machine.items() >= MACHINE.items()
    assert how(machine).strip() == "```\nsharedllm bench\nsharedllm eval a -o docs/a\n```"
    run_report.rows_file("small").write_text("")
    assert run_report.recorded("small") == known
    run_report.machine_file("small").write_text(json.dumps(MACHINE))
    known = run_report.record("small", json.dumps(MACHINE), run_report.recorded("small"), "sharedllm bench")
    assert known["unrecorded"] and run_report.recorded("small") == known
    machine = json.loads(run_report.machine_file("small").read_text())
    assert "before it was recorded" in how(machine) and "was not recorded" not in how(machine)


def test_kvpress_stands_beside_ours_at_equal_bytes(report):
    def row(method: str, metric: str, value: float, **more: object) -> dict:
        return {"method": method, "metric": metric, "length": 8192, "value": value, "low": 0.1, "high": 0.9, **more}

    ours = [row("shared", "found", 0.5), row("shared", "nll", 2.5), row("full", "nll", 2.4)]
    more = {"budget": "stored_bytes", "bytes_kept": 7_700_000, "allowed_bytes": 7_710_000}
    theirs = [row("kvpress-snapkv", "found", 0.25, **more)]
    theirs.append(row("kvpress-snapkv", "nll", 2.75, **{**more, "allowed_bytes": 6_800_000}))
    theirs.append(row("kvpress-snapkv", "found", 0.25, budget="attended_bytes", bytes_kept=1, allowed_bytes=320_000))
    page = report.page("full", ROWS, MACHINE, "We win.", [*ours, *theirs])
    assert (
        "| kvpress-snapkv | kept for any question | 7.7 | 25 % [10, 90] | 2.750 [0.100, 0.900] | not measured |" in page
    )
    assert (
        "| kvpress-snapkv | attended to by one question | 0.0 | 25 % [10, 90] | not measured | not measured |" in page
    )
    assert "packed to 4 bits a number and theirs has 16" in page and "what `shared` takes after it has seen it" in page
    kept = "7.7 kept for any question, 0.3 attended to by one question"
    assert f"| shared |  | {kept} | 50 % [10, 90] | 2.500 [0.100, 0.900] |  |" in page
    same = {"sources": ["a", "b"], "starts": [0, 9], "targets": 4}
    scored = [{**ours[1], **same, "values": [2.0, 3.0]}, {**theirs[1], **same, "values": [2.5, 3.0]}]
    page = report.page("full", ROWS, MACHINE, "We win.", scored)
    assert "| +0.250 [+0.000, +0.500] |" in page, "on the same passages"
    assert "kvpress" not in report.page("full", ROWS, MACHINE, "We win.", ours)
