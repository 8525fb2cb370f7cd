"""`generate` past the window: the oldest part of what stands there is folded into a context, as in a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from sharedllm.context import Context
from sharedllm.errors import UsageError
from sharedllm.prompts import setting
from sharedllm.recall import Contexts
from sharedllm.relevance import check_mask

if TYPE_CHECKING:
    from sharedllm.model import SharedLLM

SETTINGS = {
    *("max_new_tokens", "max_length", "generation_config", "do_sample", "temperature", "top_k", "top_p", "min_p"),
    *(
        "typical_p",
        "repetition_penalty",
        "suppress_tokens",
        "bad_words_ids",
        "eos_token_id",
        "pad_token_id",
        "use_cache",
    ),
}
"""Of Hugging Face's `generate`, what means the same for a text that is written a window at a time; `repetition_penalty` alone
does not know what has left the window."""

IDLE = {
    "num_beams": 1,
    "num_return_sequences": 1,
    "early_stopping": False,
    "length_penalty": 1.0,
    **dict.fromkeys(("min_length", "no_repeat_ngram_size"), 0),
    **dict.fromkeys(("return_dict_in_generate", "output_scores", "output_logits"), False),
    **dict.fromkeys(("output_attentions", "output_hidden_states"), False),
}
"""Of what else there is the values that ask for nothing."""

TOLD = ("bos_token_id", "transformers_version")
"""What a configuration says beside."""

DEFAULT_NEW_TOKENS = 20
"""That `generate` writes where nothing says how many."""


def goes_past(llm: SharedLLM, tokens: int, kwargs: dict[str, Any]) -> bool:
    """Whether prompts of `tokens` and the longest answer that `kwargs` ask for are more than the model's window."""
    return tokens + new_tokens(llm.model, tokens, kwargs) > llm.window


def new_tokens(model: Any, tokens: int, kwargs: dict[str, Any]) -> int:
    """How many tokens Hugging Face's `generate` writes at most behind a prompt of `tokens`."""
    if (most := setting(model, "max_new_tokens", kwargs)) is not None:
        return int(most)
    if (longest := setting(model, "max_length", kwargs)) is not None:
        return max(0, int(longest) - tokens)
    return DEFAULT_NEW_TOKENS


def generated(
    llm: SharedLLM,
    input_ids: Tensor,
    contexts: Contexts,
    attention_mask: Tensor,
    search: str,
    question_mask: Tensor | None,
    kwargs: dict[str, Any],
) -> Tensor:
    """As `SharedLLM.generate`, where `goes_past`: [1, T + new].

    Raises:
        UsageError: there are several rows, or an argument that needs the whole text in one window.
    """
    from sharedllm.session import Session  # which needs the model

    most = new_tokens(llm.model, input_ids.shape[1], kwargs)
    if most < 1:
        raise UsageError(
            f"the prompt has {input_ids.shape[1]:,} tokens, and max_new_tokens or max_length leaves none for an answer; "
            "set max_new_tokens to at least 1."
        )
    much = f"prompt and answer have {input_ids.shape[1] + most:,} tokens and the model's window {llm.window:,}"
    if len(input_ids) > 1:
        raise UsageError(f"{much}; past it one row is written at a time: give them one by one, or ask for less.")
    asked = {**_configured(kwargs.get("generation_config")), **{n: v for n, v in kwargs.items() if v is not None}}
    others = [n for n, value in asked.items() if n not in SETTINGS and not (n in IDLE and value == IDLE[n])]
    if others or search not in ("query", "continue"):
        raise UsageError(f"{much}; past it there is no {(others or ['search'])[0]}: leave it out, or ask for less.")
    check_mask(input_ids, attention_mask)
    kwargs = {name: value for name, value in kwargs.items() if name not in ("max_new_tokens", "max_length")}
    real = attention_mask[0].bool()
    asking = None if question_mask is None else question_mask.to(real.device)[0].bool()[real]
    context = contexts if contexts is None or isinstance(contexts, Context) else contexts[0]
    new = Session(llm, context).go_on(input_ids[0][real].tolist(), most, asking, search, **kwargs)
    return torch.cat([input_ids, input_ids.new_tensor([new])], dim=1)


def _configured(config: GenerationConfig | None) -> dict[str, Any]:
    """What a configuration of a call says beyond Hugging Face's defaults, as if it were said among the arguments."""
    usual = vars(GenerationConfig())
    said = {} if config is None else vars(config)
    return {n: v for n, v in said.items() if n[0] != "_" and n not in TOLD and v is not None and v != usual.get(n)}
