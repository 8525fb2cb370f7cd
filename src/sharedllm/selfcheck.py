"""Whether a model's parts are what its family's entry, or a guess, takes them for.

A few tokens run through the lowest layers. For each, the parts must say what the layer did: its norm gives what
attention was given; queries made by `Parts`, against the keys the layer cached, give what attention gave; and the
joined state is what the rest of the layer goes on with.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from sharedllm.architectures import Parts, rotate
from sharedllm.config import SharedConfig
from sharedllm.encoder import evaluating
from sharedllm.errors import UsageError
from sharedllm.families import guesses
from sharedllm.loading import loses_cap
from sharedllm.weights import without_peft

TOKENS = 4  # fewer than any sliding window
ODD = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What code that was written for other parts or another cache may raise."""


def parts_for(model: Any, config: SharedConfig) -> Parts:
    """The parts of a model that some settings are for.

    Raises:
        UsageError: as `checked_parts`; or the model is too small for the settings.
    """
    parts = checked_parts(model, config.injected_layers)
    layers, rows, columns = len(parts.layers), parts.heads * parts.head_dim, parts.hidden_size
    if not 2 <= layers or config.injected_layers > layers:
        raise UsageError(
            f"injected_layers is {config.injected_layers}, but the model has {layers} layers; "
            "use at most that many, and a model of at least two."
        )
    if config.rank > min(rows, columns):
        raise UsageError(
            f"rank is {config.rank}, but a projection of this model is {rows} by {columns}; "
            f"use {min(rows, columns)} at most, or 0."
        )
    if config.chunk_length > parts.window:
        raise UsageError(
            f"chunk_length is {config.chunk_length} tokens, more than the {parts.window} positions of the model; lower it, or "
            "take a model with more."
        )
    return parts


def checked_parts(model: Any, layers: int) -> Parts:
    """The parts of a model; of a family without an entry, by the first guess that its lowest layers confirm.

    Raises:
        UsageError: no guess is right, and the sentence says what differs; or the model was loaded with an attention that leaves
            out what it was trained with.
    """
    model = without_peft(model)
    parts = Parts(model)
    if loses_cap(model):  # which a few tokens need not show
        raise UsageError(
            "this model caps the logits of its attention, and torch's fused attention does not; load it with "
            "attn_implementation='eager'."
        )
    if parts.known:
        return parts
    wrong = ""
    for family in guesses(model):
        parts = Parts(model, family)
        found = difference(parts, min(layers, len(parts.layers)))
        if found is None:
            return parts
        wrong = wrong or found
    raise UsageError(
        f"models of the family {parts.model_type!r} have no entry in sharedllm/families.py, and this one is not like most: "
        f"{wrong}; CONTRIBUTING.md says how to add a family."
    )


@torch.no_grad()
def difference(parts: Parts, layers: int) -> str | None:
    """What in the lowest layers is not as `parts` says, in a few words; None where all is.

    A model in training is looked at as it is out of it, and left as it was.
    """
    with evaluating(parts.base):
        return _difference(parts, layers)


def _difference(parts: Parts, layers: int) -> str | None:
    seen = [_Seen(parts, layer) for layer in range(layers)]
    cache = DynamicCache()
    try:
        ids = torch.arange(TOKENS, device=parts.device)[None] % parts.vocab_size
        parts.base(input_ids=ids, past_key_values=cache, use_cache=True)
    except ODD as error:
        return f"its forward pass does not take the usual cache ({type(error).__name__}: {error})"
    finally:
        for layer in seen:
            layer.remove()
    for number, layer in enumerate(seen):
        try:
            wrong = layer.difference(cache)
        except ODD as error:
            wrong = f"its parts do not fit together ({type(error).__name__}: {error})"
        if wrong:
            return f"in layer {number} {wrong}"
    return None


class _Seen:
    """What went into and came out of a layer, its attention and its other children."""

    def __init__(self, parts: Parts, number: int) -> None:
        self.parts, self.number = parts, number
        self.given: dict[nn.Module, Tensor] = {}
        self.gave: dict[nn.Module, Tensor] = {}
        self.layer = parts.layers[number]
        self.handles = [
            module.register_forward_hook(self._note, with_kwargs=True)
            for module in (self.layer, *self.layer.children())
        ]

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        given = args[0] if args else kwargs.get("hidden_states")
        gave = output[0] if isinstance(output, tuple) else output
        if isinstance(given, Tensor) and isinstance(gave, Tensor):
            self.given[module], self.gave[module] = given.clone(), gave.clone()  # some layers add in place

    def remove(self) -> None:
        for handle in self.handles:
            handle.remove()

    def difference(self, cache: Any) -> str | None:
        parts, number = self.parts, self.number
        attention = parts.attention(number)
        residual, given, gave = self.given[self.layer], self.given[attention], self.gave[attention]
        if not near(parts.norm(number)(residual), given):
            return f"attention is not given what {' or '.join(parts.family.norms) or 'the layer'} gives"
        keys, values = cache.layers[number].keys, cache.layers[number].values
        expected = (1, parts.kv_heads, TOKENS, parts.head_dim)
        if tuple(keys.shape) != expected or tuple(values.shape) != expected:
            return f"cached keys and values are {list(keys.shape)} and {list(values.shape)}, not {list(expected)}"
        if not near(self._attended(given, keys, values), gave):
            return "attention over the cached keys does not give what the layer's own attention gave"
        joined = parts.joined(number, residual, gave)
        others = [child for child in self.layer.children() if child in self.given]
        after = any(near(joined, self.given[child]) for child in others)
        beside = any(near(joined + self.gave[child], self.gave[self.layer]) for child in others)
        return None if after or beside else "attention's output joins the residual in another way"

    def _attended(self, given: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """The layer's self-attention as the branch would compute it, from its input and cached keys and values."""
        parts, number = self.parts, self.number
        query = parts.projected(number, given)
        cos, sin = parts.cos_sin(torch.arange(TOKENS, device=given.device), number)
        query = rotate(parts.query_heads(query, parts.query_norm(number)).transpose(1, 2), cos, sin).float()
        keys, values = (x.float().repeat_interleave(parts.heads // parts.kv_heads, dim=1) for x in (keys, values))
        logits = query @ parts.half_split(keys).transpose(2, 3) * parts.scaling(number)
        if cap := parts.softcap(number):
            logits = cap * torch.tanh(logits / cap)
        future = torch.ones(TOKENS, TOKENS, dtype=torch.bool, device=given.device).triu(1)
        mixed = logits.masked_fill(future, -torch.inf).softmax(dim=3) @ values
        return getattr(parts.attention(number), parts.family.output)(mixed.transpose(1, 2).flatten(2).to(given))


def near(a: Tensor, b: Tensor) -> bool:
    """Equal up to the rounding of `b`'s dtype, by the norm of the difference as a share of the norm of `b`."""
    if a.shape != b.shape:
        return False
    a, bound = a.to(b.device).float(), 4 * max(torch.finfo(b.dtype).eps, 1e-6)
    return bool((a - b.float()).norm() <= bound * b.float().norm())
