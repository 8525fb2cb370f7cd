"""`generate` past the window: the oldest part of what stands there is folded into a context, as in a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sharedllm.context import Context
from sharedllm.errors import UsageError
from sharedllm.recall import Contexts

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

DEFAULT_NEW_TOKENS = 20
"""That `generate` writes where nothing says how many."""


def goes_past(llm: SharedLLM, tokens: int, kwargs: dict[str, Any]) -> bool:
    """Whether prompts of `tokens` and the longest answer that `kwargs` ask for are more than the model's window."""
    return tokens + new_tokens(llm.model, tokens, kwargs) > llm.window


def new_tokens(model: Any, tokens: int, kwargs: dict[str, Any]) -> int:
    """How many tokens Hugging Face's `generate` writes at most behind a prompt of `tokens`."""
    if (most := _setting(model, "max_new_tokens", kwargs)) is not None:
        return most
    if (longest := _setting(model, "max_length", kwargs)) is not None:
        return max(0, longest - tokens)
    return DEFAULT_NEW_TOKENS


def _setting(model: Any, name: str, kwargs: dict[str, Any]) -> int | None:
    """A length as `generate` finds it: in the call, in the configuration of the call, in the model's own."""
    said = (kwargs, vars(kwargs.get("generation_config") or object), vars(model.generation_config))
    return next((int(value) for where in said if (value := where.get(name)) is not None), None)


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
    others = [name for name, value in kwargs.items() if name not in SETTINGS and value is not None]
    config = kwargs.get("generation_config")
    others += [n for n in ("num_beams", "num_return_sequences") if (getattr(config, n, None) or 1) > 1]
    if others or search != "query":
        raise UsageError(f"{much}; past it there is no {(others or ['search'])[0]}: leave it out, or ask for less.")
    kwargs = {name: value for name, value in kwargs.items() if name not in ("max_new_tokens", "max_length")}
    real, asking = attention_mask[0].bool(), None
    if question_mask is not None:
        at = question_mask.to(real.device)[0].bool()[real].nonzero().flatten()
        asking = (int(at[0]), int(at[-1]) + 1) if len(at) else None
    context = contexts if contexts is None or isinstance(contexts, Context) else contexts[0]
    new = Session(llm, context).go_on(input_ids[0][real].tolist(), most, asking, **kwargs)
    return torch.cat([input_ids, input_ids.new_tensor([new])], dim=1)
