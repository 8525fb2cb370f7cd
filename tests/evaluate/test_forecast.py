"""What is said of a run before it starts: work counted by method, time by a pace, a reason where there is no room."""

from __future__ import annotations

import math

import pytest
import torch

from sharedllm.evaluate.forecast import Job, Pace, expected, lines, pace_of, spoken
from sharedllm.methods import create
from sharedllm.methods.estimate import in_chunks, one_pass
from sharedllm.methods.streaming import BLOCK
from tests.conftest import CONFIG, tokens

PACE = Pace(token=1.0, pair=0.01, generated=2.0)
C = CONFIG.chunk_length


def test_a_pass_has_a_pair_for_every_key_that_a_token_sees():
    mask = torch.ones(7, 7).tril()
    assert one_pass(7).pairs == mask.sum() and one_pass(7, 3).pairs == mask.sum() + 7 * 3
    assert in_chunks(10, 4) == one_pass(4).times(2) + one_pass(2)


def test_methods_say_what_they_do(make):
    llm = make()
    lowest = llm.config.injected_layers / len(llm.parts.layers)
    found = {name: create(name, llm, 8) for name in ("truncate", "full", "shared", "streaming", "encoder-decoder")}
    assert {name: method.reading(100).tokens for name, method in found.items()} == {
        "truncate": 0, "full": 0, "shared": pytest.approx(lowest * 100), "streaming": 100, "encoder-decoder": 100,
    }  # fmt: skip
    assert found["truncate"].answering(100) == one_pass(8) and found["full"].answering(100) == one_pass(100)
    assert found["shared"].reading(100).pairs < one_pass(100).pairs
    whole, longer = (found["streaming"].reading(tokens) for tokens in (BLOCK, 2 * BLOCK + 10))
    assert longer.tokens == 2 * BLOCK + 10, "the last block is short"
    assert 2 * whole.pairs < longer.pairs < 3 * whole.pairs


def test_what_is_read_once_is_counted_once_and_answers_take_their_tokens(make):
    llm = make()
    shared, truncate = create("shared", llm, 8), create("truncate", llm, 8)
    jobs = [Job(n, 2, 2, targets=6) for n in (5 * C, 9 * C)]
    short, long, *_ = (one.seconds for one in expected([shared, truncate], jobs, PACE, math.inf))
    window = PACE.seconds(one_pass(8))
    assert short == pytest.approx(2 * window)
    assert long == pytest.approx(2 * (window + PACE.seconds(shared.reading(9 * C - 8))))
    (asked,) = expected([truncate], [Job(50, 1, 3, new_tokens=5)], PACE, math.inf)
    assert asked.seconds == pytest.approx(3 * (window + 5 * 2.0)) and asked.reason is None


def test_tasks_of_a_length_are_one_line(make):
    """RULER's tasks differ in how long their answers may be."""
    truncate = create("truncate", make(), 8)
    jobs = [Job(n, 2, 2, new_tokens=new) for n in (40, 80) for new in (5, 3)]
    found = list(expected([truncate], jobs, PACE, math.inf))
    assert [one.length for one in found] == [40, 80]
    alone = [next(expected([truncate], [job], PACE, math.inf)).seconds for job in jobs]
    assert found[0].seconds == pytest.approx(alone[0] + alone[1]) and found[1].seconds == pytest.approx(sum(alone[2:]))


def test_texts_of_a_data_set_are_one_line(make):
    llm = make()
    full, truncate = create("full", llm, 8), create("truncate", llm, 8)
    jobs = [
        Job(40, 1, 1, 4, beside=6, dataset="a"), Job(60, 1, 3, 4, beside=6, dataset="a"),
        Job(20, 1, 1, 4, beside=9, dataset="b"), Job(20, 1, 1, 7, beside=9, dataset="c"),
    ]  # fmt: skip
    found = list(expected([full, truncate], jobs, PACE, math.inf))
    assert [(one.method, one.dataset, one.length) for one in found] == [
        ("full", "a", 55), ("full", "b", 20), ("full", "c", 20),
        ("truncate", "a", 55), ("truncate", "b", 20), ("truncate", "c", 20),
    ], "the mean over questions"  # fmt: skip
    assert found[0].bytes == full.peak_bytes(66) and found[3].bytes == truncate.peak_bytes(8), "cut to its window"
    work = PACE.seconds(one_pass(46)) + PACE.seconds(one_pass(66))  # of three questions on one text, which is read once
    assert found[0].seconds == pytest.approx(work + 4 * 4 * PACE.generated)
    assert [one.reason is None for one in found] == [True] * 5 + [False], "a long question is cut with its text"
    assert "8 tokens has no room for a question of c beside an answer of 7" in (found[5].reason or "")
    said = list(lines(found))
    assert said[1].split()[:5] == ["full", "a", "mean", "55", "tokens"] and len(said) == 8


def test_what_has_no_room_says_so_and_takes_no_time(make):
    full = create("full", make(), 8)
    full.longest = 60
    found = list(expected([full], [Job(n, 1, 1, targets=6) for n in (40, 100)], PACE, math.inf))
    assert found[0].seconds > 0 and found[1].seconds == 0
    said = list(lines(found))
    assert "full" in said[1] and "not measured: it was to be measured up to 60 tokens" in said[2]
    assert said[-1] == f"  in all about {spoken(found[0].seconds)}"


def test_the_pace_is_measured_and_no_pass_changes_anything(make):
    llm, ids = make(), tokens(9)[None]
    before = llm.model(input_ids=ids).logits
    pace = pace_of(llm)
    assert pace.generated > 0 and pace.token >= 0 and pace.pair >= 0
    assert torch.equal(before, llm.model(input_ids=ids).logits)


@pytest.mark.parametrize(("seconds", "said"), [(0.2, "1 s"), (95, "95 s"), (600, "10 min"), (9000, "2.5 h")])
def test_times_are_said_in_what_they_are_counted_in(seconds, said):
    assert spoken(seconds) == said


def test_no_pace_is_below_zero_where_a_short_pass_is_not_longer_than_a_single_token(make, monkeypatch):
    passes = [1.0, 1.0, 1.0, 1.0, 3.0, 3.0]  # two each of one token, a few and many
    times = iter([at for i, took in enumerate(passes) for at in (10.0 * i, 10.0 * i + took)])
    monkeypatch.setattr("sharedllm.evaluate.forecast.time.perf_counter", lambda: next(times))
    pace = pace_of(make())
    assert pace.generated == 1.0 and pace.token == 0 and pace.pair > 0
