"""What of the peers' script needs no peer: arithmetic of bytes, scoring, grouping, the rows."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache

from sharedllm.evaluate.needle import is_found
from sharedllm.evaluate.statistics import bootstrap, bounds, wilson
from tests.cli.test_cli import ROW_FIELDS
from tests.conftest import tiny_model

ABOUT = {
    "method": "kvpress-snapkv", "budget": "stored_bytes", "device": "cpu", "dtype": "float32", "seed": 0, "threads": 1,
    "window": 4, "peak_memory_bytes": 1, "run": "a1",
}  # fmt: skip


@pytest.fixture(scope="module")
def peers():
    spec = importlib.util.spec_from_file_location("kvpress_rows", Path(__file__).parents[1] / "peers/kvpress_rows.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sample(past, value="4821", metric="found"):
    asked = {
        "before_ids": past[:1],
        "context_ids": past[1:],
        "after_ids": [7, 8],
        "max_new_tokens": 3,
        "answer": [value],
        "depth": 0.5,
    }
    scored = {"past_ids": past, "window_ids": [5, 6, 7], "targets": 2, "start": 4}
    return {
        "task": "needle" if metric == "found" else "perplexity",
        "metric": metric, "length": len(past), "source": "a.txt", "model": "tiny", "dtype": "float32",
        "stored_bytes": 100, "attended_bytes": 40, **(asked if metric == "found" else scored),
    }  # fmt: skip


class FakePeer:
    """Keeps what it is given to read and answers the same to everything."""

    window = 4

    def __init__(self):
        self.reads = []

    def read(self, past, press, budget):
        self.reads.append((past, press, budget))
        return "cache", {"compression_ratio": 0.5, "bytes_kept": budget, "read_seconds": 2.0}

    def answer(self, cache, past, question, new):
        return "It is 4821."

    def nll(self, cache, past, window, targets):
        return 1.5


def test_the_ratio_keeps_as_many_tokens_as_the_bytes_hold(peers):
    for tokens in (1, 7, 1000, 8191):
        for budget in range(10, tokens * 10 + 20, 37):
            ratio = peers.keep_ratio(budget, 10, tokens)
            assert int(tokens * (1 - ratio)) == min(budget // 10, tokens)  # kvpress' own rule
    with pytest.raises(ValueError, match="none of 5 tokens"):
        peers.keep_ratio(9, 10, 5)


def test_answers_are_scored_as_by_the_needle_benchmark(peers):
    for value, answer in [("12", "12."), ("12", "3.12"), ("Oslo", "in  OSLO"), ("Oslo", "Oslos"), ("a b", "A\nb")]:
        assert peers.is_found(value, answer) == is_found(value, answer)


def test_a_past_is_read_once_for_the_questions_that_follow_each_other_on_it(peers):
    peer = FakePeer()
    samples = [sample([1, 2, 3]), sample([1, 2, 3], value="99"), sample([1, 2, 4])]
    outcomes = list(peers.outcomes_of(peer, "snapkv", "attended", samples))
    assert peer.reads == [([1, 2, 3], "snapkv", 40), ([1, 2, 4], "snapkv", 40)]
    assert [outcome["value"] for outcome in outcomes] == [1.0, 0.0, 1.0]
    assert [outcome["read_seconds"] for outcome in outcomes] == [2.0, 0.0, 2.0]
    assert outcomes[0]["positions"] == 3 + 2 + 3


def test_rows_have_the_fields_of_ours(peers, tmp_path):
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(sample(p, metric="nll")) + "\n" for p in ([1, 2], [3, 4])))
    samples = peers.read_samples(file)
    outcomes = list(peers.outcomes_of(FakePeer(), "snapkv", "stored", samples))
    row = peers.result_row(samples, outcomes, ABOUT)
    assert ROW_FIELDS | {"compression_ratio", "bytes_kept"} <= set(row)
    assert (row["value"], row["method"], row["adapter"], row["bytes_kept"]) == (1.5, "kvpress-snapkv", None, 100)
    assert row["allowed_bytes"] == 100, "what `shared` keeps of the same samples"
    assert row["beyond_window"] and row["positions"] == 5
    half = peers.result_row(samples, outcomes, {**ABOUT, "dtype": "bfloat16"})
    assert (row["bits"], half["bits"]) == (32, 16), "of a number that is kept"
    assert (row["targets"], row["window"], row["starts"]) == (2, 3, [4, 4]), "so that they are drawn beside ours"
    values = [0.2, 0.9, 0.4]
    assert peers.bootstrap(values, 3) == bootstrap(values, 3)


def test_shares_have_the_bounds_and_the_depths_of_ours(peers):
    samples = [sample([1, 2, 3]), sample([1, 2, 3], value="99")]
    outcomes = list(peers.outcomes_of(FakePeer(), "snapkv", "stored", samples))
    row = peers.result_row(samples, outcomes, ABOUT)
    assert (row["depths"], row["found"]) == ([0.5, 0.5], [1, 0])
    assert (row["low"], row["high"]) == pytest.approx(bounds([1.0, 0.0], most=1.0), abs=1e-6)
    assert peers.wilson([1.0] * 6) == pytest.approx(wilson(6, 6), abs=1e-6)


def test_an_unknown_metric_is_refused(peers, tmp_path):
    file = tmp_path / "samples.jsonl"
    file.write_text(json.dumps({**sample([1]), "metric": "f1"}))
    with pytest.raises(SystemExit, match="no rule to score 'f1'"):
        peers.read_samples(file)


def test_what_is_scored_is_seen_by_no_later_sample_on_the_same_past(peers):
    peer, window = object.__new__(peers.Peer), [5, 6, 7, 8, 9]
    peer.model = tiny_model()
    for past in ([], [1, 2, 3]):
        cache = DynamicCache()
        if past:
            peer.model.model(input_ids=torch.tensor([past]), past_key_values=cache)
        first, second = (peer.nll(cache, len(past), window, 3) for _ in range(2))
        assert second == pytest.approx(first) and cache.get_seq_length() == len(past)


def test_what_is_known_is_not_computed_again(peers, tmp_path, monkeypatch, capsys):
    """A row is known by its samples, press, bytes and dtype; a run that was stopped goes on."""
    file, output, made = tmp_path / "samples.jsonl", tmp_path / "peers.jsonl", []

    def run(past: list[int], *more: str) -> list[dict]:
        file.write_text(json.dumps(sample(past)) + "\n")
        command = [
            "kvpress_rows.py",
            str(file),
            "-o",
            str(output),
            "--model",
            "tiny.gguf",
            "--presses",
            "snapkv",
            *more,
        ]
        monkeypatch.setattr("sys.argv", command)
        made.clear()
        peers.main()
        return [json.loads(line) for line in output.read_text().splitlines()]

    monkeypatch.setattr(peers, "Peer", lambda *_: made.append(FakePeer()) or made[-1])
    (first,) = run([1, 2, 3])
    assert run([1, 2, 3]) == [first] and not made and "not computed again" in capsys.readouterr().err
    assert len(run([1, 2, 4])) == 2 and len(run([1, 2, 4], "--bytes", "attended")) == 3
    assert (
        len(run([1, 2, 4], "--dtype", "bfloat16")) == 4
        and len(run([1, 2, 4], "--presses", "snapkv,streaming-llm")) == 5
    )
    assert len(made) == 1, "one press of the two was known"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of a process")
def test_a_peak_of_memory_is_of_one_press(peers):
    size = 2**28
    held = bytearray(b"x") * size
    peers.reset_peak("cpu")
    with_it = peers.peak_memory_bytes("cpu")
    del held
    assert peers.peak_memory_bytes("cpu") > with_it - size // 8, "what was held then"
    peers.reset_peak("cpu")
    assert peers.peak_memory_bytes("cpu") < with_it - size // 2
