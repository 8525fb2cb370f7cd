"""A table of the report: methods by lengths, of rows of the same texts; below it why cells are empty and what else is to be known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from fill_goals import COUNTED

from sharedllm.config import SharedConfig
from sharedllm.evaluate.results import read_rows
from sharedllm.evaluate.statistics import bootstrap
from sharedllm.methods import METHODS
from sharedllm.plot.lines import READ_THE_ADAPTER
from sharedllm.plot.perplexity import FEW
from sharedllm.relevance import ASKING_TOKENS

Row = dict[str, Any]
CEILING = "passage"
NOT_MEASURED = "not measured"
THEIR_RANGE = "Of fewer than five passages the interval is their range."
TEXTS = ("sources", "starts", "texts", "subtasks")
"""Fields that say what a row is of, as far as it has them."""


def table(rows: Sequence[Row], cell: Callable[[Row], str]) -> str:
    """Rows of one metric; `cell` says what stands of one that has a value."""
    found = latest(rows)
    if not any(row["value"] is not None for row in found.values()):
        return ""
    lengths = sorted({length for _, length in found})
    methods = [name for name in (*METHODS, CEILING) if any(method == name for method, _ in found)]
    lines = ["| tokens | " + " | ".join(f"{n:,}" for n in lengths) + " |", "| --- " * (len(lengths) + 1) + "|"]
    reasons: dict[tuple[str, str], list[int]] = {}
    for method in methods:
        cells = []
        for n in lengths:
            row = found.get((method, n))
            beyond = " †" if row is not None and row.get("beyond_window") else ""
            cells.append(NOT_MEASURED if row is None else "–" if row["value"] is None else cell(row) + beyond)
            if row is not None and row["value"] is None:
                reasons.setdefault((method, row["reason"]), []).append(n)
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    said = [f"- `{method}` at {', '.join(f'{n:,}' for n in at)}: {why}." for (method, why), at in reasons.items()]
    said += notes([row for row in found.values() if row["value"] is not None])
    return "\n".join([*lines, *([""] if said else []), *said])


def latest(rows: Sequence[Row]) -> dict[tuple[str, int], Row]:
    """By method and length, of the weights and the texts of `shared`; what has a value counts before what has none, otherwise the
    last."""
    found: dict[tuple[str, int], Row] = {}
    for row in sorted(of_our_texts(of_last_weights(rows)), key=lambda row: row["value"] is not None):
        found[row["method"], row["length"]] = row
    return found


def of_last_weights(rows: Sequence[Row]) -> list[Row]:
    """Without rows of other weights of the adapter than the last row of `shared` that says its; rows that do not say theirs stay,
    and those of methods that do not read it."""
    said = [row["adapter_weights"] for row in rows if row["method"] == "shared" and row.get("adapter_weights")]
    last = {None, *said[-1:]}
    return [r for r in rows if not said or r["method"] not in READ_THE_ADAPTER or r.get("adapter_weights") in last]


def of_our_texts(rows: Sequence[Row]) -> list[Row]:
    """The rows of the texts that the last row of `shared` is of, and those without a value.

    Passages are the same at every length; texts that are asked about are others at each.
    """
    ours = [row for row in rows if row["method"] == "shared" and row["value"] is not None]
    passages = ours[-1] if ours and "starts" in ours[-1] else None
    at = {row["length"]: row for row in ours}

    def shown(row: Row) -> bool:
        our = passages or at.get(row["length"])
        return row["value"] is None or our is None or same_texts(row, our)

    return [row for row in rows if shown(row)]


def same_texts(row: Row, other: Row) -> bool:
    """Whether two rows are of the same texts, as far as both say it."""
    return all(list(row[name]) == list(other[name]) for name in TEXTS if name in row and name in other)


def notes(rows: Sequence[Row]) -> list[str]:
    """What is to be known of rows that are shown."""
    said: list[tuple[Callable[[Row], Any], str]] = [
        (lambda row: row.get("beyond_window"), "†: more positions than the model was trained for."),
        (lambda row: 1 < len(row.get("values") or ()) < FEW, THEIR_RANGE),
        (
            read_before_prompt,
            "`streaming` was measured as it read the text before the prompt; today it reads it inside, where the prompt puts it.",
        ),
        (read_each_time, "`full` was measured as it read the text for each question; today it reads it once."),
        (
            read_in_smaller_blocks,
            "`streaming` was measured as it read blocks of 128 tokens; today it reads larger ones, which is faster and takes more memory.",
        ),
        (
            searched_before,
            "`shared` was measured as it searched by all tokens before the scored ones and weighed by nearness; today it "
            "searches by the newest of them and does not weigh.",
        ),
    ]
    return [f"- {note}" for holds, note in said if any(holds(row) for row in rows)]


def read_before_prompt(row: Row) -> bool:
    """Whether a row has answers of `streaming` from when it read a text before the prompt."""
    return row["method"] == "streaming" and "scores" in row and not row.get("read_in_prompt")


def read_each_time(row: Row) -> bool:
    """Whether a row has times or bytes of `full` from when it read a text for each question."""
    return row["method"] == "full" and row.get("task") == "bench" and not row.get("read_once")


def read_in_smaller_blocks(row: Row) -> bool:
    """Whether a row has times or bytes of `streaming` from when it read smaller blocks."""
    return row["method"] == "streaming" and row.get("task") == "bench" and "block" not in row


def searched_before(row: Row) -> bool:
    """Whether a row of `shared` scores what goes on from text in its window, from when that text asked as a question does."""
    if row["method"] != "shared" or "targets" not in row or "searched_by" in row:
        return False
    return row["length"] > row["window"] >= row["targets"] + ASKING_TOKENS


def same_passages(row: Row, other: Row) -> bool:
    """Whether two rows score the same tokens, with whatever is before them."""
    return all(row.get(name) == other.get(name) for name in ("sources", "starts", "targets"))


def slots(row: Row) -> int | None:
    """How many slots a layer with a branch attended to in a row of likelihood: as it says, or where it is older by its settings, of
    the newest of a text: every token of the chunks that are taken whole, of the others what their trees keep. None of a row without
    either."""
    if "slots" in row or "read_chunks" not in row:
        return row.get("slots")
    config = SharedConfig.from_dict({f.name: row[f.name] for f in fields(SharedConfig) if f.name in row})
    past = row["length"] - row["window"]
    chunks = -(-past // config.chunk_length)
    read = min(chunks, config.read_chunks or chunks)
    fine = min(read, config.fine_chunks)
    missing = chunks * config.chunk_length - past  # the newest chunk ends with the text
    return fine * config.chunk_length - (missing if fine else 0) + (read - fine) * config.slots_per_chunk


def with_branches(row: Row) -> str:
    """Which layers attend to slots, of a row of `shared`."""
    counted = [found for found in read_rows(COUNTED) if found["task"] == "scale-model"]
    layers = next((f" of the model's {m['layers']}" for m in counted if row["model"].startswith(m["model"])), "")
    return f"{row['injected_layers'] - row.get('skipped_layers', 0)}{layers} layers"


def interval(values: Sequence[float], form: str = "+.3f") -> str:
    """A mean with its interval; of a single value there is none."""
    mean, (low, high) = sum(values) / len(values), bootstrap(values)
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]" if len(values) > 1 else f"{mean:{form}}"
