"""The thread that owns the model.

In turns it decodes one token for every running row, and does one slice of other work (reading chunks, taking in a
prompt, searching): a generator that is advanced once. While rows decode, such work gets at most a set share of the time;
within it what prepares answers goes before what reads texts (`work.py`).
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any

import torch

from sharedllm.hardware import trim
from sharedllm.model import SharedLLM
from sharedllm.prompts import end_tokens
from sharedllm.quote import inserted
from sharedllm.serve.batch import Batch, TakenIn, take_in
from sharedllm.serve.failures import ApiError, as_api_error, too_late, traced
from sharedllm.serve.metrics import Metrics
from sharedllm.serve.settings import Settings
from sharedllm.serve.task import Ended, Row, Task
from sharedllm.serve.work import Work, Works

log = logging.getLogger(__name__)
ENDING = "the server is shutting down; try again in a moment."
REST_SECONDS = 5.0
"""Without work, after which freed memory that was kept for the next tensor goes back to the system."""


class Engine:
    """Answers tasks and does other work, until it is stopped."""

    def __init__(self, llm: SharedLLM, settings: Settings, metrics: Metrics) -> None:
        self.llm, self.settings, self.metrics = llm, settings, metrics
        self.draining = False
        self.failed = False
        """Whether its thread has ended by an error: nothing is answered any more, and the process should end."""
        self.tokens_per_second = 0.0
        """Of the whole model over a piece of text, measured at the start."""
        self._changed = threading.Condition()
        self._waiting: deque[Task] = deque()
        self._preparing: set[Task] = set()
        self._work = Works()
        self._batch = Batch(llm)
        self._rows: list[Row] = []
        self._credit = 0.0  # seconds of other work that decoding has earned
        self._stopped = False
        self._ends = end_tokens(llm.model, llm.tokenizer)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopped

    def ask(self, task: Task) -> None:
        """Put a task in the queue.

        Raises:
            ApiError: the queue is full (429), or the server is shutting down (503).
        """
        with self._changed:
            self.check_queue(task.choices)
            self._waiting.append(task)
            self._changed.notify()

    def check_queue(self, choices: int) -> None:
        """Raise `ApiError` where a task of so many choices would be refused now: 429 or 503 as for `ask`."""
        with self._changed:
            if self.draining or not self.alive:
                raise ApiError(503, ENDING, "shutting_down", retry_after=5)
            if (self._waiting or not self._has_room(choices)) and len(self._waiting) >= self.settings.queue:
                self.metrics.refused.inc()
                raise ApiError(429, "too many requests wait already; try again in a moment.", "queue_full", None, 2)

    def do(
        self, slices: Generator[None, None, Any], unwanted: Callable[[], bool] = lambda: False, answering: bool = False
    ) -> Future[Any]:
        """Have work done on the engine's thread; it is dropped when `unwanted` says so between two slices.

        Args:
            answering: whether an answer waits for it: it goes before the reading of texts.
        Raises:
            ApiError: the server is shutting down (503); with `answering`, too much is being done already (429).
        """
        work = Work(slices, answering, unwanted)
        with self._changed:
            if self._stopped:
                raise ApiError(503, ENDING, "shutting_down", retry_after=5)
            if answering:
                self.check_room()
            self._work.put(work)
            self._changed.notify()
        return work.done

    def check_room(self) -> None:
        """Raise `ApiError` 429 where as much is being read and prepared as may wait."""
        if len(self._work) >= self.settings.rows + self.settings.queue:
            self.metrics.refused.inc()
            raise ApiError(429, "too much is being read already; try again in a moment.", "queue_full", None, 2)

    def stop(self, grace: float) -> None:
        """Take no more tasks, give those that are here `grace` seconds, then end."""
        self.draining = True
        until = time.monotonic() + grace
        while self.alive and time.monotonic() < until and (self._waiting or self._preparing or self._rows):
            time.sleep(0.02)
        with self._changed:
            self._stopped = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _measure(self) -> None:
        """How fast the whole model takes in a piece of text; the first time warms it up."""
        ids = [0] * max(1, min(self.settings.prefill_tokens, self.llm.window // 2))
        for _ in range(2):
            started = time.perf_counter()
            for _slice in take_in(self.llm, ids, None, len(ids)):
                pass
            self.tokens_per_second = len(ids) / (time.perf_counter() - started)

    def _run(self) -> None:
        try:
            self._measure()
            while self._turn():
                pass
        except Exception as error:
            log.error("the thread that owns the model has ended", extra={"trace": traced(error)})
            self.failed = self.draining = True
        finally:
            self._end()

    def _turn(self) -> bool:
        """Wait for something to do and do a part of it; whether to go on."""
        if not self._awake(REST_SECONDS):
            gc.collect()  # what waits for it may hold a whole context
            trim()
            self._awake(None)
        if self._stopped:
            return False
        try:
            self._admit()
            self._decode()
            self._advance()
        except Exception as error:  # the answers being written are lost; the server goes on
            for task in {row.task for row in self._rows}:
                task.fail(as_api_error(error))
            self._rows = []
            self._batch.clear()
        return True

    def _end(self) -> None:
        """Take nothing more, and tell all who wait."""
        with self._changed:
            self._stopped = True
        tasks = {row.task for row in self._rows} | self._preparing | set(self._waiting)
        for work in self._work:
            work.slices.close()  # a task that it prepares is not among those that are prepared any more
            work.done.cancel()
        for task in tasks:
            task.fail(ApiError(503, ENDING, "shutting_down"))

    def _awake(self, seconds: float | None) -> bool:
        """Wait so long at most for something to do; whether there is something."""
        with self._changed:
            return self._changed.wait_for(
                lambda: bool(self._stopped or self._waiting or self._work or self._rows), seconds
            )

    def _admit(self) -> None:
        """Let the tasks at the head of the queue be prepared, as far as there are rows."""
        with self._changed:
            for task in self._waiting:
                if task.late and not task.cancelled:
                    task.fail(too_late())
            self._waiting = deque(task for task in self._waiting if not task.cancelled)
            while self._waiting:
                task = self._waiting[0]
                if not self._has_room(task.choices):
                    break
                self._preparing.add(task)
                self._work.put(Work(self._prepare(task), answering=True))
                self._waiting.popleft()
            self.metrics.waiting.set(len(self._waiting))

    def _has_room(self, choices: int) -> bool:
        rows = len(self._rows) + sum(t.choices for t in list(self._preparing))
        return rows + choices <= self.settings.rows

    def _prepare(self, task: Task) -> Generator[None, None, None]:
        """Read, search and take in what a task asks, then let its rows join."""
        slices = self._taken_in(task)
        try:
            taken: TakenIn | None = None
            while taken is None:
                if task.cancelled:
                    return
                if task.late:
                    raise too_late(task.reading())
                try:
                    next(slices)
                except StopIteration as end:
                    taken = end.value
                else:
                    yield
            rows = [Row(task, i, self.llm.tokenizer, self._ends) for i in range(task.choices)]
            for row in rows:
                row.take(taken.logits)
            self._batch.join(taken, len(rows))
            self._rows += rows
            self.metrics.rows.set(len(self._rows))
            self._leave()
        except Exception as error:
            task.fail(as_api_error(error))
        finally:
            self._preparing.discard(task)
            slices.close()

    def _taken_in(self, task: Task) -> Generator[None, None, TakenIn]:
        memory, shown = None, task.ids
        if task.context is not None:
            context = yield from task.context()
            yield
            ids = torch.tensor([task.ids], device=self.llm.device)
            started = time.perf_counter()
            memory = self.llm.recall(context, ids, question_mask=task.asking)
            self.metrics.search_seconds.observe(time.perf_counter() - started)
            task.slots = 0 if memory is None else memory.mask.shape[1] - 1
            yield
            spans = () if memory is None else memory.nearest[0]
            shown = inserted(self.llm, context, task.ids, task.asking, task.most, spans)
            yield
        return (yield from take_in(self.llm, shown, memory, self.settings.prefill_tokens))

    def _decode(self) -> None:
        """One token for every row."""
        if not self._rows:
            return
        started = time.perf_counter()
        logits = self._batch.step([row.newest for row in self._rows])
        for row, logits_V in zip(self._rows, logits, strict=True):
            if row.task.cancelled:
                continue
            try:
                row.take(logits_V)
            except Exception as error:  # of this row alone: the others go on
                row.task.fail(as_api_error(error))
        self._leave()
        seconds, share = time.perf_counter() - started, self.settings.reading_share
        self._credit = min(self._credit + seconds * share / (1 - share), seconds) if self._work else 0.0
        self.metrics.step_seconds.observe(seconds)

    def _leave(self) -> None:
        """Take the rows out that have ended."""
        for task in {row.task for row in self._rows}:
            if task.late and not task.cancelled:
                task.fail(too_late())
        before = self._rows
        stay = [i for i, row in enumerate(before) if row.finish is None and not row.task.cancelled]
        if len(stay) == len(before):
            return
        self._batch.keep(stay)
        self._rows = [before[i] for i in stay]
        running = {row.task for row in self._rows}
        for task in {row.task for row in before} - running:
            self.metrics.generated_tokens.inc(task.generated)
            if not task.cancelled:
                task.send(Ended(task.generated, task.slots))
        self.metrics.rows.set(len(self._rows))

    def _advance(self) -> None:
        """One slice of other work, if its share of the time allows."""
        if not self._work or (self._rows and self._credit < 0):
            return
        decoding, started = bool(self._rows), time.perf_counter()
        with self._changed:
            work = self._work.take()
        if work.unwanted():
            work.slices.close()
            work.done.cancel()
            return
        try:
            next(work.slices)
        except StopIteration as end:
            work.done.set_result(end.value)
        except Exception as error:
            work.done.set_exception(as_api_error(error))
        else:
            with self._changed:
                self._work.put(work)
        if decoding:
            self._credit -= time.perf_counter() - started
