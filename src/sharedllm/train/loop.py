"""The training loop: only what the recipe's method trains learns, everything else is frozen and without gradients.

A run goes on by itself: started again with the same recipe, it takes up its last checkpoint and ends
in the weights an unbroken run would have had (bit for bit in fp32 on a CPU).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from sharedllm.adapter import load_weights
from sharedllm.data.folder import TokenFolder
from sharedllm.data.study import Study
from sharedllm.errors import WorkError
from sharedllm.hardware import choose_device, peak_memory_bytes, return_freed_memory
from sharedllm.model import SharedLLM
from sharedllm.processes import ProcessGone
from sharedllm.train.batch import Batch
from sharedllm.train.learner import learner
from sharedllm.train.limits import check_lengths
from sharedllm.train.loss import next_token_loss, sample_loss
from sharedllm.train.newest import Newest
from sharedllm.train.no_room import NoRoom, room_for
from sharedllm.train.origin import START, origin, start_sha256, trained_on
from sharedllm.train.precision import other_dtype, training_dtype
from sharedllm.train.rates import parameter_groups, set_rates
from sharedllm.train.recipe import Recipe
from sharedllm.train.recompute import recomputed
from sharedllm.train.run_folder import ADAPTER, METRICS, RunFolder
from sharedllm.train.samples import Sample, Sampler
from sharedllm.train.start import start_folder, start_mixed_in
from sharedllm.train.teacher import Teacher
from sharedllm.train.too_short import left_out
from sharedllm.train.validation import Compared, due, seconds_kept, summed_up

logger = logging.getLogger(__name__)

SECONDS, PEAK = "train_seconds", "peak_memory_bytes"  # of all steps; of this process, or the main one of several
DTYPE = "dtype"  # what the model computed in

Row = TypeVar("Row")
Report = Callable[[dict[str, Any]], None]
"""Called with a row of metrics after every step and every validation."""


class Learnt(NamedTuple):
    """Of one sample of a step: its loss, what it was, and how many tokens were predicted."""

    loss: float
    kind: str
    title: str
    targets: int


class Trainer:
    """One run of a recipe, in one process; `distributed` has the one whose steps several processes share.

    Attributes:
        llm: in the dtype of the model; its adapter is kept in fp32 while training.
        step: steps done; `seconds`: what they took.
        whole: whether the weights are those after that step, rather than half changed by the next.
        started: when, by the monotonic clock; the recipe's minutes are counted from there.
        main: whether this process writes and reports.
        stopping: set from outside, as by a signal: the run ends after the step it is at.
    """

    def __init__(self, recipe: Recipe, llm: SharedLLM | None = None, main: bool = True) -> None:
        self.recipe, self.main, self.started = recipe, main, time.monotonic()
        self._validation: float | None = None  # seconds that the last one took
        self.stopping = False
        self.run = Path(recipe.output)
        self.records = RunFolder(self.run, writes=main)
        if llm is None:
            dtype = training_dtype(choose_device(recipe.device).value, recipe.dtype)
            llm = SharedLLM.from_pretrained(recipe.model, "none", recipe.config, recipe.device, dtype)
        self.llm = llm
        folder = TokenFolder.open(recipe.data, self.llm.tokenizer, verify_hashes=True)
        model = self.llm.reader.identity
        study = Study.open(recipe.study_data, folder, model) if recipe.study and recipe.study_data else None
        check_lengths(recipe, self.llm.window, study)
        self.sampler = Sampler(folder, recipe, "train", self.llm.tokenizer, study)
        self.held_out = Sampler(folder, recipe, "heldout", self.llm.tokenizer) if recipe.validate_samples else None
        if main and (said := left_out(folder, recipe)):
            logger.warning(said)
        self.frozen = [p for p in self.llm.model.parameters() if p.requires_grad]
        for parameter in self.frozen:
            parameter.requires_grad_(False)
        self.learner = learner(self.llm, recipe)
        self.module = self.learner.module
        self.start = start_folder(recipe, self.llm)
        if self.start is not None:
            load_weights(self.start, self.module, partly=True)
        groups = parameter_groups(self.module, recipe)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=recipe.weight_decay)
        # Those of a step are kept where the next ones read them again (`recipe.reuse`).
        kept = len(list(self._dealt(recipe.accumulate))) if recipe.reuse > 1 else 1
        self._contexts = Newest(kept, lambda ids: self.learner.encode(torch.from_numpy(ids)))
        self._teacher = Teacher(self.llm, self.learner, kept)
        self.origin, self.sources = origin(recipe, model, folder, study, self.start), trained_on(folder)
        self.dtype = str(self.llm.dtype).removeprefix("torch.")
        try:
            self._take_up()
        except BaseException:
            self.records.close()
            raise

    def _take_up(self) -> None:
        """Go on from the last checkpoint in the run's folder, if there is one."""
        self.records.open(self.recipe)
        state = self.records.resume(self.module, self.optimizer, self.origin)
        self.step, self.tokens, self.whole = int(state["step"]), int(state["tokens"]), True
        self.seconds, self._peak = float(state.get(SECONDS, 0)), int(state.get(PEAK, 0))
        self.start_sha256 = state.get(START, start_sha256(self.start))
        if self.main and (said := other_dtype(state.get(DTYPE, self.dtype), self.dtype)):
            logger.warning(said)
        self.records.go_on(self.recipe, self.step)

    def train(self, report: Report | None = None, until: int | None = None) -> None:
        """Train to the recipe's last step (or `until`, or for its minutes), then write the adapter if it is `finished`.

        Raises:
            WorkError: the loss is not a number, or a file cannot be written; the last checkpoint before is kept. Memory ran
                out, or another process is gone: the steps that were done are kept.
        """
        late = False
        try:
            if self._owed():
                self._log(self.validate(), report)
            while not late and self.step < min(self.recipe.steps, self.recipe.steps if until is None else until):
                self._log(self._one_step(), report)
                late = self._late()
                if late or self.finished or self.step % self.recipe.checkpoint_every == 0:
                    self.checkpoint()  # first: held-out texts take long, and the step is not to be done again for them
                if not late and due(self.recipe, self.step):
                    self._log(self.validate(), report)
        except (KeyboardInterrupt, NoRoom, ProcessGone):
            if self.whole and self.step:  # after none there is nothing to keep, and another recipe may take the folder
                self.checkpoint()
            raise
        if self.main and self.finished:
            with start_mixed_in(self.start, self.module, self.recipe.keep_start):
                self.learner.save(self.run / ADAPTER, self._about())

    @property
    def finished(self) -> bool:
        """Whether all steps of the recipe are done."""
        return self.step == self.recipe.steps

    def _late(self) -> bool:
        """Whether to end: the recipe's minutes have passed, or too few are left for the validation that is due, or a signal came."""
        kept = seconds_kept(self.recipe, self.step, self._validation)
        return self.stopping or 0 < self.recipe.minutes * 60 <= time.monotonic() - self.started + kept

    def _owed(self) -> bool:
        """Whether the validation after the last step did not come about, since the run ended before."""
        return due(self.recipe, self.step) and not self.records.validated(self.step)

    def checkpoint(self) -> None:
        state = {"step": self.step, "tokens": self.tokens, DTYPE: self.dtype, **self._noted(), **self.origin}
        self.records.save(self.module, self.optimizer, state)

    def _noted(self) -> dict[str, Any]:
        """What a run took so far, in all its pieces, and which adapter it started from."""
        self._peak = max(self._peak, peak_memory_bytes(self.llm.device))
        took = {SECONDS: round(self.seconds, 3), PEAK: self._peak}
        return took if self.start_sha256 is None else {**took, START: self.start_sha256}

    def _about(self) -> dict[str, Any]:
        """What is written to the adapter about its training."""
        done = {"steps": self.step, "target_tokens": self.tokens, **self._noted()}
        machine = {DTYPE: self.dtype, "device": str(self.llm.device)}
        about = {"recipe": self.recipe.to_dict(), **done, **machine, "origin": self.origin, "sources": self.sources}
        return about if len(self.records.rates) < 2 else {**about, "rates": self.records.rates}

    def figures(self) -> dict[str, Any]:
        """What came of the run, for whoever started it; no adapter yet where it is not finished."""
        adapter = str(self.run / ADAPTER) if self.finished else None
        files = {"adapter": adapter, "metrics": str(self.run / METRICS)}
        done = {"steps": self.step, "target_tokens": self.tokens, **self._noted(), "finished": self.finished}
        return {**files, **done}

    def _one_step(self) -> dict[str, Any]:
        started = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)  # of a step that was stopped half way
        rate = set_rates(self.optimizer, self.recipe, self.step)
        parts = self._gathered({part: self._learn_part(part) for part in self._dealt(self.recipe.accumulate)})
        self._sum_gradients()
        losses, kinds, targets = [x.loss for x in parts], [x.kind for x in parts], sum(x.targets for x in parts)
        norm = nn.utils.clip_grad_norm_(self.module.parameters(), self.recipe.clip_norm)
        if not torch.isfinite(norm):
            samples = ", ".join(sorted({x.title for x in parts}))
            raise WorkError(
                f"the gradients' norm is {float(norm)} at step {self.step + 1} ({samples}); the last good checkpoint is "
                "kept: lower learning_rate and train on."
            )
        self.whole = False
        self.optimizer.step()
        self.step += 1
        self.tokens += targets
        self.whole = True
        self.optimizer.zero_grad(set_to_none=True)
        return_freed_memory()
        seconds = time.perf_counter() - started
        self.seconds += seconds
        return {
            "step": self.step,
            "loss": sum(losses) / len(losses),
            "kinds": kinds,
            "rate": rate,
            "gradient_norm": float(norm),
            "target_tokens": self.tokens,
            "tokens_a_second": targets / seconds,
        }

    def _learn_part(self, part: int) -> Learnt:
        """What came of one sample of the step, whose gradients are added to the step's."""
        sample = self.sampler.draw(self.step, part)
        noise = torch.Generator().manual_seed(_seed(self.recipe.seed, self.step, part))
        with room_for(sample, self.recipe, self.step + 1):
            loss = self._learn(sample, noise)
        return Learnt(loss, sample.kind, sample.title, sum(w.targets for w in sample.windows))

    # Three things that are nothing here, and work for processes that share a step.
    def _dealt(self, n: int) -> Iterable[int]:
        """Which of `n` samples are this process's."""
        return range(n)

    def _gathered(self, rows: dict[int, Row]) -> list[Row]:
        """What all processes have, in the order of the samples."""
        return list(rows.values())

    def _sum_gradients(self) -> None:
        """Bring the gradients of all processes together."""

    def _learn(self, sample: Sample, noise: torch.Generator) -> float:
        """Add a sample's gradients to those of the step; returns its loss."""
        return self._backward(*self._taken_in(sample, noise))

    def _backward(self, sample: Sample, batch: Batch, memory: Any, share: float = 1.0) -> float:
        """Add the gradients of a share of the loss; returns that share."""
        least = self.recipe.recompute_from
        with self.learner.reading(memory):
            with recomputed(self.llm.parts.layers) if 0 < least <= batch.ids.numel() else nullcontext():
                loss = share * self._loss(sample, batch)
            if not torch.isfinite(loss):
                raise WorkError(
                    f"the loss is {loss.item()} at step {self.step + 1} ({sample.title}); the last good "
                    "checkpoint is kept: lower learning_rate and train on."
                )
            (loss / self.recipe.accumulate).backward()
        return loss.item()

    def loss(self, sample: Sample, generator: torch.Generator | None = None) -> Tensor:
        """Mean loss over the targets of all windows of a sample, in nats.

        Continuations: next token, and `recipe.distill`. Questions with a right answer: next token. The model's own
        questions: the divergence from their teacher alone.

        Args:
            generator: of the split noise; None for no noise.
        """
        sample, batch, memory = self._taken_in(sample, generator)
        with self.learner.reading(memory):
            return self._loss(sample, batch)

    def _taken_in(self, sample: Sample, generator: torch.Generator | None) -> tuple[Sample, Batch, Any]:
        """A sample with its windows as they are shown, their batch, and what of its context that reads.

        The context is searched by the windows alone: what they quote is put in afterwards, as when a question is answered.
        """
        encoded, chunks = self._contexts.of(sample.context), [w.chunks for w in sample.windows]
        alone = Batch.of(sample, self.llm.device)
        memory = self.learner.memory(encoded, chunks, alone, sample.search, generator)
        sample = replace(sample, windows=[self.learner.shown(encoded, window) for window in sample.windows])
        return sample, Batch.of(sample, self.llm.device), memory

    def _loss(self, sample: Sample, batch: Batch) -> Tensor:
        return sample_loss(self._teacher, self.recipe.distill, sample, batch, self._logits(batch))

    def _logits(self, batch: Batch) -> Tensor:
        """Logits [B, t, V] of the last t tokens: all that predict a target in some row."""
        first = int((batch.labels >= 0).any(0).nonzero()[0])
        kept = batch.ids.shape[1] - max(first - 1, 0)
        logits: Tensor = self.llm.model(input_ids=batch.ids, use_cache=False, logits_to_keep=kept).logits
        return logits

    @torch.no_grad()
    def validate(self) -> dict[str, Any]:
        """Held-out loss with the context and without, on the same windows, by kind of text."""
        started = time.perf_counter()
        compared = self._gathered({i: self._compare(i) for i in self._dealt(self.recipe.validate_samples)})
        self._validation = time.perf_counter() - started
        return summed_up(self.step, compared)

    def _compare(self, i: int) -> Compared:
        """Of a held-out sample; without the context there is nothing of it to quote either."""
        assert self.held_out is not None
        sample = self.held_out.draw(10**9 + i * self.recipe.reuse)
        _, batch, memory = self._taken_in(sample, None)
        with self.learner.reading(memory):
            read = next_token_loss(self._logits(batch), batch.labels).item()
        batch = Batch.of(sample, self.llm.device)
        alone = next_token_loss(self._logits(batch), batch.labels).item()
        return sample.kind, (alone, read)

    def _log(self, row: dict[str, Any], report: Report | None) -> None:
        self.records.log(row)
        if self.main and report is not None:
            report(row)

    def close(self) -> None:
        """Give the model its gradient flags back, and other processes the run's folder."""
        self.records.close()
        for parameter in self.frozen:
            parameter.requires_grad_(True)


def _seed(*parts: int) -> int:
    return hash(parts) % 2**63  # a tuple of whole numbers hashes the same in every process
