"""Figures of scores, and of quality against cost: which rows make which point."""

from __future__ import annotations

from pathlib import Path

import pytest

from sharedllm.plot import scores, speed, tradeoff
from sharedllm.plot.figure import compose, plan
from sharedllm.plot.rows import Row
from tests.test_plot import found, nll
from tests.test_plot_speed import memory, time

CPU = {"device": "cpu", "threads": 2}


def rows(*values: dict) -> list[Row]:
    return [Row(value, Path("rows.jsonl"), number) for number, value in enumerate(values, 1)]


def score(metric: str, method: str, length: int, value: float | None, task: str = "ruler", **more: object) -> dict:
    return {
        "task": task, "metric": metric, "method": method, "length": length, "value": value, "low": value, "high": value,
        "samples": 4, "model": "tiny", "adapter": "first", "dtype": "float32", **more,
    }  # fmt: skip


RULER = [
    score("ruler_vt", "shared", 4096, 40.0), score("ruler_vt", "full", 4096, 80.0), score("ruler_vt", "full", 8192, 20.0),
    score("ruler_mean", "shared", 4096, 50.0), score("ruler_mean", "full", 4096, 70.0),
    score("ruler_effective_length", "shared", 4096, 0),
]  # fmt: skip


def drawn(axes) -> list[tuple[list[float], list[float]]]:
    return [(list(map(float, x.get_xdata())), list(map(float, x.get_ydata()))) for x in axes.lines]


def test_a_panel_a_task_and_the_mean_first():
    again = score("ruler_vt", "shared", 4096, 45.0)
    (strip,) = (planned := plan(rows(*RULER, again, score("ruler_vt", "yarn", 4096, None, reason="no")))).strips
    assert strip.kind == "ruler" and "4 answers a point" in strip.below
    assert any("later rows measured the same again: 1" in note for note in planned.notes)
    mean, vt = compose(planned).axes
    assert (mean.get_title(), vt.get_title()) == ("mean over the tasks", "vt")
    assert drawn(mean) == [([4096], [50]), ([4096], [70])]
    assert drawn(vt) == [([4096], [45]), ([4096, 8192], [80, 20])]


def test_tasks_models_and_dtypes_are_never_mixed():
    others = [score("f1", "shared", 4096, 0.2, task="questions"), {**RULER[0], "model": "large"}]
    boards = scores.boards(rows(*RULER, *others))
    assert [(b.task, b.model) for b in boards] == [("questions", "tiny"), ("ruler", "large"), ("ruler", "tiny")]


def test_other_texts_have_a_board_of_their_own():
    """What was measured last comes first; no row replaces one of other texts."""
    others = [score("f1", "shared", n, 0.2, task="questions", sources=["a"]) for n in (4096, 8192)]
    newer = [score("f1", m, 4096, 0.4, task="questions", sources=["b", "b"]) for m in ("shared", "full")]
    first, second = scores.boards(rows(*others, *newer))
    at = [{line.method: {n: p.value for n, p in by.items()} for line, by in b.panels["f1"].items()} for b in (first, second)]  # fmt: skip
    assert at == [{"shared": {8192: 0.2, 4096: 0.4}, "full": {4096: 0.4}}, {"shared": {4096: 0.2}}]
    assert not (first.replaced or second.replaced) and "on other texts" not in scores.title(first)[1]
    assert "measured before, on other texts" in scores.title(second)[1]


def test_rows_of_one_source_are_told_apart_by_what_was_read_there():
    """At one length; a row from before rows said it counts as of what was read last."""
    before = score("f1", "retrieval", 4096, 0.1, task="questions", sources=["a"])
    older = [score("f1", m, 4096, 0.2, task="questions", sources=["a"], texts="one") for m in ("shared", "full")]
    newer = [score("f1", "shared", n, 0.4, task="questions", sources=["a"], texts=f"two {n}") for n in (4096, 8192)]
    first, second = scores.boards(rows(before, *older, *newer))
    at = [{line.method: {n: p.value for n, p in by.items()} for line, by in b.panels["f1"].items()} for b in (first, second)]  # fmt: skip
    assert at == [
        {"shared": {4096: 0.4, 8192: 0.4}, "retrieval": {4096: 0.1}}, {"shared": {4096: 0.2}, "full": {4096: 0.2}},
    ]  # fmt: skip
    assert not (first.replaced or second.replaced)


def test_means_over_other_tasks_share_no_line():
    two, more = {"vt": 40.0, "cwe": 60.0}, {name: 10.0 for name in ("vt", "cwe", "fwe", "qa_1")}
    means = [score("ruler_mean", "shared", n, 50.0, subtasks=two) for n in (4096, 8192)]
    wider = [score("ruler_mean", "shared", 16384, 10.0, subtasks=more), score("ruler_fwe", "shared", 16384, 10.0)]
    last, before = scores.boards(rows(*RULER[:3], *means, *wider))
    assert [list(board.panels) for board in (last, before)] == [["ruler_mean", "ruler_vt", "ruler_fwe"], ["ruler_mean"]]
    assert [[*by] for board in (last, before) for by in board.panels["ruler_mean"].values()] == [[16384], [4096, 8192]]
    assert "over 4 tasks" in scores.title(last)[1] and "over vt, cwe" in scores.title(before)[1]
    (alone,) = scores.boards(rows(*RULER[:3], *means))
    assert "over" not in scores.title(alone)[1]


QUALITY = [
    nll("shared", 4096, 2.5), nll("full", 4096, 2.0), nll("shared", 8192, 2.4), nll("yarn", 4096, 2.2),
    nll("truncate", 4096, 1.5, window=4096), nll("truncate", 8192, 1.0, window=4096),
    found("shared", 4096, [0.2, 0.8], [1, 0]), found("full", 4096, [0.2, 0.8], [1, 1]),
]  # fmt: skip
COSTS = [
    time("shared", 4096, 3.0), time("shared", 8192, 6.0), time("full", 4096, 4.0), time("truncate", 4096, 1.0),
    memory("shared", 4096, 20e6), memory("full", 4096, 90e6),
]  # fmt: skip


def test_a_point_has_quality_and_cost_at_its_length():
    strips = plan(rows(*QUALITY, *RULER, *COSTS)).strips
    assert strips[-1].kind == "quality and cost"
    (trade,) = [strip.draw.args[0] for strip in strips if strip.kind == "quality and cost"]
    by = {
        (panel.cost, panel.label.split("\n")[0]): {line.method: [(p.length, p.cost, p.quality) for p in points] for line, points in panel.points.items()}
        for row in trade.panels
        for panel in row
    }  # fmt: skip
    seconds, megabytes = tradeoff.LABELS
    assert by[seconds, "nats per token"] == {"shared": [(4096, 3, 2.5), (8192, 6, 2.4)], "full": [(4096, 4, 2.0)]}
    assert by[megabytes, "needles found, %"] == {"shared": [(4096, 20, 50)], "full": [(4096, 90, 100)]}
    assert by[megabytes, "RULER, mean over the tasks"] == {"shared": [(4096, 20, 50)], "full": [(4096, 90, 70)]}
    assert len(by) == 6, "a large window is another comparison, and a task of RULER is in its mean"


def test_other_passages_are_a_quality_of_their_own():
    nats = [row for row in QUALITY if row["task"] == "perplexity"]
    others = [{**row, "samples": 2, "value": row["value"] + 1} for row in nats]
    (trade,) = [s.draw.args[0] for s in plan(rows(*nats, *others, *COSTS)).strips if s.kind == "quality and cost"]
    labels = [[panel.label.split("\n")[1] for panel in row] for row in trade.panels]
    assert labels == [["3 passages of 2 texts"] * 2, ["2 passages of 2 texts"] * 2]


def test_what_likelihoods_axis_does_not_reach_is_no_quality():
    far = [nll("full", 8192, 9.0, beyond_window=True), time("full", 8192, 9.0)]
    (trade,) = [s.draw.args[0] for s in plan(rows(*QUALITY, *COSTS, *far)).strips if s.kind == "quality and cost"]
    (panel,) = (p for row in trade.panels for p in row if p.cost == speed.TIME and p.label.startswith("nats"))
    at = {line.method: [point.length for point in points] for line, points in panel.points.items()}
    assert at == {"shared": [4096, 8192], "full": [4096]}


@pytest.mark.parametrize("costs", [[], [{**cost, "dtype": "bfloat16"} for cost in COSTS], COSTS[:2]])
def test_without_costs_of_two_methods_there_is_nothing_to_compare(costs):
    assert "quality and cost" not in {strip.kind for strip in plan(rows(*QUALITY, *costs)).strips}


def test_quality_and_cost_are_drawn():
    axes = compose(plan(rows(*QUALITY, *RULER, *COSTS))).axes
    last = axes[-6:]
    assert [a.get_xscale() for a in last] == ["log"] * 6 and "lower is better" in last[0].get_ylabel()
    assert drawn(last[0]) == [([3, 6], [2.5, 2.4]), ([4], [2])]
    assert [text.get_text() for text in last[0].texts] == ["4K", "8K", "4K"]


def test_quality_has_the_cost_of_its_own_window():
    """Answers say the window that they were given, scored passages have the panel's, costs their own."""
    quality = [nll("truncate", 4096, 2.0), nll("shared", 4096, 2.5)]
    quality += [found(m, 4096, [0.5], [1], given_window=1024) for m in ("truncate", "shared")]
    costs = [time(m, 4096, s, window=w) for m, s, w in (("truncate", 1.0, 1024), ("truncate", 9.0, 8192), ("shared", 3.0, 1024))]  # fmt: skip
    (trade,) = [s.draw.args[0] for s in plan(rows(*quality, *costs)).strips if s.kind == "quality and cost"]
    points = [[(line.method, p.cost) for line, (p,) in panel.points.items()] for (panel,) in trade.panels]
    assert points == [[("shared", 3.0), ("truncate", 1.0)]] * 2
