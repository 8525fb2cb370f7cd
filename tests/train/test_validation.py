"""When held-out texts are looked at: after the checkpoint, so that no step is lost for it, and once for every step that asks for it."""

from __future__ import annotations

import json

import pytest

from sharedllm.train.checkpoint import checkpoints
from sharedllm.train.loop import Trainer
from tests.train.test_loop import assert_same, trainer, weights, write_data

VALIDATED = {"validate_every": 2, "validate_samples": 1, "checkpoint_every": 100}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("texts"))


def logged(run) -> list[tuple[int, str]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], "held out" if "held_out_gain" in row else "step") for row in rows]


def test_a_step_is_kept_before_held_out_texts_are_looked_at(data, tmp_path, monkeypatch):
    t = trainer(data, tmp_path / "run", **{**VALIDATED, "checkpoint_every": 2})
    kept = []
    validate = t.validate
    monkeypatch.setattr(t, "validate", lambda: kept.append(checkpoints(t.run)[-1].name) or validate())
    t.train()
    assert kept == ["step-000002", "step-000004", "step-000006"]


def test_a_validation_that_was_cut_off_is_made_up_for(data, tmp_path, monkeypatch):
    run, settings = tmp_path / "run", {**VALIDATED, "checkpoint_every": 2}
    t = trainer(data, run, **settings)

    def killed():
        raise SystemExit

    monkeypatch.setattr(t, "validate", killed)
    with pytest.raises(SystemExit):
        t.train()
    assert logged(run) == [(1, "step"), (2, "step")]
    again, whole = trainer(data, run, **settings), trainer(data, tmp_path / "whole", **settings)
    assert again.step == 2
    again.train()
    whole.train()
    assert logged(run) == logged(whole.run) and logged(run)[:4] == [
        (1, "step"),
        (2, "step"),
        (2, "held out"),
        (3, "step"),
    ]
    assert_same(weights(whole), weights(again))
    trainer(data, run, **settings).train()
    assert logged(run) == logged(whole.run), "what was done is not done again"


def test_a_run_that_is_late_leaves_it_to_the_next_piece(data, tmp_path):
    run = tmp_path / "run"
    for step in (1, 2, 3):
        t = trainer(data, run, minutes=1e-9, **VALIDATED)
        t.train()
        assert t.step == step
        assert ((2, "held out") in logged(run)) == (step == 3)
    assert logged(run) == [(1, "step"), (2, "step"), (2, "held out"), (3, "step")]


@pytest.mark.parametrize(
    ("took", "left", "until"),
    [
        (None, 121, 6),  # it is not known what one takes: a fifth of the ten minutes is enough
        (None, 119, 2),
        (90.0, 119, 6),
        (150.0, 149, 2),
    ],
)
def test_a_validation_for_which_too_little_time_is_left_is_the_next_pieces(
    data, tmp_path, monkeypatch, took, left, until
):
    run, settings = tmp_path / "run", {"minutes": 10.0, **VALIDATED}
    t = trainer(data, run, **settings)
    t._validation = took
    validate = Trainer.validate

    def as_long(self):
        row, self._validation = validate(self), took
        return row

    monkeypatch.setattr(Trainer, "validate", as_long)
    monkeypatch.setattr("sharedllm.train.loop.time.monotonic", lambda: t.started + 600 - left)
    t.train()
    assert (t.step, checkpoints(run)[-1].name) == (until, f"step-00000{until}")
    assert ((2, "held out") in logged(run)) == (until == 6)
    monkeypatch.undo()
    again, whole = trainer(data, run, **settings), trainer(data, tmp_path / "whole", **VALIDATED)
    again.train()
    whole.train()
    assert logged(run) == logged(whole.run)
    assert_same(weights(whole), weights(again))


def test_what_a_validation_takes_is_measured(data, tmp_path, monkeypatch):
    t = trainer(data, tmp_path / "run", **VALIDATED)
    assert t._validation is None
    clock = iter((100.0, 130.0))
    monkeypatch.setattr("sharedllm.train.loop.time.perf_counter", lambda: next(clock))
    t.validate()
    assert t._validation == 30
