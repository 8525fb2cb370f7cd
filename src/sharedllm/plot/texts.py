"""Rows of the same texts: those of others never stand in one picture at one length, nor does one replace the other."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from sharedllm.plot.rows import Row

EARLIER = "measured before, on other texts"
"""What is said of a group of rows that is not the newest."""


def by_texts(rows: Sequence[Row], place: Callable[[Row], Hashable]) -> list[list[Row]]:
    """Groups of rows that have one set of texts at each place; the first has what was measured last at every place.

    A row that only names its sources counts as one of the texts from there that were read last.

    Args:
        place: what rows share that could stand for one another but for their texts, such as a length.
    """
    read: dict[Hashable, str] = {}
    for row in rows:
        sources, texts = texts_of(row)
        if texts:
            read[place(row), sources] = texts

    def of(row: Row) -> Hashable:
        sources, texts = texts_of(row)
        return sources, texts or read.get((place(row), sources), "")

    newest: dict[Hashable, list[Hashable]] = {}
    for row in rows:
        seen = newest.get(place(row), [])
        newest[place(row)] = [of(row), *(other for other in seen if other != of(row))]
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(newest[place(row)].index(of(row)), []).append(row)
    return [groups[k] for k in sorted(groups)]


def texts_of(row: Row) -> tuple[tuple[str, ...], str]:
    """The sources of a row's texts, which some rows name once and some for each question, and a hash of what was read and asked,
    "" where a row has none."""
    sources = row.values.get("sources")
    named = tuple(dict.fromkeys(map(str, sources))) if isinstance(sources, list) else ()
    return named, str(row.values.get("texts", ""))
