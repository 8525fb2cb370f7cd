"""Training runs: loss over steps, and what a context gains on held-out text, by kind of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharedllm.plot import lines
from sharedllm.plot.page import on_page
from sharedllm.plot.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

SMOOTHED_OVER = 8
"""The smoothed loss is a mean over this fraction of all steps."""
ALL = "all kinds"
HELD_OUT = {"without context": "held_out_without", "with context": "held_out_with"}
BELOW: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "handlelength": 3}


@dataclass(frozen=True)
class Run:
    """A run's metrics by rising step; losses and gains in nats per token."""

    name: str
    steps: list[int]
    losses: list[float]
    smooth: list[float]
    width: int
    """Steps that a value of `smooth` is the mean of, where there are as many around it."""
    tokens: int
    """Target tokens trained on."""
    checked: list[int]
    """Steps with a validation."""
    held_out: dict[str, list[float]]
    """Held-out loss "without context" and "with context" at those steps; {} where rows lack it."""
    gains: dict[str, list[float]]
    """Held-out gain by kind of text at those steps; nan where a kind was not measured."""


def runs(rows: Sequence[Row]) -> list[Run]:
    """The runs in training rows, one a file; of rows with the same step the last counts.

    Raises:
        UsageError: a row lacks a value; the sentence gives file and line.
    """
    by_file: dict[Path, list[Row]] = {}
    for row in rows:
        by_file.setdefault(row.file, []).append(row)
    return [_run(name, by_file[file]) for file, name in _names(list(by_file)).items()]


def _names(files: Sequence[Path]) -> dict[Path, str]:
    """A file's stem, with its folder where that would not tell runs apart or is only "metrics"."""
    stems = [file.stem for file in files]
    plain = len(set(stems)) == len(stems) and "metrics" not in stems
    return {file: file.stem if plain else f"{file.absolute().parent.name}/{file.stem}" for file in files}


def _run(name: str, rows: Sequence[Row]) -> Run:
    trained = {row.whole("step", 0): row for row in rows if "loss" in row.values}
    checks = {row.whole("step", 0): row for row in rows if "held_out_gain" in row.values}
    steps, checked = sorted(trained), sorted(checks)
    losses = [trained[step].number("loss") for step in steps]
    width = len(steps) // SMOOTHED_OVER // 2 * 2 + 1
    held_out = {}
    if checks and all(row.values.keys() >= set(HELD_OUT.values()) for row in checks.values()):
        held_out = {name: [checks[step].number(key) for step in checked] for name, key in HELD_OUT.items()}
    by_kind = [_gains(checks[step]) for step in checked]
    kinds = sorted({kind for gains in by_kind for kind in gains})
    gains = {kind: [found.get(kind, float("nan")) for found in by_kind] for kind in kinds}
    if held_out:
        gains[ALL] = [a - b for a, b in zip(*held_out.values(), strict=True)]
    tokens = trained[steps[-1]].number("target_tokens", 0.0) if steps else 0.0
    return Run(name, steps, losses, smoothed(losses, width), width, int(tokens), checked, held_out, gains)


def _gains(row: Row) -> dict[str, float]:
    by_kind = row.values["held_out_gain"]
    if not isinstance(by_kind, dict):
        raise row.mistake("held_out_gain", "an object with a number a kind of text")
    return {kind: Row(by_kind, row.file, row.line).number(kind) for kind in by_kind}


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """Mean of the `width` values around each (an odd number), of those there are at the ends."""
    half = width // 2
    parts = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def title(found: Sequence[Run]) -> tuple[str, str]:
    """The headline and what stands below it."""
    said = [
        f"{run.name}: {len(run.steps):,} steps" + (f", {run.tokens:,} target tokens" if run.tokens else "")
        for run in found
    ]
    return "Training of the adapter", "; ".join(said)


def inches(found: Sequence[Run]) -> float:
    """Height of the panels with the names below them."""
    return 4.2 + (0.19 * len(found) if len(found) > 1 else 0)


def draw(found: Sequence[Run], place: SubFigure) -> None:
    """Draw loss and held-out gain side by side."""
    left, right = place.subplots(1, 2, sharex=True)
    _draw_loss(left, found)
    _draw_gains(right, found)


def _draw_loss(axes: Axes, found: Sequence[Run]) -> None:
    """One run: a colour a curve. Several: a colour a run, as the curves already differ in dash and marker."""
    single = len(found) == 1
    plain = on_page("#8A8A8A")
    styles = {"without context": ("s", "--", plain), "with context": ("o", ":", on_page("#000000"))}
    for i, run in enumerate(found):
        colour = lines.SHARED if single else on_page(lines.CYCLE[i % len(lines.CYCLE)])
        axes.plot(run.steps, run.losses, ".", color=colour, alpha=0.25, markersize=5, markeredgewidth=0)
        axes.plot(run.steps, run.smooth, color=colour, linewidth=2.4)
        for name, values in run.held_out.items():
            marker, dash, grey = styles[name]
            axes.plot(run.checked, values, color=grey if single else colour, marker=marker, linestyle=dash)
        if not single:
            axes.plot([], [], color=colour, linewidth=6, label=run.name)
    smooth = f"mean of {found[0].width} steps" if single else "smoothed"
    axes.plot([], [], color=lines.SHARED if single else plain, linewidth=2.4, label=f"training, {smooth}")
    for name, (marker, dash, grey) in styles.items():
        if any(name in run.held_out for run in found):
            grey = grey if single else plain
            axes.plot([], [], color=grey, marker=marker, linestyle=dash, label=f"held out, {name}")
    axes.set_title("Loss")
    axes.set_xlabel("step")
    axes.set_ylabel("nats per token\n(lower is better)")
    axes.legend(**BELOW)


def _draw_gains(axes: Axes, found: Sequence[Run]) -> None:
    """A colour a kind of text; where there are several runs, a dash a run."""
    axes.set_title("Held-out gain of the context")
    axes.set_xlabel("step")
    kinds = sorted({kind for run in found for kind in run.gains} - {ALL})
    if not kinds:
        axes.text(0.5, 0.5, "no validation yet", ha="center", transform=axes.transAxes)
        return
    cycle = [on_page(colour) for colour in lines.CYCLE]
    colours = {kind: cycle[i % len(cycle)] for i, kind in enumerate(kinds)} | {ALL: lines.SHARED}
    for kind, colour in colours.items():
        axes.plot([], [], color=colour, marker="o", linewidth=2.4 if kind == ALL else 1.6, label=kind)
    for i, run in enumerate(found):
        dash = lines.DASHES[i % len(lines.DASHES)]
        for kind, values in run.gains.items():
            width = 2.4 if kind == ALL else 1.6
            axes.plot(run.checked, values, color=colours[kind], marker="o", linestyle=dash, linewidth=width)
        if len(found) > 1:
            axes.plot([], [], color=on_page("#000000"), linestyle=dash, label=run.name)
    axes.set_ylabel("nats per token\n(higher is better)")
    axes.axhline(0, color=on_page("#999999"), linewidth=1)
    axes.legend(ncols=2, **BELOW)
