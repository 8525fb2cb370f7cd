"""Streaming: block-wise reading against a token-by-token definition that knows neither blocks nor a cache object."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from sharedllm import SharedLLM, UsageError
from sharedllm.methods import rolling, streaming
from sharedllm.methods.rolling import RollingCache
from sharedllm.methods.streaming import Read, Streaming
from sharedllm.prompts import Prompt
from tests.conftest import CONFIG, byte_tokenizer, tokens
from tests.test_families import ROWS, family_model


def plain_logits(llm: SharedLLM, ids: torch.Tensor, sinks: int, window: int) -> torch.Tensor:
    """Logits [T, V], read one token at a time: each attends to the sinks and the newest tokens that are left,
    at the places these have in a row; keys without rotation and values are noted when a token is read."""
    parts, rows = llm.parts, []
    noted: list[list[Any]] = [[] for _ in parts.layers]
    for t in range(len(ids)):
        left = [s for s in range(t + 1) if s < sinks or s > t - window]
        cos, sin = parts.rotary(torch.zeros(1), torch.arange(len(left))[None])
        hidden = parts.base.embed_tokens(ids[None, t : t + 1])
        for j, layer in enumerate(parts.layers):
            attention, x = layer.self_attn, layer.input_layernorm(hidden)
            q, k, v = (
                projection(x).view(1, 1, -1, parts.head_dim).transpose(1, 2)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            if hasattr(attention, "q_norm"):
                q, k = attention.q_norm(q), attention.k_norm(k)
            noted[j].append((k, v))
            keys, values = (torch.cat([noted[j][s][i] for s in left], dim=2) for i in (0, 1))
            q = apply_rotary_pos_emb(q, q, cos[:, -1:], sin[:, -1:])[0]
            keys = apply_rotary_pos_emb(keys, keys, cos, sin)[0]
            out = F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)
            hidden = hidden + attention.o_proj(out.transpose(1, 2).flatten(2))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        rows.append(llm.model.lm_head(parts.base.norm(hidden))[0, 0])
    return torch.stack(rows).detach()


def nats(logits: torch.Tensor, ids: torch.Tensor, targets: int) -> torch.Tensor:
    return F.cross_entropy(logits[-targets - 1 : -1], ids[-targets:], reduction="none")


@pytest.mark.parametrize("apart", [True, False], ids=["sinks apart", "copies of sinks"])
@pytest.mark.parametrize("family", ["llama", "llama, tables of another scale", "mistral, sliding", "qwen2", "qwen3"])
def test_scores_are_those_of_reading_token_by_token(family, apart, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 16)
    if not apart:
        monkeypatch.setattr(rolling, "fused", lambda parts: [])
    llm = SharedLLM.from_pretrained(family_model(family), adapter="none", config=CONFIG)
    ids = tokens(90)
    method = Streaming(llm, 12)
    found = method.score(method.prepare(ids[:50]), ids[50:], 30)
    assert torch.allclose(found, nats(plain_logits(llm, ids, 4, 12), ids, 30), atol=2e-4)


@pytest.mark.parametrize(
    ("sinks", "window", "block", "past"),
    [(0, 7, 64, 2), (4, 1, 7, 33), (4, 24, 64, 0), (5, 30, 1, 20), (100, 8, 7, 33), (4, 8, 64, 38)],
)
def test_blocks_and_where_the_past_ends_make_no_difference(make, monkeypatch, sinks, window, block, past):
    monkeypatch.setattr(streaming, "BLOCK", block)
    llm, ids = make(), tokens(40)
    method, targets = Streaming(llm, window, sinks), min(20, len(ids) - past - 1)
    found = method.score(method.prepare(ids[:past]), ids[past:], targets)
    assert torch.allclose(found, nats(plain_logits(llm, ids, sinks, window), ids, targets), atol=1e-4)


@pytest.mark.parametrize("family", ROWS)
def test_every_family_rolls_as_its_own_model_under_a_band_and_has_its_sinks_at_their_distance(family, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", 16)
    llm = SharedLLM.from_pretrained(family_model(family), adapter="none", config=CONFIG)
    ids, place = tokens(60), torch.arange(60)
    seen = (place <= place[:, None]) & (place > place[:, None] - 12)
    band = torch.zeros(1, 1, 60, 60).masked_fill_(~seen, -torch.inf)
    expected = nats(llm.model(ids[None], attention_mask=band).logits[0], ids, 20)
    method = Streaming(llm, 12, sinks=0)
    assert torch.allclose(method.score(method.prepare(ids[:30]), ids[30:], 20), expected, atol=1e-3)
    method = Streaming(llm, 12)
    apart = method.score(method.prepare(ids[:30]), ids[30:], 20)
    assert rolling.sinks_apart(llm.parts) == (family.split(",")[0] not in ("falcon", "gemma2", "stablelm"))
    monkeypatch.setattr(rolling, "fused", lambda parts: [])
    assert torch.allclose(apart, method.score(method.prepare(ids[:30]), ids[30:], 20), atol=1e-3)
    assert not torch.allclose(apart, expected, atol=1e-2), "sinks are seen"


def test_no_sink_is_copied_and_the_model_attends_as_before_afterwards(make, monkeypatch):
    llm, seen, taken = make(), list[int](), rolling.attention
    monkeypatch.setattr(
        rolling,
        "attention",
        lambda module, q, k, *rest, **more: seen.append(k.shape[2]) or taken(module, q, k, *rest, **more),
    )
    monkeypatch.setattr(streaming, "BLOCK", 16)
    inside = [
        llm.model.config._attn_implementation
        for _ in Streaming(llm, 12)._read(RollingCache(llm.parts, 4, 12), tokens(60))
    ]
    assert {*inside, llm.model.config._attn_implementation} == {"sdpa"}
    assert seen and max(seen) == 4 + 11 + 16


def test_what_fits_the_window_is_read_as_the_plain_model_reads_it(make):
    llm, ids = make(), tokens(40)
    method = Streaming(llm, 40)
    expected = nats(llm.model(ids[None]).logits[0], ids, 39)
    assert torch.allclose(method.score(method.prepare(ids[:0]), ids, 39), expected, atol=1e-4)


def test_an_answer_goes_on_reading_and_leaves_what_was_read_as_it_was(make):
    llm, prompt = make(), Prompt(byte_tokenizer(), "Which?")
    method, past = Streaming(llm, 30), tokens(70)
    llm.model.generation_config.eos_token_id = None
    read, ids = method.prepare_to_ask(past, prompt), torch.tensor(prompt.with_text(past))
    before = [x.clone() for pair in read.cache.kept.values() for x in pair]
    for _ in range(8):
        ids = torch.cat([ids, plain_logits(llm, ids, 4, 30)[-1:].argmax(1)])
    answer = method.ask(read, prompt, 8)
    assert answer.tolist() == ids[-8:].tolist()
    assert all(map(torch.equal, before, [x for pair in read.cache.kept.values() for x in pair]))
    llm.model.generation_config.eos_token_id = [int(answer[2]), 299]
    assert method.ask(read, prompt, 8).tolist() == answer[: answer.tolist().index(int(answer[2])) + 1].tolist()


def test_what_is_shown_is_the_sinks_and_the_newest_tokens_beside_question_and_answer(make):
    llm, past = make(), tokens(70)
    prompt = Prompt(byte_tokenizer(), "Which?")
    (before, after), method = prompt.around_text(), Streaming(llm, 30)
    frame, sinks = len(after), [*before, *past.tolist()][:4]
    read = method.prepare_to_ask(past, prompt)
    assert method.shown(read, prompt, 5) == [*sinks, *past[70 - (25 - frame) :].tolist(), *after]
    assert method.shown(read, prompt, 30 - frame) == [*sinks, *after]
    assert method.shown(read, prompt, 31 - frame) == method.shown(read, prompt, 30 - frame), (
        "an answer rolls on for ever"
    )
    llm.model.generation_config.eos_token_id = None
    assert len(method.ask(read, prompt, 70)) == 70


def test_a_text_is_read_where_the_question_puts_it_and_again_only_for_another_place(make, monkeypatch):
    llm, past = make(), tokens(70)
    method, blocks = Streaming(llm, 200), []
    prompt, other = Prompt(byte_tokenizer(), "Which?"), Prompt(byte_tokenizer(), "Which?", before="Read this: ")
    llm.model.generation_config.eos_token_id = None
    read = method.prepare_to_ask(past, prompt)
    inside = llm.model.generate(torch.tensor([prompt.with_text(past)]), max_new_tokens=6, do_sample=False)[0, -6:]
    assert method.ask(read, prompt, 6).tolist() == inside.tolist()
    monkeypatch.setattr(
        Streaming, "_taken_in", lambda self, ids, before: blocks.append(before) or Read(ids, read.cache, before)
    )
    method.ask(read, prompt, 1)
    assert not blocks
    method.ask(read, other, 1)
    assert blocks == [tuple(other.around_text()[0])] and blocks[0] != ()
    assert method.shown(method.prepare(past[:0]), other, 1) == other.alone()


def test_memory_does_not_grow_with_the_text(make):
    method = Streaming(make(), 12)
    for length in (3, 15, 200):
        cache = method.prepare(tokens(length)).cache
        assert {x.shape[2] for pair in cache.kept.values() for x in pair} == {min(length, 15)}
        assert all(x.untyped_storage().nbytes() <= 15 * 2 * 8 * 4 for pair in cache.kept.values() for x in pair)
    assert method.positions(9) == 9 and method.positions(10**6) == 16


def test_wrong_settings_are_refused(make):
    method = Streaming(make(), 12)
    with pytest.raises(UsageError, match="sinks is -1"):
        Streaming(method.llm, 12, sinks=-1)
    with pytest.raises(UsageError, match="takes no num_beams"):
        method.generate(method.prepare(tokens(5)), tokens(5), 3, num_beams=2)
