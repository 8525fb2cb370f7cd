"""How a question is put to the model, and what comes back."""

from __future__ import annotations

from dataclasses import dataclass
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


class Prompt:
    """A question in the model's chat template, or as plain text where it has none.

    Raises:
        UsageError: the question is empty, or there is no tokenizer.
    """

    def __init__(self, tokenizer: Any, question: str) -> None:
        if tokenizer is None:
            raise UsageError("there is no tokenizer to ask with; give from_pretrained a tokenizer.")
        if not question.strip():
            raise UsageError("the question is empty; say what you want to know.")
        self.tokenizer, self.question = tokenizer, question.strip()
        pad = tokenizer.pad_token_id
        self.pad_id: int | None = pad if pad is not None else tokenizer.eos_token_id

    def alone(self) -> list[int]:
        """Token ids of the question, for a window whose context is injected."""
        return self._ids(self._render(self.question))

    def question_mask(self) -> Tensor:
        """Which tokens of `alone` are the question's own and not the template's, [1, T]."""
        whole = self.alone()
        before, after = (self._ids(part) for part in self._render(PLACE).split(PLACE, 1))
        start = _common(whole, before)
        end = len(whole) - _common(whole[start:][::-1], after[::-1])
        mask = torch.zeros(1, len(whole), dtype=torch.bool)
        mask[0, start:end] = True
        return mask

    def with_text(self, text_ids: Tensor) -> list[int]:
        """Token ids of the text followed by the question, for a window that holds both."""
        if len(text_ids) == 0:
            return self.alone()
        before, after = self._render(f"{PLACE}\n\n{self.question}").split(PLACE, 1)
        return [*self._ids(before), *text_ids.tolist(), *self._ids(after)]

    def _render(self, content: str) -> str:
        if not self.tokenizer.chat_template:
            return f"{content}\n\nAnswer:"
        messages = [{"role": "user", "content": content}]
        return str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def _common(a: list[int], b: list[int]) -> int:
    """How many first items two lists share."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
