"""Quality against what it costs: nats a token, needles found and scores, over the time and the memory of a question.

Quality comes from rows of `eval`, costs from rows of `bench`; a point is a method at a length that has both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sharedllm.plot import lines, needle, perplexity, scores, speed
from sharedllm.plot.axes import log_ticks, look
from sharedllm.plot.lines import Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

LABELS = {speed.TIME: "seconds to the first token", speed.MEMORY: "MB beyond the model"}


@dataclass(frozen=True)
class Quality:
    """What a metric says of every line at every length, for one model and dtype."""

    model: str
    dtype: str
    label: str
    at: dict[Line, dict[int, float]]


@dataclass(frozen=True)
class Point:
    """What a length in tokens cost, in the unit of `LABELS`, and how well it was used."""

    length: int
    cost: float
    quality: float


@dataclass(frozen=True)
class Panel:
    """One quality over one cost."""

    cost: str
    label: str
    points: dict[Line, list[Point]]
    """By line in drawing order; each by rising length."""


@dataclass(frozen=True)
class Trade:
    """The panels of one model, dtype and device: a row of them a quality."""

    model: str
    dtype: str
    where: str
    panels: list[list[Panel]]

    @property
    def lines(self) -> list[Line]:
        return lines.in_order(line for row in self.panels for panel in row for line in panel.points)


def qualities(
    settings: Iterable[perplexity.Setting], grids: Iterable[needle.Grid], boards: Iterable[scores.Board]
) -> Iterator[Quality]:
    """The qualities of rows; of likelihood with equal windows only, without what is off their axis (`perplexity.shown_nats`), and
    of RULER's tasks their mean only.

    Where several sets of passages were scored, each says which it is of.
    """
    equal = [setting for setting in settings if setting.window <= setting.targets + 1]
    for setting in equal:
        low, high = perplexity.shown_nats(setting)
        nll = {
            asked: {p.length: p.nll for p in points if low <= p.nll <= high}
            for line, points in setting.points.items()
            for asked in _asked(line, setting.window)
            if not line.window
        }
        which = f"\n{setting.passages}" if len({s.passages for s in equal}) > 1 else ""
        yield Quality(setting.model, setting.dtype, f"nats per token{which}\n(lower is better)", nll)
    for grid in grids:
        found = {line: {n: _share(cells) for n, cells in by.items()} for line, by in grid.cells.items()}
        which = f"\n{grid.which}" if grid.which else ""
        yield Quality(grid.model, grid.dtype, f"needles found, %{which}\n(higher is better)", found)
    for board in boards:
        for metric, by_line in board.panels.items():
            if metric == scores.MEAN or board.task != "ruler":
                at = {line: {n: p.value for n, p in points.items()} for line, points in by_line.items()}
                which = f"\n{board.which}" if board.which else ""
                name = f"{scores.TASKS[board.task]}, {scores.name_of(metric)}{which}\n(higher is better)"
                yield Quality(board.model, board.dtype, name, at)


def _asked(line: Line, window: int) -> list[Line]:
    """A line of likelihood as costs have it: a window of as many tokens as targets is one wider than what was asked for."""
    if line.method in lines.EVERYTHING:
        return [line]
    return [replace(line, given_window=tokens) for tokens in (window, window - 1)]


def trades(measured: Sequence[speed.Setting], found: Iterable[Quality]) -> list[Trade]:
    """What can be compared: a quality of at least two lines whose costs were measured with the same model and dtype."""
    found, made = list(found), []
    for costs in measured:
        same = [quality for quality in found if (quality.model, quality.dtype) == (costs.model, costs.dtype)]
        panels = [
            [panel for cost in costs.points if len((panel := _panel(costs, cost, quality)).points) > 1]
            for quality in same
        ]
        if panels := [row for row in panels if row]:
            made.append(Trade(costs.model, costs.dtype, costs.where, panels))
    return made


def _panel(costs: speed.Setting, cost: str, quality: Quality) -> Panel:
    points = {}
    for line, at in costs.points[cost].items():
        found = next((values for other, values in quality.at.items() if lines.may_be_one(line, other)), {})
        if both := sorted(at.keys() & found.keys()):
            points[line] = [Point(n, at[n].value, found[n]) for n in both]
    return Panel(cost, quality.label, points)


def _share(cells: Sequence[tuple[int, int]]) -> float:
    return 100 * sum(found for found, _ in cells) / sum(asked for _, asked in cells)


def title(trade: Trade) -> tuple[str, str]:
    """The headline and what stands below it."""
    said = f"{trade.where}; a point is a method at a length, which stands beside it."
    return "Quality against time and memory", lines.described(trade.model, trade.dtype, said)


def inches(trade: Trade) -> float:
    """Height of the panels, and of the names below them."""
    return 0.8 + 3.0 * len(trade.panels) + 0.17 * len(trade.lines) / 2


def draw(trade: Trade, place: SubFigure) -> None:
    """Draw a row of panels a quality, with one legend."""
    columns = max(map(len, trade.panels))
    grid = place.subplots(len(trade.panels), columns, squeeze=False)
    named, handles = lines.names(trade.lines), dict[str, Any]()
    for row, panels in zip(grid, trade.panels, strict=True):
        row[0].set_ylabel(panels[0].label)
        for axes, panel in zip(row, panels, strict=False):
            for line, points in panel.points.items():
                handles[named[line]] = _draw_points(axes, line, trade.lines, points)
            axes.set_xscale("log")
            axes.margins(x=0.12, y=0.12)
            log_ticks(axes.xaxis)
            axes.set_xlabel(LABELS[panel.cost])
        for spare in row[len(panels) :]:
            spare.set_axis_off()
    place.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3 if max(map(len, handles)) < 40 else 2
    )


def _draw_points(axes: Axes, line: Line, among: Sequence[Line], points: Sequence[Point]) -> Any:
    """A method's points from its shortest length to its longest."""
    colour, marker, dash = look(line, among)
    (drawn,) = axes.plot(
        [p.cost for p in points], [p.quality for p in points], color=colour, marker=marker, linestyle=dash,
        markersize=8 if line.method == "shared" else 6, linewidth=1.4,
    )  # fmt: skip
    for p in points:
        axes.annotate(
            lines.length_name(p.length), (p.cost, p.quality), (0, 6), textcoords="offset points", ha="center",
            color=colour, fontsize=8,
        )  # fmt: skip
    return drawn
