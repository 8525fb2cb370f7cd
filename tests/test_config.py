"""Settings: defaults, ranges, and what a wrong one says."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from sharedllm import SharedConfig, UsageError
from sharedllm.config import nearest
from tests.contexts import assert_one_sentence


def test_the_defaults_are_those_of_the_design():
    config = SharedConfig()
    assert (config.injected_layers, config.chunk_length, config.tree_depth, config.slots_per_leaf) == (16, 1024, 3, 32)
    assert config.slots_per_chunk == 128
    assert config.init == "copied" and config.null_slot and config.positions == "chunk"


def test_settings_survive_json():
    config = SharedConfig(
        injected_layers=3,
        chunk_length=100,
        tree_depth=2,
        slots_per_leaf=5,
        split_noise=0.0,
        positions="none",
        null_slot=False,
        init="zero",
    )
    assert SharedConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert set(config.to_dict()) == {f.name for f in dataclasses.fields(SharedConfig)}
    assert SharedConfig.from_dict({}) == SharedConfig()


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SharedConfig().chunk_length = 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("skipped_layers", -1),
        ("injected_layers", 0),
        ("injected_layers", -1),
        ("injected_layers", 2.0),
        ("injected_layers", True),
        ("injected_layers", "16"),
        ("injected_layers", None),
        ("chunk_length", 1),
        ("chunk_length", -1024),
        ("tree_depth", 0),
        ("slots_per_leaf", 0),
        ("slots_per_leaf", [32]),
        ("split_noise", -0.1),
        ("split_noise", 0.5),
        ("split_noise", float("nan")),
        ("split_noise", "much"),
        ("split_noise", None),
        ("positions", "chunks"),
        ("positions", None),
        ("null_slot", "no"),
        ("null_slot", 2),
        ("null_growth", 1),
        ("moving_query", "yes"),
        ("init", "zeros"),
        ("init", 0),
    ],
)
def test_a_wrong_value_is_refused_and_its_field_named(name, value):
    with pytest.raises(UsageError, match=f"{name} is ") as error:
        SharedConfig.from_dict({name: value})
    assert str(value) in str(error.value)


def test_a_wrong_choice_gives_the_nearest_right_one():
    with pytest.raises(UsageError, match=r"one of copied, zero\. Did you mean copied\?"):
        SharedConfig(init="copies")


@pytest.mark.parametrize("depth", [11, 20_000])
def test_a_tree_deeper_than_the_chunk_is_refused(depth):
    assert SharedConfig(tree_depth=10).slots_per_chunk == 11 * 32
    with pytest.raises(UsageError, match=f"tree_depth {depth}") as error:
        SharedConfig(tree_depth=depth)
    assert len(str(error.value)) < 400


def test_an_unknown_name_gives_the_nearest_right_one():
    with pytest.raises(UsageError, match=r"no setting named 'tree_dept'\. Did you mean tree_depth\?"):
        SharedConfig.from_dict({"tree_dept": 3})
    with pytest.raises(UsageError, match=r"no setting named 'leaf'\. Did you mean slots_per_leaf\?"):
        SharedConfig.from_dict({"leaf": 3})
    with pytest.raises(UsageError, match=r"'xyzzy'\. Did you mean \w+\?$"):  # also where none is near
        SharedConfig.from_dict({"xyzzy": 3})


def test_nearest_says_nothing_when_nothing_is_near():
    assert nearest("chnk_length", ["chunk_length", "init"]) == " Did you mean chunk_length?"
    assert nearest("qqq", ["chunk_length", "init"]) == ""


def test_nearest_knows_initials_and_nested_names():
    names = ["clip_norm", "learning_rate", "config.rank", "warm"]
    found = [nearest(word, names, 0.0) for word in ("lr", "rank", "learn", "config.rnk")]
    assert found == [f" Did you mean {names[i]}?" for i in (1, 2, 1, 2)]


def test_settings_need_no_torch():
    code = "import sys, sharedllm.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_layer_at_least_is_not_skipped():
    assert SharedConfig(injected_layers=3, skipped_layers=2).branches == 1
    with pytest.raises(UsageError, match=r"skipped_layers is 3; it must be below injected_layers, 3") as error:
        SharedConfig(injected_layers=3, skipped_layers=3)
    assert_one_sentence(error)
