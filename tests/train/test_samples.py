"""What a step is trained on: the right tokens in the right places, the same for the same step."""

from __future__ import annotations

import numpy as np
import pytest

from sharedllm import UsageError
from sharedllm.data import TokenFolder
from sharedllm.data.needles import draw_needles
from sharedllm.train.samples import Sampler
from tests.conftest import CONFIG, byte_tokenizer
from tests.train.test_loop import recipe, write_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return TokenFolder.open(write_data(tmp_path_factory.mktemp("texts")))


def sampler(folder, tmp_path, **changes):
    return Sampler(folder, recipe(tmp_path, tmp_path, **changes), "train", byte_tokenizer())


def text(ids) -> str:
    return byte_tokenizer().decode(ids.tolist())


def test_windows_go_on_where_their_chunks_end(folder, tmp_path):
    C = CONFIG.chunk_length
    for step in range(10):
        sample = sampler(folder, tmp_path, windows=4).draw(step)
        assert len(sample.windows) == 4 and sample.windows[0].chunks * C == len(sample.context)
        whole = text(folder.tokens(folder.documents(split="train")[0]))
        for window in sample.windows:
            assert text(sample.context[: window.chunks * C]) + text(window.ids) in whole
            assert window.targets == len(window.ids) - 1


def test_the_same_step_gives_the_same_sample(folder, tmp_path):
    a, b = (sampler(folder, tmp_path, needles=0.5, context_chunks=[60, 70]).draw(3, 1) for _ in range(2))
    assert np.array_equal(a.context, b.context) and len(a.windows) == len(b.windows)
    other = sampler(folder, tmp_path, needles=0.5, context_chunks=[60, 70]).draw(4, 1)
    assert not np.array_equal(a.context, other.context)


def test_needles_are_in_the_context_and_only_their_values_are_targets(folder, tmp_path):
    sample = sampler(folder, tmp_path, needles=1.0, needle_windows=3, context_chunks=[30, 40]).draw(0)
    assert sample.search == "query" and len(sample.context) % CONFIG.chunk_length == 0
    context = text(sample.context)
    for window in sample.windows:
        value = text(window.ids[-window.targets :])
        assert value.strip(" .") in context
        assert value.strip(" .") not in text(window.ids[: -window.targets])


def test_needles_do_not_contradict_each_other():
    needles = draw_needles(np.random.default_rng(0), 60)
    assert len({n.question for n in needles}) == 60
    assert all(n.value in n.statement and n.value not in n.question for n in needles)
    assert len({n.value for n in needles}) > 30


def test_too_little_context_for_the_needles(folder, tmp_path):
    with pytest.raises(UsageError, match="needle_windows"):
        sampler(folder, tmp_path, needles=1.0, needle_windows=8, context_chunks=[1, 1]).draw(0)
