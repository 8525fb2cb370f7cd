"""Attaching changes nothing until the adapter is trained, and detaching leaves nothing behind."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest
import torch

from sharedllm import SharedLLM, UsageError
from sharedllm.projection import Projection
from tests.conftest import CONFIG, byte_tokenizer, hooks, randomize, tiny_model, tokens
from tests.contexts import encoded


def attach(model: Any, config=CONFIG) -> SharedLLM:
    return SharedLLM.from_pretrained(model, adapter="none", config=config, tokenizer=byte_tokenizer())


@pytest.mark.parametrize("init", ["copied", "zero"])
def test_an_untrained_adapter_leaves_the_model_as_it_was_bit_for_bit(init):
    model, ids = tiny_model(), torch.stack([tokens(9, 1), tokens(9, 2)])
    before = model(ids).logits
    llm = attach(model, dataclasses.replace(CONFIG, init=init))
    context = llm.read(tokens(70, 3))
    assert torch.equal(llm(ids, context=context).logits, before)
    assert torch.equal(llm(ids, context=[context, None]).logits, before)
    randomize(llm)
    assert not torch.equal(llm(ids, context=context).logits, before), "the context never arrived; the test is empty"


@pytest.mark.parametrize("init", ["copied", "zero"])
def test_an_untrained_adapter_leaves_a_bfloat16_model_as_it_was(init):
    model, ids = tiny_model().bfloat16(), tokens(9)[None]
    before = model(ids).logits
    llm = attach(model, dataclasses.replace(CONFIG, init=init))
    assert torch.equal(llm(ids, context=llm.read(tokens(70, 3))).logits, before)


@pytest.mark.parametrize("init", ["copied", "zero"])
def test_an_untrained_adapter_can_start_to_learn(init):
    llm = attach(tiny_model(), dataclasses.replace(CONFIG, init=init))
    llm(tokens(9)[None], context=llm.read(tokens(70, 3))).logits.square().sum().backward()
    for branch in llm.injection.branches:
        start = branch.gate if init == "copied" else branch.output.weight
        assert start.grad.abs().sum() > 0


def test_a_model_in_training_with_recomputed_layers_reads_and_learns_as_ever():
    ids, text, gradients = tokens(9)[None], tokens(70, 3), []
    for training in (False, True):
        model = tiny_model(attention_dropout=0.5)
        if training:
            model.gradient_checkpointing_enable()
            model.train()
        llm = randomize(attach(model))
        context = llm.read(text)
        assert model.training is training and model.model.layers[0].training is training
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.0  # what is read has none; the window would
        memory = llm.recall(context, ids)
        with llm.injection.reading(memory):
            llm.model(ids, use_cache=False).logits.square().mean().backward()
        gradients.append([p.grad.clone() for p in llm.injection.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_detach_gives_back_the_model_bit_for_bit():
    model, ids = tiny_model(), tokens(9)[None]
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    before = model(ids).logits
    flags = [p.requires_grad for p in model.parameters()]
    names = [n for n, _ in model.named_modules()]
    state = {n: t.clone() for n, t in model.state_dict().items()}
    assert hooks(model) == []

    llm = randomize(attach(model))
    context = llm.read(tokens(70, 3))
    llm(ids, context=context).logits.sum().backward()
    llm.generate(ids, context=context, max_new_tokens=3, do_sample=False)
    assert len(hooks(model)) == 2 * CONFIG.injected_layers + 1
    detached = llm.detach()

    assert detached is model
    assert hooks(model) == []
    assert torch.equal(model(ids).logits, before)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [n for n, _ in model.named_modules()] == names
    assert {n: torch.equal(t, state[n]) for n, t in model.state_dict().items()} == dict.fromkeys(state, True)
    with pytest.raises(UsageError, match="detached"):
        llm(ids, context=context)


@pytest.mark.parametrize("search_by", ["tokens", "last"])
def test_reading_puts_no_hooks_on_a_model_that_gives_its_hidden_states(search_by):
    model, ids = tiny_model(), tokens(9)[None]
    model.config.output_hidden_states = True
    llm = attach(model, dataclasses.replace(CONFIG, search_by=search_by))
    llm.read(tokens(70, 3))
    llm.query(ids)
    llm.detach()
    assert hooks(model) == []
    assert len(model(ids).hidden_states) == 5


def test_what_torch_compiled_of_a_model_is_forgotten_where_hooks_come_and_go(monkeypatch):
    forgotten = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: forgotten.append(True))
    model = tiny_model()
    model.model.layers[1].compile(backend="eager")
    attach(tiny_model()).detach()
    assert forgotten == []
    llm = attach(model)
    assert len(forgotten) == 1
    llm.detach()
    assert len(forgotten) == 2


def test_a_forward_pass_that_fails_leaves_no_memory_behind(make):
    llm = make()
    ids, context = tokens(9)[None], llm.read(tokens(70, 3))
    plain = llm(ids).logits
    handle = llm.parts.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        llm(ids, context=context)
    handle.remove()
    assert torch.equal(llm.model(ids).logits, plain)


def test_import_changes_nothing_in_torch_and_transformers():
    code = """
import random, torch, transformers
from transformers.models.llama import modeling_llama as m
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
def state():
    return dict(
        dtype=torch.get_default_dtype(), threads=torch.get_num_threads(), interop=torch.get_num_interop_threads(),
        grad=torch.is_grad_enabled(), seed=torch.initial_seed(), rng=torch.get_rng_state().tolist(), py=random.getstate(),
        sdpa=torch.nn.functional.scaled_dot_product_attention, det=torch.are_deterministic_algorithms_enabled(),
        matmul=torch.get_float32_matmul_precision(), linear=torch.nn.Linear.forward, call=torch.nn.Module.__call__,
        layer=m.LlamaDecoderLayer.forward, attention=m.LlamaAttention.forward, rope=m.apply_rotary_pos_emb,
        model=m.LlamaModel.forward, lm=m.LlamaForCausalLM.forward, generate=transformers.GenerationMixin.generate,
        cache=transformers.DynamicCache.update, functions=sorted(ALL_ATTENTION_FUNCTIONS.valid_keys()),
        log=transformers.logging.get_verbosity(), hooks=len(torch.nn.modules.module._global_forward_hooks))
before = state()
from sharedllm import SharedLLM, SharedConfig, Context
import sharedllm.naive, sharedllm.train
after = state()
assert before == after, [k for k in before if before[k] != after[k]]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_lower_model_is_the_loaded_models_own_storage(make):
    llm = make()
    own = {p.data_ptr() for p in llm.model.parameters()}
    lower = list(llm.lower.module.parameters())
    assert lower and {p.data_ptr() for p in lower} <= own
    assert {id(p) for p in lower} <= {id(p) for p in llm.model.parameters()}
    assert {p.data_ptr() for p in llm.injection.parameters()}.isdisjoint(own)
    assert [n for n, _ in llm.model.named_parameters()] == [n for n, _ in tiny_model().named_parameters()]


def test_the_lower_model_follows_the_loaded_model(make):
    llm = make()
    before = llm.read(tokens(70)).blocks[0].keys
    with torch.no_grad():
        llm.parts.layers[0].self_attn.v_proj.weight.mul_(2)
    assert not torch.equal(llm.read(tokens(70)).blocks[0].keys[1], before[1])


def test_the_lower_model_runs_the_lowest_layers_only(make):
    llm, ran = make(), []
    handles = [
        layer.register_forward_pre_hook(lambda *_, j=j: ran.append(j)) for j, layer in enumerate(llm.parts.layers)
    ]
    llm.read(tokens(70))
    for handle in handles:
        handle.remove()
    assert set(ran) == set(range(CONFIG.injected_layers))


def test_gradients_reach_only_the_adapter_of_a_frozen_model(make):
    llm = make()
    llm.model.requires_grad_(False)
    assert all(p.requires_grad for p in llm.injection.parameters())
    llm(tokens(9)[None], context=llm.read(tokens(70, 3))).logits.square().sum().backward()
    assert all(p.grad is None for p in llm.model.parameters())
    for name, parameter in llm.injection.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_an_adapter_on_a_frozen_model_is_trainable():
    model = tiny_model().requires_grad_(False)
    llm = attach(model)
    assert all(p.requires_grad for p in llm.injection.parameters())
    assert not any(p.requires_grad for p in model.parameters())


def test_nan_in_one_rows_context_stays_in_that_row(make):
    llm = make()
    ids = torch.stack([tokens(6, i) for i in range(3)])
    good, bad = llm.read(tokens(70, 5)), llm.read(tokens(100, 6))
    expected = llm(ids, context=[good, good, None]).logits
    for block in bad.blocks:
        block.keys.fill_(torch.nan)
        block.values.fill_(torch.nan)
    logits = llm(ids, context=[good, bad, None]).logits
    assert logits[1].isnan().all()
    torch.testing.assert_close(logits[0], expected[0])  # another width of padding: equal up to rounding
    assert torch.equal(logits[2], expected[2])


def test_nan_in_one_rows_padding_of_slots_stays_out_of_the_others(make):
    llm = make()
    ids = torch.stack([tokens(6, 0), tokens(6, 1)])
    contexts = [llm.read(tokens(70, 5)), llm.read(tokens(140, 6))]
    memory = llm.recall(contexts, ids)
    with llm.injection.reading(memory):
        expected = llm.model(ids).logits
    padding = ~memory.mask
    assert padding[0].any() and not padding[1, 1:].any()
    for tensor in (*memory.keys, *memory.values):
        assert (tensor[0][:, padding[0]] == 0).all()  # padding is written, never left as it was allocated
        tensor[0][:, padding[0]] = torch.nan
    with llm.injection.reading(memory):
        assert torch.equal(llm.model(ids).logits[1], expected[1])


def test_padding_of_slots_has_no_weight(make):
    llm = make()
    ids = torch.stack([tokens(6, 0), tokens(6, 1)])
    memory = llm.recall([llm.read(tokens(70, 5)), llm.read(tokens(140, 6))], ids)
    outputs = []
    for filling in (0.0, 1e3):
        for tensor in (*memory.keys, *memory.values):
            tensor[0][:, ~memory.mask[0]] = filling
        with llm.injection.reading(memory):
            outputs.append(llm.model(ids).logits)
    assert torch.equal(*outputs)


def test_nan_in_the_embedding_of_padding_stays_out_of_the_other_rows(make):
    llm = make()
    context = llm.read(tokens(70, 5))
    short, long = tokens(3, 1), tokens(6, 2)
    alone = llm(long[None], context=context).logits[0]
    with torch.no_grad():
        llm.model.get_input_embeddings().weight[258] = torch.nan
    ids, mask = torch.full((2, 6), 258), torch.zeros(2, 6, dtype=torch.long)
    ids[0, 3:], ids[1] = short, long
    mask[0, 3:] = mask[1] = 1
    torch.testing.assert_close(llm(ids, context=context, attention_mask=mask).logits[1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("null_slot", [True, False])
def test_a_row_without_context_is_the_plain_model_bit_for_bit(make, null_slot):
    llm = make(dataclasses.replace(CONFIG, null_slot=null_slot))
    ids = torch.stack([tokens(6, i) for i in range(3)])
    plain = llm.model(ids).logits
    empty = llm.reader.new_context()
    contexts = [None, llm.read(tokens(70, 5)), empty]
    mixed = llm(ids, context=contexts).logits
    assert llm.recall(contexts, ids).mask.any(dim=1).all(), "a softmax over nothing is NaN on some devices"
    assert torch.equal(mixed[0], plain[0]) and torch.equal(mixed[2], plain[2])
    assert not torch.equal(mixed[1], plain[1])
    assert torch.equal(llm(ids).logits, plain)
    assert torch.equal(llm(ids, context=empty).logits, plain)


def test_reading_while_an_answer_is_generated_sees_no_slots(make):
    # A streamer or a stopping criterion may read a text while the model is at work on another.
    llm = make()
    alone = llm.read(tokens(100, 9)).blocks[0]
    with llm.injection.reading(llm.recall(llm.read(tokens(100)), tokens(6, 1)[None])):
        within = llm.read(tokens(100, 9)).blocks[0]
    assert torch.equal(within.keys, alone.keys) and torch.equal(within.values, alone.values)


def test_more_injected_layers_than_the_model_has_are_refused():
    model = tiny_model()
    with pytest.raises(UsageError, match=r"injected_layers is 5.*4 layers"):
        attach(model, dataclasses.replace(CONFIG, injected_layers=5))
    assert hooks(model) == []


@pytest.mark.parametrize("adapter", ["default", "none"])
def test_a_model_of_one_layer_is_refused(adapter):
    with pytest.raises(UsageError, match="two"):
        SharedLLM.from_pretrained(tiny_model(num_hidden_layers=1), adapter=adapter)


def test_what_a_branch_says_it_attends_to_is_what_it_adds(make):
    """Weights times values, through the output projection, are the branch; the null slot's value is zero."""
    llm = make()
    branch, memory = llm.injection.branches[0], llm.recall(encoded(llm, tokens(110, 3)), tokens(7)[None])
    with torch.no_grad():
        branch.gate.fill_(1.0)
    heard, added = [], []
    branch.register_forward_hook(lambda _branch, _args, out: added.append(out))
    with torch.no_grad(), llm.injection.reading(memory, heard.append):
        llm.model(tokens(7)[None])
    weights_BHTS, values_BKSD = heard[0], memory.values[0][..., : branch.head_dim]
    torch.testing.assert_close(weights_BHTS.sum(3), torch.ones(1, 4, 7))
    attended = weights_BHTS @ values_BKSD.repeat_interleave(2, dim=1)
    torch.testing.assert_close(branch.output(attended.transpose(1, 2).flatten(2)), added[0], atol=1e-5, rtol=1e-5)


def test_a_projection_as_one_matrix_is_the_projection_in_two_and_follows_its_weights():
    projection = Projection(torch.randn(12, 8), rank=4, seed=0)
    with torch.no_grad():
        projection.up.normal_()
    x, bias = torch.randn(3, 8), torch.randn(12)
    for _ in range(2):
        learning = projection(x, bias)
        with torch.no_grad():
            assert torch.allclose(projection(x, bias), learning, atol=1e-5)
            assert projection(x, bias).equal(projection(x, bias))
            projection.up.mul_(2)
    with torch.inference_mode():
        assert torch.allclose(projection(x, bias), projection(x.clone(), bias))


def test_a_large_projection_stays_in_two(monkeypatch):
    monkeypatch.setattr("sharedllm.projection.MERGED", 95)
    projection = Projection(torch.randn(12, 8), rank=4, seed=0)
    with torch.no_grad():
        projection(torch.randn(3, 8))
    assert projection._merged is None
