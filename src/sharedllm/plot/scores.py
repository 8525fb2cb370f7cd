"""Scores of answers against length: RULER and questions about real texts, a panel a metric, a line a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sharedllm.plot import lines
from sharedllm.plot.axes import draw_line, length_axis
from sharedllm.plot.lines import Line
from sharedllm.plot.rows import Row
from sharedllm.plot.texts import EARLIER, by_texts

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
NAMED = 3  # tasks that are named one by one, at most


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
    which: str = ""
    """Which of several boards of this task, model and dtype."""

    @property
    def lines(self) -> list[Line]:
        return lines.in_order(line for by_line in self.panels.values() for line in by_line)

    @property
    def floors(self) -> int:
        """Panels one under another."""
        return -(-len(self.panels) // COLUMNS)


def boards(rows: Sequence[Row]) -> list[Board]:
    """The boards of score rows, by task, model, dtype, what RULER's mean is over, and texts; effective lengths are passed over.
    Of rows that measured the same the last counts.

    Raises:
        UsageError: a row lacks a value; the sentence gives file and line.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.text("metric") != "ruler_effective_length":
            key = (row.task, str(row.values.get("model", "")), str(row.values.get("dtype", "")))
            groups.setdefault(key, []).append(row)
    found = []
    for (task, model, dtype), members in sorted(groups.items()):
        by_mean = _by_mean(members)
        for tasks, some in by_mean.items():
            over = _named(tasks) if len(by_mean) > 1 else ""
            for k, same in enumerate(by_texts(some, lambda row: (row.text("metric"), row.whole("length")))):
                which = ", ".join(part for part in (over, EARLIER if k else "") if part)
                found.append(_board(task, model, dtype, same, which))
    return found


def _by_mean(rows: Sequence[Row]) -> dict[tuple[str, ...], list[Row]]:
    """Rows by the tasks that RULER's mean is over, what was measured last first; a task's own rows go with the last mean it is in."""
    means: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        if row.text("metric") == MEAN:
            tasks = tuple(row.values.get("subtasks") or ())
            means = {tasks: [*means.pop(tasks, []), row], **means}
    last = next(iter(means), ())
    for row in rows:
        if (metric := row.text("metric")) != MEAN:
            among = (tasks for tasks in means if metric.removeprefix("ruler_") in tasks)
            means.setdefault(next(among, last), []).append(row)
    return means


def _named(tasks: Sequence[str]) -> str:
    """What a mean is over, in few words."""
    if not tasks:
        return ""
    return "over " + (", ".join(tasks) if len(tasks) <= NAMED else f"{len(tasks)} tasks")


def _board(task: str, model: str, dtype: str, rows: Sequence[Row], which: str) -> Board:
    panels: dict[str, dict[Line, dict[int, Point]]] = {}
    lined = zip(lines.lines_of(rows), rows, strict=True)
    for line, row in sorted(lined, key=lambda pair: pair[1].text("metric") != MEAN):
        value = row.number("value")
        point = Point(value, row.number("low", value), row.number("high", value), row.whole("samples"))
        panels.setdefault(row.text("metric"), {}).setdefault(line, {})[row.whole("length")] = point
    drawn = sum(len(at) for by_line in panels.values() for at in by_line.values())
    return Board(task, model, dtype, panels, len(rows) - drawn, which)


def name_of(metric: str) -> str:
    """A metric as a person reads it."""
    return NAMES.get(metric, metric.removeprefix("ruler_"))


def title(board: Board) -> tuple[str, str]:
    """The headline and what stands below it."""
    counts = [p.samples for by_line in board.panels.values() for at in by_line.values() for p in at.values()]
    which = f", {board.which}" if board.which else ""
    said = f"{lines.counted(counts, 'answers a point')}{which}; bars: 95 % bounds of the mean."
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
