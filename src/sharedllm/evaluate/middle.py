"""Cutting a prompt that is too long out of its middle, as LongBench and InfiniteBench do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sharedllm.prompts import Prompt


class CutPrompt(Prompt):
    """A prompt of which only these tokens are left, text and all: it is asked alone.

    Args:
        prompt: the whole one.
        ids: what is left of it.
    """

    def __init__(self, prompt: Prompt, ids: Sequence[int]) -> None:
        vars(self).update(vars(prompt))
        self._left = list(ids)

    def alone(self) -> list[int]:
        return list(self._left)


def cut_middle(ids: Tensor, before: int, after: int, room: int) -> Tensor:
    """What stays of a text [P] when its prompt may have `room` tokens: as many from the prompt's start as from its end.

    `before` and `after` tokens of instructions stand around the text and are not cut: where one of them is more
    than half of `room`, less than half is left to the other side's text. Where both together are more than `room`,
    see `cut_whole`.

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


def cut_whole(prompt: Prompt, ids: Tensor, room: int) -> tuple[CutPrompt, Tensor]:
    """The first and the last half of `room` tokens of a prompt with its text [P], whose instructions alone are more.

    So the benchmarks cut any prompt, a long question with it. Returns also what is left of the text, [Q].
    """
    before, after = prompt.around_text()
    whole, tail = [*before, *ids.tolist(), *after], room // 2
    head = room - tail
    kept = [*whole[:head], *whole[len(whole) - tail :]]
    return CutPrompt(prompt, kept), torch.cat(
        [ids[: max(0, head - len(before))], ids[len(ids) - min(len(ids), max(0, tail - len(after))) :]]
    )


def answer_lost(traces: Sequence[str], whole: str, shown: str) -> bool:
    """Whether one of `traces` (texts of the answer) stood in the text and none stands in what was left of it."""
    return any(trace in whole for trace in traces) and not any(trace in shown for trace in traces)
