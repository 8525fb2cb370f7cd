"""Needles found, by depth and length: a heat map a method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sharedllm.errors import UsageError
from sharedllm.plot import lines
from sharedllm.plot.lines import Line
from sharedllm.plot.rows import Row
from sharedllm.plot.texts import EARLIER, by_texts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure
    from matplotlib.image import AxesImage

CELLS = 12
"""Cells side by side that can still be read, over all heat maps."""
PARTS = (10, 5, 4, 2)
ASKED = 4
"""Questions a cell should have at least, on average, before depth is split further."""


@dataclass(frozen=True)
class Grid:
    """Heat maps of one model: [found, asked] by line, by length in tokens, by range of depth from the beginning."""

    model: str
    dtype: str
    lengths: list[int]
    parts: int
    """Equal ranges of depth; 0 is the beginning of the text, 1 its end."""
    cells: dict[Line, dict[int, list[tuple[int, int]]]]
    replaced: int
    """Rows left out because a later row measured the same again."""
    which: str = ""
    """Which of several grids of this model and dtype."""


def grids(rows: Sequence[Row]) -> list[Grid]:
    """The heat maps of needle rows, by model, dtype and texts; rows with neither `depths` nor `found` are passed over.

    Rows of one line and length with different seeds are different questions and count together; with
    the same seed the last row counts.

    Raises:
        UsageError: `depths` and `found` do not belong together, or a value is missing; file and line are given.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.values.keys() & {"depths", "found"}:
            key = (str(row.values.get("model", "")), str(row.values.get("dtype", "")))
            groups.setdefault(key, []).append(row)
    return [
        _grid(model, dtype, same, EARLIER if k else "")
        for (model, dtype), members in sorted(groups.items())
        for k, same in enumerate(by_texts(members, lambda row: (row.whole("length"), str(row.values.get("seed")))))
    ]


def _grid(model: str, dtype: str, rows: Sequence[Row], which: str) -> Grid:
    latest: dict[tuple[Line, int, str], list[tuple[float, float]]] = {}
    for line, row in zip(lines.lines_of(rows), rows, strict=True):
        depths, found = row.shares("depths"), row.shares("found")
        if len(depths) != len(found) or not depths:
            raise UsageError(
                f"{row.file}, line {row.line}: depths has {len(depths)} entries and found {len(found)}; "
                "there must be one of each for every question."
            )
        latest[line, row.whole("length"), str(row.values.get("seed"))] = list(zip(depths, found, strict=True))
    fewest = min(map(len, latest.values()))
    parts = next((n for n in PARTS if fewest >= n * ASKED), 1)
    cells: dict[Line, dict[int, list[tuple[int, int]]]] = {line: {} for line in lines.in_order(k[0] for k in latest)}
    for (line, length, _), pairs in latest.items():
        column = cells[line].setdefault(length, [(0, 0)] * parts)
        for depth, one in pairs:
            k = min(int(depth * parts), parts - 1)
            column[k] = (column[k][0] + round(one), column[k][1] + 1)
    lengths = sorted({length for by_length in cells.values() for length in by_length})
    return Grid(model, dtype, lengths, parts, cells, len(rows) - len(latest), which)


def floors(grid: Grid) -> int:
    """Heat maps one under another; `CELLS` says how many stand side by side."""
    columns = min(3, max(1, CELLS // len(grid.lengths)))
    return -(-len(grid.cells) // columns)


def inches(grid: Grid) -> float:
    """Height of all heat maps with their labels."""
    return 0.8 + floors(grid) * (1.4 + 0.3 * grid.parts)


def title(grid: Grid) -> tuple[str, str]:
    """The headline and what stands below it."""
    totals = [sum(asked for _, asked in column) for by in grid.cells.values() for column in by.values()]
    said = ", ".join(part for part in (lines.counted(totals, "questions a length and method"), grid.which) if part)
    return "Needles found in a long text, by where they were hidden", lines.described(grid.model, grid.dtype, said)


def draw(grid: Grid, place: SubFigure) -> None:
    """Draw the heat maps with one colour bar."""
    named = lines.names(grid.cells)
    columns = -(-len(named) // floors(grid))
    panels = place.subplots(floors(grid), columns, squeeze=False, sharey=True).flatten()
    for spare in panels[len(named) :]:
        spare.set_axis_off()
    for i, (line, name) in enumerate(named.items()):
        image = _heat_map(panels[i], grid, line)
        panels[i].set_title(name.replace(": ", ":\n").replace(" (", "\n("), fontsize=10)
        if i % columns == 0:
            panels[i].set_ylabel("depth in the text\n(0 %: its beginning)")
    bar = place.colorbar(image, ax=list(panels), aspect=30, ticks=[0, 0.5, 1], label="share found, higher is better")
    bar.ax.set_yticklabels(["0 %", "50 %", "100 %"])


def _heat_map(axes: Axes, grid: Grid, line: Line) -> AxesImage:
    nothing = [(0, 0)] * grid.parts
    columns = [grid.cells[line].get(length, nothing) for length in grid.lengths]
    shares = [
        [column[k][0] / column[k][1] if column[k][1] else float("nan") for column in columns] for k in range(grid.parts)
    ]
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for k, row in enumerate(shares):
        for j, share in enumerate(row):
            if share == share:
                colour = "black" if share > 0.5 else "white"
                axes.text(j, k, lines.percent(share), ha="center", va="center", color=colour)
    totals = [(sum(found for found, _ in column), sum(asked for _, asked in column)) for column in columns]
    ticks = [
        lines.length_name(length) + (f"\n{lines.percent(found / asked)}" if asked else "")
        for length, (found, asked) in zip(grid.lengths, totals, strict=True)
    ]
    axes.set_xticks(range(len(ticks)), ticks)
    edges = [round(100 * k / grid.parts) for k in range(grid.parts + 1)]
    axes.set_yticks(range(grid.parts), [f"{a}-{b} %" for a, b in zip(edges, edges[1:], strict=False)])
    axes.set_xlabel("length (tokens) and\nshare found in all of it")
    axes.grid(False)
    return image
