"""What a row of `sharedllm bench` says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import Any

import torch

from sharedllm.adapter import weights_digest
from sharedllm.evaluate.row import machine, refused
from sharedllm.evaluate.speed import limits
from sharedllm.evaluate.speed.floor import Floor, Rates, reading
from sharedllm.evaluate.speed.limits import Compared, break_even
from sharedllm.evaluate.speed.longest import Longest
from sharedllm.evaluate.speed.memory import Memory
from sharedllm.evaluate.speed.phases import Phases
from sharedllm.methods import Method
from sharedllm.methods.estimate import cache_bytes
from sharedllm.methods.shared import Shared
from sharedllm.model import SharedLLM

TASK, TO_FIRST, PEAK = "bench", "seconds_to_first_token", "working_peak_bytes"


@dataclass(frozen=True)
class Rows:
    """Makes the rows of one model; `new_tokens` of an answer."""

    llm: SharedLLM
    seed: int
    new_tokens: int

    def time(
        self, method: Method, length: int, rounds: Sequence[Phases], seconds: float, rates: Rates | None
    ) -> dict[str, Any]:
        """The phases of every round, and the floor that `rates` give the reading."""
        by_phase = {f"{f.name}_seconds": [getattr(p, f.name) for p in rounds] for f in fields(Phases)}
        by_phase = {name: values for name, values in by_phase.items() if None not in values}
        return self.row(
            method, length, TO_FIRST, [p.to_first_token for p in rounds], seconds,
            **{name: median(values) for name, values in by_phase.items()}, rounds=by_phase, new_tokens=self.new_tokens,
            **(Floor(reading(self.llm, length), rates).said() if rates and "bare_read_seconds" in by_phase else {}),
        )  # fmt: skip

    def ratio(self, method: Method, length: int, found: Compared, seconds: float, **more: Any) -> dict[str, Any]:
        """A method beside a limit or another method."""
        return self.row(method, length, found.metric, found.ratios, seconds, **found.said(), **more)

    def memory(
        self, method: Method, length: int, memory: Memory | str | None, seconds: float
    ) -> Iterator[dict[str, Any]]:
        """What was measured of memory, or why it could not be; none where it was not asked for."""
        if isinstance(memory, str):
            yield self.without(method, length, PEAK, memory)
        if not isinstance(memory, Memory):
            return
        full, peak = cache_bytes(self.llm, length), {"peak_memory_bytes": memory.peak}
        parts = {
            f"{name}_bytes": value for name, value in asdict(memory).items() if name not in ("peak", "working_peak")
        }
        counted = {"full_cache_bytes": full, "attended_bytes_a_token": memory.attended / length}
        yield self.row(method, length, PEAK, [memory.working_peak], seconds, **parts, **counted) | peak
        for found in limits.kept(memory, full):
            yield self.ratio(method, length, found, seconds) | peak
        if isinstance(method, Shared):
            held = held_bytes(memory)
            sides = {"ours": memory.reading, "other": memory.kept, "unit": limits.BYTES}
            judged = limits.READING_GOAL.judged(held)
            yield self.row(method, length, limits.READING, [held], seconds, **sides, **judged) | peak

    def growth(self, method: Method, held: Mapping[int, float]) -> dict[str, Any]:
        """What reading takes at the longest length, over what it takes at the shortest; `held`: bytes, by length."""
        lengths = [min(held), max(held)]
        sides = Compared(limits.GROWTH, [held[lengths[1]]], [held[lengths[0]]], limits.BYTES, limits.GROWTH_GOAL, False)
        return self.ratio(method, lengths[1], sides, 0.0, lengths=lengths)

    def break_even(
        self, method: Method, against: str, ours: Mapping[int, float], others: Mapping[int, float]
    ) -> dict[str, Any]:
        """From which length on a method reaches its first token earlier; its own `length` is the longest measured.

        Args:
            ours, others: seconds to the first token, by length.
        """
        longest = max(ours.keys() & others.keys(), default=0)
        found, said = break_even(ours, others), {"against": against, "lengths": sorted(ours.keys() & others.keys())}
        if found.tokens is None:
            return self.without(method, longest, "break_even_tokens", str(found.reason), **said)
        return self.row(method, longest, "break_even_tokens", [found.tokens], 0.0, **said)

    def longest(self, method: Method, length: int, found: Longest, seconds: float) -> dict[str, Any]:
        """Of the longest text; a goal is met where it was read to its end and answered in the bytes allowed."""
        met = limits.LONGEST_GOAL.met(found.tokens) and found.peak <= limits.LONGEST_BYTES
        return self.row(
            method, length, limits.LONGEST, [found.tokens], seconds,
            read_seconds=found.read, first_token_seconds=found.first_token, answer=found.answer,
            kept_bytes=found.kept, allowed_bytes=limits.LONGEST_BYTES, goal=str(limits.LONGEST_GOAL), met=met,
        ) | {"peak_memory_bytes": found.peak}  # fmt: skip

    def row(
        self, method: Method, length: int, metric: str, values: Sequence[float], seconds: float, **more: Any
    ) -> dict[str, Any]:
        """The median of some values, on what they depend and how they were measured; `more` is said besides."""
        return {
            "task": TASK,
            **method.settings(),
            **method.rules(scored=False),
            "method": method.name,
            "length": length,
            "metric": metric,
            "value": median(values),
            "low": min(values),
            "high": max(values),
            "samples": len(values),
            "seconds": seconds,
            **more,
            **machine(self.llm),
            "adapter_weights": weights_digest(self.llm.injection),
            "seed": self.seed,
            "threads": torch.get_num_threads(),
        }

    def without(self, method: Method, length: int, metric: str, reason: str, **more: Any) -> dict[str, Any]:
        """The row of what was not measured, and why."""
        return {
            **method.settings(), **refused(self.llm, TASK, metric, method.name, length, reason, self.seed), **more,
            "threads": torch.get_num_threads(),
        }  # fmt: skip


def held_bytes(memory: Memory) -> int:
    """Bytes that reading took beyond the model and what is kept."""
    return max(0, memory.reading - memory.kept)
