"""Writes docs/results/report-PROFILE.md from the rows that `run_report.py` left: run `python tools/fill_report.py small`.

Numbers have one home, the results file. What a person reads in them stands in `tools/report/PROFILE-reading.md`, three
sentences written by hand, and is taken over as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial

from fill_goals import SAME, of_other_weights
from report_peers import peers_table
from report_table import NOT_MEASURED, Row, interval, latest, read_each_time, slots, table, with_branches
from run_report import DOCS, PROFILES, PROFILES_AT, as_typed, commands, machine_file, rows_file

from sharedllm.evaluate.results import read_rows
from sharedllm.evaluate.statistics import bounds, bounds_of_mean
from sharedllm.plot.scores import MEAN

TO_FIRST, PEAK = "seconds_to_first_token", "working_peak_bytes"
PEERS = DOCS / "results" / "peers.jsonl"
NOT_RECORDED = "Which commands left these rows was not recorded; these are the profile's of today."
PARTLY_RECORDED = "Some of the rows were there before it was recorded which commands left them."
UNREAD = "*Not read yet: write three sentences into `tools/report/{}-reading.md`, where this wins and where it loses.*"


def page(name: str, rows: Sequence[Row], machine: Row, reading: str, peers: Sequence[Row] = ()) -> str:
    """The page of a profile, with what is measured so far of one setting."""
    rows = same_setting(rows)
    parts = [
        f"# Report, profile `{name}`",
        f"Every method on the same tokens of texts that no adapter was trained on. `make report PROFILE={name}` makes this page, and "
        "goes on where it was stopped. Brackets: 95 % interval, by bootstrap for means, Wilson's for shares.",
        about(rows, machine),
        f"![The same as figures.](../figures/report-{name}.png)",
        *section(
            "Likelihood, equal window",
            "Nats a token (lower is better) of a passage's last 1,024 tokens, the same ones at every length. Methods with a window see as many "
            f"tokens of it themselves; `full`, `yarn` and `dynamic-ntk` have none and read everything.{seen(equal_window(rows))}",
            [nll_table(equal_window(rows)), gain_table(equal_window(rows))],
        ),
        *section(
            "Likelihood, equal window and fewer targets",
            "The last 256 tokens alone, so that each has at least 768 tokens before it in the window; above, the first has none, while a "
            "token read by `streaming` always has a whole window behind it.",
            [nll_table(few_targets(rows)), gain_table(few_targets(rows))],
        ),
        *section(
            "Likelihood, best use of the model",
            "The same targets, with the plain model given all its positions and `shared` a large window and the rest compressed.",
            [nll_table(best_use(rows)), gain_table(best_use(rows))],
        ),
        *section(
            "Needles",
            "Share of questions about hidden facts answered exactly. `passage` is the model shown only the right 1,024 tokens.",
            [table(of(rows, "needle", "found"), share)],
        ),
        *section("RULER, a part of it", "0 to 100, the mean over its tasks and each task.", ruler_tables(rows)),
        *section(
            "Time",
            "Seconds from a text to the first token of an answer, and of the answer to a further question on the same text: the median of "
            "the rounds, and in parentheses the least and the most where there are several.",
            [table(of(rows, "bench", TO_FIRST), first_and_second)],
        ),
        *section(
            "Memory",
            "MB beyond the loaded model at the peak of one question, in a process of its own; and of them, kept of the text for the next question.",
            [table(of(rows, "bench", PEAK), megabytes)],
        ),
        *section(
            "Beside kvpress",
            "Methods of [kvpress](https://github.com/NVIDIA/kvpress), which nobody here wrote, on the same samples at as many bytes as "
            "`shared` has (`make peers`). They read all tokens with the model's own attention and keep some of its keys and values. "
            "What `shared` keeps is packed to 4 bits a number and theirs has 16, so that as many bytes hold fewer of their tokens. They "
            "choose before a question is known, while what is attended to by one question is what `shared` takes after it has seen it.",
            [peers_table(peers)],
        ),
        "## Reading",
        reading.strip() or UNREAD.format(name),
        "## How it was made",
        *how_made(name, machine),
    ]
    return "\n\n".join(parts) + "\n"


def same_setting(rows: Sequence[Row]) -> list[Row]:
    """The rows with the model and the machine's settings of the last one of ours, as far as they say them.

    Not all do: a row without a value has no threads.
    """
    last = last_of_ours(rows)
    if last is None:
        return list(rows)
    said = {name: last[name] for name in SAME if name in last}
    return [row for row in rows if all(row.get(name, own) == own for name, own in said.items())]


def last_of_ours(rows: Sequence[Row]) -> Row | None:
    """The last row of `shared` with a value, or else its last; None where there is none."""
    ours = [row for row in rows if row["method"] == "shared"]
    return next((row for row in reversed(ours) if row["value"] is not None), ours[-1] if ours else None)


def about(rows: Sequence[Row], machine: Row) -> str:
    """Model, adapter, machine and versions, as the last of our rows gives them.

    What it does not say is from `doctor`, whose file may be of another machine: its memory and versions count where the
    processor is the row's.
    """
    row = last_of_ours(rows)
    if row is None:
        return "Nothing measured yet."
    processor = row.get("processor", machine["processor"])
    here = machine if processor == machine["processor"] else {}
    memory = f", {here['memory_bytes'] / 2**30:.0f} GiB" if here else ""
    found = row.get("versions") or here.get("versions", {})
    versions = ", ".join(f"{name} {found[name]}" for name in ("sharedllm", "torch", "transformers") if name in found)
    before = earlier_weights(rows)
    return (
        f"Model {row['model']}, adapter {row['adapter']}, {row['dtype']}, on {row['device']} with "
        f"{row.get('threads', machine['threads'])} threads ({processor}{memory}), seed {row['seed']}"
        + (f"; {versions}." if versions else ".")
        + (f" {before}." if before else "")
    )


def earlier_weights(rows: Sequence[Row]) -> str:
    """Says that figures of `shared` are of an adapter that ships no longer (`fill_goals.of_other_weights`), of each figure the last."""
    last: dict[tuple[object, ...], Row] = {}
    for row in (row for row in same_setting(rows) if row["method"] == "shared" and row["value"] is not None):
        window = row["window"] if "targets" in row else 0  # of an answer it is only what was used
        last[row["task"], row["metric"], row["length"], row.get("targets"), window] = row
    return of_other_weights(list(last.values()))


def section(title: str, about: str, tables: Sequence[str]) -> list[str]:
    """A section, or nothing where nothing was measured."""
    found = [text for text in tables if text]
    return [f"## {title}", about, *found] if found else []


def of(rows: Sequence[Row], task: str, metric: str) -> list[Row]:
    return [row for row in rows if row["task"] == task and row["metric"] == metric]


def likelihood(rows: Sequence[Row], few: bool) -> list[Row]:
    """Rows of likelihood with fewer targets than the most there are, or those with the most."""
    found = of(rows, "perplexity", "nll")
    most = max((row["targets"] for row in found if "targets" in row), default=0)
    return [row for row in found if (row.get("targets", most) < most) == few]


def equal_window(rows: Sequence[Row]) -> list[Row]:
    """Rows of likelihood where a window has the targets and one token more."""
    return [row for row in likelihood(rows, few=False) if not large(row)]


def seen(rows: Sequence[Row]) -> str:
    """What methods see in an equal window, as far as our rows say their settings."""
    measured = [row for row in latest(rows).values() if row["value"] is not None]
    ours = [row for row in measured if row["method"] == "shared"]
    taken = sorted({count for row in ours if (count := slots(row)) is not None})
    if not taken:
        return ""
    counted = f"{taken[0]:,} to {taken[-1]:,}" if len(taken) > 1 else f"{taken[0]:,}"
    more = [f" and `retrieval` {row['quoted_tokens']:,} more" for row in measured if row["method"] == "retrieval"]
    return (
        f" In that window `truncate` sees {ours[-1]['window']:,} tokens{more[-1] if more else ''}; `shared` sees as many as `truncate` and attends to {counted} "
        f"slots besides, in {with_branches(ours[-1])}."
    )


def few_targets(rows: Sequence[Row]) -> list[Row]:
    """Rows of likelihood where a window has more than the targets."""
    return likelihood(rows, few=True)


def best_use(rows: Sequence[Row]) -> list[Row]:
    """Those with a large window, and those of methods that read everything in any case."""
    found = likelihood(rows, few=False)
    windowed = {row["method"] for row in found if large(row)}
    everything = {"full", "yarn", "dynamic-ntk"}
    return [row for row in found if large(row) or row["method"] in everything] if windowed else []


def large(row: Row) -> bool:
    return "window" in row and row["window"] > row.get("targets", row["window"]) + 1


def nll_table(rows: Sequence[Row]) -> str:
    return table(rows, lambda row: interval(row["values"], ".3f"))


def gain_table(rows: Sequence[Row]) -> str:
    """What each method gains over `truncate`, paired by passage."""
    found = latest(rows)
    gains = []
    for (_, n), row in found.items():
        alone = found.get(("truncate", n))
        if row["method"] == "truncate" or alone is None or None in (row["value"], alone["value"]):
            continue
        if (row["sources"], row["starts"]) == (alone["sources"], alone["starts"]):
            values = [a - b for a, b in zip(alone["values"], row["values"], strict=True)]
            gains.append({**row, "value": sum(values) / len(values), "values": values})
    made = table(gains, lambda row: interval(row["values"]))
    passages = f" ({gains[0]['samples']} passages)" if gains else ""
    return f"Nats won over `truncate`, paired by passage{passages}; more is better:\n\n{made}" if made else ""


def share(row: Row) -> str:
    low, high = score_bounds(row, 1.0)
    return f"{100 * row['value']:.0f} % [{100 * low:.0f}, {100 * high:.0f}] of {row['samples']}"


def score_bounds(row: Row, most: float) -> tuple[float, float]:
    """Bounds of a mean of scores by today's rule, which takes no more of them than their sum; those in a row may be older."""
    return bounds([row["value"]] * row["samples"], most=most)


def ruler_tables(rows: Sequence[Row]) -> list[str]:
    """A table a task, their mean first."""
    metrics = dict.fromkeys(row["metric"] for row in rows if row["task"] == "ruler")
    metrics.pop("ruler_effective_length", None)
    tasks = {metric: latest(of(rows, "ruler", metric)) for metric in metrics}
    tables = []
    for metric in sorted(metrics, key=lambda metric: metric != MEAN):
        made = table(of(rows, "ruler", metric), partial(ruler_mean, tasks) if metric == MEAN else ruler_score)
        name = "Mean over the tasks" if metric == MEAN else f"`{metric.removeprefix('ruler_')}`"
        tables.append(f"{name}:\n\n{made}" if made else "")
    return tables


def ruler_score(row: Row) -> str:
    low, high = score_bounds(row, 100.0)
    return f"{row['value']:.0f} [{low:.0f}, {high:.0f}]"


def ruler_mean(tasks: Mapping[str, Mapping[tuple[str, int], Row]], row: Row) -> str:
    """A mean, with the interval that those of its tasks add up to where their rows are there."""
    named = row.get("subtasks") or {}
    at = row["method"], row["length"]
    every = ((tasks.get(f"ruler_{name}", {}).get(at), value) for name, value in named.items())
    found = [task for task, value in every if task is not None and task["value"] == value]
    if not found or len(found) < len(named):
        return f"{row['value']:.0f}"
    low, high = bounds_of_mean([(task["value"], *score_bounds(task, 100.0)) for task in found], 0.0, 100.0)
    return f"{row['value']:.0f} [{low:.0f}, {high:.0f}]"


def first_and_second(row: Row) -> str:
    """Seconds to the first token of the first question, and of a further one, unless the text was read again for it; of several
    rounds also the least and the most."""
    rounds = row.get("rounds") or {}
    second, first = (
        [sum(parts) for parts in zip(*(rounds.get(f"{name}_seconds", []) for name in phases), strict=True)]
        for phases in (("search", "first_token"), ("read", "search", "first_token"))
    )
    again = row["search_seconds"] + row["first_token_seconds"]
    then = NOT_MEASURED if read_each_time(row) else f"{again:.1f}{between(second)}"
    return f"{row['value']:.1f}{between(first)}, then {then}"


def between(values: Sequence[float]) -> str:
    """The least and the most of several values."""
    return f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""


def megabytes(row: Row) -> str:
    return f"{row['value'] / 1e6:,.0f}, of them {row['kept_bytes'] / 1e6:,.0f}"


def how_made(name: str, machine: Row) -> list[str]:
    """The commands that left the rows, as far as that was recorded, otherwise those of today's profile, which says so."""
    typed = machine.get("commands") or [as_typed(arguments) for arguments in commands(name, rows_file(name))]
    said = [PARTLY_RECORDED] if machine.get("unrecorded") else []
    return [*(said if machine.get("commands") else [NOT_RECORDED]), "```\n" + "\n".join(typed) + "\n```"]


def made(name: str) -> str:
    """The page as it should stand in the file."""
    reading = PROFILES_AT / f"{name}-reading.md"
    return page(
        name,
        read_rows(rows_file(name)),
        json.loads(machine_file(name).read_text(encoding="utf-8")),
        reading.read_text(encoding="utf-8") if reading.is_file() else "",
        read_rows(PEERS) if name == "full" else (),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the page of a profile of the report.")
    parser.add_argument("profile", choices=PROFILES)
    profile = parser.parse_args().profile
    rows_file(profile).with_suffix(".md").write_text(made(profile), encoding="utf-8")
