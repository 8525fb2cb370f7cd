"""Counted memory against what the tensors of a run hold at most, and what happens where it is not there."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sharedllm import SharedConfig, SharedLLM
from sharedllm.evaluate import needle, perplexity
from sharedllm.methods import METHODS, Method, create
from sharedllm.methods.estimate import cache_bytes, mlp_width
from sharedllm.prompts import Prompt
from tests.conftest import CONFIG, byte_tokenizer, tokens
from tests.test_families import family_model


class Peak(TorchDispatchMode):
    """Most bytes that tensors made within this block held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.most, self.known = 0, 0, set[int]()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = function(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                if storage._cdata not in before | self.known:
                    self.known.add(storage._cdata)
                    self.held += storage.nbytes()
                    weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.held)
        return out

    def gone(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.held -= size


SIZES = dict(hidden_size=48, intermediate_size=128, num_attention_heads=6, num_key_value_heads=2, vocab_size=2000)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scored", [0, 300])
def test_what_is_counted_is_what_is_held(make, name, scored):
    config = SharedConfig(injected_layers=3, chunk_length=256, fine_chunks=1, read_chunks=2, rank=4)
    llm, ids = make(config, max_position_embeddings=512, eos_token_id=None, **SIZES), tokens(1500)
    method, prompt = create(name, llm, 301), Prompt(llm.tokenizer, "Where is it? " * 10)
    method.score(method.prepare(ids[:300]), ids[:50], 10)  # what is made once
    with Peak() as peak:
        if scored:
            method.score(method.prepare(ids[:-301]), ids[-301:], scored)
        else:
            text = ids[: 1500 - len(prompt.alone()) - 2]
            method.ask(method.prepare_to_ask(text, prompt), prompt, 2)
    assert 0.8 < method.peak_bytes(1500, scored) / peak.most < 1.6


def test_the_cache_that_full_keeps_of_a_text_is_counted_beside_that_of_the_answer(make):
    """In a deep model, where caches are most of it; `dynamic-ntk` keeps none."""
    llm, ids = make(num_hidden_layers=32, eos_token_id=None), tokens(300)
    prompt = Prompt(llm.tokenizer, "Where?")
    for name in ("full", "yarn", "dynamic-ntk"):
        method = create(name, llm, 16)
        method.ask(method.prepare_to_ask(ids[:9], prompt), prompt, 2)
        with Peak() as peak:
            method.ask(method.prepare_to_ask(ids, prompt), prompt, 2)
        assert 0.9 < method.peak_bytes(300 + len(prompt.alone()) + 2) / peak.most < 1.3
    assert create("full", llm, 16).peak_bytes(300) - method.peak_bytes(300) == cache_bytes(llm, 300)
    assert create("full", llm, 16).peak_bytes(300, 5) == method.peak_bytes(300, 5), "scored tokens leave none"


class Small(Method):
    """Reads nothing; takes as many bytes as there are tokens."""

    name = "small"

    def prepare(self, past):
        return None

    def score(self, past, window, targets):
        return torch.ones(targets)

    def generate(self, past, window, max_new_tokens, **kwargs):
        raise NotImplementedError

    def shown(self, past, prompt, max_new_tokens):
        raise NotImplementedError

    def peak_bytes(self, tokens, scored=0):
        return tokens


def test_what_does_not_fit_into_memory_gives_a_row_that_says_so(make):
    llm = make()
    methods = [Small(llm, 8), create("truncate", llm, 8)]
    passages = perplexity.cut_passages([("a.txt", tokens(200))], 100, 2)
    rows = list(perplexity.run(methods, passages, [40, 100], 6, 0, lambda line: None, free=60))
    by = {(r["method"], r["length"], r["metric"]): r for r in rows}
    assert by["small", 40, "nll"]["value"] == 1.0 and "reason" not in by["small", 40, "nll"]
    for key in (("small", 100, "nll"), ("truncate", 40, "nll")):
        assert by[key]["value"] is None and by[key]["samples"] == 0 and "GB of memory" in by[key]["reason"]
    assert not any(metric == "nll_gain_over_truncate" for _, _, metric in by)


def test_an_untrained_encoder_decoder_is_measured_for_no_quality(make):
    llm = make()
    methods = [create(name, llm, 100) for name in ("encoder-decoder", "truncate", "full")]
    passages = perplexity.cut_passages([("a.txt", tokens(200))], 100, 2)
    rows = list(perplexity.run(methods, passages, [100], 6, 0, lambda line: None))
    assert rows[0]["method"] == "encoder-decoder" and rows[0]["trained"] is False
    assert rows[0]["value"] is None and "untrained" in rows[0]["reason"]
    assert [r["method"] for r in rows[1:]] == ["truncate", "full", "full"]
    assert [r["beyond_window"] for r in rows[1:3]] == [True, True]
    made = needle.build_haystacks([("a.txt", tokens(900))], 600, 2, 2, 0, encode)
    (row,) = needle.run(llm, methods[:1], len(made[0].ids), made, 4, 0, lambda line: None)
    assert (row["task"], row["length"], row["value"]) == ("needle", 600, None) and "untrained" in row["reason"]


def encode(text):
    return torch.tensor(byte_tokenizer()(text, add_special_tokens=False)["input_ids"])


def test_a_family_that_names_the_width_of_its_mlp_otherwise_has_its_memory_counted():
    model = family_model("falcon")
    model.config.__dict__.pop("intermediate_size", None)  # which the small model was made with, and real ones have not
    method = create("full", SharedLLM.from_pretrained(model, adapter="none", config=CONFIG), 16)
    assert method.peak_bytes(1000, 10) > method.peak_bytes(100, 10) > 0


def test_the_width_of_an_mlp_is_what_the_configuration_says():
    assert mlp_width(SimpleNamespace(hidden_size=8, intermediate_size=20)) == 20
    assert mlp_width(SimpleNamespace(hidden_size=8, ffn_hidden_size=30)) == 30
    assert mlp_width(SimpleNamespace(hidden_size=8, n_inner=None)) == 32


def test_a_model_that_takes_images_is_counted_by_its_text_model(make):
    llm = make()
    method, text = create("full", llm, 16), create("yarn", llm, 16)
    expected = method.peak_bytes(100, 10)
    llm.model.config = SimpleNamespace(
        get_text_config=lambda: llm.parts.config
    )  # as such a model's: no sizes of its own
    assert method.peak_bytes(100, 10) == expected
    assert create("yarn", llm, 16).settings() == text.settings()
    with text.scaled(100):
        assert llm.parts.base.rotary_emb is not llm.parts.rotary
    assert llm.parts.base.rotary_emb is llm.parts.rotary
