"""Draws the figures of docs/how.md: `python tools/draw_how.py`. Colours read on light and dark pages alike.

The tree's spans and the tokens kept are those that `sharedllm.tree` computes, for the settings of the shipped adapter.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from sharedllm.tree import search, slot_tokens, tree_borders

FOLDER = Path(__file__).parent.parent / "docs/figures"
LENGTH, DEPTH, SLOTS = 1024, 3, 32
INK, BLUE, VIOLET, ORANGE = "#7d8590", "#3b82f6", "#8b5cf6", "#d97706"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "sharedllm",  # the same picture, the same file
    "font.size": 10,
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
    **{f"axes.{part}": INK for part in ("edgecolor", "labelcolor")},
}


def bar(
    ax: Any, x: float, y: float, width: float, height: float, colour: str, label: str = "", fill: bool = True
) -> None:
    """A box of translucent colour with a label in its middle."""
    ax.add_patch(Rectangle((x, y), width, height, facecolor=colour if fill else "none", alpha=0.2, edgecolor="none"))
    ax.add_patch(Rectangle((x, y), width, height, facecolor="none", edgecolor=colour, linewidth=1))
    ax.text(x + width / 2, y + height / 2, label, ha="center", va="center", fontsize=9)


def bare(ax: Any, width: float, height: float) -> None:
    ax.set(xlim=(0, width), ylim=(0, height), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def tree() -> Figure:
    """A chunk's way down the tree for a question whose answer is at token 600, and the tokens kept of each leaf."""
    figure = Figure(figsize=(8.4, 3.4))
    ax = figure.subplots()
    borders = tree_borders(torch.tensor([LENGTH]), DEPTH)
    fine = borders[0].tolist()
    scores = [
        torch.tensor([[float(fine[k * w] <= 600 < fine[(k + 1) * w]) for k in range(2**level)]])
        for level in range(DEPTH + 1)
        for w in (2 ** (DEPTH - level),)
    ]
    leaves = search(borders, scores)
    tokens, mask = slot_tokens(leaves[0], SLOTS)
    for level in range(DEPTH + 1):
        width = 2 ** (DEPTH - level)
        for k in range(2**level):
            start, end = fine[k * width], fine[(k + 1) * width]
            chosen = scores[level][0, k].item() > 0
            leaf = [start, end] in leaves[0].tolist()
            if chosen or leaf:
                bar(ax, start, 4 - level, end - start, 0.7, BLUE if leaf else INK, f"{end - start}", fill=leaf)
    for (start, end), kept, real in zip(leaves[0].tolist(), tokens, mask, strict=True):
        ax.vlines(kept[real].tolist(), 0.1, 0.6, color=BLUE, linewidth=0.8)
        ax.text((start + end) / 2, -0.35, f"every {(end - start) // SLOTS}th", ha="center", fontsize=9)
    ax.axvline(600, color=ORANGE, linestyle=":", linewidth=1.2)
    ax.text(606, 4.85, "what was asked for", color=ORANGE, fontsize=9)
    ax.set(xlim=(-5, LENGTH + 5), ylim=(-0.6, 5.1), yticks=[4.35, 3.35, 2.35, 1.35, 0.35], xlabel="token of the chunk")
    ax.set_yticklabels(["the chunk", "level 1", "level 2", "level 3", f"{int(mask.sum())} slots kept"])
    ax.set_xticks([0, 256, 512, 768, 1024])
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(length=0)
    return figure


def passes() -> Figure:
    """Both passes: what the lower model computes for the chunks, what the upper one for the window."""
    figure = Figure(figsize=(8.4, 3.2))
    ax = figure.subplots()
    bare(ax, 100, 34)
    for k in range(4):
        bar(ax, 2 + k * 14, 4, 12, 16, BLUE, "lowest M\nlayers")
        ax.text(8 + k * 14, 1.5, f"chunk {k + 1}" if k < 3 else "chunk N", ha="center", fontsize=9)
    bar(ax, 70, 4, 28, 16, VIOLET, "lowest M layers,\neach with a trained\nbranch to the slots")
    bar(ax, 70, 21, 28, 8, VIOLET, "the other layers")
    ax.text(84, 1.5, "window: question and answer", ha="center", fontsize=9)
    ax.annotate("", (69.5, 12), (57, 12), arrowprops={"arrowstyle": "->", "color": ORANGE, "linewidth": 2})
    ax.text(63.2, 14.5, "slots", ha="center", color=ORANGE, fontsize=9)
    ax.text(29, 31, "read once: chunks side by side, no layer above M", ha="center")
    ax.text(84, 31, "for every question", ha="center")
    return figure


def positions() -> Figure:
    """Which rotary position slots and window tokens take in the branch, against the token's place in the text."""
    figure = Figure(figsize=(8.4, 2.9))
    ax = figure.subplots()
    chunks = 8
    for chunk in range(chunks):
        ax.hlines(chunk + 1, chunk * LENGTH, (chunk + 1) * LENGTH, color=BLUE, linewidth=4)
    ax.hlines(chunks + 1, chunks * LENGTH, (chunks + 1) * LENGTH, color=VIOLET, linewidth=4)
    ax.plot([0, 2.2 * LENGTH], [0, 12], color=INK, linestyle=":", linewidth=1.2)
    ax.text(2.3 * LENGTH, 11, "counted by tokens it would run far beyond what training saw", fontsize=9)
    ax.text(chunks * LENGTH - 120, chunks + 1, "the window, one further", ha="right", va="center", fontsize=9)
    ax.text(5.2 * LENGTH, 3.6, "slots of a chunk share its number", fontsize=9)
    ax.set(xlabel="token of the text", ylabel="position in the branch", ylim=(0, 12), xlim=(0, 9.2 * LENGTH))
    ax.set_xticks([k * 2 * LENGTH for k in range(5)])
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    with rc_context(STYLE):
        for draw in (tree, passes, positions):
            file = FOLDER / f"{draw.__name__}.svg"
            draw().savefig(file, transparent=True, bbox_inches="tight", metadata={"Date": None})
            print(file)


if __name__ == "__main__":
    main()
