"""What `sharedllm bench` measures: rounds that alternate between the methods, at one length after the other."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any

import torch

from sharedllm.errors import WorkError
from sharedllm.evaluate.results import Results
from sharedllm.evaluate.row import RAN_OUT, too_large, unless_memory_ends
from sharedllm.evaluate.speed import limits
from sharedllm.evaluate.speed.floor import Rates
from sharedllm.evaluate.speed.limits import estimate
from sharedllm.evaluate.speed.longest import Longest
from sharedllm.evaluate.speed.memory import Memory
from sharedllm.evaluate.speed.phases import Phases, Sample, clock, measure, rounds_of
from sharedllm.evaluate.speed.rows import PEAK, TO_FIRST, Rows, held_bytes
from sharedllm.methods import Method
from sharedllm.methods.shared import Shared
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt


@dataclass
class Bench:
    """What is measured and how.

    Args:
        sample: gives the text of a length.
        rounds: measurements of each method and length.
        new_tokens: of an answer, at least 2.
        against: the methods that the others are compared with.
        budget: seconds that one measurement may be expected to take.
        free: memory that a method can take, in bytes.
        peak: measures memory; None: it is not measured.
        rates: what this machine reaches, asked once and only where something is measured; None: no floor is said.
        longest: tokens of the text that `shared` is to read once, ask and answer, and what measures that.
        say: takes a line of progress.
        results: where rows are kept; a method and length that they have is not measured again.
    """

    llm: SharedLLM
    methods: Sequence[Method]
    sample: Callable[[int], Sample]
    prompt: Prompt
    rounds: int
    new_tokens: int
    against: Sequence[str]
    seed: int
    budget: float = float("inf")
    free: float = float("inf")
    peak: Callable[[Method, Sample], Memory] | None = None
    rates: Callable[[], Rates] | None = None
    longest: tuple[int, Callable[[Method, Sample], Longest]] | None = None
    say: Callable[[str], None] = lambda line: None
    results: Results = field(default_factory=Results)
    took: dict[str, dict[int, float]] = field(default_factory=dict)
    """Seconds of one measurement, by method and length."""
    first: dict[str, dict[int, float]] = field(default_factory=dict)
    """Seconds to the first token, by method and length."""
    held: dict[str, dict[int, float]] = field(default_factory=dict)
    """Bytes that reading took beyond the model and what is kept, by method and length."""

    def rows(self, lengths: Sequence[int]) -> Iterator[dict[str, Any]]:
        """All rows, those of a length together, and at last what is said of several lengths and the longest text.

        A row of a time gives the median over rounds; `low` and `high` are its least and most, `rounds` has every
        phase of every round. Its `peak_memory_bytes` is that of the method's own process where memory was
        measured, otherwise the highest of this process so far.

        Raises:
            UsageError: a question and its answer do not fit a window.
        """
        self.took = {method.name: {} for method in self.methods}
        self.first = {method.name: {} for method in self.methods}
        self.held = {method.name: {} for method in self.methods}
        warmed = False
        for length in sorted(set(lengths)):
            sample = self.sample(length)
            units = {method.name: self._unit(method, sample) for method in self.methods}
            known = {
                name: row for name, unit in units.items() if (row := self.results.find({**unit, "metric": TO_FIRST}))
            }
            for name, row in known.items():
                self.took[name][length], self.first[name][length] = row["seconds"] / row["samples"], row["value"]
                if held := self.results.find({**units[name], "metric": limits.READING}):
                    self.held[name][length] = held["value"]
            for row in self._at(sample, known, warm=not warmed):
                yield self.results.keep(self._unit_of(row, units[row["method"]]), row.copy)
            warmed = warmed or len(known) < len(self.methods)
        for row, depends in self._over_lengths():
            unit = {"metric": row["metric"], "method": row["method"], **depends}
            yield self.results.keep(unit, row.copy)
        if self.longest:
            yield from self._longest(*self.longest)

    @property
    def _made(self) -> Rows:
        """What makes the rows."""
        return Rows(self.llm, self.seed, self.new_tokens)

    def _over_lengths(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Rows of several lengths together, and what each depends on."""
        for method in self.methods:
            held = self.held[method.name]
            if len(held) > 1 and held[min(held)]:
                yield self._made.growth(method, held), {"held": held}
            for other in self.against:
                if other != method.name:
                    first = self.first[method.name], self.first[other]
                    yield self._made.break_even(method, other, *first), {"first": self.first, "against": other}

    def _unit(self, method: Method, sample: Sample) -> dict[str, Any]:
        """What the rows of a method at a length depend on."""
        return {
            "method": method.name,
            **method.settings(),
            **method.rules(scored=False),
            "read": hashlib.sha256(sample.ids.numpy().tobytes()).hexdigest(),
            "asked": [self.prompt.alone(), self.new_tokens],
            "rounds": self.rounds,
            "memory": self.peak is not None,
            "threads": torch.get_num_threads(),
        }

    def _unit_of(self, row: Mapping[str, Any], unit: Mapping[str, Any]) -> dict[str, Any]:
        """What a row depends on, given the unit of its method: a comparison on both sides too, where a known one has others,
        as when the other method had another window."""
        key = {**unit, "metric": row["metric"]}
        sides = [row.get("ours"), row.get("other")]
        found = self.results.find(key) if "against" in row else None
        same = found is None or [found.get("ours"), found.get("other")] == sides
        return key if same else {**key, "sides": sides}

    def _at(self, sample: Sample, known: Mapping[str, dict[str, Any]], warm: bool) -> Iterator[dict[str, Any]]:
        """The rows of a length; of a method that is known its row of time, and how it compares."""
        length = len(sample.ids)
        reasons = {m.name: self._refusal(m, length) for m in self.methods if m.name not in known}
        todo = [m for m in self.methods if reasons.get(m.name, "known") is None]
        rounds, seconds = self._alternate(todo, sample, warm)
        fresh = set(rounds)
        reasons |= {method.name: RAN_OUT for method in todo if method.name not in fresh}
        rounds |= {name: rounds_of(row) for name, row in known.items()}
        rates = self.rates() if self.rates and todo else None
        for method in self.methods:
            name = method.name
            if name in known:
                row = known[name]
                yield row
                if self.peak and self.results.find({**self._unit(method, sample), "metric": PEAK}) is None:
                    yield from self._made.memory(method, length, *self._memory(method, sample))  # it failed before
                peak = {"peak_memory_bytes": row["peak_memory_bytes"]}
                yield from self._compared(method, length, rounds, fresh, {}, row["seconds"], peak)
                continue
            reason = reasons[name]
            if reason is not None:
                yield self._made.without(method, length, TO_FIRST, reason)
                if self.peak:
                    yield self._made.without(method, length, PEAK, reason)
                continue
            memory, memory_seconds = self._memory(method, sample)
            peak = {"peak_memory_bytes": memory.peak} if isinstance(memory, Memory) else {}
            yield self._made.time(method, length, rounds[name], seconds[name], rates) | peak
            for found in limits.limits(rounds[name]):
                yield self._made.ratio(method, length, found, seconds[name]) | peak
            yield from self._made.memory(method, length, memory, memory_seconds)
            yield from self._compared(method, length, rounds, fresh, reasons, seconds[name], peak)

    def _compared(
        self,
        method: Method,
        length: int,
        rounds: Mapping[str, Sequence[Phases]],
        fresh: set[str],
        reasons: Mapping[str, str | None],
        seconds: float,
        peak: Mapping[str, int],
    ) -> Iterator[dict[str, Any]]:
        """A method beside each of `against`, or why not; `fresh` took turns now, and a row of others says `separate_runs`."""
        name = method.name
        for other in self.against:
            if other in rounds and other != name:
                apart = {} if {name, other} <= fresh else {"separate_runs": True}
                goal = limits.faster(name, other, length)
                for found in limits.compared(rounds[name], rounds[other], other, goal):
                    yield {**self._made.ratio(method, length, found, seconds, against=other, **apart), **peak}
            elif (why := reasons.get(other)) is not None:
                yield self._made.without(
                    method, length, f"first_token_speed_over_{other}", f"{other}: {why}", against=other
                )

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
        """The phases of every method's rounds, and the seconds of all of them; in each round another method is first. None of a
        method for which memory ran out."""
        now = clock(self.llm.device)
        found: dict[str, list[Phases]] = {method.name: [] for method in methods}
        seconds = dict.fromkeys(found, 0.0)
        for k in range(-1 if warm else 0, self.rounds):  # round -1 warms up and counts for nothing
            turn = max(k, 0) % max(len(methods), 1)
            for method in (m for m in [*methods[turn:], *methods[:turn]] if m.name in found):
                what = f"round {k + 1} of {self.rounds}" if k >= 0 else "warming up"
                self.say(f"{method.name} at {len(sample.ids):,}: {what}")
                started = time.perf_counter()
                phases = unless_memory_ends(partial(measure, method, sample, self.prompt, self.new_tokens, now))
                if phases is None:
                    del found[method.name]
                elif k >= 0:
                    found[method.name].append(phases)
                    seconds[method.name] += time.perf_counter() - started
        for name, rounds in found.items():
            self.took[name][len(sample.ids)] = seconds[name] / len(rounds)
            self.first[name][len(sample.ids)] = median(phases.to_first_token for phases in rounds)
        return found, seconds

    def _memory(self, method: Method, sample: Sample) -> tuple[Memory | str | None, float]:
        """What was measured, why it could not be, or None where it is not asked for; and the seconds that took."""
        if self.peak is None:
            return None, 0.0
        self.say(f"{method.name} at {len(sample.ids):,}: memory")
        started = time.perf_counter()
        try:
            memory: Memory | str = self.peak(method, sample)
        except WorkError as error:
            memory = str(error)
        if isinstance(memory, Memory) and isinstance(method, Shared):
            self.held[method.name][len(sample.ids)] = held_bytes(memory)
        return memory, time.perf_counter() - started

    def _longest(self, length: int, measure: Callable[[Method, Sample], Longest]) -> Iterator[dict[str, Any]]:
        """The row of the longest text."""
        method = next(m for m in self.methods if m.name in limits.COMPRESSING)
        sample, metric = self.sample(length), limits.LONGEST

        def row() -> dict[str, Any]:
            reason = too_large(method, length, 0, self.free)
            if reason is None:
                self.say(f"{method.name} at {length:,}: read once, asked and answered")
                started = time.perf_counter()
                try:
                    found = measure(method, sample)
                except WorkError as error:
                    reason = str(error)
            if reason is not None:
                return self._made.without(method, length, metric, reason)
            return self._made.longest(method, length, found, time.perf_counter() - started)

        yield self.results.keep({**self._unit(method, sample), "rounds": 1, "metric": metric}, row)
