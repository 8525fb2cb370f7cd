"""Spans kept from compression: a question takes all of their tokens in, whatever the trees say.

A span is a half-open range, (start, end). A context holds spans of its tokens, ascending and apart. In a text they are
named by ranges of characters, or by `<keep>` and `</keep>` around them, which are taken out of what is read.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from sharedllm.errors import UsageError

if TYPE_CHECKING:  # those who take text out of files need no tensors
    from torch import Tensor

Span = tuple[int, int]
Keep = Sequence[Span] | Literal["tags"] | None
"""What of a text is kept: ranges of its characters (of token ids: of tokens), or what stands between its tags."""
_TAG = re.compile("</?keep>")


def keep_spans(tokenizer: Any, text: str, keep: Keep) -> tuple[list[int], list[Span]]:
    """Token ids of a text without its tags, and the spans of tokens that hold the kept characters.

    Raises:
        UsageError: a tag without its other half, a range outside the text, or a tokenizer that does not tell where in a
            text its tokens stand.
    """
    if keep == "tags":
        text, spans = untagged(text)
    else:
        spans = checked(keep or (), len(text), "characters")
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            "this tokenizer does not tell where in a text its tokens stand; give token ids, and keep as ranges of tokens."
        )
    coded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    return coded["input_ids"], token_spans(coded["offset_mapping"], spans)


def untagged(text: str) -> tuple[str, list[Span]]:
    """A text without its tags, and the ranges of its characters that stood between them.

    Raises:
        UsageError: a tag without its other half, or one inside another.
    """
    parts: list[str] = []
    spans: list[Span] = []
    at = size = 0
    opened: int | None = None
    for tag in _TAG.finditer(text):
        parts.append(text[at : tag.start()])
        size += len(parts[-1])
        at = tag.end()
        if tag[0] == "<keep>" and opened is None:
            opened = size
        elif tag[0] == "</keep>" and opened is not None:
            spans.append((opened, size))
            opened = None
        else:
            wrong = "stands inside another" if opened is not None else "has no <keep> before it"
            raise UsageError(
                f"the {tag[0]} at character {tag.start():,} {wrong}; write <keep>...</keep> around a span."
            )
    if opened is not None:
        raise UsageError("the last <keep> has no </keep> behind it; write <keep>...</keep> around a span.")
    return "".join([*parts, text[at:]]), merged(spans)


def checked(spans: Sequence[Span], length: int, unit: str) -> list[Span]:
    """Spans in order and apart; `UsageError` for one that is no range of `length` things of that unit."""
    for span in spans:
        pair = isinstance(span, Sequence) and len(span) == 2 and all(isinstance(n, int) for n in span)
        if not pair or not 0 <= span[0] <= span[1] <= length:
            raise UsageError(f"keep names the range {span!r}; give (start, end) in {unit}, between 0 and {length}.")
    return merged(spans)


def merged(spans: Iterable[Span]) -> list[Span]:
    """The same in order, without empty ones, and with those joined that meet."""
    joined: list[Span] = []
    for start, end in sorted((int(start), int(end)) for start, end in spans if start < end):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def token_spans(offsets: Sequence[Span], spans: Sequence[Span]) -> list[Span]:
    """Spans of the tokens that hold any of the characters, where token i stands at characters `offsets[i]`."""
    starts, ends = [start for start, _ in offsets], [end for _, end in offsets]
    return merged((bisect_right(ends, start), bisect_left(starts, end)) for start, end in spans)


def clipped(spans: Sequence[Span], start: int, end: int) -> list[Span]:
    """What of some spans lies from `start` to `end`, counted from `start`."""
    return merged((max(a, start) - start, min(b, end) - start) for a, b in spans)


def shifted(spans: Sequence[Span], by: int) -> list[Span]:
    return [(start + by, end + by) for start, end in spans]


def span_mask(spans: Sequence[Span], length: int) -> Tensor:
    """Which of `length` tokens lie in a span, [length]."""
    import torch

    mask = torch.zeros(length, dtype=torch.bool)
    for start, end in spans:
        mask[start:end] = True
    return mask
