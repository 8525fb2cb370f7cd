"""The context tree: where a chunk is split, which halves are chosen, which tokens survive.

Plain tensor functions over many chunks at once; `naive.py` says the same with loops.

A tree of depth L over a chunk of n tokens is held as its 2^L + 1 borders: the finest spans, left to
right. A coarser node is a run of them, so one array holds every level. Going down, one half of the
current node is chosen and the other becomes a leaf at that level; at the last level both are leaves.

Shapes: X chunks (of all rows of a batch), F = 2^L finest spans, L + 1 leaves, S slots a chunk.
Source: arXiv 2603.04759, section on the context tree; the union of candidates is this project's.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def tree_borders(lengths_X: Tensor, depth: int, noise: float = 0.0, generator: torch.Generator | None = None) -> Tensor:
    """Borders of the finest spans of every chunk, shape [X, 2^depth + 1], in tokens.

    Each node splits at its middle, moved by Gaussian noise with a standard deviation of `noise` times
    the node's length (training only); a half of a node of two tokens or more is never empty.
    """
    borders = torch.stack([torch.zeros_like(lengths_X), lengths_X], dim=1)
    for _ in range(depth):
        start, end = borders[:, :-1], borders[:, 1:]
        middle = (start + end) // 2
        if noise > 0:
            place = middle.device if generator is None else generator.device
            drawn = torch.randn(middle.shape, generator=generator, device=place).to(middle.device)
            shifted = middle + (drawn * noise * (end - start)).round().long()
            middle = torch.where(end - start >= 2, shifted.clamp(start + 1, end - 1), middle)
        inner = torch.stack([start, middle], dim=2).flatten(1)
        borders = torch.cat([inner, borders[:, -1:]], dim=1)
    return borders


def placed(lengths_X: Sequence[Tensor], borders_XF: Sequence[Tensor]) -> Tensor:
    """Where the finest spans of some blocks stand in their text, start and end in tokens, [N, 2] on the CPU.

    Args:
        lengths_X, borders_XF: tokens of the chunks and borders of their finest spans, a tensor a block, in text order.
    """
    lengths = torch.cat([lengths.cpu() for lengths in lengths_X])
    borders = torch.cat([borders.cpu() for borders in borders_XF]) + (lengths.cumsum(0) - lengths)[:, None]
    return torch.stack([borders[:, :-1], borders[:, 1:]], dim=2).flatten(0, 1)


def search(borders_XF: Tensor, scores: Sequence[Tensor] | None) -> Tensor:
    """Leaves of every chunk in text order, shape [X, L + 1, 2]: start and end in tokens.

    Args:
        borders_XF: from `tree_borders`, [X, 2^L + 1].
        scores: how near the nodes of each level are to the question, [X, 1], [X, 2], ..., [X, 2^L]. None: no
            question, the later half is chosen.
    An empty half is never chosen over one with tokens; at equal scores the later half is.
    """
    spans = borders_XF.shape[1] - 1
    depth = spans.bit_length() - 1
    row = torch.arange(borders_XF.shape[0], device=borders_XF.device)
    node = torch.zeros_like(row)  # index among the nodes of its level
    leaves = []
    for level in range(1, depth + 1):
        width = spans >> level  # finest spans in a node of this level
        left, right = 2 * node, 2 * node + 1
        start, middle, end = (borders_XF[row, i * width] for i in (left, right, right + 1))
        if scores is None:
            later = torch.ones_like(row, dtype=torch.bool)
        else:
            later = scores[level][row, right] >= scores[level][row, left]
        later = (later | (middle == start)) & ((middle < end) | (middle == start))
        kept = torch.stack([torch.where(later, start, middle), torch.where(later, middle, end)], dim=1)
        leaves.append(kept)
        if level == depth:
            leaves.append(torch.stack([torch.where(later, middle, start), torch.where(later, end, middle)], dim=1))
        node = torch.where(later, right, left)
    leaves_XLs = torch.stack(leaves, dim=1)
    order = torch.argsort(leaves_XLs.sum(dim=2), dim=1, stable=True)  # by midpoint: spans never overlap
    return leaves_XLs.gather(1, order[:, :, None].expand(-1, -1, 2))


def slot_tokens(spans_Xs: Tensor, slots: int | Tensor) -> tuple[Tensor, Tensor]:
    """Tokens kept of every span at an even stride, and which of them are real.

    A span of n tokens keeps min(n, slots) of them: the last token of each of that many equal parts
    (floor((k + 1) n / kept) - 1 for k = 0, 1, ...), since the last token has seen the whole part.

    Args:
        spans_Xs: [..., 2] start and end in tokens.
        slots: how many at most; a tensor that broadcasts to [..., 1] where spans differ in it.
    Returns:
        tokens and mask, both [..., most slots]; where the mask is False the token is the span's start.
    """
    start, length = spans_Xs[..., :1], spans_Xs[..., 1:] - spans_Xs[..., :1]
    kept = torch.minimum(length, torch.as_tensor(slots, device=length.device))
    width = slots if isinstance(slots, int) else int(slots.max())
    k = torch.arange(width, device=spans_Xs.device).expand(*spans_Xs.shape[:-1], width)
    mask = k < kept
    tokens = start + torch.div((k + 1) * length, kept.clamp(min=1), rounding_mode="floor") - 1
    return torch.where(mask, tokens, start), mask


def candidate_tokens(length: int, depth: int, slots: int) -> Tensor:
    """Sorted tokens that any search over a chunk of `length` tokens could keep, shape [P].

    Only these need storing to answer every later question: a quarter of the chunk at the defaults,
    because the strides of the levels nest where lengths are powers of two.
    """
    borders = tree_borders(torch.tensor([length]), depth)
    spans = 2**depth
    found = []
    for level in range(1, depth + 1):
        cut = borders[:, :: spans >> level]
        tokens, mask = slot_tokens(torch.stack([cut[:, :-1], cut[:, 1:]], dim=2), slots)
        found.append(tokens[mask])
    return torch.cat(found).unique()
