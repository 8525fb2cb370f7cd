"""How a question is put to the model, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sharedllm.errors import UsageError

PLACE = "\u241eTEXT\u241e"  # where the text goes when a template is rendered once around it


@dataclass(frozen=True)
class Answer:
    """An answer with what it cost."""

    text: str
    compressed: bool
    """False when the text fitted the window and the plain model read it."""
    slots: int
    """Slots attended to, a layer."""
    search_seconds: float
    generate_seconds: float
    generated_tokens: int


def setting(model: Any, name: str, kwargs: dict[str, Any]) -> Any:
    """What `generate` goes by: the first that is said of the call, the configuration of the call, the model's own."""
    places = (kwargs, vars(kwargs.get("generation_config") or object), vars(model.generation_config))
    return next((value for where in places if (value := where.get(name)) is not None), None)


def end_tokens(model: Any, tokenizer: Any = None, kwargs: dict[str, Any] | None = None) -> set[int]:
    """The tokens that end an answer: what the model's own `generate` stops at, with `kwargs` if given, and the end of a text to
    the tokenizer, if given."""
    ends = setting(model, "eos_token_id", kwargs or {})
    own = getattr(tokenizer, "eos_token_id", None)
    return {end for end in (*(ends if isinstance(ends, list | tuple) else [ends]), own) if end is not None}


def not_padding(model: Any, input_ids: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """Mask [B, T] of what is text, by the rule of Hugging Face's `generate`: a padding token that ends answers may be text."""
    pad = setting(model, "pad_token_id", kwargs)
    known = isinstance(pad, int) and pad not in end_tokens(model, kwargs=kwargs)
    return (input_ids != pad).long() if known else torch.ones_like(input_ids)


def check_encodable(what: str, text: str) -> None:
    """Raise `UsageError` for text that no tokenizer can take: with halves of characters, which no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{what} is no text that can be encoded, from character {error.start:,} on; write it in UTF-8."
        ) from error


def check_question(question: str) -> None:
    """Raise `UsageError` for a question that is empty, or holds what no tokenizer can take."""
    if not question.strip():
        raise UsageError("the question is empty; say what you want to know.")
    check_encodable("the question", question)


class Prompt:
    """A question in the model's chat template, or as plain text where it has none.

    Without a chat template a prompt begins with what the tokenizer itself puts before a text, such as `<s>`.

    Benchmarks have templates of their own, rendered as `before + text + between + question + ending`, the chat template
    around all of it, and then `answer_prefix`. Without the text, as for a window whose context is injected,
    `before` and `question` stand together.

    Args:
        question: what stands after the text; white space around it is left out.
        before: what stands before the text.
        between: what separates the text, or `before`, from the question. Where it is empty, a line end separates `before`.
        ending: white space after the question that belongs to a benchmark's wording.
        chat: whether the model's chat template is used, if it has one.
        answer_prefix: how the answer begins, put after the chat template's opening of it. None: nothing, but
            `Answer:` in a paragraph of its own where `chat` is wished for and the model has no chat template.
        asks: the part of `before` or `question` that is searched with, for a question among general instructions.
            None: all of `question`.
    Raises:
        UsageError: the question is empty or no text, or there is no tokenizer.
        ValueError: `asks` is empty or no part of the prompt.
    """

    def __init__(
        self,
        tokenizer: Any,
        question: str,
        *,
        before: str = "",
        between: str = "\n\n",
        ending: str = "",
        chat: bool = True,
        answer_prefix: str | None = None,
        asks: str | None = None,
    ) -> None:
        if tokenizer is None:
            raise UsageError("there is no tokenizer to ask with; give from_pretrained a tokenizer.")
        check_question(question)
        self.tokenizer, self.question = tokenizer, question.strip()
        self.before, self.between, self.ending = before, between, ending
        self.chat = chat and bool(tokenizer.chat_template)
        if answer_prefix is None:
            answer_prefix = "\n\nAnswer:" if chat and not self.chat else ""
        self.answer_prefix = answer_prefix
        self.asks = self.question if asks is None else asks.strip()
        if not self.asks or self.asks not in self._instructions():
            raise ValueError(f"{asks!r} is no part of what is asked: {self._instructions()!r}.")
        pad = tokenizer.pad_token_id
        self.pad_id: int | None = pad if pad is not None else tokenizer.eos_token_id

    def alone(self) -> list[int]:
        """Token ids of the question, for a window whose context is injected."""
        return [*self._opening, *self._ids(self._render(self._instructions()))]

    def question_mask(self) -> Tensor:
        """Which tokens of `alone` ask, rather than being the template's or general instructions, [1, T]."""
        instructions = self._instructions()
        at = instructions.rindex(self.asks)
        around = instructions[:at] + PLACE + instructions[at + len(self.asks) :]
        before, after = self._render(around).split(PLACE, 1)
        return between(self.alone(), [*self._opening, *self._ids(before)], self._ids(after))

    def following(self) -> tuple[list[int], Tensor]:
        """Token ids of the question behind an answer, and which of them are its own, [1, T]."""
        ids = self._ids(self._render_following(self.question))
        before, after = self._render_following(PLACE).split(PLACE, 1)
        return ids, between(ids, self._ids(before), self._ids(after))

    def with_text(self, text_ids: Tensor) -> list[int]:
        """Token ids of the text followed by the question, for a window that holds both."""
        if len(text_ids) == 0:
            return self.alone()
        before, after = self.around_text()
        return [*before, *text_ids.tolist(), *after]

    def tokens_with(self, text_tokens: int) -> int:
        """How many token ids `with_text` gives of a text of so many."""
        return text_tokens + sum(map(len, self.around_text())) if text_tokens else len(self.alone())

    def around_text(self) -> tuple[list[int], list[int]]:
        """Token ids that stand before and after the text in `with_text`; those before are the same for any question."""
        content = f"{self.before}{PLACE}{self.between}{self.question}{self.ending}"
        before, after = self._render(content).split(PLACE, 1)
        return [*self._opening, *self._ids(before)], self._ids(after)

    def _instructions(self) -> str:
        """All that is said to the model beside the text."""
        asked = f"{self.question}{self.ending}"
        return f"{self.before.rstrip()}{self.between or chr(10)}{asked}" if self.before.strip() else asked

    @cached_property
    def _opening(self) -> list[int]:
        """Special tokens before a text; a chat template has them in its wording."""
        return [] if self.chat else opening(self.tokenizer)

    def _render(self, content: str) -> str:
        if not self.chat:
            return content + self.answer_prefix
        messages = [{"role": "user", "content": content}]
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return f"{rendered}{self.answer_prefix}"

    def _render_following(self, content: str) -> str:
        if not self.chat:
            return f"\n\n{content}\n\nAnswer:"
        turns = (("user", "?"), ("assistant", PLACE), ("user", content))
        messages = [{"role": role, "content": said} for role, said in turns]
        whole = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        return whole.split(PLACE, 1)[1]

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def opening(tokenizer: Any) -> list[int]:
    """What the tokenizer itself puts before a text, such as `<s>`."""
    plain, special = (list(tokenizer("a", add_special_tokens=own)["input_ids"]) for own in (False, True))
    starts = range(len(special) - len(plain) + 1)
    return special[: next((i for i in starts if special[i : i + len(plain)] == plain), 0)]


def between(whole: list[int], before: list[int], after: list[int]) -> Tensor:
    """Which tokens of `whole` [T] are those that stand neither in `before` nor in `after`, [1, T].

    Token ids do not simply add up where texts meet: what the beginnings and the ends share is left out.
    """
    start = _common(whole, before)
    end = len(whole) - _common(whole[start:][::-1], after[::-1])
    mask = torch.zeros(1, len(whole), dtype=torch.bool)
    mask[0, start:end] = True
    return mask


def _common(a: list[int], b: list[int]) -> int:
    """How many first items two lists share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
