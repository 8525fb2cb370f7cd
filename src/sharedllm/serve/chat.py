"""Messages in the model's chat template, and which tokens of them ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from torch import Tensor

from sharedllm.prompts import PLACE, between, opening
from sharedllm.serve.failures import ApiError

PIECE = 100_000  # characters of a long text that are looked at first
CUT = 16  # tokens that cutting a text adds at most, and more


@dataclass(frozen=True)
class Said:
    """One message."""

    role: str
    text: str


def token_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def surely_longer(tokenizer: Any, text: str, most: int) -> bool:
    """Whether a long text has more tokens than that, told before all of it is tokenised; of a short one nothing is said."""
    found = 0
    for at in range(0, len(text), PIECE) if len(text) > PIECE else ():
        found += len(token_ids(tokenizer, text[at : at + PIECE])) - CUT
        if found > most:
            return True
    return False


def render(tokenizer: Any, messages: Sequence[Said]) -> str:
    """What the model is shown, up to where its answer begins; without a chat template as `ask` writes it.

    Raises:
        ApiError: the template refuses the messages.
    """
    if not tokenizer.chat_template:
        return "\n\n".join(m.text for m in messages) + "\n\nAnswer:"
    turns = [{"role": m.role, "content": m.text} for m in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except (TemplateError, TypeError, ValueError) as error:
        raise ApiError(400, f"the model's chat template refuses these messages: {error}.", None, "messages") from error


def _begin(tokenizer: Any) -> list[int]:
    """What stands before rendered messages; a chat template has it in its wording."""
    return [] if tokenizer.chat_template else opening(tokenizer)


def window_ids(tokenizer: Any, messages: Sequence[Said]) -> tuple[list[int], Tensor | None]:
    """Token ids of the window, and which of them are the last message of the user, [1, T]; None where there is none."""
    ids = [*_begin(tokenizer), *token_ids(tokenizer, render(tokenizer, messages))]
    at = last_question(messages)
    if at is None or not messages[at].text.strip():
        return ids, None
    before, after = _around(tokenizer, messages, at, PLACE)
    mask = between(ids, before, after)
    return ids, mask if mask.any() else None


def with_text(tokenizer: Any, messages: Sequence[Said], text_ids: Tensor) -> list[int]:
    """Token ids of the messages with a text in front of the last one of the user, for a window that holds both."""
    at = last_question(messages)
    if at is None:
        return [*_begin(tokenizer), *text_ids.tolist(), *token_ids(tokenizer, render(tokenizer, messages))]
    before, after = _around(tokenizer, messages, at, f"{PLACE}\n\n{messages[at].text}")
    return [*before, *text_ids.tolist(), *after]


def last_question(messages: Sequence[Said]) -> int | None:
    """Which message is the last one of the user."""
    return next((i for i in range(len(messages) - 1, -1, -1) if messages[i].role == "user"), None)


def _around(tokenizer: Any, messages: Sequence[Said], at: int, text: str) -> tuple[list[int], list[int]]:
    changed = [*messages[:at], Said(messages[at].role, text), *messages[at + 1 :]]
    parts = render(tokenizer, changed).split(PLACE)
    if len(parts) != 2:
        raise ApiError(400, f"a message holds the reserved sign {PLACE!r}; leave it out.", None, "messages")
    return [*_begin(tokenizer), *token_ids(tokenizer, parts[0])], token_ids(tokenizer, parts[1])
