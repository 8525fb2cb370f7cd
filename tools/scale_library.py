"""How long a library of many documents takes with 8, 64 and 1,000 workers, on paper: nothing of it was run.

With W workers, D equal documents take at least

    start + max(ceil(D / W) * (read + moved / network), D * moved / storage)

read: seconds a document; moved: bytes of its text in and of its store out; network: bytes a second of one worker; storage:
those of the storage that all share. Start: the weights to every worker, at the lesser of network and storage / W. It is a
lower bound (asymptotic bounds of a closed queueing network, Denning and Buzen, Computing Surveys 10(3), 1978): a worker
reads and moves in turn, as the code does, and what queues at the storage otherwise takes longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Library:
    """What is assumed of the documents and of where they lie."""

    documents: int = 10_000
    tokens: int = 100_000
    """Of each document."""
    text_bytes: float = 4.0
    """Of a token of text."""
    network: float = 1.25e9
    """Bytes a second in and out of one worker: 10 Gbit/s."""
    storage: float = 10e9
    """Bytes a second of the storage, all workers together."""


@dataclass(frozen=True)
class Parts:
    """What one worker needs for one document."""

    read: float
    """Seconds of reading."""
    store: int
    """Bytes kept of it."""
    weights: int
    """Bytes of the model, fetched once a worker."""


def simulate(library: Library, parts: Parts, workers: int) -> dict[str, Any]:
    """Seconds of the whole library, those of every part, the speed-up over one worker, and what bounds it."""
    whole = _seconds(library, parts, workers)
    bounds = {"reading": whole["read"], "network": whole["network"], "storage": whole["storage"]}
    rounds = whole["read"] + whole["network"] >= whole["storage"]
    bound_by = max(("reading", "network"), key=bounds.__getitem__) if rounds else "storage"
    moved, alone = _moved(library, parts), _seconds(library, parts, 1)["seconds"]
    return {
        "workers": workers,
        "seconds": whole["seconds"],
        "start_seconds": whole["start"],
        **{f"{name}_seconds": seconds for name, seconds in bounds.items()},
        "speed_up": alone / whole["seconds"],
        "bound_by": "start" if whole["start"] > whole["seconds"] / 2 else bound_by,
        "storage_full_from_workers": library.storage * (parts.read + moved / library.network) / moved,
        "store_bytes": library.documents * parts.store,
    }


def _moved(library: Library, parts: Parts) -> float:
    return library.tokens * library.text_bytes + parts.store


def _seconds(library: Library, parts: Parts, workers: int) -> dict[str, float]:
    moved, rounds = _moved(library, parts), -(-library.documents // workers)
    start = parts.weights / min(library.network, library.storage / workers)
    read, network = rounds * parts.read, rounds * moved / library.network
    storage = library.documents * moved / library.storage
    return {
        "start": start,
        "read": read,
        "network": network,
        "storage": storage,
        "seconds": start + max(read + network, storage),
    }
