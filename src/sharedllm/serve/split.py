"""What of a prompt stays in the window, and what is read into a context.

The rule (docs/SERVE.md says it to users): what fits the model's window with its answer stays there, whole. Otherwise
the window holds `window` tokens: the first system message, then the newest messages that fit; those before them, oldest
first, are the context. A last message too long for that is split itself: its last paragraph stays, which asks; all before
it is read, word for word, so that the next turn, where the whole message is read, goes on from there. Its first paragraph
stays as well if it is short: it may instruct. A system message of more than half the window is split so too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sharedllm.serve.chat import PIECE, Said, render, surely_longer, token_ids, window_ids, with_text
from sharedllm.serve.failures import ApiError

TEMPLATE_TOKENS = 8  # about what a chat template adds to a message
FIRST_SHARE, LAST_SHARE = 8, 2  # of the window: a first paragraph above 1/8 is read, a last one keeps 1/2
BRIEF = 1000  # characters of a long message that stand for it where it only matters what is beside it


@dataclass(frozen=True)
class Split:
    """A prompt, split."""

    ids: list[int]
    """Of the window."""
    asking: Tensor | None
    """[1, T], which of them ask; None: the last ones."""
    reads: Tensor | None
    """[n] int32, what is to be read into a context; None: nothing."""
    attends: bool
    """Whether the window takes contexts in at all: else the model sees everything itself."""


@dataclass(frozen=True)
class Room:
    """The model's positions, those of a window beside a context, and those that the answer takes."""

    positions: int
    window: int
    answer: int

    @property
    def beside(self) -> int:
        """Tokens that a window beside a context may hold."""
        return max(1, min(self.window, self.positions - self.answer))


def split_messages(
    tokenizer: Any,
    messages: Sequence[Said],
    given: Tensor | None,
    room: Room,
    check: Callable[[str], None] = lambda text: None,
) -> Split:
    """Split a conversation about a context of token ids `given` [n], or about none.

    A long message is tokenised whole once, if it is read; how long it is shows in its first piece.

    Args:
        check: hears what is read before that is tokenised, and may refuse it.
    Raises:
        ApiError: what has to stay does not fit.
    """
    if not surely_longer(tokenizer, render(tokenizer, messages), room.positions):
        ids, asking = window_ids(tokenizer, messages)
        known = 0 if given is None else len(given)
        if len(ids) + known + room.answer <= room.positions:
            whole = ids if given is None else with_text(tokenizer, messages, given)
            if len(whole) + room.answer <= room.positions:
                return Split(whole, None, None, False)
        if given is not None and len(ids) <= room.beside:
            return Split(ids, asking, None, True)
    messages, cut = _first_shortened(tokenizer, messages, room.beside // 2)
    kept, older = _newest(tokenizer, messages, room.beside)
    more: list[Said] = []
    if surely_longer(tokenizer, kept[-1].text, room.positions):
        kept, more = _shortened(tokenizer, kept, _most(room, _fixed(tokenizer, kept)))
    ids, asking = window_ids(tokenizer, kept)
    if len(ids) > room.beside and not more:
        size = len(token_ids(tokenizer, kept[-1].text))
        if size > (most := _most(room, len(ids) - size)):
            kept, more = _shortened(tokenizer, kept, most)
            ids, asking = window_ids(tokenizer, kept)
    if len(ids) + room.answer > room.positions:
        raise ApiError(
            400,
            f"the system message and the question take {len(ids)} tokens and the answer {room.answer}, the model has "
            f"{room.positions} positions; shorten them, or ask for a shorter answer.",
            "context_length_exceeded",
            "messages",
        )
    text = "\n\n".join(m.text for m in (*cut, *older, *more))
    check(text)
    reads = torch.tensor(token_ids(tokenizer, text), dtype=torch.int32) if text.strip() else None
    return Split(ids, asking, reads, reads is not None or given is not None)


def split_tokens(ids: list[int], given: Tensor | None, room: Room, begin: Sequence[int] = ()) -> Split:
    """Split a prompt without messages: its newest tokens stay, behind `begin`."""
    known = [] if given is None else given.tolist()
    if len(begin) + len(known) + len(ids) + room.answer <= room.positions:
        return Split([*begin, *known, *ids], None, None, False)
    stay = ids[-max(1, room.beside - len(begin)) :]
    older = ids[: len(ids) - len(stay)]
    return Split([*begin, *stay], None, torch.tensor(older, dtype=torch.int32) if older else None, True)


def _size(tokenizer: Any, text: str, most: int) -> int:
    """Tokens of a text; of a long one that has more than `most` only that it has."""
    return most + 1 if surely_longer(tokenizer, text, most) else len(token_ids(tokenizer, text))


def _fixed(tokenizer: Any, messages: Sequence[Said]) -> int:
    """Tokens of a window beside those of its last message, a long one."""
    last = messages[-1]
    brief = Said(last.role, (last.text.rstrip() or last.text)[-BRIEF:])
    ids, _ = window_ids(tokenizer, [*messages[:-1], brief])
    return len(ids) - len(token_ids(tokenizer, brief.text))


def _most(room: Room, fixed: int) -> int:
    """Tokens that a last message may have beside the `fixed` ones of a window: what is left of it, but half of it at
    least as far as the model can hold that."""
    return max(room.beside - fixed, min(room.beside // 2, room.positions - room.answer - fixed))


def _first_shortened(tokenizer: Any, messages: Sequence[Said], most: int) -> tuple[Sequence[Said], list[Said]]:
    """The messages with a first system message of `most` tokens, and what was taken out of it."""
    head = messages[:1]
    if len(messages) < 2 or head[0].role != "system" or _size(tokenizer, head[0].text, most) <= most:
        return messages, []
    kept, cut = _shortened(tokenizer, head, most)
    return [*kept, *messages[1:]], cut


def _newest(tokenizer: Any, messages: Sequence[Said], most: int) -> tuple[list[Said], list[Said]]:
    """The first system message with the newest that fit beside it, at least one, and the others."""
    head = [m for m in messages[:1] if m.role == "system" and len(messages) > 1]
    rest = list(messages[len(head) :])
    used = sum(_size(tokenizer, m.text, most) + TEMPLATE_TOKENS for m in head)
    at = len(rest)
    while at > 0 and (used := used + _size(tokenizer, rest[at - 1].text, most) + TEMPLATE_TOKENS) <= most:
        at -= 1
    at = min(at, len(rest) - 1)
    while at < len(rest) - 1 and (rest[at].role != "user" or len(window_ids(tokenizer, [*head, *rest[at:]])[0]) > most):
        at += 1  # a window begins with a question, as chat templates want
    return [*head, *rest[at:]], rest[:at]


def _shortened(tokenizer: Any, messages: Sequence[Said], most: int) -> tuple[list[Said], list[Said]]:
    """The same with a last message of `most` tokens, and what of that message is read: all before the end that stays."""
    last = messages[-1]
    text = last.text.rstrip() or last.text
    end = text[text.rfind("\n\n") + 2 :] if "\n\n" in text else text
    paragraphs = (p for p in text[: len(text) - len(end)].split("\n\n") if p.strip())
    if _size(tokenizer, first := next(paragraphs, ""), most // FIRST_SHARE) > most // FIRST_SHARE:
        first = ""
    end = _end(tokenizer, end, max(1, most // LAST_SHARE))
    before = text[: len(text) - len(end)].rstrip()
    kept = "\n\n".join(p for p in (first, end) if p)
    return [*messages[:-1], Said(last.role, kept)], [Said(last.role, before)]


def _end(tokenizer: Any, text: str, most: int) -> str:
    """The end of a text, of about `most` tokens where it has more, in whole characters."""
    tail = PIECE
    while len(ids := token_ids(tokenizer, text[-tail:])) <= 2 * most and tail < len(text):
        tail *= 4
    if len(ids) <= most:
        return text
    size = len(str(tokenizer.decode(ids[-most:])).lstrip("\ufffd"))  # that a character cut in two is decoded to
    return text[len(text) - max(1, size) :]
