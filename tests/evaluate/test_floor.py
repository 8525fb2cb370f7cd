"""The floor of reading: work counted against what the lowest layers do, rates by a clock of the test's own."""

from __future__ import annotations

import torch

from sharedllm.evaluate.speed.floor import COPIED, SIDE, Floor, Rates, Work, rates, reading
from tests.products import counter


def test_the_work_by_hand(make):
    llm = make()  # three injected layers, chunks of 16
    a_layer = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48  # q and o, k and v, the MLP
    top = 32 * 16 * 2  # of the third layer: k and v
    pairs = 2 * (16 * 17 // 2) + 8 * 9 // 2  # two chunks and a half
    found = reading(llm, 40)
    assert found.multiply_adds == 2 * (40 * a_layer + 2 * pairs * 32) + 40 * top
    assert found.weight_bytes == 3 * 4 * (2 * (a_layer + 2 * 32) + top), "three batches of chunks; two norms a layer"
    assert reading(llm, 0) == Work(0, 0)
    assert reading(llm, 32).weight_bytes == 2 * found.weight_bytes // 3


def test_the_work_is_what_torch_counts_but_for_the_later_half_of_attention(make):
    llm = make(attn_implementation="eager")
    with counter() as seen, torch.no_grad():
        llm.reader.encode_rows(torch.zeros(1, 16, dtype=torch.long))
    matmuls = seen.get_flop_counts()["Global"]
    later_keys = 2 * 2 * 32 * (16 * 16 - 16 * 17 // 2)  # computed and masked there
    top_queries = 16 * 32 * 32  # computed before the keys are handed over
    assert sum(matmuls.values()) == 2 * (reading(llm, 16).multiply_adds + later_keys + top_queries)


def test_the_slower_of_operations_and_bytes_is_the_floor():
    work = Work(multiply_adds=600, weight_bytes=100)
    floor = Floor(work, Rates(multiply_adds=100, bytes=50))
    assert (floor.operations_seconds, floor.bytes_seconds, floor.seconds) == (6, 2, 6)
    assert Floor(work, Rates(multiply_adds=1000, bytes=50)).seconds == 2


def test_rates_are_those_of_the_best_try():
    ends = iter([0, 8, 10, 12, 20, 24, 0, 4, 4, 5, 5, 9])
    found = rates(torch.device("cpu"), torch.float32, lambda: next(ends))
    assert (found.multiply_adds, found.bytes) == (SIDE**3 / 2, 2 * COPIED)
