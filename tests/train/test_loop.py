"""Training on a tiny model: it learns, touches the adapter alone, and goes on bit for bit after any stop."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from sharedllm import SharedLLM, UsageError, WorkError
from sharedllm.adapter import WEIGHTS_FILE
from sharedllm.cli import main
from sharedllm.data import build, recipe_from_dict
from sharedllm.processes import ProcessGone
from sharedllm.train.checkpoint import OPTIMIZER, checkpoints
from sharedllm.train.limits import check_lengths
from sharedllm.train.loop import Trainer
from sharedllm.train.recipe import Recipe
from tests.conftest import CONFIG, byte_tokenizer, tiny_model
from tests.contexts import assert_one_sentence


def write_data(folder: Path) -> Path:
    """Token folder of one repetitive training text and one held-out text."""
    (folder / "train.txt").write_text(" ".join(f"line {i}: the colour of item {i} is blue." for i in range(400)))
    (folder / "held.txt").write_text(" ".join(f"row {i}: the shape of thing {i} is round." for i in range(400)))
    base = {"type": "files", "kind": "prose", "licence": "CC0-1.0"}
    sources = {"a": {**base, "paths": ["train.txt"]}, "b": {**base, "paths": ["held.txt"], "split": "heldout"}}
    build(recipe_from_dict({"name": "t", "sources": sources}, folder), folder / "data", byte_tokenizer())
    return folder / "data"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("texts"))


def recipe(data: Path, output: Path, **changes) -> Recipe:
    values = dict(
        output=str(output),
        data=str(data),
        steps=6,
        learning_rate=3e-2,
        gate_learning_rate=1e-1,
        warmup_steps=1,
        windows=2,
        window_tokens=12,
        context_chunks=[1, 3],
        checkpoint_every=2,
        validate_every=0,
        validate_samples=0,
        config=CONFIG,
    )
    return Recipe(**{**values, **changes})


def trainer(data: Path, output: Path, **changes) -> Trainer:
    llm = SharedLLM.from_pretrained(tiny_model(), adapter="none", config=CONFIG, tokenizer=byte_tokenizer())
    return Trainer(recipe(data, output, **changes), llm)


def weights(t: Trainer) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in t.module.named_parameters()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_goes_on_as_unbroken(start: Callable[[Path], Trainer], folder: Path, until: int, found: int) -> None:
    """A run that stops after `until` steps, its last checkpoint being of step `found`, ends with the weights of one that does not."""
    whole = start(folder / "whole")
    whole.train()
    start(folder / "parts").train(until=until)
    second = start(folder / "parts")
    assert second.step == found
    second.train()
    assert_same(weights(whole), weights(second))


def test_only_the_adapter_learns(data, tmp_path):
    t = trainer(data, tmp_path / "run")
    frozen = {n: p.detach().clone() for n, p in t.llm.model.named_parameters()}
    before = weights(t)
    t.train()
    assert all(p.grad is None and not p.requires_grad for p in t.llm.model.parameters())
    assert_same(frozen, dict(t.llm.model.named_parameters()))
    assert {id(p) for g in t.optimizer.param_groups for p in g["params"]} == {id(p) for p in t.module.parameters()}
    for name, tensor in weights(t).items():
        assert not torch.equal(tensor, before[name]), f"{name} never changed"
    t.close()
    assert all(p.requires_grad for p in t.llm.model.parameters())


def test_it_learns(data, tmp_path):
    t = trainer(data, tmp_path / "run", steps=60, windows=4, validate_samples=4)
    before = t.validate()
    assert before["held_out_with"] == pytest.approx(before["held_out_without"], abs=1e-6)
    t.train()
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert t.validate()["held_out_with"] < before["held_out_with"]


def test_resuming_is_bit_identical(data, tmp_path):
    whole = trainer(data, tmp_path / "whole", accumulate=2)
    whole.train()
    first = trainer(data, tmp_path / "parts", accumulate=2)
    first.train(until=3)  # between two checkpoints: step 3 is done again
    second = trainer(data, tmp_path / "parts", accumulate=2)
    assert second.step == 2
    second.train()
    assert_same(weights(whole), weights(second))
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_kill_nine_and_go_on(data, tmp_path):
    """A process killed at an unknown point, then started again, ends in the weights of an unbroken run."""
    script = textwrap.dedent(
        f"""
        import sys; sys.path.insert(0, {str(Path.cwd())!r})
        import torch; torch.set_num_threads(1)
        from pathlib import Path
        from tests.train.test_loop import trainer
        t = trainer(Path({str(data)!r}), Path({str(tmp_path / "killed")!r}), steps=40)
        t.train(lambda row: print(row["step"], flush=True))
        """
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while int(process.stdout.readline()) < 11:
        pass
    time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert 10 <= int(checkpoints(tmp_path / "killed")[-1].name.removeprefix("step-")) < 40
    assert subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL).returncode == 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = trainer(data, tmp_path / "whole", steps=40)
        whole.train()
    finally:
        torch.set_num_threads(threads)
    again = trainer(data, tmp_path / "killed", steps=40)
    assert again.step == 40
    assert_same(weights(whole), weights(again))


def test_interrupt_keeps_what_was_done(data, tmp_path):
    t = trainer(data, tmp_path / "run", checkpoint_every=100)

    def stop(row):
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        t.train(stop)
    assert trainer(data, tmp_path / "run", checkpoint_every=100).step == 3


def test_an_interrupt_inside_the_optimizer_keeps_the_step_before(data, tmp_path, monkeypatch):
    t = trainer(data, tmp_path / "run")
    t.train(until=3)
    step = t.optimizer.step

    def half(*args):
        step()
        raise KeyboardInterrupt

    monkeypatch.setattr(t.optimizer, "step", half)
    with pytest.raises(KeyboardInterrupt):
        t.train()
    assert not t.whole and [c.name for c in checkpoints(t.run)] == ["step-000002"]


def test_an_interrupt_inside_the_backward_pass_keeps_what_was_done(data, tmp_path, monkeypatch):
    t = trainer(data, tmp_path / "run")
    t.train(until=3)
    before = weights(t)

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(t, "_sum_gradients", stop)
    with pytest.raises(KeyboardInterrupt):
        t.train()
    again = trainer(data, tmp_path / "run")
    assert again.step == 3
    assert_same(before, weights(again))


def test_a_step_that_was_stopped_half_way_is_done_anew(data, tmp_path, monkeypatch):
    t, whole = trainer(data, tmp_path / "run"), trainer(data, tmp_path / "whole")
    t.train(until=3)

    def stop():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(t, "_sum_gradients", stop)
        with pytest.raises(KeyboardInterrupt):
            t.train()
    assert any(p.grad is not None for p in t.module.parameters())
    t.train()
    whole.train()
    assert_same(weights(whole), weights(t))


def test_sigterm_ends_the_command_as_ctrl_c_does(data, tmp_path, monkeypatch):
    t, handler = trainer(data, tmp_path / "run", checkpoint_every=100), signal.getsignal(signal.SIGTERM)
    log = t._log

    def told(row, report):
        log(row, report)
        if row["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(t, "_log", told)
    monkeypatch.setattr("sharedllm.train.loop.Trainer", lambda settings: t)
    monkeypatch.setattr("sharedllm.hardware.keep_freed_memory", lambda: None)
    with pytest.raises(SystemExit) as ended:
        main(["train", "default"])
    assert ended.value.code == 130
    assert signal.getsignal(signal.SIGTERM) == handler
    assert [c.name for c in checkpoints(t.run)] == ["step-000003"]


@pytest.mark.parametrize(
    ("signals", "twice", "patience", "code", "step"),
    [
        (1, 1.0, 15.0, 3, 4),
        (2, 60.0, 15.0, 3, 4),  # a cluster and the launcher both send it
        (2, -1.0, 15.0, 130, 3),
        (1, 0.0, 0.01, 130, 3),  # the step takes too long
    ],
)
def test_sigterm_ends_several_processes_after_their_step(data, tmp_path, monkeypatch, signals, twice, patience, code, step):  # fmt: skip
    t, handler = trainer(data, tmp_path / "run", checkpoint_every=100), signal.getsignal(signal.SIGTERM)
    learn = t._learn

    def told(sample, noise):
        if t.step == 3:
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.0 if patience > 1 else 5.0)
        return learn(sample, noise)

    monkeypatch.setattr(t, "_learn", told)
    monkeypatch.setattr("sharedllm.processes.launched", lambda: 2)
    monkeypatch.setattr("sharedllm.train.distributed.DistributedTrainer", lambda settings: t)
    monkeypatch.setattr("sharedllm.hardware.keep_freed_memory", lambda: None)
    monkeypatch.setattr("sharedllm.cli.train.TWICE", twice)
    monkeypatch.setattr("sharedllm.cli.train.PATIENCE", patience)
    with pytest.raises(SystemExit) as ended:
        main(["train", "default"])
    assert ended.value.code == code
    assert signal.getsignal(signal.SIGTERM) == handler
    assert [c.name for c in checkpoints(t.run)] == [f"step-00000{step}"]


def test_what_was_done_is_kept_where_another_process_is_gone(data, tmp_path, monkeypatch):
    t = trainer(data, tmp_path / "run", checkpoint_every=100)
    t.train(until=3)

    def gone():
        raise ProcessGone("another process of this run ended.")

    monkeypatch.setattr(t, "_sum_gradients", gone)
    with pytest.raises(WorkError, match="another process"):
        t.train()
    assert trainer(data, tmp_path / "run", checkpoint_every=100).step == 3


def test_training_until_a_step_that_is_done_does_nothing(data, tmp_path):
    t = trainer(data, tmp_path / "run")
    t.train(until=0)
    assert t.step == 0 and not checkpoints(t.run)


def test_three_checkpoints_are_kept(data, tmp_path):
    trainer(data, tmp_path / "run", checkpoint_every=1).train()
    assert [c.name for c in checkpoints(tmp_path / "run")] == ["step-000004", "step-000005", "step-000006"]


def test_the_adapter_written_is_the_one_trained(data, tmp_path):
    t = trainer(data, tmp_path / "run")
    t.train()
    loaded = SharedLLM.from_pretrained(tiny_model(), adapter=tmp_path / "run/adapter", tokenizer=byte_tokenizer())
    assert loaded.config == CONFIG
    for (name, a), b in zip(t.module.named_parameters(), loaded.injection.parameters(), strict=True):
        assert torch.equal(a.to(torch.bfloat16).float(), b), name


def test_loss_not_a_number_stops_with_the_last_good_checkpoint(data, tmp_path):
    t = trainer(data, tmp_path / "run")
    t.train(until=2)
    with torch.no_grad():
        t.module.branches[0].gate.fill_(float("nan"))
    with pytest.raises(WorkError, match=r"loss is nan at step 3 \(prose of a\); .* lower learning_rate and train on"):
        t.train()
    assert trainer(data, tmp_path / "run").step == 2


def test_gradients_that_are_not_numbers_stop_before_they_spoil_the_weights(data, tmp_path, monkeypatch):
    t = trainer(data, tmp_path / "run")
    t.train(until=2)
    before = weights(t)

    def overflow():
        next(t.module.parameters()).grad.fill_(float("inf"))

    monkeypatch.setattr(t, "_sum_gradients", overflow)
    with pytest.raises(WorkError, match=r"norm is .* at step 3 \(prose of a\).*lower learning_rate"):
        t.train()
    assert_same(before, weights(t))
    assert [c.name for c in checkpoints(t.run)] == ["step-000002"]


def test_a_full_disk_keeps_the_last_checkpoint(data, tmp_path):
    t = trainer(data, tmp_path / "run")
    t.train(until=2)
    (t.run / "metrics.jsonl").unlink()
    (t.run / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(WorkError, match="No space left on device; the last checkpoint is kept"):
        t.train()
    assert [c.name for c in checkpoints(t.run)] == ["step-000002"]


def test_a_disk_that_fills_while_a_checkpoint_is_written_keeps_the_one_before(data, tmp_path, monkeypatch):
    t = trainer(data, tmp_path / "run")
    t.train(until=3)

    def full(tensors, file):
        if file.name == OPTIMIZER:  # the weights still had room
            Path("/dev/full").write_bytes(bytes(1))
        save_file(tensors, file)

    with monkeypatch.context() as patch:
        patch.setattr("sharedllm.train.checkpoint.save_file", full)
        with pytest.raises(
            WorkError, match=r"checkpoint of step 4 .*No space left.*before is kept, make room"
        ) as error:
            t.train()
    assert_one_sentence(error)
    assert [c.name for c in (t.run / "checkpoints").iterdir()] == ["step-000002"]
    again, whole = trainer(data, tmp_path / "run"), trainer(data, tmp_path / "whole")
    assert again.step == 2
    again.train()
    whole.train()
    assert_same(weights(whole), weights(again))


def test_a_run_ends_after_its_minutes_and_goes_on(data, tmp_path, monkeypatch):
    whole = trainer(data, tmp_path / "whole")
    whole.train()
    pieces = []
    for minutes in (1e-9, 5.0, 5.0, 0.0):
        t = trainer(data, tmp_path / "run", minutes=minutes, checkpoint_every=100)
        clock = iter(t.started + seconds for seconds in (100, 299, 300, 900))
        monkeypatch.setattr("sharedllm.train.loop.time.monotonic", lambda clock=clock: next(clock))
        t.train()
        monkeypatch.undo()
        pieces.append((t.step, t.finished, t.figures()["adapter"], (t.run / "adapter").exists()))
    adapter = str(tmp_path / "run/adapter")
    assert pieces == [
        (1, False, None, False),
        (4, False, None, False),
        (6, True, adapter, True),
        (6, True, adapter, True),
    ]
    assert_same(weights(whole), weights(t))


def test_the_command_says_that_a_run_is_not_finished(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sharedllm.hardware.keep_freed_memory", lambda: None)
    said = []
    for minutes, options in ((1e-9, []), (1e-9, ["--json"]), (0.0, ["--json"])):
        t = trainer(data, tmp_path / "run", minutes=minutes)
        monkeypatch.setattr("sharedllm.train.loop.Trainer", lambda settings, t=t: t)
        with pytest.raises(SystemExit) as ended:
            main(["train", "default", *options])
        said.append((ended.value.code, capsys.readouterr().out.splitlines()[-1]))
    assert [code for code, _ in said] == [3, 3, 0]
    assert said[0][1] == "not finished: step 1 of 6 is done and kept; give the same command again to go on"
    assert [json.loads(line)["finished"] for _, line in said[1:]] == [False, True]
    assert [json.loads(line)["steps"] for _, line in said[1:]] == [2, 6]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window_tokens": 70, "config": dataclasses.replace(CONFIG, chunk_length=128)}, "chunk_length is 128 tokens"),
        (
            {"long_windows": 0.1, "long_window_tokens": 65},
            "long_window_tokens is 65 tokens, more than the 64 positions",
        ),
        ({"distill": 0.1, "context_chunks": [1, 4]}, "distill has a teacher read .*, 76 tokens"),
        ({"distill": 0.1, "long_windows": 0.1, "long_window_tokens": 50}, "distill .* long_window_tokens, 66 tokens"),
    ],
)
def test_a_sample_longer_than_the_models_positions_is_refused(data, tmp_path, settings, words):
    with pytest.raises(UsageError, match=words) as error:
        trainer(data, tmp_path / "run", **settings)
    assert_one_sentence(error)


def test_passages_of_a_study_need_positions(data, tmp_path):
    with pytest.raises(UsageError, match="study_data has passages of 17 tokens"):
        check_lengths(recipe(data, tmp_path / "run"), 16, SimpleNamespace(passage_tokens=17))


def test_contexts_are_kept_only_where_steps_read_them_again(data, tmp_path, monkeypatch):
    kept = {}
    for reuse in (1, 2):
        t = trainer(data, tmp_path / str(reuse), reuse=reuse, accumulate=3, windows=1, context_chunks=[2, 3])
        encode, times = t.learner.encode, []
        monkeypatch.setattr(t.learner, "encode", lambda ids, encode=encode, times=times: times.append(1) or encode(ids))
        t.train(until=2)
        kept[reuse] = len(t._contexts), len(times)
    assert kept == {1: (1, 6), 2: (3, 3)}


@pytest.mark.parametrize("name", ["data", "model"])
def test_a_run_goes_on_with_the_model_and_data_it_began_with(data, tmp_path, name):
    t = trainer(data, tmp_path / "run")
    t.train(until=2)
    state = checkpoints(t.run)[-1] / "state.json"
    about = json.loads(state.read_text())
    assert about["model"] == t.llm.reader.identity
    state.write_text(json.dumps({**about, name: "0" * 64}))
    with pytest.raises(UsageError, match=f"holds a run with another {name} .*choose another output") as error:
        trainer(data, tmp_path / "run")
    assert_one_sentence(error)
    state.write_text(json.dumps({"step": about["step"], "tokens": about["tokens"]}))  # of an earlier release
    assert trainer(data, tmp_path / "run").step == 2


@pytest.mark.parametrize("name", ["recipe.json", "metrics.jsonl"])
def test_a_run_killed_while_its_files_are_written_has_them_whole(data, tmp_path, monkeypatch, name):
    run = tmp_path / "run"
    if name == "metrics.jsonl":
        trainer(data, run).train(until=3)  # the third row is dropped when it goes on
    before = (run / name).read_text() if run.exists() else None
    write = Path.write_text

    def killed(self, text, **kwargs):
        write(self, text[: len(text) // 2], **kwargs)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer(data, run)
    assert ((run / name).read_text() if (run / name).exists() else None) == before
    assert trainer(data, run).step == (2 if before else 0)


def test_another_recipe_in_the_same_folder(data, tmp_path):
    trainer(data, tmp_path / "run").train(until=2)
    with pytest.raises(UsageError, match="windows"):
        trainer(data, tmp_path / "run", windows=3)


def test_a_broken_checkpoint_is_named(data, tmp_path):
    trainer(data, tmp_path / "run").train(until=2)
    file = checkpoints(tmp_path / "run")[-1] / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(WorkError, match="step-000002"):
        trainer(data, tmp_path / "run")


def test_texts_too_short_for_the_context(data, tmp_path):
    with pytest.raises(UsageError, match="context_chunks"):
        trainer(data, tmp_path / "run", context_chunks=[5000, 6000])


def test_noise_moves_the_split_points_in_training(data, tmp_path):
    t = trainer(data, tmp_path / "run", windows=1)
    with torch.no_grad():
        for p in t.module.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    sample = t.sampler.draw(0)
    losses = {t.loss(sample, torch.Generator().manual_seed(s)).item() for s in range(6)}
    assert len(losses) > 1
    assert t.loss(sample).item() == t.loss(sample).item()


def test_training_starts_from_another_runs_adapter(data, tmp_path):
    first = trainer(data, tmp_path / "first")
    first.train()
    again = trainer(data, tmp_path / "again", start=str(tmp_path / "first/adapter"))
    for name, weight in weights(first).items():
        assert torch.equal(weights(again)[name], weight.bfloat16().float()), name
    with pytest.raises(UsageError, match="nowhere is not an adapter"):
        trainer(data, tmp_path / "other", start=str(tmp_path / "nowhere"))


def test_what_is_written_is_between_the_start_and_what_was_trained(data, tmp_path):
    trainer(data, tmp_path / "first", steps=1).train()
    start = str(tmp_path / "first/adapter")
    for name, share in (("all", 0.0), ("part", 0.25)):
        trainer(data, tmp_path / name, start=start, keep_start=share, steps=2).train()
    before, after, mixed = (load_file(tmp_path / n / "adapter" / WEIGHTS_FILE) for n in ("first", "all", "part"))
    assert any(not torch.equal(before[n], after[n]) for n in before)
    for name, weight in mixed.items():
        expected = 0.25 * before[name].float() + 0.75 * after[name].float()
        torch.testing.assert_close(weight.float(), expected, rtol=2e-2, atol=2e-3)  # all are written in bfloat16
    with pytest.raises(UsageError, match="keep_start"):
        recipe(data, tmp_path / "other", keep_start=0.5)


def test_training_again_writes_the_same_adapter(data, tmp_path):
    trainer(data, tmp_path / "first", steps=1).train()
    settings = dict(start=str(tmp_path / "first/adapter"), steps=2)
    t, plain = trainer(data, tmp_path / "run", keep_start=0.25, **settings), trainer(data, tmp_path / "all", **settings)
    plain.train()
    written = []
    for _ in range(2):
        t.train()
        assert_same(weights(plain), weights(t))  # those that go on, should more steps be asked for
        written.append((t.run / "adapter" / WEIGHTS_FILE).read_bytes())
    assert written[0] == written[1] != (plain.run / "adapter" / WEIGHTS_FILE).read_bytes()


def test_training_starts_from_an_adapter_that_lacks_a_setting(data, tmp_path):
    first = trainer(data, tmp_path / "first")
    first.train()
    grown = dataclasses.replace(CONFIG, null_growth=True)
    llm = SharedLLM.from_pretrained(tiny_model(), adapter="none", config=grown, tokenizer=byte_tokenizer())
    again = Trainer(recipe(data, tmp_path / "again", config=grown, start=str(tmp_path / "first/adapter")), llm)
    now = weights(again)
    for name, weight in weights(first).items():
        assert torch.equal(now.pop(name), weight.bfloat16().float()), name
    assert now and all(name.endswith("null_growth") and bool((w == 3.5).all()) for name, w in now.items())


@pytest.mark.parametrize("settings", [{}, {"long_windows": 1.0, "long_window_tokens": 40}, {"distill": 0.5}])
def test_recomputing_layers_changes_nothing(data, tmp_path, settings, monkeypatch):
    kept, again = (trainer(data, tmp_path / str(r), recompute_from=r, **settings) for r in (0, 1))
    gradients, computed = [], []
    forward = torch.nn.Linear.forward
    for t in (kept, again):
        calls = 0

        def counted(self, x):
            nonlocal calls
            calls += 1
            return forward(self, x)

        with monkeypatch.context() as patch:
            patch.setattr(torch.nn.Linear, "forward", counted)
            t._learn(t.sampler.draw(0), torch.Generator().manual_seed(0))
        gradients.append({n: p.grad for n, p in t.module.named_parameters()})
        computed.append(calls)
    assert computed[1] - computed[0] >= 4 * 7, "the layers were not computed again"
    assert_same(*gradients)
    assert any(g.abs().sum() > 0 for g in gradients[0].values())


def test_the_loss_is_the_mean_over_the_targets_alone(data, tmp_path):
    t = trainer(data, tmp_path / "run", long_windows=1.0, long_window_tokens=40)
    sample = t.sampler.draw(0)
    (w,) = sample.windows
    context = t.llm.reader.new_context()
    context.ids = torch.from_numpy(sample.context).int()
    t.llm.reader.encode(context)
    mask = torch.from_numpy(w.question)[None]
    with torch.no_grad():
        logits = t.llm(torch.from_numpy(w.ids)[None], context=context, question_mask=mask).logits[0].log_softmax(-1)
    nats = [-logits[at - 1, w.ids[at]].item() for at in range(20, 40)]
    assert t.loss(sample).item() == pytest.approx(sum(nats) / 20, rel=1e-4)


def test_distillation_is_the_divergence_from_the_model_that_reads_everything(data, tmp_path):
    t = trainer(data, tmp_path / "run", distill=0.25)
    sample = t.sampler.draw(0)
    plain = trainer(data, tmp_path / "plain")
    nll = plain.loss(sample).item()
    divergences = []
    for w in sample.windows:
        past = torch.from_numpy(sample.context[: w.chunks * CONFIG.chunk_length])
        window = torch.from_numpy(w.ids)
        context = t.llm.reader.new_context()
        context.ids = past.int()
        t.llm.reader.encode(context)
        with torch.no_grad():
            student = t.llm(window[None], context=context, search="later").logits[0].log_softmax(-1)
            teacher = t.llm.model(torch.cat([past, window])[None]).logits[0, len(past) :].log_softmax(-1)
        for at in range(len(window) - 1):
            divergences.append((teacher[at].exp() * (teacher[at] - student[at])).sum().item())
    expected = 0.75 * nll + 0.25 * sum(divergences) / len(divergences)
    assert t.loss(sample).item() == pytest.approx(expected, rel=1e-4)
    t.loss(sample).backward()
    assert all(p.grad is not None for p in t.module.parameters())
