"""docs/figures/scale.svg: operations to read, bytes kept and bytes a new token against length, a column a model.

In the manner of `sharedllm.plot`; colours read on light and dark pages alike, markers and dashes in print without colour.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from scale_tables import amount

from sharedllm.plot import figure, lines
from sharedllm.plot.axes import length_axis

INK = "#7d8590"
LOOKS = {
    "full": (INK, "-"),
    "shared": ("#D55E00", "-"),
    "streaming": ("#3b82f6", "--"),
    "encoder-decoder": ("#8b5cf6", ":"),
}
WEIGHTS = {
    "shared": (8, 2.4),
    "full": (10, 3.2),
}  # marker and line; `full` lies under `encoder-decoder` where they are equal
PANELS = {
    "read_operations": "operations to read",
    "kept_bytes": "bytes kept of the text",
    "token_bytes": "bytes a new token reads",
}
STYLE: dict[Any, Any] = {
    **figure.STYLE,
    "svg.fonttype": "none",  # text stays text
    "grid.color": INK,
    "grid.alpha": 0.3,
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
    **{f"axes.{part}": INK for part in ("edgecolor", "labelcolor")},
}


def draw(rows: Sequence[dict[str, Any]]) -> Figure:
    """Draw the rows of costs; the figure is to be saved inside `rc_context(STYLE)` as well."""
    models, lengths = list(dict.fromkeys(row["model"] for row in rows)), sorted({row["length"] for row in rows})
    drawn = Figure(figsize=(figure.WIDTH, 8.0), layout="constrained")
    panels = drawn.subplots(len(PANELS), len(models), sharex=True, sharey="row", squeeze=False)
    handles: dict[str, Any] = {}
    for line, (value, label) in enumerate(PANELS.items()):
        for axes, model in zip(panels[line], models, strict=True):
            for method, (colour, dash) in LOOKS.items():
                at = {r["length"]: r[value] for r in rows if (r["model"], r["method"]) == (model, method)}
                size, width = WEIGHTS.get(method, (6, 1.6))
                (handles[lines.WORDS[method]],) = axes.plot(
                    lengths, [at[n] for n in lengths], color=colour, linestyle=dash, marker=lines.LOOKS[method][1],
                    markersize=size, linewidth=width, zorder=4 if method == "shared" else 3,
                )  # fmt: skip
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_bytes if value.endswith("bytes") else _operations)
            axes.yaxis.set_minor_locator(NullLocator())
            length_axis(axes, lengths)
            axes.set_xlabel("tokens of text" if line == len(PANELS) - 1 else "")
            axes.set_title(model if line == 0 else "", fontsize=10.5)
        panels[line][0].set_ylabel(label)
    drawn.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    return drawn


def save(rows: Sequence[dict[str, Any]], file: Path) -> None:
    with rc_context(STYLE):
        draw(rows).savefig(file, format="svg", transparent=True, metadata={"Date": None})


def _bytes(x: float, _position: int) -> str:
    """The name of a tick, a power of ten: 10 GB."""
    return re.sub(r"\.0+(?= )", "", amount(x, "B"))


def _operations(x: float, _position: int) -> str:
    return re.sub(r"\.0+(?= )", "", amount(x))
