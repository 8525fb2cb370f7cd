"""Time and memory against the length of the text, a line a method, with the floors that nothing goes below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sharedllm.plot import lines
from sharedllm.plot.axes import draw_line, length_axis, log_ticks
from sharedllm.plot.lines import Line
from sharedllm.plot.page import on_page
from sharedllm.plot.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

TIME, MEMORY = "seconds_to_first_token", "working_peak_bytes"
SCALES = {TIME: 1.0, MEMORY: 1e6}
LABELS = {TIME: "seconds to the first token\n(lower is better)", MEMORY: "MB beyond the model\n(lower is better)"}
BESIDE = {
    "floor": ("floor: what the lowest layers must multiply and read, counted", ":"),
    "bare": ("the lowest layers alone, run to their end", "--"),
    "kept": ("floor: what shared keeps, counted", "-."),
}
"""Names and dashes of what is drawn beside methods."""


@dataclass(frozen=True)
class Point:
    """A median over rounds with the least and the most, in the metric's unit."""

    value: float
    low: float
    high: float
    rounds: int
    beside: dict[str, float]
    """What it is held against, as far as it was counted or measured, by the names of `BESIDE`."""


@dataclass(frozen=True)
class Setting:
    """What may be compared: measured with one model, dtype, device, processor and number of threads."""

    model: str
    dtype: str
    where: str
    points: dict[str, dict[Line, dict[int, Point]]]
    """By metric, by line in drawing order, by length in tokens."""
    replaced: int
    """Rows left out because a later row measured the same again."""

    @property
    def lines(self) -> list[Line]:
        return lines.in_order(line for by_line in self.points.values() for line in by_line)

    @property
    def lengths(self) -> list[int]:
        return sorted({n for by_line in self.points.values() for at in by_line.values() for n in at})


def settings(rows: Sequence[Row]) -> list[Setting]:
    """The figures of bench rows; ratios are passed over. Of rows that measured the same the last counts.

    Raises:
        UsageError: a row lacks a value; the sentence gives file and line.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row.text("metric") in SCALES:
            model, dtype, device = (str(row.values.get(name, "")) for name in ("model", "dtype", "device"))
            processor = f" ({row.text('processor')})" if row.values.get("processor") else ""
            if device == "cpu" and "threads" in row.values:
                processor += f" with {(threads := row.whole('threads'))} thread{'s' * (threads > 1)}"
            groups.setdefault((model, dtype, device + processor), []).append(row)
    return [_setting(*key, members) for key, members in sorted(groups.items())]


def _setting(model: str, dtype: str, where: str, rows: Sequence[Row]) -> Setting:
    points: dict[str, dict[Line, dict[int, Point]]] = {}
    for line, row in zip(lines.lines_of(rows), rows, strict=True):
        metric = row.text("metric")
        at = points.setdefault(metric, {}).setdefault(line, {})
        at[row.whole("length")] = _point(row, SCALES[metric])
    ordered = {
        metric: {line: points[metric][line] for line in lines.in_order(points[metric])}
        for metric in SCALES
        if metric in points
    }
    drawn = sum(len(at) for by_line in ordered.values() for at in by_line.values())
    return Setting(model, dtype, where, ordered, len(rows) - drawn)


def _point(row: Row, scale: float) -> Point:
    value = row.number("value")
    return Point(
        value=value / scale,
        low=row.number("low", value) / scale,
        high=row.number("high", value) / scale,
        rounds=row.whole("samples"),
        beside=_beside(row, scale),
    )


def _beside(row: Row, scale: float) -> dict[str, float]:
    """Time: the counted floor, and the bare pass, which runs the top layer to its end and so may take longer than reading;
    memory: what `shared` keeps for any question and for this one."""
    if row.text("metric") == TIME:
        fields = {"floor": "floor_seconds", "bare": "bare_read_seconds"}
        return {name: row.number(field) for name, field in fields.items() if field in row.values}
    if not row.text("method").startswith("shared"):
        return {}
    return {"kept": (row.number("kept_bytes") + row.number("attended_bytes")) / scale}


def title(setting: Setting) -> tuple[str, str]:
    """The headline and what stands below it."""
    times = setting.points.get(TIME, {})
    said = lines.counted((p.rounds for at in times.values() for p in at.values()), "rounds a point") if times else ""
    spread = f"{said}; a point is their median, bars span the least and the most." if said else ""
    memory = " Memory is the most taken beyond the loaded model." if MEMORY in setting.points else ""
    below = lines.described(setting.model, setting.dtype, ", ".join(part for part in (setting.where, spread) if part))
    return "Time and memory of the first question on a text, by its length", below + memory


def inches(setting: Setting) -> float:
    """Height of the panels, and of the names below them."""
    return 3.8 + 0.17 * (len(setting.lines) + 2) / 2


def draw(setting: Setting, place: SubFigure) -> None:
    """Draw a panel a metric, side by side, with one legend."""
    panels = place.subplots(1, len(setting.points), squeeze=False)[0]
    named, handles = lines.names(setting.lines), dict[str, Any]()
    for axes, (metric, by_line) in zip(panels, setting.points.items(), strict=True):
        handles |= {named[line]: draw_line(axes, line, setting.lines, at) for line, at in by_line.items()}
        handles |= _draw_beside(axes, setting, metric)
        axes.set_yscale("log")
        length_axis(axes, setting.lengths)
        axes.set_ylabel(LABELS[metric])
        log_ticks(axes.yaxis)
    columns = 3 if max(map(len, handles)) < 40 else 2
    place.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def _draw_beside(axes: Axes, setting: Setting, metric: str) -> dict[str, Any]:
    """What methods of a panel are held against, a line for each that has it; the legend names them once."""
    drawn: dict[str, Any] = {}
    for at in setting.points[metric].values():
        for key, (name, dash) in BESIDE.items():
            if held := [(n, at[n].beside[key]) for n in sorted(at) if key in at[n].beside]:
                (drawn[name],) = axes.plot(*zip(*held, strict=True), color=on_page("black"), linestyle=dash)
    return drawn
