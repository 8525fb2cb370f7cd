"""Cutting a prompt that is too long out of its middle, as LongBench and InfiniteBench do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cut_middle(ids: Tensor, before: int, after: int, room: int) -> Tensor:
    """What stays of a text [P] when its prompt may have `room` tokens: as many from the prompt's start as from its end.

    `before` and `after` tokens of instructions stand around the text and are never cut: where one of them is more
    than half of `room`, less than half is left to the other side's text.

    Raises:
        ValueError: the instructions alone are more than `room`.
    """
    left = room - before - after
    if left < 0:
        raise ValueError(f"{before + after} tokens of instructions do not fit {room}.")
    if len(ids) <= left:
        return ids
    tail = min(max(room // 2 - after, 0), left)
    return torch.cat([ids[: left - tail], ids[len(ids) - tail :]])


def answer_lost(traces: Sequence[str], whole: str, shown: str) -> bool:
    """Whether one of `traces` (texts of the answer) stood in the text and none stands in what was left of it."""
    return any(trace in whole for trace in traces) and not any(trace in shown for trace in traces)
