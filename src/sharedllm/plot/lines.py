"""What makes one line of a figure (a method with its adapter and settings), its name and its look."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sharedllm.config import SharedConfig
from sharedllm.evaluate.results import PLAIN
from sharedllm.plot.rows import Row

# Okabe and Ito's colours, told apart by every kind of colour vision; one is kept for `shared`, the baselines' are paler.
CYCLE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#999999")
SHARED = "#D55E00"
LOOKS = {
    "shared": (SHARED, "o"),
    "shared-compact": ("#E8A47A", "h"),
    "truncate": ("#8A8A8A", "s"),
    "retrieval": ("#B08BC0", "H"),
    "full": ("#4D4D4D", "^"),
    "passage": ("#4D4D4D", "D"),
    "streaming": ("#7FB2D0", "v"),
    "yarn": ("#C9A4BD", "P"),
    "dynamic-ntk": ("#9C86B8", "p"),
    "encoder-decoder": ("#80BFA9", "X"),
    "kvpress-snapkv": ("#C7B44A", "<"),
    "kvpress-expected-attention": ("#A08C5B", ">"),
    "kvpress-streaming-llm": ("#5F9EA0", "d"),
}
OTHER = ("#B9A66B", "*")
DASHES = ("-", "--", ":", "-.")
WORDS = {
    "shared": "shared: the rest compressed",
    "shared-compact": "shared-compact: less kept, a chunk read again",
    "truncate": "truncate: the window alone",
    "retrieval": "retrieval: the nearest passages as text",
    "full": "full: all in the model's attention",
    "passage": "passage: only the text around the answer",
    "streaming": "streaming: first tokens and a rolling window",
    "yarn": "yarn: scaled positions",
    "dynamic-ntk": "dynamic-ntk: a rotary base that grows",
    "encoder-decoder": "encoder-decoder: chunks through all layers",
    "kvpress-snapkv": "SnapKV (kvpress), at equal bytes",
    "kvpress-expected-attention": "expected attention (kvpress), at equal bytes",
    "kvpress-streaming-llm": "StreamingLLM (kvpress), at equal bytes",
}
READ_THE_ADAPTER = {"shared", "shared-compact", "retrieval"}
"""Methods whose figures are of the weights that `adapter_weights` of their rows names."""
EVERYTHING = {"full", "yarn", "dynamic-ntk"}
"""Methods that read all tokens, whatever the window."""


@dataclass(frozen=True)
class Line:
    """What rows of one line agree in; `settings` are those of `SharedConfig`, as JSON."""

    method: str
    adapter: str
    settings: tuple[str, ...]
    window: int = 0
    """Of rows that are drawn beside others of another window, in tokens; otherwise 0."""
    budget: str = ""
    """Which bytes of `shared` another method was allowed."""
    weights: str = ""
    """A digest of the adapter's weights, of a method that reads it; of another, where its own are from. "" where that is not said."""
    given_window: int = 0
    """Tokens that the model was to see itself, where rows say it and it is no panel's; otherwise 0."""


def line_of(row: Row) -> Line:
    """The line that a row belongs to; settings that it does not give are the defaults."""
    method = row.text("method")
    given = {} if method in PLAIN else row.values
    settings = tuple(json.dumps(given.get(f.name, f.default)) for f in dataclasses.fields(SharedConfig))
    return Line(
        method,
        str(given.get("adapter", "")),
        settings,
        budget=str(row.values.get("budget") or ""),
        weights=str(given.get("adapter_weights" if method in READ_THE_ADAPTER else "weights") or ""),
        given_window=0 if method in EVERYTHING else _given_window(row),
    )


def _given_window(row: Row) -> int:
    """The window that was asked for; a row of answers that has no field for it has only the positions that were used."""
    name = "window" if row.task == "bench" else "given_window"
    return row.whole(name) if row.values.get(name) else 0


def lines_of(rows: Iterable[Row]) -> list[Line]:
    """The line of each row; one that does not say its window, or of which weights of the adapter it is, is of the line that does,
    where there is one alone."""
    found = [line_of(row) for row in rows]
    distinct = list(dict.fromkeys(found))
    told = {line: _told(line, distinct) for line in distinct}
    return [told[line] for line in found]


def _told(line: Line, among: Sequence[Line]) -> Line:
    """The line that says all that `line` does and the most besides; `line` itself where there is none, or several do."""
    more = [other for other in among if _says_more(other, line)]
    most = [other for other in more if not any(_says_more(third, other) for third in more)]
    return most[0] if len(most) == 1 else line


def _says_more(line: Line, other: Line) -> bool:
    """Whether a line agrees with another in all that the other says, and says something besides."""
    return line != other and replace(line, **_unsaid(other)) == other


def may_be_one(line: Line, other: Line) -> bool:
    """Whether two lines agree in all that both say."""
    unsaid = _unsaid(line) | _unsaid(other)
    return replace(line, **unsaid) == replace(other, **unsaid)


def _unsaid(line: Line) -> dict[str, Any]:
    """What a line leaves open of what not all rows say, as fields without a value."""
    known: dict[str, Any] = {"given_window": 0}
    if line.method in READ_THE_ADAPTER:
        known["weights"] = ""
    return {name: nothing for name, nothing in known.items() if getattr(line, name) == nothing}


def names(lines: Iterable[Line]) -> dict[Line, str]:
    """A name for each line: its method, and where a method has several, a letter and what they differ in."""
    lines = list(dict.fromkeys(lines))
    named = {}
    for line in lines:
        others = [other for other in lines if other.method == line.method]
        parts = [said for name, said in _described(line).items() if len({getattr(other, name) for other in others}) > 1]
        for i, field in enumerate(dataclasses.fields(SharedConfig)):
            if len({other.settings[i] for other in others}) > 1:
                parts.append(f"{field.name.replace('_', ' ')} {json.loads(line.settings[i])}")
        named[line] = WORDS.get(line.method, line.method) + (f", {line.window:,} of it" if line.window else "")
        if parts:
            named[line] = f"{line.method} {letter(line, lines)} ({', '.join(parts)})"
    return named


def _described(line: Line) -> dict[str, str]:
    """What each field that tells lines apart, settings aside, says of a line."""
    without = "not said" if line.method in READ_THE_ADAPTER else "untrained"
    return {
        "adapter": line.adapter,
        "budget": f"budget {line.budget.replace('_', ' ') or 'not said'}",
        "weights": f"weights {line.weights or without}",
        "given_window": f"window {line.given_window:,}" if line.given_window else "window not said",
    }


def letter(line: Line, lines: Iterable[Line]) -> str:
    """A for a method's first line, B for its second, ...; "" where it has only one."""
    same = [other for other in lines if other.method == line.method]
    return chr(ord("A") + same.index(line)) if len(same) > 1 else ""


def in_order(lines: Iterable[Line]) -> list[Line]:
    """Known methods first, `shared` before the others, each once."""
    known = list(LOOKS)
    return sorted(
        dict.fromkeys(lines), key=lambda line: known.index(line.method) if line.method in known else len(known)
    )


def look(line: Line, lines: Iterable[Line]) -> tuple[str, str, str]:
    """Colour, marker and dash of a line: colour and marker say the method, the dash which of its lines."""
    colour, marker = LOOKS.get(line.method, OTHER)
    same = [other for other in lines if other.method == line.method]
    return colour, marker, DASHES[same.index(line) % len(DASHES)]


def length_name(tokens: int) -> str:
    """8192 is "8K", 1048576 "1M"; what is no multiple of 1,024 is written out."""
    for unit, name in ((2**20, "M"), (2**10, "K")):
        if tokens % unit == 0:
            return f"{tokens // unit}{name}"
    return f"{tokens:,}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def described(model: str, dtype: str, rest: str) -> str:
    """What a figure says of model and dtype, where rows give them."""
    return ", ".join(part for part in (model, dtype, rest) if part)


def counted(numbers: Iterable[int], what: str) -> str:
    """ "24 passages", or "6 to 24 passages" where they differ."""
    low, high = min(numbers := list(numbers)), max(numbers)
    return f"{low:,} to {high:,} {what}" if low < high else f"{low:,} {what}"
