"""Families without an entry, and models that take images as well: recognised rightly or refused in one sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from sharedllm import SharedLLM, UsageError
from sharedllm.families import FAMILIES
from sharedllm.selfcheck import checked_parts, difference
from tests.conftest import hooks, randomize, tokens
from tests.test_families import ROWS, SMALL, assert_near, attach, family_model

SIZES: dict[str, Any] = dict(
    vocab_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    pad_token_id=258,
)
IDS = tokens(6)[None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_an_entry_is_right_in_low_precision_too(name, dtype):
    assert difference(attach(family_model(name).to(dtype)).parts, 3) is None


@pytest.mark.parametrize("name", ["cohere", "gemma2"])
def test_a_guess_is_the_entry_in_bfloat16_too(name, monkeypatch):
    model, entry = family_model(name).bfloat16(), FAMILIES[name]
    monkeypatch.delitem(FAMILIES, name)
    found = checked_parts(model, 2).family
    assert (found.interleaved, found.softcap, found.post_norm) == (entry.interleaved, entry.softcap, entry.post_norm)


@pytest.mark.parametrize("known", [True, False])
def test_an_attention_that_loses_the_cap_of_its_logits_is_refused(known, monkeypatch):
    model = family_model("gemma2", attn_logit_softcapping=1e4)  # so high that a few tokens do not show it
    model.config._attn_implementation = "sdpa"  # as transformers 5.17 has it
    if not known:
        monkeypatch.delitem(FAMILIES, "gemma2")
    with pytest.raises(UsageError, match="load it with attn_implementation='eager'"):
        checked_parts(model, 2)


@pytest.mark.parametrize("name", ["cohere2", "stablelm"])
def test_what_no_guess_fits_is_refused_in_bfloat16_too(name, monkeypatch):
    model = family_model(name).bfloat16()
    monkeypatch.delitem(FAMILIES, name)
    with pytest.raises(UsageError, match=f"{name}.*in layer [01] "):
        checked_parts(model, 2)


def test_a_layer_beside_attention_that_needs_another_cache_is_refused_in_one_sentence():
    mamba = dict(mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("falcon_h1", **SIZES, **mamba)).float().eval()
    with pytest.raises(UsageError, match=r"'falcon_h1'.*does not take the usual cache.*CONTRIBUTING"):
        attach(model)
    assert hooks(model) == []


@pytest.fixture
def seeing() -> Any:
    """A small random model that takes images beside text."""
    sight = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    sight |= dict(image_size=28, patch_size=14)
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=SIZES, vision_config=sight, mm_tokens_per_image=4))
    return model.float().eval()


@pytest.mark.parametrize("known", [True, False])
def test_the_text_model_of_one_that_takes_images_reads_contexts(seeing, known, monkeypatch):
    if not known:
        monkeypatch.delitem(FAMILIES, "gemma3_text")
    before = seeing(IDS).logits
    llm = attach(seeing)
    context = llm.read(tokens(70, 3))
    assert (llm.parts.model_type, llm.parts.known) == ("gemma3_text", known)
    assert difference(llm.parts, 3) is None
    assert torch.equal(llm(IDS, context=context).logits, before)
    after = randomize(llm)(IDS, context=context).logits
    assert not torch.allclose(after, before)
    assert llm.generate(IDS, context=context, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (1, 9)
    assert torch.equal(llm.detach()(IDS).logits, before) and hooks(seeing) == []


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"), reason="its rotary tables took places in three rows alone"
)
def test_a_model_whose_tokens_stand_in_time_height_and_width_reads_contexts():
    turned = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    sight = dict(depth=1, hidden_size=16, intermediate_size=16, num_heads=2, patch_size=4, out_hidden_size=32)
    sight |= dict(num_position_embeddings=16, deepstack_visual_indexes=[0])
    torch.manual_seed(0)
    config = Qwen3VLConfig(text_config={**SIZES, "rope_parameters": turned}, vision_config=sight)
    model = Qwen3VLForConditionalGeneration(config).float().eval()
    before = model(IDS).logits
    llm = randomize(attach(model, replace(SMALL, null_growth=True, moving_query=True)))  # for which places matter
    context, plain = llm.read(tokens(70, 3)), llm.read(tokens(70, 4))
    after = llm(IDS, context=context).logits
    assert not torch.allclose(after, before)
    rows = llm(torch.cat([IDS, IDS]), context=[context, plain], attention_mask=torch.ones(2, 6)).logits
    assert_near(rows[:1], after)
    wanted = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True)
    cached, again = (llm.generate(IDS, context=context, use_cache=use, **wanted) for use in (True, False))
    assert_near(torch.stack(cached.logits), torch.stack(again.logits))
    assert_near(cached.logits[0], after[:, -1])
    assert torch.equal(llm.detach()(IDS).logits, before) and hooks(model) == []


def test_a_model_in_training_is_looked_at_as_it_is_out_of_it(monkeypatch):
    model = family_model("llama", attention_dropout=0.5)
    model.gradient_checkpointing_enable()
    model.train()
    monkeypatch.delitem(FAMILIES, "llama")
    llm = attach(model)
    assert not llm.parts.known and all(part.training for part in model.modules())
    assert difference(llm.parts, 3) is None


def test_what_stored_keys_were_turned_by_is_in_the_fingerprint_of_its_text_model(seeing):
    first = attach(seeing)
    first.detach()
    seeing.config.text_config.rope_parameters["full_attention"]["rope_theta"] = 77.0
    assert attach(seeing).fingerprint != first.fingerprint


def test_a_model_put_together_in_another_way_than_its_family_is_refused():
    model = family_model("llama")
    model.inside = model.model
    del model.model
    with pytest.raises(UsageError, match="this llama model is not put together as others of its family"):
        SharedLLM.from_pretrained(model, adapter="none", config=SMALL)
