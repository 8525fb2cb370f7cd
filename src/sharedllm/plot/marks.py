"""Values against length on an axis that what the model makes of too many positions does not stretch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharedllm.plot.axes import look
from sharedllm.plot.lines import Line
from sharedllm.plot.page import paper

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

ROOM, LEAST_ROOM = 0.08, 0.005
"""Beside what an axis has to show: a share of its span, and units of it at least."""
EDGE = 0.06
"""How far off that stands what is off the axis, as a share of its span."""
BESIDE, TOGETHER = 0.1, 0.6
"""Doublings of length between two lines, and between the first and the last of many, at most."""


@dataclass(frozen=True)
class Mark:
    """A value at a length in tokens, with its bounds, which are the value itself where it has none."""

    length: int
    value: float
    low: float
    high: float
    beyond: bool = False
    """Whether it took more positions than the model was trained for."""


def limits(marks: Iterable[Mark], also: Iterable[float] = ()) -> tuple[float, float]:
    """Of an axis: all that took no more positions than the model was trained for, and of the rest what is no further off.

    Args:
        also: other values that it has to show.
    """
    every, others = list(marks), list(also)
    within = [mark for mark in every if not mark.beyond] or every
    low, high = _span(within, others)
    return _span([mark for mark in every if mark in within or low <= mark.value <= high], others)


def _span(marks: Sequence[Mark], others: Sequence[float]) -> tuple[float, float]:
    low, high = min([*(mark.low for mark in marks), *others]), max([*(mark.high for mark in marks), *others])
    room = max(ROOM * (high - low), LEAST_ROOM)
    return low - room, high + room


def draw_marks(
    axes: Axes, marks: Mapping[Line, Sequence[Mark]], names: Mapping[Line, str], also: Iterable[float] = ()
) -> list[Line2D]:
    """Draw lines beside each other, or their bars would hide each other; returns one for each, named.

    What took too many positions is hollow, with a dagger, and stands at the edge with its number where it is off the axis.

    Args:
        names: of all lines of the figure, among which each has its look.
        also: see `limits`.
    """
    every = [mark for found in marks.values() for mark in found]
    low, high = limits(every, also)
    edge = EDGE * (high - low)
    below = 2 * edge if any(mark.value < low for mark in every) else 0
    above = 2 * edge if any(mark.value > high for mark in every) else 0
    axes.set_ylim(low - below, high + above)
    step = min(BESIDE, TOGETHER / max(1, len(marks)))
    drawn: list[Line2D] = []
    for i, (line, found) in enumerate(marks.items()):
        colour, marker, dash = look(line, names)
        strong, shift = line.method == "shared", 2 ** (step * (i - (len(marks) - 1) / 2))
        inside = [mark for mark in found if low <= mark.value <= high]
        x, size = [mark.length * shift for mark in inside], 8 if strong else 6
        axes.vlines(
            x, [mark.low for mark in inside], [mark.high for mark in inside], color=colour,
            alpha=0.6 if strong else 0.4, linewidth=2 if strong else 1.4,
        )  # fmt: skip
        drawn += axes.plot(
            x, [mark.value for mark in inside], color=colour, marker=marker, linestyle=dash, markersize=size, label=names[line],
            markerfacecolor=colour if dash == "-" else paper(), linewidth=2.4 if strong else 1.6, zorder=4 if strong else 3,
        )  # fmt: skip
        for mark in (mark for mark in found if mark.beyond):
            at = mark.length * shift, min(max(mark.value, low - edge), high + edge)
            axes.plot(
                *at, color=colour, marker=marker, markersize=size, markerfacecolor=paper(), linestyle="", zorder=5
            )
            said = "†" if mark in inside else f"{mark.value:.2f} †"
            axes.annotate(said, at, (7, 0), textcoords="offset points", va="center", color=colour, fontsize=8)
    return drawn
