"""Processes that work together: those of one `accelerate launch`, with what they exchange counted.

Accelerate reads the launcher's settings and opens the process group (NCCL on GPUs, gloo on CPUs); what is here is what this
library asks of it.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from sharedllm.errors import UsageError, WorkError

logger = logging.getLogger(__name__)

PATIENCE = timedelta(minutes=10)  # for the slowest process at any exchange
DTYPES = {"no": None, "bf16": "bfloat16", "fp16": "float16"}
T = TypeVar("T")


class ProcessGone(WorkError):
    """Another process of this launch ended, or gave no answer in time."""


def launched() -> int:
    """How many processes a launcher (accelerate, torchrun) started this one among; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class Processes:
    """The processes of this launch.

    Args:
        cpu: compute on CPUs also where there are GPUs.
        patience: how long to wait for the slowest of them before giving up.

    Attributes:
        index, count: this process among all.
        device: where this process computes.
        zero_stage: of DeepSpeed, where the launcher's configuration is one of DeepSpeed; else None.
        received: bytes that came from the others so far, an all-reduce counted as by a ring.
    Raises:
        UsageError: the launcher asks for what this library does not do.
    """

    def __init__(self, cpu: bool = False, patience: timedelta = PATIENCE) -> None:
        from accelerate import Accelerator, InitProcessGroupKwargs

        if _flag("ACCELERATE_USE_MEGATRON_LM"):
            raise UsageError(
                "Megatron-LM is not used here: what is trained is an adapter of a few megabytes, and it would divide no more "
                "than that; take a launch configuration without it, or with FSDP 2 to divide the frozen weights."
            )
        self.zero_stage = _zero_stage()
        if self.zero_stage is not None:
            os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"  # its engine would want to wrap the whole model
        with _heard(torch.distributed.DistError):
            handlers: list[Any] = [InitProcessGroupKwargs(timeout=patience)]
            self.accelerator = Accelerator(cpu=cpu, kwargs_handlers=handlers)
        self.index, self.count = self.accelerator.process_index, self.accelerator.num_processes
        self.device: torch.device = self.accelerator.device
        self.received = 0
        if self.zero_stage is not None and self.main:
            logger.warning(
                "of DeepSpeed's settings the ZeRO stage counts (%d: frozen layers %s); torch does it, not DeepSpeed's engine.",
                self.zero_stage,
                "are divided over the processes" if self.zero_stage == 3 else "are whole in every process",
            )

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.index == 0

    @property
    def dtype(self) -> str | None:
        """What the launcher's mixed precision says the model computes in; None leaves it to the machine."""
        precision = str(self.accelerator.mixed_precision)
        if precision not in DTYPES:
            raise UsageError(f"mixed precision {precision} is not known here; use one of {', '.join(DTYPES)}.")
        return DTYPES[precision]

    @property
    def sharded(self) -> bool:
        """Whether the launcher asks for weights divided over the processes: by FSDP 2, or by ZeRO stage 3.

        Raises:
            UsageError: by FSDP 1.
        """
        if _flag("ACCELERATE_USE_FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
            raise UsageError(
                "FSDP 1 makes one flat tensor of a layer's weights, which the adapter could not read; "
                "set fsdp_version: 2 in the launch configuration."
            )
        return _flag("ACCELERATE_USE_FSDP") or self.zero_stage == 3

    @contextmanager
    def first(self) -> Iterator[None]:
        """A block that the main process goes through before the others."""
        if not self.main:
            self._wait()
        yield
        if self.main:
            self._wait()

    def _wait(self) -> None:
        with _heard():
            self.accelerator.wait_for_everyone()

    def gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes, of one shape, stacked by process."""
        with _heard():
            whole: Tensor = self.accelerator.gather(tensor.contiguous()[None])
        self.received += (self.count - 1) * tensor.nbytes
        return whole

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, the same bits in each."""
        with _heard():
            total: Tensor = self.accelerator.reduce(tensor, "sum")
        self.received += 2 * (self.count - 1) * tensor.nbytes // self.count
        return total

    def broadcast(self, tensor: Tensor) -> Tensor:
        """The main process's tensor; the others give one of its shape."""
        from accelerate import utils

        with _heard():
            whole: Tensor = utils.broadcast(tensor.contiguous())
        self.received += 0 if self.main else whole.nbytes
        return whole

    def listed(self, rows: list[T]) -> list[T]:
        """The rows of all processes, in the order of the processes."""
        from accelerate.utils import gather_object

        with _heard():
            found: list[T] = gather_object(rows)
        return found

    def agree(self, what: str, value: object) -> None:
        """Raise `UsageError` unless all processes have the same `value`."""
        values = self.listed([str(value)])
        for index, other in enumerate(values):
            if other != values[0]:
                raise UsageError(
                    f"the {what} is {values[0]} in process 0 and {other} in process {index}; "
                    "give all machines the same files and settings."
                )

    def end(self) -> None:
        """Leave the others, when all are here: one that ends while another still exchanges something takes that down."""
        self._wait()
        self.accelerator.end_training()


@contextmanager
def _heard(kind: type[RuntimeError] = RuntimeError) -> Iterator[None]:
    """What an exchange says when a process is gone, as one sentence."""
    try:
        yield
    except kind as error:
        raise ProcessGone(
            f"another process of this run ended or gave no answer in time ({str(error).splitlines()[0][:200]}); "
            "give the same command again to go on from what is on the disk."
        ) from error


def _flag(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


def _zero_stage() -> int | None:
    """The ZeRO stage that a launcher's DeepSpeed settings name, in a file of their own or beside accelerate's.

    Raises:
        UsageError: the file cannot be read, or the stage is none.
    """
    if not _flag("ACCELERATE_USE_DEEPSPEED"):
        return None
    stage: Any = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    file = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none")
    try:
        if file.lower() != "none":
            stage = json.loads(Path(file).read_text(encoding="utf-8")).get("zero_optimization", {}).get("stage", 0)
        found = int(stage)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"the DeepSpeed settings {file} cannot be read: {error}.") from error
    if found not in (0, 1, 2, 3):
        raise UsageError(f"there is no ZeRO stage {found}; DeepSpeed has 0 to 3.")
    return found
