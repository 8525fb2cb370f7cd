"""Encoder-decoder: against a plain definition, without effect untrained, and saved and loaded."""

from __future__ import annotations

import json

import pytest
import torch

from sharedllm import SharedLLM, UsageError
from sharedllm.adapter import CONFIG_FILE, read_adapter_config
from sharedllm.methods.base import target_nll
from sharedllm.methods.encoder_decoder import CrossConfig, EncoderDecoder
from sharedllm.prompts import Prompt
from tests.conftest import CONFIG, byte_tokenizer, hooks, tokens
from tests.test_families import family_model


def method_on(model, random=True, **arguments) -> EncoderDecoder:
    llm = SharedLLM.from_pretrained(model, adapter="none", config=CONFIG, tokenizer=byte_tokenizer())
    method = EncoderDecoder(llm, 16, **{"config": CrossConfig(chunk_length=16), **arguments})
    if random:
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in method.cross.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return method


def crossed(weights, x, states, heads, kv_heads):
    """Cross-attention of one token x [E] to states [S, E], one head at a time."""
    D = len(weights.query) // heads
    q, keys, values = weights.query @ weights.norm(x), states @ weights.key.T, states @ weights.value.T
    out = []
    for h in range(heads):
        own, shared = slice(h * D, (h + 1) * D), slice(h // (heads // kv_heads) * D, (h // (heads // kv_heads) + 1) * D)
        shares = (keys[:, shared] @ q[own] / D**0.5).softmax(0)
        out.append(shares @ values[:, shared])
    return weights.output @ torch.cat(out)


def plain_logits(method, past, window):
    """The definition: chunks of 16 through the whole model, and its layers called one after the other."""
    parts, model = method.llm.parts, method.llm.model
    chunks = [past[i : i + 16] for i in range(0, len(past), 16)]
    states = torch.cat([model(c[None], output_hidden_states=True).hidden_states[-1][0] for c in chunks])
    hidden = parts.base.embed_tokens(window[None])
    positions = parts.rotary(hidden, torch.arange(len(window))[None])
    for layer, weights in zip(parts.layers, method.cross.layers, strict=True):
        normed = layer.input_layernorm(hidden)
        hidden = hidden + layer.self_attn(normed, position_embeddings=positions, attention_mask=None)[0]
        added = [crossed(weights, x, states, parts.heads, parts.kv_heads) for x in hidden[0]]
        hidden = hidden + torch.stack(added)
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(parts.base.norm(hidden))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@torch.no_grad()
def test_scores_are_those_of_the_definition(family):
    method, past, window = method_on(family_model(family)), tokens(41, 1), tokens(12, 2)
    found = method.score(method.prepare(past), window, 8)
    expected = target_nll(plain_logits(method, past, window), window[None], 8)[0]
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, method.score(None, window, 8), atol=1e-2), "the past never arrived"


def test_untrained_it_is_the_plain_model_bit_for_bit_and_says_so(make):
    model, window = make().model, tokens(12, 2)
    expected = target_nll(model(window[None], logits_to_keep=9).logits, window[None], 8)[0]
    before = len(hooks(model))
    method = method_on(model, random=False)
    assert torch.equal(method.score(method.prepare(tokens(41)), window, 8), expected)
    assert len(hooks(model)) - before == len(hooks(make().model))  # those of the injection alone
    assert method.settings()["trained"] is False and "untrained" in method.quality_reason()


def test_norms_are_copies_that_learn_without_the_models_hooks(make):
    model = make().model
    own = model.model.layers[1].input_layernorm
    own.register_forward_hook(lambda *_: None)
    norm = method_on(model, random=False).cross.layers[1].norm
    assert torch.equal(norm.weight, own.weight) and norm.weight.data_ptr() != own.weight.data_ptr()
    assert hooks(norm) == [] and norm.weight.requires_grad


def test_answers_are_what_scores_say(make):
    method, prompt = method_on(make().model), Prompt(byte_tokenizer(), "Which?")
    past = method.prepare(tokens(41))
    answer = method.ask(past, prompt, 5)
    assert method.shown(past, prompt, 5) == prompt.alone()
    ids = torch.tensor(prompt.alone())
    assert torch.equal(answer, method.generate(past, ids, 5))
    with method.cross.reading(method.llm.parts, past), torch.no_grad():
        logits = method.llm.model(torch.cat([ids, answer])[None]).logits[0]
    assert torch.equal(logits[len(ids) - 1 : -1].argmax(1), answer)


def test_rows_with_pasts_of_different_lengths_are_each_alone_in_outputs_and_gradients(make):
    method = method_on(make().model)
    parts, model, cross = method.llm.parts, method.llm.model, method.cross
    states = method.encode(tokens(48))
    windows = torch.stack([tokens(9, 2), tokens(9, 3)])

    def gradients(loss):
        return torch.autograd.grad(loss, list(cross.parameters()))

    mask = torch.arange(48) < torch.tensor([[16], [48]])
    with cross.reading(parts, cross.project(states, mask)):
        together = model(windows).logits
    alone = []
    for row, length in zip(windows, (16, 48), strict=True):
        with cross.reading(parts, cross.project(states[:, :length])):
            alone.append(model(row[None]).logits)
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)
    for a, b in zip(gradients(together.square().mean()), gradients(torch.cat(alone).square().mean()), strict=True):
        assert a.abs().max() > 0 and torch.allclose(a, b, atol=1e-4)


def test_trained_weights_are_saved_and_loaded(make, tmp_path):
    model, past, window = make().model, tokens(41), tokens(12, 2)
    method = method_on(model)
    method.save(tmp_path / "cross", {"steps": 3})
    loaded = method_on(model, random=False, weights=tmp_path / "cross", config=None)
    assert torch.equal(loaded.score(loaded.prepare(past), window, 8), method.score(method.prepare(past), window, 8))
    said = loaded.settings()
    assert said.pop("weights") not in (None, method.settings()["weights"]) and loaded.quality_reason() is None
    assert said == {"window": 16, "chunk_length": 16, "trained": True}


def test_folders_of_another_kind_or_model_are_refused(make, tmp_path):
    llm = make()
    llm.save_adapter(tmp_path / "adapter")
    with pytest.raises(UsageError, match="another kind"):
        EncoderDecoder(llm, 16, tmp_path / "adapter")
    method_on(llm.model).save(tmp_path / "cross")
    with pytest.raises(UsageError, match="another kind"):
        read_adapter_config(tmp_path / "cross")
    with pytest.raises(UsageError, match="hidden_size 32, this one has 64"):
        EncoderDecoder(make(hidden_size=64), 16, tmp_path / "cross")
    described = json.loads((tmp_path / "cross" / CONFIG_FILE).read_text())
    described["config"] = {"chunk_lenght": 16}
    (tmp_path / "cross" / CONFIG_FILE).write_text(json.dumps(described))
    with pytest.raises(UsageError, match="Did you mean chunk_length"):
        EncoderDecoder(llm, 16, tmp_path / "cross")
    with pytest.raises(UsageError, match="chunk_length is 0"):
        CrossConfig(chunk_length=0)
