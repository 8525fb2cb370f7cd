"""Where each model family keeps the parts this library touches: one `Family` an entry.

Adding a family is adding an entry here and a row to `tests/test_families.py`; CONTRIBUTING.md says how.
A family without an entry is tried by the names most families use (`guesses`) and then checked against its
own forward pass (`selfcheck`).

What needs no entry because the model's own code does it: the scale of embeddings, the MLP and its experts,
the final norm, sliding windows, and whether attention and MLP run one after the other or side by side.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from sharedllm.errors import UsageError


@dataclass(frozen=True)
class Family:
    """Attribute names of a family, and how its attention differs from Llama's, which is the default.

    Where several names are given, the first that a layer has is meant; optional parts may be missing in a model.
    """

    base: str = "model"
    """The decoder inside the causal language model; the next three are its attributes."""
    layers: str = "layers"
    rotary: str = "rotary_emb"
    final_norm: str = "norm"

    attention: str = "self_attn"
    """Attribute of a layer, as are the next three."""
    norms: tuple[str, ...] = ("input_layernorm",)
    """The norm in front of attention, of which the branch's own norm starts as a copy; none where there is none."""
    post_norm: str | None = None
    """The norm between attention and residual."""
    multiplier: str | None = None
    """The number that attention's output is multiplied by when it joins the residual."""

    query: str = "q_proj"
    """Attribute of attention, as are the next two."""
    output: str = "o_proj"
    query_norm: str | None = None
    query_norm_over: str = "head"
    """What that norm is given: each `head` [B, T, H, D], `heads first` [B, H, T, D], or the whole `projection`."""
    query_groups: Callable[[Any], int] | None = None
    """From the configuration: into how many equal groups of rows, each led by its queries, `query` is cut where it is
    fused with keys and values. 1: all queries lead; H: query, key and value of a head follow each other."""
    kv_heads: Callable[[Any], int] | None = None
    """From the configuration: heads that the cache is given, where not `num_key_value_heads`."""

    interleaved: bool = False
    """Whether rotary pairs are neighbours (0, 1), (2, 3) ... and not halves (0, R/2), (1, R/2 + 1) ..."""
    rotary_by_type: bool = False
    """Whether the rotary tables depend on `config.layer_types`."""
    rotates: str | None = None
    """Attribute of attention that says whether the layer rotates at all."""
    unless: str | None = None
    """Flag of the configuration under which a model has no rotary positions."""
    softcap: str | None = None
    """Attribute of attention with the cap c of its logits: c * tanh(logits / c)."""


LLAMA = Family()
PHI = Family(final_norm="final_layernorm", output="dense", query_norm="q_layernorm")
GEMMA2 = Family(post_norm="post_attention_layernorm", softcap="attn_logit_softcapping")
COHERE = Family(query_norm="q_norm", interleaved=True)

FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "ministral": LLAMA,
    "mixtral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": Family(query_norm="q_norm"),
    "qwen3_moe": Family(query_norm="q_norm"),
    "gemma": LLAMA,
    "gemma2": GEMMA2,
    "gemma3_text": Family(post_norm="post_attention_layernorm", query_norm="q_norm", rotary_by_type=True),
    "phi": PHI,
    "phi3": Family(query="qkv_proj", query_groups=lambda config: 1),
    "gpt_neox": Family(
        base="gpt_neox",
        final_norm="final_layer_norm",
        attention="attention",
        query="query_key_value",
        query_groups=lambda config: config.num_attention_heads,
        output="dense",
    ),
    "olmo2": Family(norms=(), post_norm="post_attention_layernorm", query_norm="q_norm", query_norm_over="projection"),
    "granite": Family(multiplier="residual_multiplier"),
    "stablelm": Family(query_norm="q_layernorm", query_norm_over="heads first"),
    "starcoder2": LLAMA,
    "cohere": COHERE,
    "cohere2": dataclasses.replace(COHERE, rotates="sliding_window"),
    "smollm3": Family(rotates="use_rope"),
    "falcon": Family(
        base="transformer",
        layers="h",
        final_norm="ln_f",
        attention="self_attention",
        norms=("ln_attn", "input_layernorm"),
        query="query_key_value",
        query_groups=lambda config: (
            config.num_kv_heads if config.new_decoder_architecture or not config.multi_query else 1
        ),
        kv_heads=lambda config: (
            1 if config.multi_query and not config.new_decoder_architecture else config.num_attention_heads
        ),
        output="dense",
        unless="alibi",
    ),
}


def decoder_of(model: Any, name: str) -> Any:
    """The decoder called `name` in a model; in one that takes images as well, the text model inside it.

    Raises:
        AttributeError: there is none.
    """
    base = attrgetter(name)(model)
    return getattr(base, "language_model", base)


def guesses(model: Any) -> list[Family]:
    """What a family without an entry may be, by the names of its parts; the likeliest first.

    Raises:
        UsageError: a part is not where it usually is; the sentence names it.
    """
    base_name = str(getattr(model, "base_model_prefix", ""))
    base = decoder_of(model, base_name) if getattr(model, base_name, None) is not None else None

    def find(where: Any, what: str, *names: str) -> str:
        for name in names:
            if getattr(where, name, None) is not None:
                return name
        raise UsageError(
            f"models of the family {model.config.get_text_config().model_type!r} have no entry in sharedllm/families.py, and this one has no "
            f"{what} where most have it ({' or '.join(names)}); CONTRIBUTING.md says how to add a family."
        )

    if base is None:
        find(model, "decoder", base_name or "model")
    rotary = find(base, "rotary embedding", "rotary_emb")
    layers = find(base, "layers", "layers", "h")
    layer = getattr(base, layers)[0]
    attention = find(layer, "attention", "self_attn", "attention", "self_attention", "attn")
    inside = getattr(layer, attention)
    query = find(inside, "query projection of its own", "q_proj")
    after = hasattr(layer, "pre_feedforward_layernorm") or not hasattr(layer, "input_layernorm")
    norm = getattr(inside, "q_norm", None)
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    whole = norm is not None and tuple(norm.weight.shape) == (config.num_attention_heads * size,)
    usual = Family(
        base=base_name,
        layers=layers,
        rotary=rotary,
        final_norm=find(base, "final norm", "norm", "final_layernorm", "final_norm", "ln_f"),
        attention=attention,
        norms=("input_layernorm",) if hasattr(layer, "input_layernorm") else (),
        post_norm="post_attention_layernorm" if after and hasattr(layer, "post_attention_layernorm") else None,
        multiplier="residual_multiplier" if hasattr(layer, "residual_multiplier") else None,
        query=query,
        output=find(inside, "output projection", "o_proj", "dense", "out_proj"),
        query_norm=None if norm is None else "q_norm",
        query_norm_over="projection" if whole else "head",
        rotates="use_rope" if hasattr(inside, "use_rope") else None,
        rotary_by_type=hasattr(getattr(base, rotary), "layer_types"),
    )
    capped = [dataclasses.replace(usual, softcap=name) for name in ("attn_logit_softcapping",) if hasattr(inside, name)]
    return [dataclasses.replace(f, interleaved=pairs) for f in (usual, *capped) for pairs in (False, True)]
