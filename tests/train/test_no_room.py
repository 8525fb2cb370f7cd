"""A run whose memory ran out says so in a sentence, keeps what was done, and goes on with less."""

from __future__ import annotations

import pytest
import torch

from sharedllm import WorkError
from sharedllm.train.no_room import NoRoom, room_for
from tests.contexts import assert_one_sentence
from tests.train.test_loop import assert_same, data, recipe, trainer, weights  # noqa: F401

SAID = "CUDA out of memory. Tried to allocate 2.00 GiB."


def test_a_run_without_memory_goes_on_with_less(data, tmp_path, monkeypatch):  # noqa: F811
    whole = trainer(data, tmp_path / "whole")
    whole.train()
    t = trainer(data, tmp_path / "run", checkpoint_every=100)
    learn = t._learn

    def full(sample, noise):
        if t.step == 3:
            raise torch.OutOfMemoryError(SAID)
        return learn(sample, noise)

    monkeypatch.setattr(t, "_learn", full)
    words = r"memory ran out at step 4 \(prose of a, windows of (\d+) tokens together\); set recompute_from=\1 or lower and train on"
    with pytest.raises(WorkError, match=words) as error:
        t.train()
    assert_one_sentence(error)
    again = trainer(data, tmp_path / "run", recompute_from=1)
    assert again.step == 3
    again.train()
    assert_same(weights(whole), weights(again))


def test_where_layers_are_computed_again_already_windows_have_to_be_fewer(data, tmp_path):  # noqa: F811
    sample = trainer(data, tmp_path / "run").sampler.draw(0)
    with pytest.raises(NoRoom, match="computed again for it already: choose fewer windows") as error:
        with room_for(sample, recipe(data, tmp_path, recompute_from=1), 1):
            raise MemoryError
    assert_one_sentence(error)


@pytest.mark.parametrize("other", [RuntimeError("shapes differ"), WorkError("the other ran out of memory.")])
def test_what_else_goes_wrong_stays_what_it_is(data, tmp_path, other):  # noqa: F811
    sample = trainer(data, tmp_path / "run").sampler.draw(0)
    with pytest.raises(type(other)) as error, room_for(sample, recipe(data, tmp_path), 1):
        raise other
    assert error.value is other
