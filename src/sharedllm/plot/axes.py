"""What figures against length draw alike: the line of a method with its bars, and the axis of lengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from sharedllm.plot import lines
from sharedllm.plot.lines import Line
from sharedllm.plot.page import on_page, paper

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.lines import Line2D


class Bounded(Protocol):
    """A value with what bounds it."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


def draw_line(axes: Axes, line: Line, among: Sequence[Line], at: Mapping[int, Bounded]) -> Line2D:
    """Draw one line over the lengths that it was measured at, in the look that it has among all lines of a figure."""
    colour, marker, dash = look(line, among)
    strong, x = line.method == "shared", sorted(at)
    axes.vlines(x, [at[n].low for n in x], [at[n].high for n in x], color=colour, linewidth=2)
    (drawn,) = axes.plot(
        x, [at[n].value for n in x], color=colour, marker=marker, linestyle=dash, markersize=8 if strong else 6,
        markerfacecolor=colour if dash == "-" else paper(), linewidth=2.4 if strong else 1.6, zorder=4 if strong else 3,
    )  # fmt: skip
    return drawn


def look(line: Line, among: Iterable[Line]) -> tuple[str, str, str]:
    """Colour, marker and dash of a line, as the page needs its colour."""
    colour, marker, dash = lines.look(line, among)
    return on_page(colour), marker, dash


def length_axis(axes: Axes, lengths: Sequence[int]) -> None:
    """Make the horizontal axis one of lengths, doubling from tick to tick."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [lines.length_name(n) for n in lengths])
    axes.minorticks_off()
    axes.set_xlim(lengths[0] / 2**0.5, lengths[-1] * 2**0.5)
    axes.set_xlabel("length of the text (tokens; 1K is 1,024)")


def log_ticks(axis: Axis) -> None:
    """Number a logarithmic axis of what is drawn so far: each power of ten, and where that would be few also 2 and 5 times it."""
    from matplotlib.ticker import LogLocator

    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_formatter("")
