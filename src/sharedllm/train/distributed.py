"""Training in several processes, started by `accelerate launch`: one recipe, one effective batch, the same steps.

A sample is a function of (seed, step, part) alone, so every process draws its own and nothing is sent but the gradients of
the adapter, summed in one exchange a step. With `parallel: chunks` the processes share every sample instead: each reads some
of its chunks (the slots are exchanged) and learns from some of its windows. All processes then do the same steps with the same
gradients, so the adapter is the same in each and any one may write it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

import torch

from sharedllm.errors import UsageError
from sharedllm.hardware import choose_device
from sharedllm.model import SharedLLM
from sharedllm.parallel import ParallelReader
from sharedllm.processes import Processes
from sharedllm.sharding import shard
from sharedllm.train.loop import Row, Trainer
from sharedllm.train.precision import launched_dtype, training_dtype
from sharedllm.train.recipe import Recipe
from sharedllm.train.samples import Sample

logger = logging.getLogger(__name__)


class DistributedTrainer(Trainer):
    """One of the processes that train a recipe together; the main one writes and reports.

    Raises:
        UsageError: the launch does not fit the recipe, or the processes do not have the same model, data or checkpoint.
        WorkError: another process ended; the steps that were done are kept.
    """

    def __init__(self, recipe: Recipe, llm: SharedLLM | None = None, processes: Processes | None = None) -> None:
        started = time.monotonic()
        self.processes = processes or Processes(cpu=choose_device(recipe.device).value == "cpu")
        for name, value in recipe.to_dict().items():
            self.processes.agree(f"recipe's {name}", value)
        self.chunks = recipe.parallel == "chunks"
        if self.chunks and recipe.method != "shared":
            raise UsageError(f"parallel=chunks trains the method shared, not {recipe.method}; use parallel=samples.")
        sharded = self.processes.sharded
        if sharded and not self.chunks:
            raise UsageError(
                "weights divided by FSDP or ZeRO 3 need parallel=chunks: with parallel=samples the processes would call the layers "
                "each in an order of its own."
            )
        place = str(self.processes.device)
        if sharded:
            from accelerate.utils import disable_fsdp_ram_efficient_loading

            disable_fsdp_ram_efficient_loading()  # else transformers gives the model's weights to the first process alone
            place = "cpu"  # what is divided has to fit the machine first, not the device
        wanted = recipe.dtype or launched_dtype(self.processes.dtype, self.processes.main)
        dtype = training_dtype(self.processes.device.type, wanted)
        llm = llm or SharedLLM.from_pretrained(
            recipe.model, adapter="none", config=recipe.config, device=place, dtype=dtype
        )
        self.processes.agree("model", f"{llm.reader.identity} in {llm.dtype}")
        if sharded:
            shard(llm, self.processes)
        if self.chunks:
            llm.reader = ParallelReader(llm.reader, self.processes)
        with self.processes.first():
            super().__init__(recipe, llm, main=self.processes.main)
        self.started = started
        self.processes.agree("step to go on from", self.step)
        for name, value in self.origin.items():
            self.processes.agree(name, value)
        if self.main and not self.chunks and recipe.accumulate % self.processes.count:
            logger.warning(
                "the %d samples of a step leave some of %d processes idle; make accumulate a multiple, or set parallel=chunks.",
                recipe.accumulate,
                self.processes.count,
            )

    def _one_step(self) -> dict[str, Any]:
        before = self.processes.received
        return {**super()._one_step(), "received_bytes": self.processes.received - before}

    def _late(self) -> bool:
        """Once one is late, or was told to end, all stop, so that all do the same steps."""
        return any(self.processes.listed([super()._late()]))

    def _owed(self) -> bool:
        """As the main process has it, whose metrics they are."""
        return bool(self.processes.listed([super()._owed()])[0])

    def _dealt(self, n: int) -> range:
        return range(n) if self.chunks else range(self.processes.index, n, self.processes.count)

    def _gathered(self, rows: dict[int, Row]) -> list[Row]:
        if self.chunks:  # all have the same ones
            return list(rows.values())
        return [row for _, row in sorted(self.processes.listed(list(rows.items())), key=lambda item: item[0])]

    def _sum_gradients(self) -> None:
        parameters = list(self.module.parameters())
        with torch.no_grad():
            # A process without samples in this step has no gradients, and adds zero.
            flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
            total = self.processes.sum(flat).split([p.numel() for p in parameters])
            for p, gradient in zip(parameters, total, strict=True):
                p.grad = gradient.view_as(p)

    def _learn(self, sample: Sample, noise: torch.Generator) -> float:
        if not self.chunks:
            return super()._learn(sample, noise)
        sample, batch, memory = self._taken_in(sample, noise)
        rows, counted = dealt_rows(len(sample.windows), self.processes.index, self.processes.count)
        windows = [sample.windows[row] for row in rows]
        share = sum(w.targets for w in windows[:counted]) / sum(w.targets for w in sample.windows)
        counted = max(counted, 1)  # a process without any has a share of 0 of the first
        windows[counted:] = [replace(w, targets=0) for w in windows[counted:]]
        mine = None if memory is None else memory[torch.tensor(rows)]
        loss = self._backward(replace(sample, windows=windows), batch.rows(rows, counted), mine, share)
        return float(self.processes.sum(torch.tensor(loss, device=self.processes.device)))

    def figures(self) -> dict[str, Any]:
        return {**super().figures(), "processes": self.processes.count, "received_bytes": self.processes.received}

    def close(self) -> None:
        super().close()
        self.processes.end()


def dealt_rows(n: int, index: int, count: int) -> tuple[list[int], int]:
    """Which of `n` rows are a process's, and how many of those count.

    All processes get equally many, so that they call the model's layers alike: where rows run out, the first again.
    """
    own = list(range(index, n, count))
    return own + [0] * (-(-n // count) - len(own)), len(own)
