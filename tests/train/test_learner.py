"""The trainer trains `encoder-decoder` as it trains `shared`: its branches alone, resumable, loadable as the method."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from sharedllm import UsageError
from sharedllm.methods.encoder_decoder import EncoderDecoder
from sharedllm.train.recipe import recipe_from_dict
from tests.conftest import hooks, tokens
from tests.train.test_loop import assert_goes_on_as_unbroken, assert_same, data, trainer, weights  # noqa: F401

CROSS = {"method": "encoder-decoder"}


def test_only_its_branches_learn_and_the_loss_falls(data, tmp_path):  # noqa: F811
    t = trainer(data, tmp_path / "run", steps=40, windows=4, validate_samples=4, **CROSS)
    frozen = {n: p.detach().clone() for n, p in t.llm.model.named_parameters()}
    frozen |= {f"injection {n}": p.detach().clone() for n, p in t.llm.injection.named_parameters()}
    before, start = weights(t), t.validate()
    assert start["held_out_with"] == pytest.approx(start["held_out_without"], abs=1e-6)
    t.train()
    after = {n: p for n, p in t.llm.model.named_parameters()}
    after |= {f"injection {n}": p for n, p in t.llm.injection.named_parameters()}
    assert_same(frozen, after)
    assert all(p.grad is None for p in after.values())
    for name, tensor in weights(t).items():
        assert not torch.equal(tensor, before[name]), f"{name} never changed"
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10]) and t.validate()["held_out_with"] < start["held_out_with"]


def test_resuming_is_bit_identical(data, tmp_path):  # noqa: F811
    assert_goes_on_as_unbroken(lambda folder: trainer(data, folder, **CROSS), tmp_path, 3, 2)
    with pytest.raises(UsageError, match="method was 'encoder-decoder'"):
        trainer(data, tmp_path / "parts")


def test_it_sees_as_many_target_tokens_and_is_saved_as_the_method(data, tmp_path):  # noqa: F811
    runs = {method: trainer(data, tmp_path / method, method=method) for method in ("shared", "encoder-decoder")}
    for t in runs.values():
        t.train()
    assert runs["shared"].tokens == runs["encoder-decoder"].tokens
    t = runs["encoder-decoder"]
    saved = EncoderDecoder(t.llm, 16, t.run / "adapter")
    assert saved.quality_reason() is None and saved.config.chunk_length == t.llm.config.chunk_length
    for name, tensor in saved.cross.named_parameters():
        assert torch.equal(tensor, weights(t)[name].bfloat16().to(tensor)), name


def test_each_window_reads_its_own_chunks_alone(data, tmp_path):  # noqa: F811
    """A sample's loss is the mean over windows that the method scores one by one."""
    t = trainer(data, tmp_path / "run", windows=3, context_chunks=[3, 3], **CROSS)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in t.module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    sample, C, method = t.sampler.draw(0), t.llm.config.chunk_length, t.learner.method
    assert len({w.chunks for w in sample.windows}) == 3
    apart = [
        method.score(
            method.prepare(torch.from_numpy(sample.context[: w.chunks * C])), torch.from_numpy(w.ids), w.targets
        )
        for w in sample.windows
    ]
    assert t.loss(sample).item() == pytest.approx(torch.cat(apart).mean().item(), abs=1e-5)


def test_a_teacher_reads_without_it(data, tmp_path):  # noqa: F811
    t = trainer(data, tmp_path / "run", **CROSS)
    cross, parts, ids, attached = t.learner.method.cross, t.llm.parts, tokens(20)[None], len(hooks(t.llm.model))
    with torch.no_grad():
        for parameter in cross.parameters():
            parameter.add_(0.3)
        plain, past = t.llm.model(ids).logits, cross.project(t.learner.method.encode(tokens(16)))
        with cross.reading(parts, past):
            read = t.llm.model(ids).logits
            with cross.reading(parts, None):
                assert torch.equal(t.llm.model(ids).logits, plain)
                with cross.reading(parts, past):
                    assert torch.equal(t.llm.model(ids).logits, read)
            assert torch.equal(t.llm.model(ids).logits, read) and not torch.equal(read, plain)
    assert len(hooks(t.llm.model)) == attached


def test_the_teacher_of_distillation_reads_without_it(data, tmp_path):  # noqa: F811
    t = trainer(data, tmp_path / "run", windows=3, context_chunks=[3, 3], distill=1.0, **CROSS)
    with torch.no_grad():
        for parameter in t.module.parameters():
            parameter.add_(0.3)
        sample, _, memory = t._taken_in(t.sampler.draw(0), None)
        with t.learner.reading(memory):
            taught = [t._teacher.logprobs(sample, w) for w in sample.windows]
        for w, logprobs in zip(sample.windows, taught, strict=True):
            past = sample.context[: w.chunks * t.llm.config.chunk_length]
            plain = t.llm.model(torch.from_numpy(np.concatenate([past, w.ids]))[None]).logits[0].log_softmax(-1)
            torch.testing.assert_close(logprobs, plain[-w.targets - 1 : -1])
    t.loss(t.sampler.draw(0)).backward()
    assert all(p.grad is not None for p in t.module.parameters())


def test_other_methods_are_not_trained():
    with pytest.raises(UsageError, match="Did you mean encoder-decoder"):
        recipe_from_dict({"output": "run", "method": "encoder-decode"})
