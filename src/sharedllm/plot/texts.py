"""Rows of the same texts: those of others never stand in one picture at one length, nor does one replace the other."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from sharedllm.plot.rows import Row

EARLIER = "measured before, on other texts"
"""What is said of a group of rows that is not the newest."""


def by_texts(rows: Sequence[Row], place: Callable[[Row], Hashable]) -> list[list[Row]]:
    """Groups of rows that have one set of texts at each place; the first has what was measured last at every place.

    Args:
        place: what rows share that could stand for one another but for their texts, such as a length.
    """
    newest: dict[Hashable, list[Hashable]] = {}
    for row in rows:
        seen, texts = newest.setdefault(place(row), []), texts_of(row)
        newest[place(row)] = [texts, *(other for other in seen if other != texts)]
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(newest[place(row)].index(texts_of(row)), []).append(row)
    return [groups[k] for k in sorted(groups)]


def texts_of(row: Row) -> Hashable:
    """Which texts a row is of, as far as it says it; some rows name a text once, some for each question."""
    sources = row.values.get("sources")
    named = tuple(dict.fromkeys(map(str, sources))) if isinstance(sources, list) else ()
    return named, str(row.values.get("texts", ""))
