"""The dtype a model is loaded in: it keeps its adapter, and norms take what they are given while an adapter learns."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import sharedllm.adapter
from sharedllm import SharedLLM
from sharedllm.branch import Memory
from sharedllm.methods.encoder_decoder import CrossConfig, EncoderDecoder
from sharedllm.weights import normed
from tests.conftest import byte_tokenizer, tiny_model, tokens
from tests.test_families import SMALL, family_model


@pytest.fixture
def strict_norms(monkeypatch):
    """Norms of torch that refuse another dtype than their weights', as they do on a GPU."""
    seen = []
    for kind in (nn.LayerNorm, nn.RMSNorm):
        forward = kind.forward

        def strict(self, x, forward=forward):
            assert self.weight is None or self.weight.dtype == x.dtype
            seen.append(x.dtype)
            return forward(self, x)

        monkeypatch.setattr(kind, "forward", strict)
    return seen


@pytest.mark.parametrize("family", ["starcoder2", "phi", "stablelm", "gpt_neox", "llama", "qwen3"])
def test_an_adapter_in_fp32_learns_on_a_model_in_bfloat16(strict_norms, family):
    model = family_model(family).bfloat16()
    llm = SharedLLM.from_pretrained(model, adapter="none", config=SMALL, tokenizer=byte_tokenizer())
    llm.injection.float()
    context = llm.reader.new_context()
    context.ids = tokens(24).int()
    llm.reader.encode(context)
    ids = tokens(6, 1)[None]
    memory = llm.recall(context, ids)
    assert isinstance(memory, Memory)
    with llm.injection.reading(memory):
        model(input_ids=ids).logits.float().sum().backward()
    norms = [p.grad for b in llm.injection.branches for p in b.norm.parameters()]
    assert all(gradient is not None for gradient in norms)


def test_the_decoders_cross_attention_does_too(strict_norms):
    model = family_model("starcoder2").bfloat16()
    llm = SharedLLM.from_pretrained(model, adapter="none", config=SMALL, tokenizer=byte_tokenizer())
    method = EncoderDecoder(llm, 1, config=CrossConfig(8))
    method.cross.float()
    with method.cross.reading(llm.parts, method.cross.project(method.encode(tokens(24)))):
        model(input_ids=tokens(6, 1)[None]).logits.float().sum().backward()
    assert torch.float32 in strict_norms


def test_a_norm_gives_what_it_would_in_its_own_dtype():
    norm, x = nn.LayerNorm(8), torch.randn(3, 8).bfloat16()
    assert torch.equal(normed(norm, x), norm(x.float()).bfloat16())
    assert normed(nn.Identity(), x) is x


def test_the_default_model_has_its_adapter_in_float16_too(caplog):
    llm = SharedLLM.from_pretrained(device="cpu", dtype="float16")
    assert llm.dtype == torch.float16 and llm.adapter != "none"
    assert not caplog.records


def test_a_model_that_is_nearly_one_with_an_adapter_is_told_apart_aloud(make, tmp_path, monkeypatch, caplog):
    make().save_adapter(tmp_path / "shipped")
    monkeypatch.setattr(sharedllm.adapter, "SHIPPED", tmp_path)
    model = tiny_model()
    with caplog.at_level(logging.WARNING):
        assert SharedLLM.from_pretrained(model, tokenizer=byte_tokenizer()).adapter == "shipped"
        assert not caplog.records
        with torch.no_grad():
            model.get_input_embeddings().weight.add_(0.5)
        assert SharedLLM.from_pretrained(model, tokenizer=byte_tokenizer()).adapter == "none"
        assert "is not used: this model is of the same sizes, but has other weights" in caplog.text
        caplog.clear()
        SharedLLM.from_pretrained(tiny_model(hidden_size=16), tokenizer=byte_tokenizer())
    assert not caplog.records


def test_a_named_adapter_of_other_weights_is_taken_aloud(make, tmp_path, caplog):
    make().save_adapter(tmp_path / "mine")
    model = tiny_model()
    with caplog.at_level(logging.WARNING):
        for change, says in ((0.0, False), (0.5, True)):
            with torch.no_grad():
                model.get_input_embeddings().weight.add_(change)
            llm = SharedLLM.from_pretrained(model, adapter=tmp_path / "mine", tokenizer=byte_tokenizer())
            assert llm.adapter == str(tmp_path / "mine")
            llm.detach()
            assert (f"{tmp_path / 'mine'} was trained for other weights" in caplog.text) == says
