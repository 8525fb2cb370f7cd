"""The page that a figure is drawn on, light or dark, and colours as each needs them."""

from __future__ import annotations

from typing import Any

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.grid": True,
    "grid.color": "#E5E5E5",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.hashsalt": "sharedllm",
}
PAPER, INK = "#0D1117", "#E6EDF3"
DARK: dict[Any, Any] = {
    **STYLE,
    **dict.fromkeys(("figure.facecolor", "axes.facecolor"), PAPER),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "grid.color": "#30363D",
}
"""matplotlib's settings for each."""


def paper() -> str:
    """The colour of the page that is drawn on."""
    from matplotlib import rcParams

    return str(rcParams["axes.facecolor"])


def on_page(colour: str) -> str:
    """A colour as the page needs it: a grey says how far it is from the page, so on a dark one black becomes white."""
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = to_rgb(colour)
    return to_hex((1 - red,) * 3) if paper() == PAPER and red == green == blue else colour
