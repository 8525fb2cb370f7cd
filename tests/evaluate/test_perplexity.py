"""Perplexity: the same targets for every method and length, against plain definitions."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from sharedllm import UsageError
from sharedllm.adapter import weights_digest
from sharedllm.evaluate.perplexity import cut_passages, left_out, run, scored_tokens, slide_passages
from sharedllm.evaluate.results import PLAIN, Results
from sharedllm.methods import create
from sharedllm.methods.full import Full
from sharedllm.methods.shared import Shared
from sharedllm.methods.truncate import Truncate
from tests.conftest import CONFIG, tokens
from tests.methods.test_plain import begun

C = CONFIG.chunk_length
TEXTS = [("a.txt", tokens(200, 1)), ("b.txt", tokens(150, 2)), ("short.txt", tokens(60, 3))]


def rows_of(llm, names, lengths, window=8, targets=6, samples=3, windows=None):
    methods = [create(name, llm, (windows or {}).get(name, window)) for name in names]
    passages = cut_passages(TEXTS, max(lengths), samples)
    rows = list(run(methods, passages, lengths, targets, 0, lambda line: None))
    return passages, {(r["method"], r["length"], r["metric"]): r for r in rows}


def plain_nll(llm, ids, targets):
    """Nats of each of the last tokens, said with a loop."""
    logits = llm.model(input_ids=ids[None]).logits[0].log_softmax(-1).detach()
    return [-float(logits[t - 1, ids[t]]) for t in range(len(ids) - targets, len(ids))]


def test_passages_come_from_texts_that_are_long_enough_and_are_spread():
    passages = cut_passages(TEXTS, 100, 4)
    assert [p.source for p in passages] == ["a.txt", "a.txt", "b.txt", "b.txt"]
    for p in passages:
        ids = dict(TEXTS)[p.source]
        assert torch.equal(p.ids, ids[p.start : p.start + 100])
    assert passages[0].start < passages[1].start
    with pytest.raises(UsageError, match=r"longest, a\.txt, has 200"):
        cut_passages(TEXTS, 201, 1)


def test_passages_whose_scored_tokens_would_be_the_same_are_not_taken_twice():
    assert [p.start for p in cut_passages([("a.txt", tokens(100))], 100, 8, apart=10)] == [0]
    starts = [p.start for p in cut_passages([("a.txt", tokens(150))], 100, 8, apart=10)]
    assert len(starts) == 5 and all(b - a >= 10 for a, b in itertools.pairwise(starts))
    passages = cut_passages([("a.txt", tokens(100)), ("b.txt", tokens(400))], 100, 6, apart=10)
    assert [p.source for p in passages] == ["a.txt", *["b.txt"] * 5], "what one text has no room for, the others give"


def test_sliding_passages_score_every_token_once(make):
    ids = tokens(60)
    passages = slide_passages([("a.txt", ids), ("b.txt", tokens(50, 2))], 40, 6)
    assert [(p.source, p.start) for p in passages] == [
        *(("a.txt", 6 * k) for k in range(4)), ("b.txt", 0), ("b.txt", 6)
    ]  # fmt: skip
    llm = make()
    (row,) = run([create("truncate", llm, 8)], passages[:4], [40], 6, 0, lambda line: None, stride=6)
    nats = [plain_nll(llm, p.ids[-8:], 6) for p in passages[:4]]
    scored = torch.cat([p.ids[-6:] for p in passages[:4]])
    assert torch.equal(scored, ids[34:58]), "neither the first 34 nor the last two"
    assert row["value"] == pytest.approx(sum(map(sum, nats)) / 24, abs=1e-4) and row["stride"] == 6


@pytest.mark.parametrize("targets", [3, 6, 9, 39])
def test_tokens_that_sliding_passages_score_are_counted_once(targets):
    texts = [("a.txt", tokens(60)), ("b.txt", tokens(50, 2)), ("b.txt", tokens(40, 3))]
    passages = slide_passages(texts[:2], 40, 6)
    scored = {(p.source, t) for p in passages for t in range(p.start + 40 - targets, p.start + 40)}
    assert scored_tokens(passages, targets) == len(scored)
    assert scored_tokens(slide_passages(texts, 40, 6), targets) == len(scored) + targets, "another of the same name"


def test_truncate_and_full_are_what_their_names_say(make):
    llm = make()
    passages, rows = rows_of(llm, ["truncate", "full"], [40])
    for i, passage in enumerate(passages):
        for name, seen in (("truncate", 8), ("full", 40)):
            assert "slots" not in rows[name, 40, "nll"]
            nats = plain_nll(llm, passage.ids[-seen:], 6)
            assert rows[name, 40, "nll"]["values"][i] == pytest.approx(sum(nats) / 6, abs=1e-4)


def test_shared_reads_what_lies_before_the_window(make):
    llm = make()
    passages, rows = rows_of(llm, ["shared"], [3 * C + 8])
    for i, passage in enumerate(passages):
        context = llm.reader.new_context()
        context.ids = passage.ids[:-8].int()
        llm.reader.encode(context)
        logits = llm(passage.ids[None, -8:], context=context, search="later").logits
        nll = F.cross_entropy(logits[0, 1:-1], passage.ids[-6:])
        assert rows["shared", 3 * C + 8, "nll"]["values"][i] == pytest.approx(nll.item(), abs=1e-4)
        memory = llm.recall(context, passage.ids[None, -8:], search="later")
        assert rows["shared", 3 * C + 8, "nll"]["slots"] == memory.mask.shape[1] - 1 > 0, "without the null slot"


def test_shared_searches_by_what_stands_before_the_targets(make, monkeypatch):
    monkeypatch.setattr("sharedllm.methods.shared.ASKING_TOKENS", 4)
    monkeypatch.setattr("sharedllm.relevance.CONTINUED_TOKENS", 3)
    llm, evenly = (make(replace(CONFIG, fine_chunks=1, search_prior=prior)) for prior in (30.0, 0.0))
    ids = tokens(4 * C + 9, 5)
    past, window = ids[:-9], ids[-9:]
    method = create("shared", llm, 9)
    scored = method.score(method.prepare(past), window, 5)
    mask = (torch.arange(9)[None] < 4) & (torch.arange(9)[None] > 0)
    logits = evenly(window[None], context=evenly.read(past), question_mask=mask).logits
    torch.testing.assert_close(scored, F.cross_entropy(logits[0, 3:-1], window[-5:], reduction="none"))
    other = torch.cat([window[:-1], window[-1:] + 1])  # a target must not change what is read
    torch.testing.assert_close(method.score(method.prepare(past), other, 5)[:-1], scored[:-1])


@pytest.mark.parametrize("lengths", [[C + 8, 2 * C + 8, 5 * C + 8], [8, C + 3, 40, 77]])
def test_many_lengths_at_once_are_what_each_gives_alone(make, monkeypatch, lengths):
    llm = make()
    passages, together = rows_of(llm, ["truncate", "shared", "full"], lengths)
    for n in lengths:
        shorter = [type(p)(p.source, p.start, p.ids[-n:]) for p in passages]
        methods = [create(name, llm, 8) for name in ("truncate", "shared", "full")]
        for row in run(methods, shorter, [n], 6, 0, lambda line: None):
            assert row["values"] == pytest.approx(together[row["method"], n, row["metric"]]["values"], abs=2e-5)


def test_one_reading_serves_all_lengths_that_start_at_chunks(make, monkeypatch):
    llm = make()
    read, encode = [], llm.lower.encode
    monkeypatch.setattr(llm.lower, "encode", lambda ids, *rest: (read.append(ids.numel()), encode(ids, *rest))[1])
    rows_of(llm, ["shared"], [C + 8, 2 * C + 8, 5 * C + 8], samples=2)
    assert sum(read) == 2 * 5 * C


def test_a_method_that_forgets_scores_a_window_once(make, monkeypatch):
    scored: list[int] = []
    score = Truncate.score
    monkeypatch.setattr(
        Truncate, "score", lambda self, past, window, n: (scored.append(len(window)), score(self, past, window, n))[1]
    )
    _, rows = rows_of(make(), ["truncate"], [7, 40, 77], samples=2)
    assert scored == [8, 7] * 2
    assert rows["truncate", 40, "nll"]["values"] == rows["truncate", 77, "nll"]["values"]


def test_windows_by_method_and_gains_in_pairs(make):
    llm = make()
    _, rows = rows_of(llm, ["truncate", "shared"], [60], windows={"truncate": 30, "shared": 12})
    assert rows["truncate", 60, "nll"]["window"] == 30 and rows["shared", 60, "nll"]["window"] == 12
    gain = rows["shared", 60, "nll_gain_over_truncate"]
    pairs = zip(rows["truncate", 60, "nll"]["values"], rows["shared", 60, "nll"]["values"], strict=True)
    assert gain["values"] == pytest.approx([a - b for a, b in pairs], abs=1e-5)
    assert gain["low"] <= gain["value"] <= gain["high"]
    assert (gain["window"], gain["truncate_window"]) == (12, 30) and len(gain["starts"]) == gain["samples"] == 3
    assert all(row["stride"] is None for row in rows.values())


def test_no_gains_without_truncate(make):
    _, rows = rows_of(make(), ["shared", "full"], [40])
    assert {metric for _, _, metric in rows} == {"nll"}


def test_a_run_goes_on_where_it_was_stopped(make, monkeypatch, tmp_path):
    llm, file = make(), tmp_path / "rows.jsonl"
    passages = cut_passages(TEXTS, 60, 2)

    def go(names, lengths):
        methods = [create(name, llm, 8) for name in names]
        return list(run(methods, passages, lengths, 6, 0, lambda line: None, Results(file)))

    first = go(["truncate", "shared"], [40, 60])
    scored = []
    monkeypatch.setattr(Full, "score", lambda *given: (scored.append(1), torch.ones(6))[1])
    monkeypatch.setattr(Shared, "score", lambda *given: 1 / 0)
    monkeypatch.setattr(Truncate, "score", lambda *given: 1 / 0)
    again = go(["truncate", "shared", "full"], [40, 60])
    assert [row for row in again if row["method"] != "full"] == first and len(scored) == 4
    assert [row["metric"] for row in again if row["method"] == "full"] == ["nll"] * 2 + ["nll_gain_over_truncate"] * 2
    with pytest.raises(ZeroDivisionError):
        go(["shared"], [40, 50])


def test_where_memory_runs_out_shorter_lengths_and_other_methods_are_scored(make, monkeypatch):
    llm, score = make(), Full.score

    def scored(self, past, window, targets):
        if len(past) + len(window) > 40:
            raise MemoryError
        return score(self, past, window, targets)

    monkeypatch.setattr(Full, "score", scored)
    _, rows = rows_of(llm, ["full", "truncate"], [30, 40, 60], samples=2)
    assert rows["full", 60, "nll"]["reason"] == "memory ran out" and rows["full", 60, "nll"]["targets"] == 6
    assert all(rows["full", n, "nll"]["value"] is not None for n in (30, 40))
    assert rows["truncate", 60, "nll"]["value"] is not None and ("full", 60, "nll_gain_over_truncate") not in rows


def test_only_the_lengths_that_are_missing_are_scored(make, monkeypatch):
    llm, results, scored = make(), Results(), Counter()
    score, passages = Full.score, cut_passages(TEXTS, 60, 2)

    def counted(self, past, window, targets):
        scored[len(past) + len(window)] += 1
        return score(self, past, window, targets)

    monkeypatch.setattr(Full, "score", counted)
    for lengths in ([40], [40, 60], [30, 40, 60]):
        rows = list(run([create("full", llm, 8)], passages, lengths, 6, 0, lambda line: None, results))
        assert [row["length"] for row in rows] == lengths[::-1]
    assert scored == {30: 2, 40: 2, 60: 2}


def test_rows_searched_in_another_way_are_not_known_and_those_of_cold_windows_are(make, monkeypatch):
    monkeypatch.setattr("sharedllm.methods.shared.ASKING_TOKENS", 4)
    llm, results, passages = make(), Results(), cut_passages(TEXTS, 60, 2)
    cold, warm = (create("shared", llm, window) for window in (8, 12))  # 2 and 6 tokens before the targets

    def go(method):
        lines = []
        (row,) = run([method], passages, [60], 6, 0, lines.append, results)
        return row, len(lines)

    (first, _), (second, _) = go(cold), go(warm)
    assert "searched_by" not in first and second["searched_by"] == 256
    read = hashlib.sha256(b"".join(passage.ids.numpy().tobytes() for passage in passages)).hexdigest()
    unit = {"method": "shared", "length": 60, "targets": 6, "read": read}
    assert results.find({**unit, **cold.settings()}) == first, "as rows have been known before there were rules"
    assert results.find({**unit, **warm.settings()}) is None
    monkeypatch.setattr("sharedllm.methods.shared.CONTINUED_TOKENS", 3)
    assert go(cold) == (first, 0)
    third, scored = go(warm)
    assert third["searched_by"] == 3 and scored == len(passages)


def test_rows_say_what_stands_before_a_window_and_are_others_where_something_does(make):
    llm, results, passages = make(), Results(), cut_passages(TEXTS, 60, 2)
    method = create("truncate", llm, 8)

    def go():
        (row,) = run([method], passages, [60], 6, 0, lambda line: None, results)
        return row

    before = go()
    begun(llm)
    after = go()
    assert "opening" not in before and after["opening"] == [256] and before["run"] != after["run"]
    assert before["window"] == after["window"] == 8 and before["values"] != after["values"]


def test_after_another_adapter_only_what_reads_it_is_scored_and_pairs_are_made_anew(make, monkeypatch, tmp_path):
    passages = cut_passages(TEXTS, 60, 2)

    def go(llm):
        about = {"adapter": [llm.adapter, weights_digest(llm.injection)]}
        results = Results(tmp_path / "rows.jsonl", about, plain=PLAIN)
        methods = [create(name, llm, 8) for name in ("truncate", "shared")]
        return list(run(methods, passages, [60], 6, 0, lambda line: None, results))

    first = go(make())
    monkeypatch.setattr(Truncate, "score", lambda *given: 1 / 0)
    alone, ours, gain = go(make(random=False))
    assert alone == first[0] and ours["values"] != first[1]["values"] and gain["run"] != first[2]["run"]
    pairs = zip(alone["values"], ours["values"], strict=True)
    assert gain["values"] == pytest.approx([a - b for a, b in pairs], abs=1e-5)


def test_a_gain_has_the_peak_of_the_rows_that_it_is_of(make):
    llm, results = make(), Results(besides=lambda: {"peak_memory_bytes": peaks.pop(0)})
    peaks, passages = [5, 9], cut_passages(TEXTS, 60, 2)
    methods = [create(name, llm, 8) for name in ("truncate", "full")]
    *_, gain = run(methods, passages, [60], 6, 0, lambda line: None, results)
    assert gain["metric"] == "nll_gain_over_truncate" and gain["peak_memory_bytes"] == 9


def test_texts_that_are_too_short_are_named():
    texts = [("a.txt", tokens(100)), ("b.txt", tokens(1200)), ("c.txt", tokens(5000))]
    assert list(left_out(texts, [4096, 100])) == [
        "a.txt has 100 tokens and is left out at 4,096", "b.txt has 1,200 tokens and is left out at 4,096",
    ]  # fmt: skip
    assert list(left_out(texts[1:], [2048, 1200, 4096])) == ["b.txt has 1,200 tokens and is left out at 2,048, 4,096"]
