"""Scores of answers against length: RULER and questions about real texts, a panel a metric, a line a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sharedllm.plot import lines
from sharedllm.plot.axes import draw_line, length_axis
from sharedllm.plot.lines import Line
from sharedllm.plot.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import SubFigure

TASKS = {
    "ruler": "RULER",
    "questions": "Questions drawn from real texts",
    "real": "Questions about the text that ships",
}
MEAN = "ruler_mean"
NAMES = {MEAN: "mean over the tasks", "f1": "token F1", "answered": "share answered"}
COLUMNS = 3


@dataclass(frozen=True)
class Point:
    """A mean score with its bounds, over so many answers."""

    value: float
    low: float
    high: float
    samples: int


@dataclass(frozen=True)
class Board:
    """The panels of one task, model and dtype."""

    task: str
    model: str
    dtype: str
    panels: dict[str, dict[Line, dict[int, Point]]]
    """By metric, RULER's mean first; by line in drawing order; by length in tokens."""
    replaced: int
    """Rows left out because a later row measured the same again."""

    @property
    def lines(self) -> list[Line]:
        return lines.in_order(line for by_line in self.panels.values() for line in by_line)

    @property
    def floors(self) -> int:
        """Panels one under another."""
        return -(-len(self.panels) // COLUMNS)


def boards(rows: Sequence[Row]) -> list[Board]:
    """The boards of score rows, by task, model and dtype; effective lengths are passed over. Of rows that measured the same
    the last counts.

    Raises:
        UsageError: a row lacks a value; the sentence gives file and line.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.text("metric") != "ruler_effective_length":
            key = (row.task, str(row.values.get("model", "")), str(row.values.get("dtype", "")))
            groups.setdefault(key, []).append(row)
    return [_board(*key, members) for key, members in sorted(groups.items())]


def _board(task: str, model: str, dtype: str, rows: Sequence[Row]) -> Board:
    panels: dict[str, dict[Line, dict[int, Point]]] = {}
    for row in sorted(rows, key=lambda row: row.text("metric") != MEAN):
        value = row.number("value")
        point = Point(value, row.number("low", value), row.number("high", value), row.whole("samples"))
        panels.setdefault(row.text("metric"), {}).setdefault(lines.line_of(row), {})[row.whole("length")] = point
    drawn = sum(len(at) for by_line in panels.values() for at in by_line.values())
    return Board(task, model, dtype, panels, len(rows) - drawn)


def name_of(metric: str) -> str:
    """A metric as a person reads it."""
    return NAMES.get(metric, metric.removeprefix("ruler_"))


def title(board: Board) -> tuple[str, str]:
    """The headline and what stands below it."""
    counts = [p.samples for by_line in board.panels.values() for at in by_line.values() for p in at.values()]
    said = f"{lines.counted(counts, 'answers a point')}; bars: 95 % bounds of the mean."
    return f"{TASKS[board.task]}: scores by length", lines.described(board.model, board.dtype, said)


def inches(board: Board) -> float:
    """Height of the panels, and of the names below them."""
    return 0.8 + 2.8 * board.floors + 0.17 * len(board.lines) / 2


def draw(board: Board, place: SubFigure) -> None:
    """Draw a panel a metric, with one legend."""
    columns = min(COLUMNS, len(board.panels))
    panels = place.subplots(board.floors, columns, squeeze=False).flatten()
    named, handles = lines.names(board.lines), dict[str, Any]()
    for spare in panels[len(board.panels) :]:
        spare.set_axis_off()
    lengths = sorted({n for by_line in board.panels.values() for at in by_line.values() for n in at})
    for axes, (metric, by_line) in zip(panels, board.panels.items(), strict=False):
        for line in lines.in_order(by_line):
            handles[named[line]] = draw_line(axes, line, board.lines, by_line[line])
        length_axis(axes, lengths)
        axes.set_ylim(bottom=0)
        axes.set_title(name_of(metric), fontsize=10)
    for axes in panels[::columns]:
        axes.set_ylabel("score (higher is better)")
    place.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=3 if max(map(len, handles)) < 40 else 2
    )
