"""What the workers of an evaluation may take together, and what their rows say that they took."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sharedllm import UsageError
from sharedllm.evaluate import spread as spread_file
from sharedllm.evaluate.spread import COMPARED, MethodWorker, Spread, computes_with
from tests.contexts import assert_one_sentence


class Workers:
    """A pool whose workers answer at once."""

    def __init__(self, rooms=(), peaks=(), computing=()) -> None:
        self.rooms, self.peaks, self.computes_withs = list(rooms), list(peaks), list(computing)

    def call(self, name: str):
        return getattr(self, f"{name}s")

    def map(self, _name: str, pieces):
        for piece in pieces:
            yield piece, ([piece[4]], self.peaks.pop(0))


def test_workers_of_one_machine_share_its_memory():
    assert Spread(Workers([("a", 12e9)])).free() == 12e9
    assert Spread(Workers([("a", 12e9)] * 4)).free() == 3e9
    assert Spread(Workers([("a", 12e9), ("a", 11e9), ("b", 5e9), ("c", 30e9)])).free() == 5e9


def test_the_peak_of_a_call_is_not_that_of_the_one_before(make):
    spread = Spread(Workers(peaks=[900, 800, 30, 40, 35, 20]))
    full, shared = (SimpleNamespace(name=name, window=64, llm=make()) for name in ("full", "shared"))
    assert list(spread(full, None, "ab")) == ["a", "b"] and spread.besides() == {"peak_memory_bytes": 900}
    list(spread(shared, None, "a"))
    assert spread.besides() == {"peak_memory_bytes": 30}
    list(spread(shared, None, "bc"))
    assert spread.besides() == {"peak_memory_bytes": 40}
    list(spread(shared, None, "d"))
    assert spread.besides() == {"peak_memory_bytes": 20}, "the same method at another length"


def test_a_worker_forgets_its_peak_with_every_call(make, monkeypatch):
    llm, reset = make(), []
    monkeypatch.setattr(spread_file.SharedLLM, "from_pretrained", lambda **_: llm)
    monkeypatch.setattr(spread_file, "reset_peak", lambda _device: reset.append(worker.asked))
    worker = MethodWorker({}, SimpleNamespace(apply=lambda: None))
    for call, name in ((1, "truncate"), (1, "truncate"), (2, "shared"), (3, "shared")):
        found, held = worker.work((0, call, (name, 20), lambda method, item: [(method.name, item)], "x"))
        assert found == [(name, "x")] and held > 0
    assert reset == [None, 1, 2]
    place, free = worker.room()
    assert place and free > 0


@pytest.mark.parametrize("peaks", [[], [0]])
def test_without_a_peak_a_row_says_nothing_of_one(make, peaks):
    spread = Spread(Workers(peaks=peaks))
    list(spread(SimpleNamespace(name="full", window=1, llm=make()), None, "a" * len(peaks)))
    assert spread.besides() == {}


@pytest.mark.parametrize("what", COMPARED)
def test_a_worker_that_computes_with_something_else_is_refused_before_the_first_piece(make, what):
    llm = make()
    here = computes_with(llm)
    other = tuple("other" if name == what else value for name, value in zip(COMPARED, here, strict=True))
    method = SimpleNamespace(name="full", window=1, llm=llm)
    assert list(Spread(Workers(peaks=[1], computing=[here, here]))(method, None, "a")) == ["a"]
    with pytest.raises(UsageError, match=f"{what} of a worker is other and that of this process") as error:
        list(Spread(Workers(computing=[here, other]))(method, None, "a"))
    assert_one_sentence(error)
