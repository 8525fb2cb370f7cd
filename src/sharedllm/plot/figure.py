"""From results files to a figure file: what the rows allow is drawn, group under group."""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sharedllm.errors import UsageError, WorkError, to_install
from sharedllm.plot import needle, perplexity, scores, speed, tradeoff, training
from sharedllm.plot.page import DARK, STYLE
from sharedllm.plot.rows import Row, read

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

SUFFIXES = (".png", ".svg", ".pdf")
TASKS = ("perplexity", "needle", *scores.TASKS, "bench")
DRAWABLE = f"plot draws the tasks {', '.join(TASKS[:-1])} and {TASKS[-1]}, and the metrics of training runs"
WIDTH = 9.0
"""Inches; with `DOTS` an inch. Text is sized to be read where the figure is shown 900 pixels wide."""
DOTS = 200
MOST_INCHES = 300.0
UNDATED: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


@dataclass(frozen=True)
class Strip:
    """A group of panels across the figure, `inches` high."""

    kind: str
    headline: str
    below: str
    inches: float
    draw: Callable[[SubFigure], None]


@dataclass(frozen=True)
class Plan:
    """The strips from top to bottom, and sentences about rows that are not drawn."""

    strips: list[Strip]
    notes: list[str]


def plan(rows: Sequence[Row]) -> Plan:
    """What is drawn of some rows.

    Raises:
        UsageError: nothing can be drawn, or a row lacks a value that its task has.
    """
    by_task: dict[str, list[Row]] = {}
    drawn = [row for row in rows if "reason" not in row.values]
    for row in drawn:
        by_task.setdefault(row.task, []).append(row)
    likelihoods = perplexity.settings(by_task.pop("perplexity", []))
    grids = needle.grids(by_task.pop("needle", []))
    boards = scores.boards([row for task in scores.TASKS for row in by_task.pop(task, [])])
    costs = speed.settings(by_task.pop("bench", []))
    trades = tradeoff.trades(costs, tradeoff.qualities(likelihoods, grids, boards))
    runs = training.runs(by_task.pop("training", []))
    strips = [
        *(_strip("perplexity", perplexity, setting) for setting in likelihoods),
        *(_strip("needle", needle, grid) for grid in grids),
        *(_strip(board.task, scores, board) for board in boards),
        *(_strip("bench", speed, cost) for cost in costs),
        *(_strip("quality and cost", tradeoff, trade) for trade in trades),
        *([_strip("training", training, runs)] if runs else []),
    ]
    replaced = sum(group.replaced for groups in (likelihoods, grids, boards, costs) for group in groups)
    unknown = [task for task in by_task if task]
    if not strips:
        raise UsageError(
            f"there are only rows of {', '.join(unknown)}; {DRAWABLE}."
            if unknown
            else f"no row can be drawn; {DRAWABLE}."
        )
    notes = [f"rows of {', '.join(unknown)} are not drawn; {DRAWABLE}."] if unknown else []
    if unmeasured := len(rows) - len(drawn):
        notes.append(f"rows that say why there is no value are not drawn: {unmeasured}.")
    if replaced:
        notes.append(f"rows left out because later rows measured the same again: {replaced}.")
    return Plan(strips, notes)


def _strip(kind: str, module: Any, what: Any) -> Strip:
    """The strip of what one of the modules beside this one found in the rows."""
    headline, below = module.title(what)
    return Strip(kind, headline, below, module.inches(what), partial(module.draw, what))


def dark_file(output: Path) -> Path:
    """The file beside a figure that has the same for dark pages: `x-dark.png` of `x.png`."""
    return output.with_stem(f"{output.stem}-dark")


def plot(files: Sequence[Path], output: Path, dark: bool = False) -> Plan:
    """Draw results files into `output` (png, svg or pdf by its suffix), written whole or not at all.

    Args:
        dark: draw them for dark pages too, into `dark_file(output)`.
    Raises:
        UsageError: a file cannot be used or drawn, `output` cannot be such a file, or matplotlib is missing.
        WorkError: a line is not a JSON object, or `output` cannot be written.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{output} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}; name the figure so.")
    if output.is_dir():
        raise UsageError(f"{output} is a folder; give a file name for the figure.")
    if not output.absolute().parent.is_dir():
        raise UsageError(f"the folder {output.parent} does not exist; make it first or write the figure elsewhere.")
    planned = plan(read(files))
    if (inches := sum(strip.inches for strip in planned.strips)) > MOST_INCHES:
        raise UsageError(
            f"the rows have {len(planned.strips)} settings, and a figure of them would be {inches:.0f} inches high; give fewer files."
        )
    _save(planned, output, STYLE)
    if dark:
        _save(planned, dark_file(output), DARK)
    return planned


def compose(planned: Plan) -> Figure:
    """The figure, drawn without any global state of matplotlib's."""
    from matplotlib.figure import Figure

    heights = [strip.inches for strip in planned.strips]
    figure = Figure(figsize=(WIDTH, sum(heights)), dpi=DOTS, layout="constrained")
    places = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for strip, place in zip(planned.strips, places, strict=True):
        text = "\n".join([strip.headline, *textwrap.wrap(strip.below, 108)])
        place.suptitle(text, x=0.01, ha="left", fontsize=10.5)
        strip.draw(place)
    figure.draw_without_rendering()  # a second layout, when saved, makes room for the tick labels of this one
    return figure


def _save(planned: Plan, output: Path, style: dict[Any, Any]) -> None:
    try:
        from matplotlib import rc_context
    except ImportError as error:
        raise UsageError(f"drawing needs matplotlib; {to_install('plot')}.") from error
    suffix = output.suffix.lower()
    try:
        handle, name = tempfile.mkstemp(prefix=f".{output.stem}-", suffix=suffix, dir=output.absolute().parent)
        os.close(handle)
    except OSError as error:
        raise WorkError(f"cannot write to {output.absolute().parent}: {error.strerror or error}.") from error
    try:
        with rc_context(style):
            compose(planned).savefig(name, format=suffix[1:], dpi=DOTS, metadata=UNDATED.get(suffix))
        os.chmod(name, 0o644)
        os.replace(name, output)
    except OSError as error:
        raise WorkError(f"writing {output} failed ({error}); what was there before is unchanged.") from error
    finally:
        Path(name).unlink(missing_ok=True)
