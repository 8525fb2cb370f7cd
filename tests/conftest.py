"""Small random models in fp32, and a byte tokenizer, for tests of logic."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from sharedllm import SharedConfig, SharedLLM

CONFIG = SharedConfig(injected_layers=3, chunk_length=16, tree_depth=2, slots_per_leaf=2, split_noise=0.1)


def pytest_configure() -> None:
    """One thread a worker where tests run side by side (`make test`): two programs of torch that take all cores each slow
    each other down many times."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that tests start
        torch.set_num_threads(1)


def tiny_model(**changes: Any) -> Any:
    """A random Llama of four layers with grouped keys; 300 tokens, a window of 64."""
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        bos_token_id=256,
        eos_token_id=257,
        pad_token_id=258,
        attn_implementation="sdpa",
    )
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**sizes, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():  # large enough that attention is far from uniform
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return model.float().eval()


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte (ids 0 to 255), and three special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<s>", "</s>", "<pad>"])
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def randomize(llm: SharedLLM) -> SharedLLM:
    """Give the adapter random weights, gates and null logits included."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in llm.injection.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return llm


def hooks(model: torch.nn.Module) -> list[Any]:
    """Every hook on every module of a model."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [h for m in model.modules() for kind in kinds for h in getattr(m, kind).values()]


@pytest.fixture
def make() -> Callable[..., SharedLLM]:
    """`make(random=True, model_changes..., config=...)`: a tiny SharedLLM with a random adapter."""

    def build(config: SharedConfig = CONFIG, random: bool = True, **changes: Any) -> SharedLLM:
        model = tiny_model(**changes)
        llm = SharedLLM.from_pretrained(model, adapter="none", config=config, tokenizer=byte_tokenizer())
        return randomize(llm) if random else llm

    return build


def tokens(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(seed))
