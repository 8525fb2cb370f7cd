"""The rows of `sharedllm bench`: rounds that alternate between the methods, at one length after the other."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import median
from typing import Any

import torch

from sharedllm.errors import WorkError
from sharedllm.evaluate.results import Results
from sharedllm.evaluate.row import machine, refused, too_large
from sharedllm.evaluate.speed.limits import break_even, compared, estimate, kept, limits
from sharedllm.evaluate.speed.memory import Memory
from sharedllm.evaluate.speed.phases import Phases, Sample, clock, measure
from sharedllm.methods import Method
from sharedllm.methods.estimate import cache_bytes
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt

TASK, TO_FIRST, PEAK = "bench", "seconds_to_first_token", "working_peak_bytes"


@dataclass
class Bench:
    """What is measured and how.

    Args:
        sample: gives the text of a length.
        rounds: measurements of each method and length.
        new_tokens: of an answer, at least 2.
        against: the method that the others are compared with, or None.
        budget: seconds that one measurement may be expected to take.
        free: memory that a method can take, in bytes.
        peak: measures memory; None: it is not measured.
        say: takes a line of progress.
        results: where rows are kept; a method and length that they have is not measured again.
    """

    llm: SharedLLM
    methods: Sequence[Method]
    sample: Callable[[int], Sample]
    prompt: Prompt
    rounds: int
    new_tokens: int
    against: str | None
    seed: int
    budget: float = float("inf")
    free: float = float("inf")
    peak: Callable[[Method, Sample], Memory] | None = None
    say: Callable[[str], None] = lambda line: None
    results: Results = field(default_factory=Results)
    took: dict[str, dict[int, float]] = field(default_factory=dict)
    """Seconds of one measurement, by method and length."""
    first: dict[str, dict[int, float]] = field(default_factory=dict)
    """Seconds to the first token, by method and length."""

    def rows(self, lengths: Sequence[int]) -> Iterator[dict[str, Any]]:
        """All rows, those of a length together, and at last from which length on a method is faster.

        A row of a time gives the median over rounds; `low` and `high` are its least and most, `rounds` has every
        phase of every round. Its `peak_memory_bytes` is that of the method's own process where memory was
        measured, otherwise the highest of this process so far.

        Raises:
            UsageError: a question and its answer do not fit a window.
        """
        self.took = {method.name: {} for method in self.methods}
        self.first = {method.name: {} for method in self.methods}
        warmed = False
        for length in sorted(set(lengths)):
            sample = self.sample(length)
            units = {method.name: self._unit(method, sample) for method in self.methods}
            known = {
                name: row for name, unit in units.items() if (row := self.results.find({**unit, "metric": TO_FIRST}))
            }
            for name, row in known.items():
                self.took[name][length], self.first[name][length] = row["seconds"] / row["samples"], row["value"]
            for row in self._at(sample, known, warm=not warmed):
                yield self.results.keep({**units[row["method"]], "metric": row["metric"]}, row.copy)
            warmed = warmed or len(known) < len(self.methods)
        if self.against:
            for method in self.methods:
                if method.name != self.against:
                    row = self._break_even(method)
                    unit = {
                        "metric": row["metric"],
                        "method": method.name,
                        "first": self.first,
                        "against": self.against,
                    }
                    yield self.results.keep(unit, row.copy)

    def _unit(self, method: Method, sample: Sample) -> dict[str, Any]:
        """What the rows of a method at a length depend on."""
        return {
            "method": method.name,
            **method.settings(),
            "read": hashlib.sha256(sample.ids.numpy().tobytes()).hexdigest(),
            "asked": [self.prompt.alone(), self.new_tokens],
            "rounds": self.rounds,
            "memory": self.peak is not None,
            "threads": torch.get_num_threads(),
        }

    def _at(self, sample: Sample, known: Mapping[str, dict[str, Any]], warm: bool) -> Iterator[dict[str, Any]]:
        """The rows of a length; of a method that is known its row of time alone."""
        length = len(sample.ids)
        reasons = {m.name: self._refusal(m, length) for m in self.methods if m.name not in known}
        todo = [m for m in self.methods if reasons.get(m.name, "known") is None]
        rounds, seconds = self._alternate(todo, sample, warm)
        for method in self.methods:
            name = method.name
            if name in known:
                yield known[name]
                continue
            reason = reasons[name]
            if reason is not None:
                yield self._without(method, length, TO_FIRST, reason)
                if self.peak:
                    yield self._without(method, length, PEAK, reason)
                continue
            started = time.perf_counter()
            memory = self._memory(method, sample)
            memory_seconds = time.perf_counter() - started
            peak = {"peak_memory_bytes": memory.peak} if isinstance(memory, Memory) else {}
            yield self._time(method, length, rounds[name], seconds[name]) | peak
            for metric, (goal, ratios) in limits(rounds[name]).items():
                yield self._row(method, length, metric, ratios, seconds[name], goal=str(goal)) | peak
            if isinstance(memory, Memory):
                yield from self._memory_rows(method, length, memory, memory_seconds)
            elif memory is not None:
                yield self._without(method, length, PEAK, memory)
            if self.against in rounds and name != self.against:
                for metric, ratios in compared(rounds[name], rounds[self.against], self.against).items():
                    yield self._row(method, length, metric, ratios, seconds[name], against=self.against) | peak

    def _refusal(self, method: Method, length: int) -> str | None:
        """Why a method is not measured at a length, or None."""
        quadratic = method.positions(2 * length) > method.positions(length)
        expected = estimate(self.took[method.name], length, quadratic)
        if expected is not None and expected > self.budget:
            return f"one measurement would take about {expected:,.0f} s, and the budget is {self.budget:,.0f} s"
        return too_large(method, length, 0, self.free)

    def _alternate(
        self, methods: Sequence[Method], sample: Sample, warm: bool
    ) -> tuple[dict[str, list[Phases]], dict[str, float]]:
        """The phases of every method's rounds, and the seconds of all of them; in each round another method is first."""
        now = clock(self.llm.device)
        found: dict[str, list[Phases]] = {method.name: [] for method in methods}
        seconds = dict.fromkeys(found, 0.0)
        for k in range(-1 if warm else 0, self.rounds):  # round -1 warms up and counts for nothing
            turn = max(k, 0) % max(len(methods), 1)
            for method in [*methods[turn:], *methods[:turn]]:
                what = f"round {k + 1} of {self.rounds}" if k >= 0 else "warming up"
                self.say(f"{method.name} at {len(sample.ids):,}: {what}")
                started = time.perf_counter()
                phases = measure(method, sample, self.prompt, self.new_tokens, now)
                if k >= 0:
                    found[method.name].append(phases)
                    seconds[method.name] += time.perf_counter() - started
        for name, rounds in found.items():
            self.took[name][len(sample.ids)] = seconds[name] / len(rounds)
            self.first[name][len(sample.ids)] = median(phases.to_first_token for phases in rounds)
        return found, seconds

    def _memory(self, method: Method, sample: Sample) -> Memory | str | None:
        """What was measured, why it could not be, or None where it is not asked for."""
        if self.peak is None:
            return None
        self.say(f"{method.name} at {len(sample.ids):,}: memory")
        try:
            return self.peak(method, sample)
        except WorkError as error:
            return str(error)

    def _time(self, method: Method, length: int, rounds: Sequence[Phases], seconds: float) -> dict[str, Any]:
        by_phase = {f"{f.name}_seconds": [getattr(p, f.name) for p in rounds] for f in fields(Phases)}
        by_phase = {name: values for name, values in by_phase.items() if None not in values}
        return self._row(
            method, length, TO_FIRST, [p.to_first_token for p in rounds], seconds,
            **{name: median(values) for name, values in by_phase.items()}, rounds=by_phase, new_tokens=self.new_tokens,
        )  # fmt: skip

    def _memory_rows(self, method: Method, length: int, memory: Memory, seconds: float) -> Iterator[dict[str, Any]]:
        full, peak = cache_bytes(self.llm, length), {"peak_memory_bytes": memory.peak}
        parts = {
            f"{name}_bytes": value for name, value in asdict(memory).items() if name not in ("peak", "working_peak")
        }
        counted = {"full_cache_bytes": full, "attended_bytes_a_token": memory.attended / length}
        yield self._row(method, length, PEAK, [memory.working_peak], seconds, **parts, **counted) | peak
        for metric, (goal, ratios) in kept(memory, full).items():
            yield self._row(method, length, metric, ratios, seconds, goal=str(goal)) | peak

    def _row(
        self, method: Method, length: int, metric: str, values: Sequence[float], seconds: float, **more: Any
    ) -> dict[str, Any]:
        return {
            "task": TASK,
            **method.settings(),
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
            "seed": self.seed,
            "threads": torch.get_num_threads(),
        }

    def _without(self, method: Method, length: int, metric: str, reason: str, **more: Any) -> dict[str, Any]:
        return {
            **method.settings(), **refused(self.llm, TASK, metric, method.name, length, reason, self.seed), **more,
            "threads": torch.get_num_threads(),
        }  # fmt: skip

    def _break_even(self, method: Method) -> dict[str, Any]:
        """From which length on a method reaches its first token earlier; its own `length` is the longest measured."""
        assert self.against is not None
        ours, others = self.first[method.name], self.first[self.against]
        longest = max(ours.keys() & others.keys(), default=0)
        found, said = (
            break_even(ours, others),
            {"against": self.against, "lengths": sorted(ours.keys() & others.keys())},
        )
        if found.tokens is None:
            return self._without(method, longest, "break_even_tokens", str(found.reason), **said)
        return self._row(method, longest, "break_even_tokens", [found.tokens], 0.0, **said)
