"""A session: a conversation that has no length limit.

    session = Session(llm, context)
    print(session.ask("Who sends the letter?").text)

Turns stay in the window as they are. Where the window is full, in the middle of an answer too, its oldest whole
chunks are read into a context of the conversation, which is searched from then on beside that of the texts.
`SharedLLM.generate` writes past the window in the same way.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sharedllm.answering import asked_for, refuse_reserved, written
from sharedllm.branch import Memory
from sharedllm.context import Context, restored
from sharedllm.errors import UsageError, WorkError
from sharedllm.keep import Span, clipped, shifted
from sharedllm.model import SharedLLM
from sharedllm.prompts import Answer, Prompt, end_tokens, setting
from sharedllm.quote import inserted, most_tokens


@dataclass
class Written:
    """What was written, and what it took."""

    ids: list[int] = field(default_factory=list)
    ended: bool = False
    """By the last token."""
    over: bool = False
    slots: int = 0
    search_seconds: float = 0.0


class _Streamed:
    """A caller's streamer for what is written a window at a time: of the prompts it hears the first alone, of their ends none."""

    def __init__(self, streamer: Any) -> None:
        self._streamer, self._first, self._prompt = streamer, True, True

    def put(self, value: Tensor) -> None:
        if self._first or not self._prompt:
            self._streamer.put(value)
        self._first = self._prompt = False

    def end(self) -> None:
        self._prompt = True  # what comes next


class Session:
    """Questions and answers that follow each other.

    Attributes:
        ids: token ids of the window: what was said and is not folded.
        said: the context of the conversation: complete chunks that left the window.

    Raises:
        UsageError: `window` holds less than four chunks, or is more than the model has.
    """

    def __init__(self, llm: SharedLLM, context: Context | None = None, window: int | None = None) -> None:
        """
        Args:
            context: what the conversation is about; if it fits half the window, the model reads it there.
            window: tokens the model sees itself at most, the answer included; None: all its positions.
        """
        self.llm, self.context = llm, context
        self.window = llm.window if window is None else window
        self.chunk = llm.config.chunk_length
        if not 4 * self.chunk <= self.window <= llm.window:
            raise UsageError(
                f"the window of a session is {self.window} tokens; it must hold four chunks, {4 * self.chunk} tokens, "
                f"and be at most the model's {llm.window}."
            )
        self.ids: list[int] = []
        self.said = llm.reader.new_context()
        self._keep: list[Span] = []  # of a text in the window what stays whole when it is folded
        self._asked: list[int] = []  # the places in the window of what asks in the last question

    def ask(self, question: str, max_new_tokens: int | None = None, **kwargs: Any) -> Answer:
        """Answer one turn, greedily unless `kwargs` (of Hugging Face's `generate`) say otherwise. Where that fails before anything
        is written, nothing was asked.

        Args:
            max_new_tokens: None: as many as a `generation_config` among `kwargs` says, else 256.
        Raises:
            UsageError: an empty question or one that is too long, no tokenizer, `max_new_tokens` below 1, `max_length`, or an
                argument that several answers or another prompt would need.
        """
        refuse_reserved(kwargs)
        if (max_new_tokens := asked_for(max_new_tokens, kwargs, 256)) < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
        prompt = Prompt(self.llm.tokenizer, question)
        done = Written()
        with self._turn(done):
            self._take_in(prompt)
            started = time.perf_counter()
            self._write(done, max_new_tokens, {"pad_token_id": prompt.pad_id, **kwargs})
        if done.ended:
            self.ids.pop()  # the template of the next turn has it
            done.ids.pop()
        return Answer(
            text=self.llm.tokenizer.decode(done.ids, skip_special_tokens=True).strip(),
            compressed=done.slots > 0,
            slots=done.slots,
            search_seconds=done.search_seconds,
            generate_seconds=time.perf_counter() - started - done.search_seconds,
            generated_tokens=len(done.ids),
        )

    def go_on(
        self,
        ids: Sequence[int],
        max_new_tokens: int,
        asking: Span | Tensor | None = None,
        search: str = "query",
        **kwargs: Any,
    ) -> list[int]:
        """Put token ids behind the window as they are, and the tokens that the model writes behind them; returns these. As in
        `SharedLLM.generate` nothing is quoted. Where it fails before anything is written, the session stays as it was.

        Args:
            ids: at least one; more than the window holds are folded before anything is written.
            asking: where in `ids` a question stands, as (start, end) or a mask [n], which is searched by until it is folded; None:
                their last tokens are. What is written then goes on from the newest tokens, and is searched for so.
            search: `query`, or `continue` from the start; see `SharedLLM.recall`.
            kwargs: of Hugging Face's `generate`, which samples or not as the model's own settings say.
        Raises:
            UsageError: no ids, or `max_new_tokens` below 1.
        """
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens is {max_new_tokens}; it must be at least 1.")
        if not len(ids):
            raise UsageError("there are no tokens to go on from; give at least one.")
        if self.context is not None:
            self.llm.reader.encode(self.llm.reader.bind(self.context))
        places = asking.nonzero().flatten().tolist() if isinstance(asking, Tensor) else range(*(asking or (0, 0)))
        sampled, done = bool(setting(self.llm.model, "do_sample", kwargs)), Written()
        with self._turn(done):
            self._asked = [len(self.ids) + at for at in places]
            self.ids += ids
            self._write(done, max_new_tokens, {**kwargs, "do_sample": sampled}, quoting=False, search=search)
        return done.ids

    @contextmanager
    def _turn(self, done: Written) -> Iterator[None]:
        """A block after which the session is as before where it fails and nothing is `done`: so the same may be asked again."""
        before = self.context, self._keep, self._asked, list(self.ids)
        with restored(self.said, unless=lambda: done.ids):
            try:
                yield
            except BaseException:
                if not done.ids:
                    self.context, self._keep, self._asked, self.ids = before
                raise

    def _write(
        self, done: Written, max_new_tokens: int, kwargs: dict[str, Any], quoting: bool = True, search: str = "query"
    ) -> None:
        """Write behind the window, folding it where it is full; with what is nearest to a question quoted before it.

        Where something may be quoted the window counts as full as soon as the quotes would have no room, and before a question
        is first searched for, neither would its answer.
        """
        marked, streamer = bool(self._asked), kwargs.get("streamer")
        if streamer is not None:
            kwargs = {**kwargs, "streamer": _Streamed(streamer)}
        while len(done.ids) < max_new_tokens and not done.over:
            quotes = self._room_for_quotes(quoting)
            answer = min(max_new_tokens, self.window // 4) if quotes and not done.ids else 1
            if self.window - len(self.ids) < quotes + answer:
                self._fold()
                quotes = self._room_for_quotes(quoting)
            before = time.perf_counter()
            room = min(max_new_tokens - len(done.ids), self.window - len(self.ids) - quotes)
            asks = self._asked or not (marked or done.ids)
            memory, shown = self._search(room, quoting, search if asks else "continue")
            done.search_seconds += time.perf_counter() - before
            done.slots = 0 if memory is None else memory.mask.shape[1] - 1
            part = self._generate(shown, memory, room, kwargs)
            done.ids += part
            self.ids += part
            done.ended = part[-1] in self._ends(kwargs)
            done.over = done.ended or len(part) < room  # shorter: a stopping criterion of the caller's
        if streamer is not None:
            streamer.end()

    def _take_in(self, prompt: Prompt) -> None:
        """Put a question behind what was said; before the first one goes a text that is short enough."""
        first = not self.ids
        turn, asking = (prompt.alone(), prompt.question_mask()) if first else prompt.following()
        # Folding leaves more than half a window less a chunk: the question stays whole.
        if len(turn) > (most := self.window // 2 - self.chunk):
            raise UsageError(f"the question has {len(turn)} tokens, a session takes {most}; ask a shorter one.")
        if first and self.context is not None:
            context = self.llm.reader.bind(self.context)
            if prompt.tokens_with(context.tokens) <= self.window // 2:
                self._keep = shifted(context.keep, len(prompt.around_text()[0]))
                self.ids, self.context = prompt.with_text(context.ids), None
                return
            self.llm.reader.encode(context)
        at = asking[0].nonzero().flatten() + len(self.ids)
        self._asked = at.tolist()
        self.ids += turn

    def _room_for_quotes(self, quoting: bool) -> int:
        """How much of the window stays free for quotes, at most a quarter: so a window that was folded has room for them."""
        searched = any(context is not None and context.tokens for context in (self.context, self.said))
        return min(most_tokens(self.llm), self.window // 4) if quoting and searched and self._asked else 0

    def _fold(self) -> None:
        """Read the oldest whole chunks of the window into `said`, until half of it is free.

        Raises:
            WorkError: there is no memory for them; all stays as it was.
        """
        leaving = -(-(len(self.ids) - self.window // 2) // self.chunk) * self.chunk
        try:
            with restored(self.said):  # what is still in the window is not in `said` too
                self.said.append(self.ids[:leaving], keep=clipped(self._keep, 0, leaving))
                self.llm.reader.encode(self.said)
        except WorkError as error:  # it speaks of a text that could be read otherwise
            raise WorkError(
                "there is not enough memory for more of this conversation, of which nothing is lost; close other programs "
                "and go on."
            ) from error
        self._keep = clipped(self._keep, leaving, len(self.ids))
        del self.ids[:leaving]
        self._asked = [at - leaving for at in self._asked if at >= leaving]

    def _search(self, room: int, quoting: bool, search: str) -> tuple[Memory | None, list[int]]:
        """What the window attends to: slots for the last question; for the newest tokens where none of it is there. And the
        window as it is shown, with quotes for the question, where it is `quoting` and `room` new tokens leave it some."""
        contexts = [self.llm.reader.bind(c) for c in (self.context, self.said) if c is not None and c.tokens]
        if not contexts:
            return None, self.ids
        asking = torch.zeros(1, len(self.ids), dtype=torch.bool)
        asking[0, self._asked] = True
        ids = torch.tensor([self.ids], device=self.llm.device)
        whole = contexts[0] if len(contexts) == 1 else Context.compose(contexts)
        memory = self.llm.recall(whole, ids, search=search, question_mask=asking if asking.any() else None)
        if whole is not contexts[0]:  # what was read again is remembered where the next composition finds it
            contexts[0].again = {n: kept for n, kept in whole.again.items() if n < contexts[0].chunks}
        if memory is None or not quoting:
            return memory, self.ids
        return memory, inserted(self.llm, whole, self.ids, asking, room, memory.nearest[0], self.window)

    def _generate(self, shown: list[int], memory: Memory | None, most: int, kwargs: dict[str, Any]) -> list[int]:
        """The next tokens, with the one that ends a text where it came."""
        ids = torch.tensor([shown], device=self.llm.device)
        new: list[int] = written(self.llm, ids, memory, most, kwargs).tolist()
        return new

    def _ends(self, kwargs: dict[str, Any]) -> set[int]:
        """Tokens that end a text."""
        return end_tokens(self.llm.model, kwargs=kwargs)
