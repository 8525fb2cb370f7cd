"""`sharedllm plot`: what is drawn of which rows, that the files are pictures, one sentence for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib import rc_context
from matplotlib.colors import to_hex, to_rgb
from PIL import Image
from pypdf import PdfReader

from sharedllm.cli import main
from sharedllm.plot import lines, needle, perplexity, training
from sharedllm.plot.figure import compose, plan
from sharedllm.plot.lines import CYCLE, LOOKS, SHARED, Line, length_name
from sharedllm.plot.page import DARK, INK, PAPER, STYLE, on_page
from sharedllm.plot.rows import Row

SAMPLES = [0.0, 0.2, 0.4]


def rows(*values: dict, file: str = "rows.jsonl") -> list[Row]:
    return [Row(row, Path(file), number) for number, row in enumerate(values, 1)]


def nll(method: str, length: int, value: float, window: int = 1025, **more: object) -> dict:
    return {
        "task": "perplexity", "metric": "nll", "method": method, "length": length, "value": value, "low": value - 0.1,
        "high": value + 0.1, "samples": 3, "targets": 1024, "window": window, "model": "tiny", "adapter": "first",
        "dtype": "float32", "sources": ["a", "a", "b"], "values": [value + s - 0.2 for s in SAMPLES], **more,
    }  # fmt: skip


def found(method: str, length: int, depths: list[float], hits: list[int], **more: object) -> dict:
    return {
        "task": "needle", "metric": "found", "method": method, "length": length, "value": sum(hits) / len(hits),
        "depths": depths, "found": hits, "model": "tiny", "adapter": "first", "dtype": "float32", "seed": 0, **more,
    }  # fmt: skip


STEPS = [{"step": s, "loss": 3.0 - 0.1 * s, "kinds": ["code"], "target_tokens": 10 * s} for s in range(1, 41)]
CHECKS = [
    {"step": 20, "held_out_without": 3.0, "held_out_with": 2.9, "held_out_gain": {"code": 0.15, "prose": 0.05}},
    {"step": 40, "held_out_without": 3.0, "held_out_with": 2.8, "held_out_gain": {"code": 0.3}},
]
EQUAL = [nll("truncate", 8192, 3.0), nll("shared", 8192, 2.9), nll("full", 8192, 2.6), nll("shared", 65536, 2.95)]
BEST = [nll("truncate", 65536, 2.7, 8192), nll("shared", 65536, 2.65, 8192)]
NEEDLES = [found(m, n, [k / 8 for k in range(8)], [1] * 4 + [0] * 4) for m in ("truncate", "shared") for n in (64, 128)]


def by_method(setting: perplexity.Setting) -> dict[str, dict[int, float]]:
    return {line.method: {p.length: p.nll for p in points} for line, points in setting.points.items()}


def test_windows_and_targets_are_never_mixed():
    other = nll("shared", 8192, 1.0, targets=512)
    found = {(s.window, s.targets): by_method(s) for s in perplexity.settings(rows(*EQUAL, *BEST, other))}
    assert found == {
        (1025, 512): {"shared": {8192: 1.0}},
        (1025, 1024): {"shared": {8192: 2.9, 65536: 2.95}, "truncate": {8192: 3.0}, "full": {8192: 2.6}},
        (8192, 1024): {"shared": {65536: 2.65}, "truncate": {65536: 2.7}, "full": {8192: 2.6}},
    }


def test_a_large_window_stands_beside_the_best_that_truncate_does():
    """`--window truncate=8192,shared=4096`: what `shared` wins or loses there is in one panel, and in no other."""
    best = [nll("truncate", 4096, 2.9, 4096), *(nll("truncate", n, 2.7, 8192) for n in (8192, 65536))]
    ours = [nll("shared", 4096, 2.9, 4096), *(nll("shared", n, 2.75, 4096) for n in (8192, 65536))]
    equal, large = perplexity.settings(rows(*EQUAL, *best, *ours))
    assert (equal.window, large.window) == (1025, 4096)
    assert by_method(large) == {
        "shared": {4096: 2.9, 8192: 2.75, 65536: 2.75},
        "truncate": {4096: 2.9, 8192: 2.7, 65536: 2.7},
        "full": {8192: 2.6},
    }
    (line,) = (line for line in large.points if line.method == "shared")
    assert {n: round(gain.nats, 3) for n, gain in large.gains(line).items()} == {4096: 0, 8192: -0.05, 65536: -0.05}
    others = [nll("truncate", 8192, 1.0, 8192, sources=["c", "c", "c"]), nll("full", 16384, 1.0, starts=[9, 9, 9])]
    assert large in perplexity.settings(rows(*EQUAL, *best, *ours, *others)), "nothing of other passages"
    legend = [text.get_text() for text in compose(plan(rows(*EQUAL, *best, *ours))).subfigs[1].legends[0].get_texts()]
    assert "truncate: the window alone, 8,192 of it" in legend
    assert "won over truncate of 8,192 tokens, paired" in perplexity.title(large)[1]


def test_a_larger_window_of_truncate_is_a_control():
    """Where `shared` has no large window it stands beside the equal one, over which gains are all the same."""
    (setting,) = perplexity.settings(rows(*EQUAL, nll("truncate", 8192, 2.8, 2816)))
    own, control = (line for line in setting.points if line.method == "truncate")
    (ours,) = (line for line in setting.points if line.method == "shared")
    assert (setting.window, own.window, control.window) == (1025, 0, 2816)
    assert setting.gains(ours)[8192].nats == pytest.approx(0.1) and not setting.gains(own)
    assert setting.gains(control)[8192].nats == pytest.approx(0.2)
    assert "over truncate, paired" in perplexity.title(setting)[1]


def test_models_and_dtypes_are_never_mixed():
    others = [nll("shared", 8192, 2.0, model="large"), nll("shared", 8192, 2.1, dtype="bfloat16")]
    found = {(s.model, s.dtype): by_method(s)["shared"] for s in perplexity.settings(rows(EQUAL[1], *others))}
    assert found == {
        ("tiny", "float32"): {8192: 2.9}, ("large", "float32"): {8192: 2.0}, ("tiny", "bfloat16"): {8192: 2.1}
    }  # fmt: skip


def test_a_text_that_fits_its_window_joins_the_setting_it_was_measured_for():
    """Asked for a window of 8,192, a text of 4,096 tokens is given a row with window 4,096."""
    whole = [nll("shared", 4096, 2.8, 4096), nll("shared", 8192, 2.7, 8192)]
    found = {s.window: by_method(s)["shared"] for s in perplexity.settings(rows(*EQUAL, *BEST, *whole))}
    assert found == {1025: {8192: 2.9, 65536: 2.95}, 8192: {4096: 2.8, 8192: 2.7, 65536: 2.65}}
    (alone,) = perplexity.settings(rows(*whole))
    assert (alone.window, by_method(alone)["shared"]) == (8192, {4096: 2.8, 8192: 2.7})


def test_rows_that_say_why_there_is_no_value_are_left_out():
    empty = {**nll("full", 8192, 2.6), "value": None, "reason": "it would take about 90.0 GB"}
    planned = plan(rows(*EQUAL[:2], empty))
    assert len(planned.strips) == 1 and planned.notes == ["rows that say why there is no value are not drawn: 1."]


def test_other_metrics_are_no_points():
    gain = nll("shared", 8192, 0.1, metric="nll_gain_over_truncate")
    assert perplexity.settings(rows(*EQUAL, gain)) == perplexity.settings(rows(*EQUAL))


def test_gains_are_paired_and_the_gap_needs_all_three():
    (setting,) = perplexity.settings(rows(*EQUAL, nll("truncate", 65536, 3.0)))
    gains = setting.gains(next(line for line in setting.points if line.method == "shared"))
    assert gains[8192].nats == pytest.approx(0.1) and gains[8192].share == pytest.approx(0.25)
    assert gains[8192].bounds == pytest.approx((0.1, 0.1)), "every passage gains the same, however they differ"
    assert gains[65536].nats == pytest.approx(0.05) and gains[65536].share is None
    assert "share of what full gains" in perplexity.title(setting)[1]
    (setting,) = perplexity.settings(rows(EQUAL[1], nll("truncate", 8192, 3.0)))
    assert perplexity.title(setting)[1].endswith(
        "won over truncate, paired by passage; bars: the range of so few passages. Above: what shared gains."
    )


@pytest.mark.parametrize("change", [{"sources": ["a", "b", "b"]}, {"samples": 2}, {"starts": [1, 2, 4]}])
def test_other_passages_have_a_panel_of_their_own(change):
    """Whatever else agrees: neither is a line drawn through both, nor a gain claimed over the other."""
    same = {"starts": [1, 2, 3]}
    others = [EQUAL[0] | same | change, nll("shared", 65536, 2.0, **{**same, **change})]
    first, second = perplexity.settings(rows(*(row | same for row in EQUAL[1:]), *others))
    assert by_method(first) == {"shared": {8192: 2.9, 65536: 2.95}, "full": {8192: 2.6}}
    assert by_method(second) == {"shared": {65536: 2.0}, "truncate": {8192: 3.0}}
    ours = [next(line for line in setting.points if line.method == "shared") for setting in (first, second)]
    assert not any(setting.gains(line) for setting, line in zip((first, second), ours, strict=True))
    said = [perplexity.title(setting)[1] for setting in (first, second)]
    assert "3 passages of 2 texts" in said[0] and ("2 passages" if "samples" in change else "3 passages") in said[1]


def test_other_texts_have_heat_maps_of_their_own():
    """Rows of one seed replace each other only where their texts are the same; at another length they may be others."""
    old = [found("shared", n, [0.1] * 4, [0] * 4, sources=["a"]) for n in (64, 128)]
    new = [found(m, 64, [0.9] * 4, [1] * 4, sources=["a", "b"]) for m in ("shared", "truncate")]
    each = found(
        "kvpress-snapkv", 64, [0.9] * 4, [1] * 4, sources=["a", "a", "b", "b"]
    )  # names a text for each question
    newest, before = needle.grids(rows(*old, *new, each))
    at = [{line.method: by for line, by in grid.cells.items()} for grid in (newest, before)]
    every = {64: [(4, 4)]}
    assert at[0] == {"shared": {128: [(0, 4)], **every}, "truncate": every, "kvpress-snapkv": every}
    assert at[1] == {"shared": {64: [(0, 4)]}} and not newest.replaced
    assert "measured before, on other texts" in needle.title(before)[1] and "before" not in needle.title(newest)[1]


def test_budgets_windows_and_weights_are_lines_of_their_own():
    """What is named is what differs; a row that does not say its window is of the line that alone does."""
    budgets = [nll("kvpress-snapkv", 8192, 2.7, budget=f"{name}_bytes") for name in ("stored", "attended")]
    (setting,) = perplexity.settings(rows(*EQUAL, *budgets))
    named = lines.names(setting.points)
    assert [named[line] for line in setting.points if line.budget] == [
        "kvpress-snapkv A (budget stored bytes)", "kvpress-snapkv B (budget attended bytes)",
    ]  # fmt: skip
    one = [found("truncate", 64, [0.1], [0], **given) for given in ({}, {"given_window": 1024})]
    (grid,) = needle.grids(rows(*one))
    assert [*lines.names(grid.cells).values()] == ["truncate: the window alone"] and grid.replaced == 1
    cross = [
        found("encoder-decoder", 64, [0.1], [0], weights=weights) for weights in ("one.safetensors", "two.safetensors")
    ]
    (grid,) = needle.grids(rows(*one, found("truncate", 64, [0.1], [1], given_window=8192), *cross))
    assert [*lines.names(grid.cells).values()] == [
        "truncate A (window not said)", "truncate B (window 1,024)", "truncate C (window 8,192)",
        "encoder-decoder A (weights one.safetensors)", "encoder-decoder B (weights two.safetensors)",
    ]  # fmt: skip


def test_weights_of_one_adapters_name_are_lines_of_their_own():
    """Told apart only where there are several; a row that does not say its weights is of those that are said alone."""
    one, two = ([row | {"adapter_weights": said} for row in EQUAL] for said in ("one", "two"))
    (setting,) = perplexity.settings(rows(*EQUAL, *one))
    assert [line.method for line in setting.points] == ["shared", "truncate", "full"]
    assert (
        setting.replaced == len(EQUAL)
        and lines.names(setting.points)[next(iter(setting.points))] == lines.WORDS["shared"]
    )
    (setting,) = perplexity.settings(rows(*one, two[0], two[1] | {"value": 2.5}))
    first, second, *others = setting.points
    assert [lines.names(setting.points)[line] for line in (first, second)] == [
        "shared A (weights one)", "shared B (weights two)",
    ]  # fmt: skip
    assert [p.nll for p in setting.points[first]] == [2.9, 2.95] and [p.nll for p in setting.points[second]] == [2.5]
    assert [line.method for line in others] == ["truncate", "full"] and setting.replaced == 1
    assert not lines.may_be_one(first, second) and lines.may_be_one(first, replace(second, weights=""))


def test_a_line_that_leaves_open_what_others_say_is_of_the_one_that_says_most():
    said = [{}, {"given_window": 1024}, {"given_window": 1024, "adapter_weights": "one"}]
    (grid,) = needle.grids(rows(*(found("shared", 64, [0.1], [0], **given) for given in said)))
    assert len(grid.cells) == 1 and grid.replaced == 2
    (grid,) = needle.grids(
        rows(*(found("shared", 64, [0.1], [0], **given) for given in (*said, {"adapter_weights": "two"})))
    )
    assert [line.weights for line in grid.cells] == ["", "one", "two"], (
        "of which of two a row is that says neither is open"
    )


def test_the_bounds_of_few_passages_are_called_their_range():
    few, more = (nll("shared", 8192, 2.9, samples=n, values=[2.9] * n, sources=["a"] * n) for n in (4, 5))
    said = [perplexity.title(setting)[1] for row in (few, more) for setting in perplexity.settings(rows(row))]
    assert "the range of so few passages" in said[0] and "95 % bootstrap" in said[1]


def test_bars_are_of_the_passages_where_a_row_has_them():
    (setting,) = perplexity.settings(rows(nll("shared", 8192, 2.9), nll("truncate", 8192, 3.0, values=None)))
    bars = {line.method: (p.low, p.high) for line, (p,) in setting.points.items()}
    assert bars == {"shared": pytest.approx((2.7, 3.1)), "truncate": pytest.approx((2.9, 3.1))}


def test_the_last_of_repeated_rows_counts():
    again = plan(rows(*EQUAL, nll("full", 8192, 2.5)))
    assert len(again.strips) == 1 and again.notes[0].endswith(": 1.")
    (setting,) = perplexity.settings(rows(*EQUAL, nll("full", 8192, 2.5)))
    assert by_method(setting)["full"] == {8192: 2.5} and setting.replaced == 1


def test_adapters_and_settings_of_shared_are_lines_of_their_own():
    second = [r | {"adapter": "second", "tree_depth": 2, "value": r["value"] - 0.01} for r in EQUAL[:2]]
    (setting,) = perplexity.settings(rows(*EQUAL, *second))
    assert [line.method for line in setting.points] == ["shared", "shared", "truncate", "full"]
    figure = compose(plan(rows(*EQUAL, *second)))
    legend = [text.get_text() for text in figure.subfigs[0].legends[0].get_texts()]
    assert legend[:2] == ["shared A (first, tree depth 3)", "shared B (second, tree depth 2)"]
    assert any("A +0.090" in t.get_text() and "B +0.100" in t.get_text() for t in figure.axes[1].texts)


def test_a_panel_of_perplexity_says_what_it_shows():
    figure = compose(plan(rows(*EQUAL, *BEST)))
    first, won, second, _ = figure.axes
    assert "1,025" in figure.subfigs[0].get_suptitle() and "8,192" in figure.subfigs[1].get_suptitle()
    assert all(word in figure.subfigs[0].get_suptitle() for word in ("tiny", "float32", "3 passages"))
    assert "nats per token" in first.get_ylabel() and "lower is better" in first.get_ylabel()
    assert first.get_xscale() == "log" and [t.get_text() for t in first.get_xticklabels()] == ["8K", "64K"]
    assert "truncate" in won.get_ylabel() and "higher is better" in won.get_ylabel()
    assert [t.get_text() for t in won.texts] == ["+0.100\n25 %"] and not first.texts
    _, ours, full = won.lines
    assert [*ours.get_ydata(), *full.get_ydata()] == pytest.approx([0.1, 0.4]), (
        "and none where truncate was not measured"
    )
    drawn = {line.get_label().split(":")[0]: line for line in first.lines}
    assert drawn.keys() == {"shared", "truncate", "full"}
    assert list(drawn["shared"].get_ydata()) == [2.9, 2.95] and list(second.lines[0].get_ydata()) == [2.65]
    assert {to_hex(axes.lines[0].get_color()).upper() for axes in (first, second)} == {SHARED}


def test_what_is_beyond_the_models_positions_does_not_stretch_the_axis():
    """It is hollow and marked; where the axis does not reach it, it stands at the edge with its number."""
    far = [nll("full", 16384, 6.5, beyond_window=True), nll("yarn", 16384, 2.7, beyond_window=True)]
    planned = plan(rows(*EQUAL, *far, nll("truncate", 16384, 3.0)))
    with rc_context(STYLE):
        means, won = compose(planned).axes
    assert 2.5 < means.get_ylim()[0] < means.get_ylim()[1] < 3.2 and -0.2 < won.get_ylim()[0]
    assert [t.get_text() for t in means.texts] == ["6.50 †", "†"]
    assert [t.get_text() for t in won.texts] == ["-3.50 †", "†", "+0.100\n25 %"]
    joined = {line.get_label().split(":")[0]: list(line.get_ydata()) for line in means.lines}
    assert joined["full"] == [2.6] and joined["yarn"] == [2.7]
    alone = [line for line in means.lines if line.get_label().startswith("_")]
    assert [to_hex(line.get_markerfacecolor()) for line in alone] == ["#ffffff"] * 2
    assert alone[0].get_ydata()[0] < means.get_ylim()[1]
    words = "more positions than the model was trained for"
    assert words in planned.strips[0].below and words not in plan(rows(*EQUAL)).strips[0].below


def test_without_truncate_the_means_have_the_bars():
    (means,) = compose(plan(rows(EQUAL[1], EQUAL[2]))).axes
    assert [len(bars.get_segments()) for bars in means.collections] == [1, 1]
    low, high = means.get_ylim()
    assert low < 2.4 and high > 3.1, "the bars are shown whole"


def test_needles_are_counted_by_depth():
    again = found("shared", 64, [0.0, 1.0, 0.49, 0.51], [1, 0, 1, 1], seed=1)
    stale = found("shared", 64, [0.1] * 8, [0] * 8, seed=2)
    newer = found("shared", 64, [0.9] * 8, [1] * 8, seed=2)
    (grid,) = needle.grids(rows(*NEEDLES, again, stale, newer))
    shared, truncate = grid.cells
    assert (shared.method, truncate.method, grid.lengths, grid.parts) == ("shared", "truncate", [64, 128], 1)
    assert grid.cells[shared] == {64: [(4 + 3 + 8, 8 + 4 + 8)], 128: [(4, 8)]} and grid.replaced == 1
    (grid,) = needle.grids(rows(*NEEDLES))
    assert grid.cells[Line("truncate", "", shared.settings)] == {n: [(4, 4), (0, 4)] for n in (64, 128)}


def test_a_heat_map_a_method_with_the_share_in_every_cell():
    shared, truncate, bar = compose(plan(rows(*NEEDLES, found("full", 64, [0.1] * 8, [1] * 8)))).axes[:3]
    assert shared.get_title().startswith("shared") and truncate.get_title().startswith("truncate")
    assert [t.get_text() for t in shared.texts] == ["100 %", "100 %", "0 %", "0 %"]
    assert [t.get_text() for t in bar.texts] == ["100 %"], "nothing is said where nothing was asked"
    assert [t.get_text() for t in shared.get_yticklabels()] == ["0-50 %", "50-100 %"]


@pytest.mark.parametrize("kinds", [[NEEDLES], [EQUAL, STEPS, CHECKS]])
def test_nothing_is_cut_off_at_the_edges(kinds):
    with rc_context(STYLE):
        figure = compose(plan(rows(*(row for kind in kinds for row in kind))))
        figure.draw_without_rendering()
    drawn, page = figure.get_tightbbox().extents, figure.bbox_inches.extents
    assert min(drawn[:2] - page[:2]) > 0.03 and min(page[2:] - drawn[2:]) > 0.03, "inches of margin"


def test_runs_of_training():
    (run,) = training.runs(rows(*STEPS, *CHECKS, STEPS[-1] | {"loss": 5.0}))
    assert run.steps == list(range(1, 41)) and run.losses[0] == 2.9 and run.losses[-1] == 5.0
    assert run.width == 5 and run.smooth[10] == pytest.approx(run.losses[10])
    assert run.smooth[0] == pytest.approx(sum(run.losses[:3]) / 3), "at the ends, of what there is"
    assert (
        run.checked == [20, 40] and run.gains["code"] == [0.15, 0.3] and run.gains["all kinds"][1] == pytest.approx(0.2)
    )
    assert run.gains["prose"][1] != run.gains["prose"][1], "not measured"
    loss, gain = compose(plan(rows(*STEPS, *CHECKS))).axes
    assert "lower is better" in loss.get_ylabel() and "higher is better" in gain.get_ylabel()
    assert [t.get_text() for t in gain.get_legend().get_texts()] == ["code", "prose", "all kinds"]


def test_runs_in_files_of_one_name_are_told_apart():
    found = training.runs(rows(*STEPS, file="a/metrics.jsonl") + rows(*STEPS, file="b/metrics.jsonl"))
    assert [run.name for run in found] == ["a/metrics", "b/metrics"]


@pytest.mark.parametrize(("tokens", "name"), [(8192, "8K"), (131072, "128K"), (1048576, "1M"), (5000, "5,000")])
def test_lengths_are_named(tokens, name):
    assert length_name(tokens) == name


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run `sharedllm plot` in an empty folder; gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*EQUAL, *BEST, *NEEDLES]))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [*STEPS, *CHECKS]))

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["plot", *arguments])
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    return call


@pytest.mark.parametrize("file", ["good.jsonl", "metrics.jsonl"])
def test_each_kind_gives_a_picture(run, file):
    assert run(file, "-o", "figure.png") == (0, "figure.png\n", "")
    with Image.open("figure.png") as image:
        image.load()
        assert image.width == 1800 and 600 < image.height < 4000
        assert len(image.convert("L").getcolors()) > 50, "something is drawn"
    assert Path("figure.png").stat().st_mode & 0o777 == 0o644


def test_kinds_are_stacked_in_svg_and_pdf_too(run):
    code, out, _ = run("good.jsonl", "metrics.jsonl", "-o", "figure.svg", "--json")
    kinds = ["perplexity", "perplexity", "needle", "training"]
    assert code == 0 and json.loads(out) == {"figure": "figure.svg", "drawn": kinds}
    assert ElementTree.parse("figure.svg").getroot().tag.endswith("svg")
    assert run("metrics.jsonl", "-o", "figure.PDF")[0] == 0
    (page,) = PdfReader("figure.PDF").pages
    assert page.mediabox.width == 648 and page.mediabox.height > 200


def contrast(a: object, b: object) -> float:
    """Of two colours, 1 to 21, as the Web Content Accessibility Guidelines count it."""

    def light(colour: object) -> float:
        parts = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour))
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), parts, strict=True)) + 0.05

    return max(light(a), light(b)) / min(light(a), light(b))


def test_a_second_file_is_for_dark_pages(run):
    code, out, _ = run("good.jsonl", "metrics.jsonl", "-o", "figure.png", "--dark")
    assert code == 0 and out == "figure.png\nfigure-dark.png\n"
    for file, corner in (("figure.png", "#ffffff"), ("figure-dark.png", PAPER.lower())):
        with Image.open(file) as image:
            assert to_hex([c / 255 for c in image.convert("RGB").getpixel((0, 0))]) == corner
    code, out, _ = run("metrics.jsonl", "-o", "figure.svg", "--dark", "--json")
    assert code == 0 and json.loads(out) == {"figure": "figure.svg", "dark": "figure-dark.svg", "drawn": ["training"]}


def test_what_is_drawn_on_a_dark_page_is_seen_there():
    assert contrast("white", "black") == pytest.approx(21)
    known = [nll(method, 8192, 2.9, window=2) for method in LOOKS]
    with rc_context(DARK):
        figure = compose(plan(rows(*known, *BEST, *STEPS, *CHECKS)))
        looks = [*map(on_page, CYCLE), *(on_page(colour) for colour, _ in LOOKS.values())]
    assert to_hex(figure.get_facecolor()) == PAPER.lower() and contrast(INK, PAPER) > 7
    drawn = [line.get_color() for axes in figure.axes for line in axes.lines if line.get_alpha() is None]
    texts = [t.get_color() for axes in figure.axes for t in (axes.title, axes.xaxis.label, *axes.texts)]
    assert len(drawn) > len(LOOKS) and min(contrast(colour, PAPER) for colour in (*drawn, *texts, *looks)) > 3
    with rc_context(STYLE):
        assert [on_page(colour) for colour in CYCLE] == list(CYCLE)


def test_unknown_tasks_beside_known_ones_are_named(run):
    Path("demo.jsonl").write_text('{"task": "demo", "method": "shared"}\n')
    code, _, err = run("metrics.jsonl", "demo.jsonl", "-o", "figure.png")
    assert code == 0 and "rows of demo" in err and "needle, ruler, questions, real and bench" in err


def line(**change: object) -> str:
    return json.dumps({k: v for k, v in (EQUAL[0] | change).items() if v is not ...}) + "\n"


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (None, 2, ["bad.jsonl does not exist"]),
        ("", 2, ["bad.jsonl is empty"]),
        ("\udc80\udcff", 1, ["bad.jsonl is not a results file"]),
        (line() + '{"task": "perpl\n', 1, ["bad.jsonl, line 2"]),
        (line() + "[1, 2]\n", 1, ["bad.jsonl, line 2"]),
        ('{"hello": 1}\n', 2, ["no row can be drawn", "perplexity, needle, ruler"]),
        ('{"task": "demo", "method": "shared"}\n', 2, ["demo", "questions, real and bench"]),
        ('{"task": "ruler", "method": "shared"}\n', 2, ["line 1", "metric is missing"]),
        (line(metric="accuracy"), 2, ["no row can be drawn"]),
        (line() + line(length=...), 2, ["bad.jsonl, line 2", "length is missing"]),
        (line(value="low"), 2, ["bad.jsonl, line 1", "value is 'low'"]),
        (line(value=float("nan")), 2, ["bad.jsonl, line 1", "value is nan"]),
        (line(window=0), 2, ["window is 0"]),
        (line(method=None), 2, ["method is None"]),
        (json.dumps(found("shared", 64, [0.1], [1, 0])), 2, ["line 1", "1 entries and found 2"]),
        (json.dumps(found("shared", 64, [7.0], [1])), 2, ["depths is [7.0]"]),
        (json.dumps({"step": 1, "held_out_gain": 0.1}), 2, ["held_out_gain is 0.1"]),
    ],
)
def test_rows_that_cannot_be_drawn(run, tmp_path, text, code, words):
    if text is not None:
        (tmp_path / "bad.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    ended, out, err = (
        run("good.jsonl", "bad.jsonl", "-o", "figure.png") if text is None else run("bad.jsonl", "-o", "figure.png")
    )
    assert (ended, out) == (code, ""), err
    assert all(word in err for word in words) and err.count("\n") == 1, err
    assert {p.name for p in tmp_path.iterdir()} <= {"good.jsonl", "metrics.jsonl", "bad.jsonl"}


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        ("figure.gif", ["figure.gif must end in .png, .svg or .pdf"]),
        ("figure", ["figure must end in"]),
        ("nowhere/figure.png", ["nowhere does not exist"]),
        ("folder.png", ["folder.png is a folder"]),
    ],
)
def test_figures_that_cannot_be_written(run, tmp_path, figure, words):
    (tmp_path / "folder.png").mkdir()
    code, out, err = run("good.jsonl", "-o", figure)
    assert (code, out) == (2, "") and all(word in err for word in words) and err.count("\n") == 1, err


def test_a_figure_is_replaced_whole_or_not_at_all(run, tmp_path, monkeypatch):
    (tmp_path / "figure.png").write_text("before")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full_disk)
    code, _, err = run("good.jsonl", "-o", "figure.png")
    assert code == 1 and "No space left" in err and (tmp_path / "figure.png").read_text() == "before"
    assert {p.name for p in tmp_path.iterdir()} == {"good.jsonl", "metrics.jsonl", "figure.png"}


def test_too_many_settings_for_one_figure(run):
    Path("many.jsonl").write_text("".join(line(window=w) for w in range(2, 200)))
    code, _, err = run("many.jsonl", "-o", "figure.png")
    assert code == 2 and "198 settings" in err


def test_without_matplotlib_the_command_says_what_to_install(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run("good.jsonl", "-o", "figure.png")
    assert code == 2 and "pip install 'sharedllm[plot]'" in err and err.count("\n") == 1


def test_importing_draws_nothing():
    code = "import sys, sharedllm.cli, sharedllm.plot.figure; assert not {'matplotlib', 'torch'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
