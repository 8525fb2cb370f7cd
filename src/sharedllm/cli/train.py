"""`sharedllm train`: train an adapter by a recipe; started again, it goes on where it was.

Under a launcher (`accelerate launch -m sharedllm.train`) each process runs this, and the first one speaks.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sharedllm.cli import common

if TYPE_CHECKING:
    from sharedllm.train.loop import Trainer

UNFINISHED = 3
"""Exit code of a run that stopped after its minutes: the same command goes on."""
PATIENCE = 15.0
"""Seconds after SIGTERM in which several processes end together; launchers and clusters kill after 30."""
TWICE = 1.0
"""Seconds in which a second SIGTERM is the first one again: a cluster sends it, and so does the launcher that it ends."""


def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings as key=value.")] = None,
    as_json: common.JsonOption = False,
) -> None:
    """Train an adapter by a recipe; started again, it goes on from its last checkpoint.

    With minutes=N it stops after so many, with exit code 3 where it is not finished.
    """
    from sharedllm.train.recipe import read_recipe

    settings = read_recipe(recipe, overrides or [])
    from transformers.utils import logging

    from sharedllm.hardware import keep_freed_memory
    from sharedllm.processes import launched
    from sharedllm.train.loop import Trainer

    logging.set_verbosity_error()
    keep_freed_memory()
    with _ended_by_sigterm() as together:
        with common.status("loading model and data"):
            if launched() > 1:
                from sharedllm.train.distributed import DistributedTrainer

                trainer: Trainer = DistributedTrainer(settings)
                together.append(trainer)
            else:
                trainer = Trainer(settings)
        if not trainer.main:
            trainer.train()
        else:
            _train(trainer, as_json)
    trainer.close()
    if not trainer.finished:
        raise typer.Exit(UNFINISHED)


@contextmanager
def _ended_by_sigterm() -> Iterator[list[Trainer]]:
    """Within this block SIGTERM, by which clusters and launchers end a run, does what Ctrl-C does.

    A trainer that is put into the list it gives trains together with other processes, and ends with them, after a step that all
    did; where that takes longer than `PATIENCE`, or at a second signal, as Ctrl-C ends it.
    """
    together: list[Trainer] = []
    told: list[float] = []
    again = threading.Timer(PATIENCE, os.kill, (os.getpid(), signal.SIGTERM))
    again.daemon = True

    def end(*_: object) -> None:
        if together and not told:
            together[0].stopping = True
            told.append(time.monotonic())
            again.start()
        elif not together or time.monotonic() - told[0] > TWICE:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # another one must not cut off the checkpoint
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield together
    finally:
        again.cancel()
        signal.signal(signal.SIGTERM, before)


def _train(trainer: Trainer, as_json: bool) -> None:
    """Train, and say on stderr how it goes and on stdout what came of it."""
    steps = trainer.recipe.steps
    if trainer.step:
        print(f"going on from step {trainer.step} of {steps}", file=sys.stderr)
    with _display(steps, trainer.step) as show:
        trainer.train(show)
    figures = trainer.figures()
    if "received_bytes" in figures:
        megabytes = figures["received_bytes"] / 1e6
        print(f"each of {figures['processes']} processes received {megabytes:,.1f} MB", file=sys.stderr)
    if as_json:
        common.print_json(figures)
    elif not trainer.finished:
        said = f"not finished: step {trainer.step} of {steps} is done and kept; give the same command again to go on"
        print(said, flush=True)  # a launcher may end this process as soon as another one has ended
    else:
        print("adapter written to {adapter} after {steps} steps, {target_tokens:,} target tokens".format(**figures))


def _display(steps: int, done: int) -> Any:
    """A bar with loss, tokens a second and time left on a terminal, a line a step elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    # A step may take longer than the half minute by which the bar would otherwise tell how fast it is.
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn(), "left")

    @contextmanager
    def shown() -> Any:
        started = time.monotonic()
        with Progress("training", *columns, console=console, speed_estimate_period=3600, disable=not console.is_terminal) as bar:  # fmt: skip
            task = bar.add_task("training", total=steps, completed=done, note="")

            def show(row: dict[str, Any]) -> None:
                if "loss" in row:
                    note = f"loss {row['loss']:.3f}, {row['tokens_a_second']:,.0f} tokens/s,"
                    bar.update(task, completed=row["step"], note=note)
                    left = (time.monotonic() - started) / (row["step"] - done) * (steps - row["step"])
                    line = f"step {row['step']} of {steps}: {note} rate {row['rate']:.2e}, {left:.0f} s left"
                else:
                    line = f"step {row['step']}: held out {row['held_out_with']:.4f} nats with the context, {row['held_out_without']:.4f} without"
                if not console.is_terminal or "loss" not in row:
                    console.print(line, highlight=False, soft_wrap=True)

            yield show

    return shown()
