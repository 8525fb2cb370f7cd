"""From a request to a task: which contexts, what is split off, how it is sampled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from fastapi.concurrency import run_in_threadpool
from torch import Tensor

from sharedllm.context import Context
from sharedllm.errors import UsageError
from sharedllm.prompts import opening
from sharedllm.serve.chat import Said, token_ids
from sharedllm.serve.entry import Entry
from sharedllm.serve.failures import ApiError
from sharedllm.serve.sampling import Sampling
from sharedllm.serve.schemas import ChatRequest, CompletionRequest
from sharedllm.serve.service import Service
from sharedllm.serve.shelf import Shelf
from sharedllm.serve.split import Room, Split, split_messages, split_tokens
from sharedllm.serve.task import Ended, Event, Task

Ask = ChatRequest | CompletionRequest


@dataclass
class Usage:
    """What a prompt took."""

    prompt_tokens: int
    """All of it: window, contexts and what was read."""
    known_tokens: int
    """Of those, what had been read before."""
    read_tokens: int = 0
    """Read into a context for this request."""


@dataclass
class Prepared:
    """A request, split: what its window holds, what it attends to, how long its answer may be."""

    entries: list[Entry]
    contexts: list[Context]
    split: Split
    most: int
    usage: Usage
    reading: bool = False
    """Whether what of it is read is being read now."""


def composed(service: Service, asked: Prepared) -> Generator[None, None, Context]:
    """The one context that a window attends to: those that were named, then what of the prompt is read; in slices."""
    parts, reads = [], asked.split.reads
    for entry, context in zip(asked.entries, asked.contexts, strict=True):
        parts.append((yield from service.shelf.encoded(entry, context)))
    if reads is not None:
        asked.reading = True
        said, known = yield from service.shelf.prompts.context(reads)
        asked.reading = False
        asked.usage.known_tokens += known
        asked.usage.read_tokens = len(reads) - known
        parts.append(said)
    return parts[0] if len(parts) == 1 else Context.compose(parts)


class Asked:
    """A request on its way through the engine; iterate over its events."""

    def __init__(self, service: Service, ask: Ask, prepared: Prepared) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self.usage, split = prepared.usage, prepared.split
        self.task = Task(
            ids=split.ids,
            asking=split.asking,
            context=(lambda: composed(service, prepared)) if split.attends else None,
            sampling=sampling(ask),
            choices=ask.n or 1,
            most=prepared.most,
            stops=ask.stops,
            send=self._send,
            deadline=time.monotonic() + service.settings.seconds,
            reading=lambda: prepared.reading,
        )

    def _send(self, event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended: nobody hears it
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def cancel(self) -> None:
        self.task.cancelled = True

    async def events(self) -> AsyncIterator[Event]:
        """Pieces as they come, then `Ended`.

        Raises:
            ApiError: what went wrong on the way.
        """
        try:
            while True:
                event = await self._events.get()
                if isinstance(event, ApiError):
                    try:
                        raise event
                    finally:
                        del event  # else its traceback, which holds this frame, is freed late
                yield event
                if isinstance(event, Ended):
                    return
        finally:
            self.cancel()


async def asked(service: Service, ask: Ask) -> Asked:
    """Split what is asked and put it in the queue.

    Raises:
        ApiError: it cannot be answered.
    """
    if (ask.n or 1) > service.settings.rows:
        raise ApiError(400, f"n is {ask.n}; this server gives at most {service.settings.rows} choices.", None, "n")
    service.engine.check_queue(ask.n or 1)  # before a long prompt is split for nothing
    task = Asked(service, ask, await prepared(service, ask))
    service.engine.ask(task.task)
    service.metrics.prompt_tokens.inc(task.usage.prompt_tokens)
    return task


async def prepared(service: Service, ask: Ask) -> Prepared:
    """Split what is asked.

    Raises:
        ApiError: it cannot be answered.
    """
    service.check_model(ask.model)
    entries, contexts = await service.looked(_named, service.shelf, ask.contexts)
    try:
        split, most = await run_in_threadpool(_split, service, ask, contexts)
    except UsageError as error:
        raise ApiError(400, str(error)) from error
    if split.reads is not None:
        service.shelf.prompts.check(split.reads)
    attended = sum(context.tokens for context in contexts) if split.attends else 0
    reads = 0 if split.reads is None else len(split.reads)
    usage = Usage(len(split.ids) + attended + reads, attended)
    return Prepared(entries, contexts, split, most, usage)


def _named(shelf: Shelf, names: Sequence[str]) -> tuple[list[Entry], list[Context]]:
    """The entries of some ids, and their contexts; raises `ApiError` as `Shelf.ready`."""
    return [shelf.get(name) for name in names], [shelf.ready(name) for name in names]


def _split(service: Service, ask: Ask, contexts: list[Context]) -> tuple[Split, int]:
    llm, field, wished = service.llm, "max_tokens", ask.max_tokens
    if isinstance(ask, ChatRequest) and ask.max_completion_tokens:
        field, wished = "max_completion_tokens", ask.max_completion_tokens
    if wished is not None and wished >= llm.window:
        raise ApiError(
            400,
            f"{field} is {wished}; the model has {llm.window} positions, ask for a shorter answer.",
            "context_length_exceeded",
            field,
        )
    most = wished or min(service.settings.answer_tokens, llm.window // 2)
    room = Room(llm.window, min(service.settings.window, llm.window // 2), most)
    given: Tensor | None = torch.cat([context.ids for context in contexts]) if contexts else None
    if isinstance(ask, ChatRequest):
        said = [Said(m.speaker, m.text) for m in ask.messages]
        if not any(m.text.strip() for m in said):
            raise ApiError(400, "the messages are empty; say what you want to know.", None, "messages")
        return split_messages(llm.tokenizer, said, given, room, service.shelf.prompts.check_text), most
    begin: list[int] = []  # token ids that were sent stay as they are
    if isinstance(ids := ask.prompt, str):
        service.shelf.prompts.check_text(ids)
        ids, begin = token_ids(llm.tokenizer, ids), opening(llm.tokenizer)
        begin = [] if ids[: len(begin)] == begin else begin  # the text has it already
    checked = llm.reader.token_ids(ids).tolist()
    if not checked:
        raise ApiError(400, "the prompt is empty; give it some text.", None, "prompt")
    return split_tokens(checked, given, room, begin), most


def sampling(ask: Ask) -> Sampling:
    """How a request wants its tokens chosen; OpenAI's defaults."""
    logprobs: int | None
    if isinstance(ask, ChatRequest):
        logprobs = (ask.top_logprobs or 0) if ask.logprobs else None
    else:
        logprobs = ask.logprobs
    temperature = 1.0 if ask.temperature is None else ask.temperature
    return Sampling(temperature, 1.0 if ask.top_p is None else ask.top_p, ask.seed, logprobs)
