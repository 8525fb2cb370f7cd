"""What the workers of an evaluation may take together, and what their rows say that they took."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sharedllm.evaluate import spread as spread_file
from sharedllm.evaluate.spread import MethodWorker, Spread


class Workers:
    """A pool whose workers answer at once."""

    def __init__(self, rooms=(), peaks=()) -> None:
        self.rooms, self.peaks = list(rooms), list(peaks)

    def call(self, name: str):
        return getattr(self, f"{name}s")

    def map(self, _name: str, pieces):
        for piece in pieces:
            yield piece, ([piece[3]], self.peaks.pop(0))


def test_workers_of_one_machine_share_its_memory():
    assert Spread(Workers([("a", 12e9)])).free() == 12e9
    assert Spread(Workers([("a", 12e9)] * 4)).free() == 3e9
    assert Spread(Workers([("a", 12e9), ("a", 11e9), ("b", 5e9), ("c", 30e9)])).free() == 5e9


def test_a_methods_peak_is_not_that_of_the_one_before():
    spread = Spread(Workers(peaks=[900, 800, 30, 40, 35]))
    full, shared = (SimpleNamespace(name=name, window=64) for name in ("full", "shared"))
    assert list(spread(full, None, "ab")) == ["a", "b"] and spread.besides() == {"peak_memory_bytes": 900}
    list(spread(shared, None, "a"))
    assert spread.besides() == {"peak_memory_bytes": 30}
    list(spread(shared, None, "bc"))
    assert spread.besides() == {"peak_memory_bytes": 40}


def test_a_worker_forgets_its_peak_where_the_method_changes(make, monkeypatch):
    llm, reset = make(), []
    monkeypatch.setattr(spread_file.SharedLLM, "from_pretrained", lambda **_: llm)
    monkeypatch.setattr(spread_file, "reset_peak", lambda _device: reset.append(worker.asked))
    worker = MethodWorker({}, SimpleNamespace(apply=lambda: None))
    for method in (("truncate", 20), ("truncate", 20), ("shared", 20), ("truncate", 20)):
        found, held = worker.work((0, method, lambda method, item: [(method.name, item)], "x"))
        assert found == [(method[0], "x")] and held > 0
    assert reset == [None, ("truncate", 20), ("shared", 20)]
    place, free = worker.room()
    assert place and free > 0


@pytest.mark.parametrize("peaks", [[], [0]])
def test_without_a_peak_a_row_says_nothing_of_one(peaks):
    spread = Spread(Workers(peaks=peaks))
    list(spread(SimpleNamespace(name="full", window=1), None, "a" * len(peaks)))
    assert spread.besides() == {}
