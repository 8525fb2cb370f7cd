"""Perplexity against length: a panel for every set of passages, window and number of targets, a line a method.

Neither passages nor two comparisons ever share a panel: methods with the same small window (what a compressed context
adds), and the model at its best (its whole window against a large window and the rest compressed). In a
panel of the second kind `truncate` stands with the largest window it was measured with; in one of the first, beside the
window of the others, with a larger one that `shared` was not measured with: a control. Where `truncate` was measured, what
is won over it, paired by passage, stands beside the means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sharedllm.evaluate.statistics import bootstrap
from sharedllm.plot import lines
from sharedllm.plot.axes import length_axis
from sharedllm.plot.lines import EVERYTHING, Line
from sharedllm.plot.marks import Mark, draw_marks, limits
from sharedllm.plot.page import on_page
from sharedllm.plot.rows import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure

FEW = 5
"""Passages from which on a bootstrap is more than their range; see `statistics.bootstrap`."""


@dataclass(frozen=True)
class Passages:
    """Which passages rows are of: how many, their texts, and where in those they start, as far as the rows say it."""

    samples: int
    sources: tuple[str, ...] = ()
    starts: tuple[str, ...] = ()

    def __str__(self) -> str:
        texts = len(set(self.sources))
        said = lines.counted([self.samples], "passages" if self.samples > 1 else "passage")
        return f"{said} of {texts} {'texts' if texts > 1 else 'text'}" if texts else said


@dataclass(frozen=True)
class Point:
    """Nats a token at a length in tokens, with the bounds of the mean."""

    length: int
    nll: float
    low: float
    high: float
    values: tuple[float, ...] = ()
    """Nats a token of each passage."""
    beyond: bool = False
    """Whether the model took more positions than it was trained for."""


@dataclass(frozen=True)
class Gain:
    """Nats a token won over `truncate` on the same passages, with paired 95 % bounds, and the share of `full`'s gain."""

    nats: float
    bounds: tuple[float, float] | None
    share: float | None


@dataclass(frozen=True)
class Setting:
    """What may be compared: one panel. `window` and `targets` in tokens."""

    model: str
    dtype: str
    window: int
    targets: int
    passages: Passages
    """Of every point."""
    points: dict[Line, list[Point]]
    """By line in drawing order; each by rising length."""
    replaced: int
    """Rows left out because a later row measured the same again."""

    def gains(self, line: Line) -> dict[int, Gain]:
        """By length, what `line` gains where `truncate` was measured too; the share where `full` was."""
        found = {}
        for ours in self.points[line]:
            alone, full = (self._point(method, ours.length) for method in ("truncate", "full"))
            if alone is None or alone is ours:
                continue
            paired = len(alone.values) == len(ours.values)
            pairs = [a - b for a, b in zip(alone.values, ours.values, strict=True)] if paired else []
            gain, share = alone.nll - ours.nll, None
            if full is not None and full.nll < alone.nll:
                share = gain / (alone.nll - full.nll)
            found[ours.length] = Gain(gain, bootstrap(pairs) if len(pairs) > 1 else None, share)
        return found

    def _point(self, method: str, length: int) -> Point | None:
        """What a method of the model alone scored at a length: with the window of all, or where that is large with the largest."""
        large = self.window > self.targets + 1
        best = sorted(
            (line for line in self.points if line.method == method and (large or not line.window)),
            key=lambda line: -line.window,
        )
        return next((p for line in best for p in self.points[line] if p.length == length), None)


def settings(rows: Sequence[Row]) -> list[Setting]:
    """The panels of perplexity rows, by model, dtype, targets, window and passages; other metrics than `nll` are passed over.

    A text that fits its window has no past, and its row gives its own length as window: such rows go to
    the next larger window that was measured with a past. Of rows that measured the same the last counts. What
    `truncate` scores with a larger window, and methods that read everything with any, stand in the panels of `shared` too.

    Raises:
        UsageError: a row lacks a value; the sentence gives file and line.
    """
    groups: dict[tuple[str, str, int, Passages], list[Row]] = {}
    for row in rows:
        if row.text("metric") == "nll":
            about = (str(row.values.get("model", "")), str(row.values.get("dtype", "")), row.whole("targets"))
            groups.setdefault((*about, _passages(row)), []).append(row)
    found = []
    for (model, dtype, targets, passages), members in groups.items():
        panels = _by_window(members)
        for window, inside in panels.items():
            beside = _beside(panels, window, targets)
            if not beside and not _needed(panels, window, targets):
                continue
            points, replaced = _points([*zip(lines.lines_of(inside), inside, strict=True), *beside])
            found.append(Setting(model, dtype, window, targets, passages, points, replaced))
    return sorted(found, key=lambda s: (s.model, s.dtype, s.targets, s.window))


def _passages(row: Row) -> Passages:
    sources, starts = (row.values.get(name) for name in ("sources", "starts"))
    texts, places = (tuple(map(str, given)) if isinstance(given, list) else () for given in (sources, starts))
    return Passages(row.whole("samples"), texts, places)


def _by_window(rows: Sequence[Row]) -> dict[int, list[Row]]:
    by_method: dict[str, set[int]] = {}
    for row in rows:
        if row.whole("length") > row.whole("window"):
            by_method.setdefault(row.text("method"), set()).add(row.whole("window"))
    every = set().union(*by_method.values())
    whole = max((row.whole("window") for row in rows if row.whole("window") not in every), default=0)
    panels: dict[int, list[Row]] = {}
    for row in rows:
        window = row.whole("window")
        if row.whole("length") <= window:
            window = min((w for w in by_method.get(row.text("method"), every) if w >= window), default=whole)
        panels.setdefault(window, []).append(row)
    return panels


def _beside(panels: dict[int, list[Row]], window: int, targets: int) -> list[tuple[Line, Row]]:
    """Rows of other windows that belong into a panel of `shared`: `truncate`'s best and what reads everything where its window is
    large; otherwise `truncate` with windows that no panel of `shared` comes up to."""
    ours = [w for w, rows in panels.items() if any(row.text("method") == "shared" for row in rows)]
    if window not in ours:
        return []
    larger = [w for w in panels if w > window and any(row.text("method") == "truncate" for row in panels[w])]
    if window <= targets + 1:
        large = [w for w in ours if w > targets + 1]
        return _of_truncate(panels, [w for w in larger if w < min(large, default=w + 1)])
    everything = [row for w, rows in panels.items() if w != window for row in rows if row.text("method") in EVERYTHING]
    return [
        *_of_truncate(panels, larger and [max(larger)]),
        *((lines.line_of(row), row) for row in everything),
    ]


def _of_truncate(panels: dict[int, list[Row]], windows: Sequence[int]) -> list[tuple[Line, Row]]:
    """Rows of `truncate` with some windows, as lines that say theirs."""
    rows = ((w, row) for w in windows for row in panels[w] if row.text("method") == "truncate")
    return [(replace(lines.line_of(row), window=w), row) for w, row in rows]


def _needed(panels: dict[int, list[Row]], window: int, targets: int) -> bool:
    """Whether a panel has a row that stands in no other."""
    beside = {id(row) for other in panels if other != window for _, row in _beside(panels, other, targets)}
    return any(id(row) not in beside for row in panels[window])


def _points(rows: Sequence[tuple[Line, Row]]) -> tuple[dict[Line, list[Point]], int]:
    latest: dict[Line, dict[int, Point]] = {line: {} for line in lines.in_order(line for line, _ in rows)}
    for line, row in rows:
        latest[line][row.whole("length")] = _point_of(row)
    points = {line: sorted(at.values(), key=lambda p: p.length) for line, at in latest.items()}
    return points, len(rows) - sum(map(len, points.values()))


def _point_of(row: Row) -> Point:
    """A row's point; its bounds from the values of its passages, as those of gains are, where it has them."""
    nll, values = row.number("value"), row.numbers("values")
    low, high = bootstrap(values) if values else (row.number("low", nll), row.number("high", nll))
    return Point(row.whole("length"), nll, low, high, values, bool(row.values.get("beyond_window")))


def title(setting: Setting) -> tuple[str, str]:
    """The panel's headline and what stands below it."""
    won = _won(setting)
    bars = f"bars: {_bars(setting)}."
    below = lines.described(setting.model, setting.dtype, f"{setting.passages}" + ("." if won else f"; {bars}"))
    if won:
        below += f" Right: nats won over truncate{_base(setting)}, paired by passage; {bars}"
    if gains := [gain for line in _ours(setting) for gain in setting.gains(line).values()]:
        shares = ", and as a share of what full gains" if any(gain.share is not None for gain in gains) else ""
        below += f" Above: what shared gains{shares}."
    if any(point.beyond for points in setting.points.values() for point in points):
        below += " †, hollow: more positions than the model was trained for."
    return f"Perplexity of the last {setting.targets:,} tokens, {setting.window:,} in the model's own window", below


def _base(setting: Setting) -> str:
    """The window of `truncate` that gains are over, where it is none of the others'."""
    windows = [line.window for line in setting.points if line.method == "truncate"]
    return f" of {max(windows):,} tokens" if setting.window > setting.targets + 1 and max(windows) else ""


def _bars(setting: Setting) -> str:
    """What the bars are, and the bounds of gains."""
    return "the range of so few passages" if setting.passages.samples < FEW else "95 % bootstrap over passages"


def inches(setting: Setting) -> float:
    """Height of the panels: the gains above them and the names below them take their room."""
    return 3.6 + 0.17 * (2 * len(_ours(setting)) + len(setting.points) / 2)


def shown_nats(setting: Setting) -> tuple[float, float]:
    """The least and the most of the axis of means."""
    return limits(mark for marks in _means(setting, bars=False).values() for mark in marks)


def _ours(setting: Setting) -> list[Line]:
    return [line for line in setting.points if line.method == "shared"]


def _means(setting: Setting, bars: bool) -> dict[Line, list[Mark]]:
    """The points of each line, with their bounds or without."""
    return {
        line: [Mark(p.length, p.nll, *((p.low, p.high) if bars else (p.nll, p.nll)), p.beyond) for p in points]
        for line, points in setting.points.items()
    }


def _won(setting: Setting) -> dict[Line, list[Mark]]:
    """By line that was measured beside `truncate`, its gains with their bounds."""
    found = {}
    for line, points in setting.points.items():
        gains = setting.gains(line)
        pairs = [(point, gains[point.length]) for point in points if point.length in gains]
        found[line] = [Mark(p.length, g.nats, *(g.bounds or (g.nats, g.nats)), p.beyond) for p, g in pairs]
    return {line: marks for line, marks in found.items() if marks}


def draw(setting: Setting, place: SubFigure) -> None:
    """Draw the means, and beside them what is won over `truncate`, which has the bars then."""
    won, named = _won(setting), lines.names(setting.points)
    panels = place.subplots(1, 2 if won else 1, squeeze=False)[0]
    handles = draw_marks(panels[0], _means(setting, bars=not won), named)
    panels[0].set_ylabel("nats per token\n(lower is better)")
    if won:
        panels[1].axhline(0, color=on_page("#999999"), linewidth=1)
        draw_marks(panels[1], won, named, also=[0])
        panels[1].set_ylabel("nats won over truncate\n(higher is better)")
        _write_gains(panels[1], setting)
    lengths = sorted({p.length for points in setting.points.values() for p in points})
    for axes in panels:
        length_axis(axes, lengths)
    place.legend(handles=handles, loc="outside lower center", ncols=3 if max(map(len, named.values())) < 40 else 2)


def _write_gains(axes: Axes, setting: Setting) -> None:
    """The gains of `shared` at each length, above the axes, where they hide no point."""
    ours, said = _ours(setting), dict[int, list[str]]()
    for line in ours:
        for length, gain in setting.gains(line).items():
            block = [f"{lines.letter(line, ours)} {gain.nats:+.3f}".strip()]
            if gain.share is not None:
                block.append(lines.percent(gain.share))
            said.setdefault(length, []).extend(block)
    for length, block in said.items():
        axes.annotate(
            "\n".join(block), (length, 1), (0, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
            ha="center", va="bottom", color=lines.SHARED, fontsize=9,
        )  # fmt: skip
