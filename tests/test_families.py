"""Every family attaches, computes what the naive twin computes, and comes off again: one row a family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, GPT2Config, GPT2LMHeadModel

from sharedllm import SharedConfig, SharedLLM, UsageError, loading
from sharedllm.architectures import rotate
from sharedllm.families import FAMILIES
from sharedllm.selfcheck import difference
from tests.conftest import byte_tokenizer, hooks, randomize, tokens
from tests.contexts import assert_one_sentence
from tests.test_naive import run_fast, run_naive

SMALL = SharedConfig(injected_layers=2, chunk_length=8, tree_depth=2, slots_per_leaf=1)
LOCAL = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
MIXTURE = {"num_experts_per_tok": 2, "num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 16}


def partly(share: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": share}}


def scaled(kind: str, **settings: Any) -> dict[str, Any]:
    """A window of 16 positions made four times as long, for which the tables are multiplied by more than 1."""
    turned = {"rope_type": kind, "rope_theta": 100.0, "original_max_position_embeddings": 16, **settings}
    return {"rope_parameters": turned, "original_max_position_embeddings": 16}


ROWS: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True},
    "llama, tables of another scale": scaled("yarn", factor=4.0),
    "mistral": {"sliding_window": None},
    "mistral, sliding": {"sliding_window": 4},
    "ministral": LOCAL,
    "mixtral": MIXTURE,
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {**MIXTURE, "decoder_sparse_step": 2},
    "gemma": {},
    "gemma2": {**LOCAL, "query_pre_attn_scalar": 5, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {**LOCAL, "query_pre_attn_scalar": 5},
    "phi": {"qk_layernorm": True, **partly(0.5)},
    "phi3": partly(0.5),
    "phi3, tables of another scale": scaled("longrope", short_factor=[1.0, 1.5, 2.0, 3.0], long_factor=[4.0] * 4),
    "gpt_neox": {"attention_bias": True, **partly(0.25)},
    "gpt_neox, one after the other": {"use_parallel_residual": False, **partly(0.5)},
    "olmo2": {},
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "stablelm": {"qk_layernorm": True, "use_qkv_bias": True, **partly(0.25)},
    "stablelm, side by side": {"use_parallel_residual": True, **partly(0.5)},
    "starcoder2": {"use_bias": True},
    "cohere": {"use_qk_norm": True},
    "cohere2": LOCAL,
    "smollm3": {"no_rope_layers": [1, 0, 1]},
    "falcon": {"multi_query": True, "bias": True},
    "falcon, new": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon, old": {"multi_query": False, "parallel_attn": False},
}


def family_model(name: str, layers: int = 3, **changes: Any) -> Any:
    """A small random model of a family; biases and norms are random too."""
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=8)
    kind = name.split(",")[0]
    if kind in ("gpt_neox", "falcon"):  # in these the two follow from the other sizes
        del sizes["head_dim"], sizes["num_key_value_heads"]
    tokens = dict(vocab_size=300, bos_token_id=256, eos_token_id=257, pad_token_id=258)
    config = AutoConfig.for_model(
        kind, num_hidden_layers=layers, max_position_embeddings=64, **{**sizes, **tokens, **ROWS[name], **changes}
    )
    capped = {"attn_implementation": "eager"} if "attn_logit_softcapping" in ROWS[name] else {}  # see `loading.capped`
    model = AutoModelForCausalLM.from_config(config, **capped).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def attach(model: Any, config: SharedConfig = SMALL) -> SharedLLM:
    return SharedLLM.from_pretrained(model, adapter="none", config=config, tokenizer=byte_tokenizer())


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    scale = expected.abs().max()
    torch.testing.assert_close(actual / scale, expected / scale, atol=2e-5, rtol=0)


@pytest.fixture(scope="module", params=ROWS)
def llm(request) -> SharedLLM:
    """A frozen small model of each family with a random adapter."""
    return randomize(attach(family_model(request.param).requires_grad_(False)))


TEXTS, WINDOWS = [tokens(13, 1), tokens(0), tokens(8, 2)], [tokens(n, 10 + n) for n in (6, 3, 5)]


def test_a_family_equals_the_naive_twin(llm):
    with torch.no_grad():
        slow = run_naive(llm, WINDOWS, TEXTS, "query")
        fast = run_fast(llm, WINDOWS, TEXTS, "query")
        plain = llm.model(WINDOWS[0][None]).logits[0]
    for a, b in zip(slow, fast, strict=True):
        assert_near(b, a)
    assert (fast[0] - plain).abs().max() > 1e-2 * plain.abs().max(), "the context never arrived; the test is empty"


@pytest.mark.parametrize("name", [name for name in ROWS if "scale" in name])
def test_the_scale_of_tables_is_there_to_be_left_out(name):
    cos, sin = attach(family_model(name)).parts.cos_sin(torch.arange(9))
    assert (cos.square() + sin.square()).min() > 1.1


def test_a_batch_gives_what_each_row_gives(llm):
    with torch.no_grad():
        batch = run_fast(llm, WINDOWS, TEXTS, "query")
        for window, text, row in zip(WINDOWS, TEXTS, batch, strict=True):
            assert_near(row, run_fast(llm, [window], [text], "query")[0])


def test_generation_with_a_cache_equals_generation_without(llm):
    context, wanted = llm.read(tokens(70, 3)), dict(max_new_tokens=5, min_new_tokens=5, do_sample=False)
    wanted |= dict(return_dict_in_generate=True, output_logits=True)
    cached, plain = (llm.generate(tokens(6)[None], context=context, use_cache=use, **wanted) for use in (True, False))
    assert torch.equal(cached.sequences, plain.sequences)
    assert_near(torch.stack(cached.logits), torch.stack(plain.logits))


def test_gradients_reach_the_adapter_and_nothing_else(llm):
    llm.injection.zero_grad()
    llm(tokens(6)[None], context=llm.read(tokens(70, 3))).logits.square().sum().backward()
    assert all(p.grad is None for p in llm.model.parameters())
    for name, parameter in llm.injection.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_kept_keys_and_values_are_those_the_model_caches_itself(llm):
    ids, cache = tokens(8, 4), DynamicCache()
    with torch.no_grad():
        llm.model(ids[None], past_key_values=cache, use_cache=True)
    context = llm.reader.new_context()
    context.ids = ids.int()
    llm.reader.encode(context, every_token=True)
    (block,) = context.blocks
    for j, (cos, sin) in enumerate(llm.parts.tables(torch.arange(8), 2)):
        torch.testing.assert_close(block.values[j], cache.layers[j].values)
        keys = llm.parts.half_split(cache.layers[j].keys)
        torch.testing.assert_close(rotate(block.keys[j], cos, sin), keys, atol=2e-5, rtol=1e-5)


def test_the_parts_say_what_the_model_does(llm):
    """Above all which rows of a fused projection are queries, which the naive twin takes from the branch."""
    assert difference(llm.parts, 3) is None


@pytest.mark.parametrize("name", ROWS)
def test_an_untrained_adapter_and_a_detached_model_change_nothing(name):
    model, ids = family_model(name), torch.stack([tokens(6, 1), tokens(6, 2)])
    state = {n: t.clone() for n, t in model.state_dict().items()}
    before = model(ids).logits
    llm = attach(model)
    context = llm.read(tokens(70, 3))
    assert torch.equal(llm(ids, context=[context, None]).logits, before)
    randomize(llm)
    assert not torch.equal(llm(ids, context=context).logits, before)
    assert llm.detach() is model and hooks(model) == []
    assert torch.equal(model(ids).logits, before)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize(
    "name", ["llama", "qwen3_moe", "gemma2", "gemma3_text", "olmo2", "granite", "cohere", "smollm3"]
)
def test_a_family_without_an_entry_is_recognised_by_what_it_does(name, monkeypatch):
    model, logits = family_model(name), []
    for known in (True, False):
        if not known:
            monkeypatch.delitem(FAMILIES, name)
        llm = randomize(attach(model))
        assert llm.parts.known == known
        logits.append(llm(tokens(6)[None], context=llm.read(tokens(70, 3))).logits)
        llm.detach()
    assert torch.equal(*logits)


def test_a_family_that_is_not_like_most_is_refused_in_one_sentence(monkeypatch):
    model = family_model("llama")
    monkeypatch.delitem(FAMILIES, "llama")
    model.model.layers[1].self_attn.register_forward_hook(lambda _m, _i, out: (2 * out[0], *out[1:]))
    found = hooks(model)
    with pytest.raises(UsageError, match=r"'llama'.*in layer 1 attention over the cached keys.*CONTRIBUTING"):
        attach(model)
    assert hooks(model) == found


def test_a_model_without_rotary_positions_is_refused():
    alibi = family_model("falcon", alibi=True)
    learned = GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=4))
    for model, says in ((alibi, "falcon.*alibi"), (learned, "gpt2.*rotary")):
        with pytest.raises(UsageError, match=says):
            SharedLLM.from_pretrained(model)
        assert hooks(model) == []


def test_every_entry_has_a_row():
    assert {name.split(",")[0] for name in ROWS} == set(FAMILIES)


def test_capped_logits_are_not_lost_to_an_attention_that_does_not_cap_them():
    model = family_model("gemma2")
    model.config._attn_implementation = "sdpa"  # as transformers 5.17 loads it
    with pytest.raises(UsageError, match="load it with attn_implementation='eager'") as error:
        attach(model)
    assert_one_sentence(error)
    assert loading.capped(model) is model and model.config._attn_implementation == "eager"
    attach(model).detach()
    plain = family_model("llama")
    before = plain.config._attn_implementation
    assert loading.capped(plain).config._attn_implementation == before
