"""What a run's folder lets a run go on with: the newest checkpoint, the same data and start; and what may still be changed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil

import pytest
import torch
from filelock import FileLock, Timeout

from sharedllm import SharedLLM, UsageError, WorkError
from sharedllm.adapter import WEIGHTS_FILE
from sharedllm.data import TokenFolder, build, recipe_from_dict
from sharedllm.train.checkpoint import STATE, checkpoints
from sharedllm.train.loop import Trainer
from sharedllm.train.run_folder import LOCK, RECIPE, RunFolder
from tests.conftest import CONFIG, byte_tokenizer, tiny_model
from tests.contexts import assert_one_sentence
from tests.train.test_loop import assert_same, recipe, trainer, weights, write_data


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def data(texts):
    return texts / "data"


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for name in ("step-999950", "step-1000000", "step-1000050", "step-1000000.bak"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / STATE).write_text("{}")
    assert [c.name for c in checkpoints(tmp_path)] == ["step-999950", "step-1000000", "step-1000050"]


def test_the_recipe_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order, run = [], tmp_path / "run"
    monkeypatch.setattr("sharedllm.files._to_disk", lambda path: order.append((path.name, (run / RECIPE).exists())))
    RunFolder(run).open(recipe(tmp_path / "data", run))
    (unfinished, named), folder = order
    assert unfinished.startswith(RECIPE) and not named and folder == ("run", True)
    assert {file.name for file in run.iterdir()} == {RECIPE, LOCK}


def test_one_process_trains_in_a_folder(data, tmp_path):
    run = tmp_path / "run"
    t = trainer(data, run)
    other = FileLock(run / LOCK, timeout=0)  # as another process has it; this one shares its own
    with pytest.raises(Timeout):
        other.acquire()
    t.train(until=2)
    t.close()
    with other:
        with pytest.raises(UsageError, match=r"another process trains in .*run; wait until it ends") as error:
            trainer(data, run)
        RunFolder(run, writes=False).open(t.recipe)  # one of several processes, which the first writes for
    assert_one_sentence(error)
    with pytest.raises(UsageError, match="another recipe"):
        trainer(data, run, windows=3)
    other.acquire()  # who is refused leaves it free
    other.release()
    assert trainer(data, run).step == 2


def test_a_run_goes_on_where_it_and_its_data_lie_by_now(data, tmp_path):
    first, whole = trainer(data, tmp_path / "run"), trainer(data, tmp_path / "whole")
    whole.train()
    first.train(until=2)
    first.close()
    (tmp_path / "run").rename(tmp_path / "moved")
    shutil.copytree(data, tmp_path / "tokens")
    t = trainer(tmp_path / "tokens", tmp_path / "moved")
    assert t.step == 2
    t.train()
    assert_same(weights(whole), weights(t))


def test_a_nested_setting_that_was_another_is_named(data, tmp_path):
    trainer(data, tmp_path / "run").train(until=2)
    other = recipe(data, tmp_path / "run", config=dataclasses.replace(CONFIG, split_noise=0.2))
    with pytest.raises(UsageError, match=r"another recipe \(config\.split_noise was 0\.1\)") as error:
        RunFolder(tmp_path / "run", writes=False).open(other)
    assert_one_sentence(error)


def test_a_model_with_other_upper_layers_is_another(data, tmp_path):
    """Its fingerprint, which is all that a checkpoint of an earlier release has, is of the lowest layers alone."""
    t = trainer(data, tmp_path / "run")
    t.train(until=2)
    model = tiny_model()
    with torch.no_grad():
        for weight in model.model.layers[-1].parameters():
            weight.mul_(-1)
    llm = SharedLLM.from_pretrained(model, adapter="none", config=CONFIG, tokenizer=byte_tokenizer())
    assert llm.fingerprint == t.llm.fingerprint
    with pytest.raises(UsageError, match="holds a run with another model") as error:
        Trainer(t.recipe, llm)
    assert_one_sentence(error)
    assert llm.reader.identity in str(error.value) and t.llm.reader.identity in str(error.value)
    state = checkpoints(t.run)[-1] / STATE
    state.write_text(json.dumps({**json.loads(state.read_text()), "model": llm.fingerprint}))
    assert Trainer(t.recipe, llm).step == 2


def test_a_run_says_where_it_goes_on_in_another_dtype(data, tmp_path, caplog):
    trainer(data, tmp_path / "run").train(until=2)
    state = checkpoints(tmp_path / "run")[-1] / STATE
    noted = json.loads(state.read_text())
    assert noted["dtype"] == "float32"
    with caplog.at_level(logging.WARNING, "sharedllm.train"):
        trainer(data, tmp_path / "run")
        assert not caplog.records
        state.write_text(json.dumps({**noted, "dtype": "bfloat16"}))
        trainer(data, tmp_path / "run")
    (said,) = [record.getMessage() for record in caplog.records]
    assert "so far were computed in bfloat16, those to come are in float32" in said


def test_what_killed_processes_left_of_checkpoints_is_removed(data, tmp_path):
    place, kept = tmp_path / "run/checkpoints", {".step-000001", ".step-000001-mine", "notes"}
    for name in (".step-000001-abcdefgh", ".step-000007-old-a1b2c3_4/was", *kept):
        (place / name).mkdir(parents=True)
        (place / name / "adapter.safetensors").touch()
    trainer(data, tmp_path / "run").train(until=2)
    assert {path.name for path in place.iterdir()} == {"step-000002", *kept}


def test_a_recipe_under_which_no_step_was_done_can_be_mended(data, tmp_path):
    """Needles that fit no context are found out at the first step, after the recipe was noted."""
    crowded = trainer(data, tmp_path / "run", needles=1.0, context_chunks=[1, 1])
    with pytest.raises(UsageError, match="no needle fits"):
        crowded.train()
    mended = trainer(data, tmp_path / "run", needles=0.0, context_chunks=[1, 1])
    noted = json.loads((tmp_path / "run/recipe.json").read_text())
    assert noted == json.loads(json.dumps(mended.recipe.to_dict()))
    mended.train(until=1)  # before the first checkpoint
    with pytest.raises(UsageError, match="holds a run of another recipe"):
        trainer(data, tmp_path / "run", windows=3, context_chunks=[1, 1])


def test_a_run_stopped_by_gradients_that_are_no_numbers_goes_on_at_a_lower_rate(data, tmp_path, monkeypatch):
    high = trainer(data, tmp_path / "run", learning_rate=0.03)
    high.train(until=3)
    monkeypatch.setattr(high, "_sum_gradients", lambda: next(high.module.parameters()).grad.fill_(float("nan")))
    with pytest.raises(WorkError, match=r"at step 4 .*lower learning_rate and train on"):
        high.train()
    low = trainer(data, tmp_path / "run", learning_rate=0.003)
    assert low.step == 2
    low.train()
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    whole = {rate: trainer(data, tmp_path / str(rate), learning_rate=rate) for rate in (0.03, 0.003)}
    for t in whole.values():
        t.train()
    said = {rate: [json.loads(line)["rate"] for line in (t.run / "metrics.jsonl").open()] for rate, t in whole.items()}
    assert [row["rate"] for row in rows] == said[0.03][:2] + said[0.003][2:]
    noted = json.loads((tmp_path / "run/recipe.json").read_text())
    told = [(row["from_step"], row["learning_rate"], row["gate_learning_rate"]) for row in noted["rates"]]
    assert noted["learning_rate"] == 0.003 and told == [(1, 0.03, 0.1), (3, 0.003, 0.1)]
    about = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())["about"]
    assert about["rates"] == noted["rates"] and about["recipe"]["learning_rate"] == 0.003
    with pytest.raises(UsageError, match=r"another recipe \(learning_rate was 0.003\)"):  # which no step would heed
        trainer(data, tmp_path / "run", learning_rate=0.001)
    with pytest.raises(UsageError, match="another recipe"):
        trainer(data, tmp_path / "run", learning_rate=0.003, clip_norm=2.0)


def test_rates_of_steps_that_are_done_again_are_forgotten(data, tmp_path):
    trainer(data, tmp_path / "run").train(until=2)
    first = json.loads((tmp_path / "run/recipe.json").read_text())
    for settings in ({"final_rate": 0.5}, {"gate_learning_rate": 0.01}):  # no step is done with the first of them
        changed = trainer(data, tmp_path / "run", **settings)
    assert [row["from_step"] for row in changed.records.rates] == [1, 3]
    assert changed.records.rates[1]["final_rate"] == first["final_rate"]
    trainer(data, tmp_path / "run")
    assert json.loads((tmp_path / "run/recipe.json").read_text()) == first


def test_an_interrupt_in_the_first_step_leaves_the_recipe_open(data, tmp_path, monkeypatch):
    t = trainer(data, tmp_path / "run")

    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(t, "_sum_gradients", stop)
    with pytest.raises(KeyboardInterrupt):
        t.train()
    assert trainer(data, tmp_path / "run", windows=3).step == 0


def test_an_adapter_that_was_only_written_keeps_its_recipe(data, tmp_path):
    trainer(data, tmp_path / "first", steps=1).train()
    start = str(tmp_path / "first/adapter")
    trainer(data, tmp_path / "run", steps=0, start=start).train()
    with pytest.raises(UsageError, match="holds a run of another recipe"):
        trainer(data, tmp_path / "run", start=start)


def test_a_recipe_that_cannot_be_read_is_named(data, tmp_path):
    trainer(data, tmp_path / "run").train(until=2)
    (tmp_path / "run/recipe.json").write_text("")
    with pytest.raises(WorkError, match=r"recipe\.json cannot be read") as error:
        trainer(data, tmp_path / "run")
    assert_one_sentence(error)


def test_checkpoints_without_their_recipe_are_refused(data, tmp_path):
    trainer(data, tmp_path / "run").train(until=2)
    (tmp_path / "run/recipe.json").unlink()
    for settings in ({}, {"windows": 3}):
        with pytest.raises(UsageError, match=r"run/recipe\.json is missing.* copy it there, or remove") as error:
            trainer(data, tmp_path / "run", **settings)
        assert_one_sentence(error)
    assert not (tmp_path / "run/recipe.json").exists()


@pytest.mark.parametrize("change", ["text", "weight"])
def test_data_built_again_from_something_else_is_refused(tmp_path, change):
    """Another text of as many tokens, or another weight, leaves the listing of documents as it was."""
    data = write_data(tmp_path)
    listing = (data / "documents.jsonl").read_bytes()
    trainer(data, tmp_path / "run").train(until=2)
    again(tmp_path)
    assert trainer(data, tmp_path / "run").step == 2  # the same once more
    if change == "text":
        file = tmp_path / "train.txt"
        file.write_text(file.read_text().replace("blue", "pink"))
    again(tmp_path, weight=2.0 if change == "weight" else 1.0)
    assert (data / "documents.jsonl").read_bytes() == listing
    with pytest.raises(UsageError, match="another build of the data") as error:
        trainer(data, tmp_path / "run")
    assert_one_sentence(error)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_damaged_shard_of_the_right_size_is_refused(tmp_path, split):
    data = write_data(tmp_path)
    shard = data / f"{split}-0.bin"
    found = bytearray(shard.read_bytes())
    found[1000] ^= 1
    shard.write_bytes(found)
    with pytest.raises(WorkError, match=rf"{split}-0\.bin has changed since it was built") as error:
        trainer(data, tmp_path / "run")
    assert_one_sentence(error)
    assert not (tmp_path / "run").exists()


def again(folder, weight=1.0):
    """Build the data of `write_data` from the texts that lie there."""
    base = {"type": "files", "kind": "prose", "licence": "CC0-1.0"}
    held = {**base, "paths": ["held.txt"], "split": "heldout"}
    sources = {"a": {**base, "paths": ["train.txt"], "weight": weight}, "b": held}
    build(recipe_from_dict({"name": "t", "sources": sources}, folder), folder / "data", byte_tokenizer())


def test_the_start_must_stay_the_same_where_it_is_mixed_in_at_the_end(data, tmp_path):
    for name, steps in (("first", 1), ("other", 2)):
        trainer(data, tmp_path / name, steps=steps).train()
    start = tmp_path / "first/adapter"
    for name, share in (("mixed", 0.5), ("whole", 0.0)):
        trainer(data, tmp_path / name, start=str(start), keep_start=share).train(until=2)
    before = weights(trainer(data, tmp_path / "whole", start=str(start)))
    shutil.rmtree(start)
    shutil.copytree(tmp_path / "other/adapter", start)
    with pytest.raises(UsageError, match="holds a run with another start"):
        trainer(data, tmp_path / "mixed", start=str(start), keep_start=0.5)
    assert_same(before, weights(trainer(data, tmp_path / "whole", start=str(start))))


def about(run) -> dict:
    return json.loads((run / "adapter/adapter_config.json").read_text())["about"]


def test_an_adapter_says_which_one_it_came_from(data, tmp_path):
    """That its run began with, also where another lies there by now."""
    for name, steps in (("first", 1), ("other", 2)):
        trainer(data, tmp_path / name, steps=steps).train()
    start = tmp_path / "first/adapter"
    assert "start_sha256" not in about(tmp_path / "first")
    began = hashlib.sha256((start / WEIGHTS_FILE).read_bytes()).hexdigest()
    trainer(data, tmp_path / "run", start=str(start)).train(until=2)
    shutil.rmtree(start)
    shutil.copytree(tmp_path / "other/adapter", start)
    trainer(data, tmp_path / "run", start=str(start)).train()
    assert about(tmp_path / "run")["start_sha256"] == began
    trainer(data, tmp_path / "mixed", start=str(start), keep_start=0.5).train()
    now = hashlib.sha256((start / WEIGHTS_FILE).read_bytes()).hexdigest()
    assert about(tmp_path / "mixed")["start_sha256"] == now != began


def test_an_adapter_says_what_all_pieces_of_its_run_took(data, tmp_path):
    first = trainer(data, tmp_path / "run")
    first.train(until=3)  # the third step is done again, and counted once
    state = checkpoints(tmp_path / "run")[-1] / STATE
    noted = json.loads(state.read_text())
    assert 2**20 < noted["peak_memory_bytes"] <= first.figures()["peak_memory_bytes"]
    state.write_text(json.dumps({**noted, "peak_memory_bytes": 10**15}))
    t = trainer(data, tmp_path / "run")
    t.train()
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    tokens = [0, *(row["target_tokens"] for row in rows)]
    seconds = [(b - a) / row["tokens_a_second"] for a, b, row in zip(tokens, tokens[1:], rows, strict=False)]
    took = {name: about(tmp_path / "run")[name] for name in ("train_seconds", "peak_memory_bytes")}
    assert took == {"train_seconds": pytest.approx(sum(seconds), abs=0.01), "peak_memory_bytes": 10**15}
    assert took.items() <= t.figures().items()


def test_an_adapter_says_on_what_and_of_what_it_was_made(data, tmp_path):
    t = trainer(data, tmp_path / "run", steps=1)
    t.train()
    noted, manifest = about(tmp_path / "run"), TokenFolder.open(data).manifest
    assert (noted["dtype"], noted["device"], noted["origin"]) == ("float32", "cpu", t.origin)
    tokens = manifest["sources"]["a"]["tokens"]
    assert noted["sources"] == {"a": {"licence": "CC0-1.0", "version": "", "tokens": tokens}}, (
        "nothing that is held out"
    )
