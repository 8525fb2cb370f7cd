"""One decoder layer said plainly, for every family: a token and a head at a time, straight from the model's modules.

Part of the naive twin: it knows nothing of `families.py`, so that a wrong entry there shows. Norms, MLPs and linear
maps are the model's own modules; everything between them is written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Branch = Callable[[Tensor, int], Tensor]
INTERLEAVED = ("cohere", "cohere2")
POST_NORM = ("gemma2", "gemma3_text", "olmo2")
NO_PRE_NORM = ("olmo2",)


def decoder(model: Any) -> Any:
    return getattr(model, {"gpt_neox": "gpt_neox", "falcon": "transformer"}.get(model.config.model_type, "model"))


def layers(model: Any) -> Any:
    return decoder(model).h if model.config.model_type == "falcon" else decoder(model).layers


def attention_of(layer: Any) -> Any:
    return next(getattr(layer, n) for n in ("self_attn", "attention", "self_attention") if hasattr(layer, n))


def head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def key_heads(config: Any) -> int:
    """How many heads of keys a token has."""
    if config.model_type == "falcon":
        return 1 if config.multi_query and not config.new_decoder_architecture else config.num_attention_heads
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def embed(model: Any, ids: Any) -> list[Tensor]:
    return [
        model.get_input_embeddings()(torch.tensor(i)) * getattr(model.config, "embedding_multiplier", 1) for i in ids
    ]


def logits_of(model: Any, hidden: list[Tensor]) -> Tensor:
    """[T, V] of hidden states after the last layer."""
    base, config = decoder(model), model.config
    norm = next(getattr(base, n) for n in ("norm", "final_layernorm", "final_layer_norm", "ln_f") if hasattr(base, n))
    logits = model.lm_head(torch.stack([norm(h) for h in hidden]))
    logits = logits / getattr(config, "logits_scaling", 1) * getattr(config, "logit_scale", 1)
    cap = getattr(config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def norm_before(model: Any, j: int, h: Tensor) -> Tensor:
    """What attention of layer j is given of a hidden state."""
    if model.config.model_type in NO_PRE_NORM:
        return h
    layer = layers(model)[j]
    return layer.ln_attn(h) if hasattr(layer, "ln_attn") else layer.input_layernorm(h)


def run_layer(
    model: Any, j: int, hidden: list[Tensor], branch: Branch | None = None
) -> tuple[list[Tensor], list[Any], list[Any]]:
    """Layer j over all tokens, a branch added to what attention gives; also its unrotated keys and values, [head][token]."""
    attended, keys, values = self_attention(model, j, [norm_before(model, j, h) for h in hidden])
    middle = [join(model, j, h, a) for h, a in zip(hidden, attended, strict=True)]
    if branch is not None:
        attended = [a + branch(m, t) for t, (a, m) in enumerate(zip(attended, middle, strict=True))]
        middle = [join(model, j, h, a) for h, a in zip(hidden, attended, strict=True)]
    return [feed_forward(model, j, h, m) for h, m in zip(hidden, middle, strict=True)], keys, values


def join(model: Any, j: int, h: Tensor, attended: Tensor) -> Tensor:
    """The residual with attention's output."""
    if model.config.model_type in POST_NORM:
        attended = layers(model)[j].post_attention_layernorm(attended)
    return h + attended * getattr(model.config, "residual_multiplier", 1)


def feed_forward(model: Any, j: int, before: Tensor, middle: Tensor) -> Tensor:
    """The layer's output, from the residual before attention and after it."""
    layer, config = layers(model)[j], model.config
    kind = config.model_type

    def mlp(x: Tensor) -> Tensor:
        return layer.mlp(x[None, None])[0, 0]

    if kind in ("phi", *INTERLEAVED) or (kind == "stablelm" and config.use_parallel_residual):
        return middle + mlp(layer.input_layernorm(before))
    if kind == "gpt_neox" and config.use_parallel_residual:
        return middle + mlp(layer.post_attention_layernorm(before))
    if kind == "falcon" and hasattr(layer, "ln_mlp"):
        return middle + mlp(layer.ln_mlp(before))
    if kind == "falcon" and (config.parallel_attn or config.new_decoder_architecture):
        return middle + mlp(layer.input_layernorm(before))
    if kind in ("gemma2", "gemma3_text"):
        return middle + layer.post_feedforward_layernorm(mlp(layer.pre_feedforward_layernorm(middle)))
    if kind == "olmo2":
        return middle + layer.post_feedforward_layernorm(mlp(middle))
    return middle + mlp(layer.post_attention_layernorm(middle)) * getattr(config, "residual_multiplier", 1)


def self_attention(model: Any, j: int, normed: list[Tensor]) -> tuple[list[Tensor], list[Any], list[Any]]:
    """Layer j's causal self-attention; also its unrotated keys and values, [head][token]."""
    config, attention = model.config, attention_of(layers(model)[j])
    H, K = config.num_attention_heads, key_heads(config)
    per_token = [project(config, attention, x) for x in normed]
    queries, keys, values = (
        [[token[i][h] for token in per_token] for h in range(n)] for i, n in ((0, H), (1, K), (2, K))
    )
    window = sliding_window(config, j)
    output = attention.o_proj if hasattr(attention, "o_proj") else attention.dense
    out = []
    for t in range(len(normed)):
        past = range(max(0, t + 1 - window), t + 1)
        mixed = []
        for h in range(H):
            k, v = keys[h // (H // K)], values[h // (H // K)]
            logits = [score(config, turn(model, j, queries[h][t], t), turn(model, j, k[s], s)) for s in past]
            mixed.append(mix(torch.stack(logits).softmax(0), [v[s] for s in past]))
        out.append(output(torch.cat(mixed)))
    return out, keys, values


def project(config: Any, attention: Any, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """A token's queries, keys and values, a vector a head, normed but not rotated."""
    D, H, K = head_dim(config), config.num_attention_heads, key_heads(config)
    kind = config.model_type
    if kind == "phi3":
        heads = attention.qkv_proj(x).split(D)
        return list(heads[:H]), list(heads[H : H + K]), list(heads[H + K :])
    if (
        kind == "falcon" and config.new_decoder_architecture
    ):  # [q, ..., q, k, v] a group; each query has a key of its own
        heads, group = attention.query_key_value(x).split(D), H // config.num_kv_heads
        groups = [heads[g * (group + 2) : (g + 1) * (group + 2)] for g in range(config.num_kv_heads)]
        queries = [q for g in groups for q in g[:group]]
        return queries, [g[-2] for g in groups for _ in range(group)], [g[-1] for g in groups for _ in range(group)]
    if kind == "falcon" and config.multi_query:
        heads = attention.query_key_value(x).split(D)
        return list(heads[:H]), [heads[H]], [heads[H + 1]]
    if kind in ("gpt_neox", "falcon"):  # [q, k, v] a head
        heads = attention.query_key_value(x).split(D)
        return list(heads[0::3]), list(heads[1::3]), list(heads[2::3])
    queries, keys = (
        norm_heads(config, norm, projection(x))
        for norm, projection in (
            (getattr(attention, "q_norm", getattr(attention, "q_layernorm", None)), attention.q_proj),
            (getattr(attention, "k_norm", getattr(attention, "k_layernorm", None)), attention.k_proj),
        )
    )
    return queries, keys, list(attention.v_proj(x).split(D))


def norm_heads(config: Any, norm: Any, x: Tensor) -> list[Tensor]:
    """A projection cut into heads, and its norm: of all at once, of each by its own, or of each by the same."""
    D, kind = head_dim(config), config.model_type
    if norm is None:
        return list(x.split(D))
    if kind == "olmo2":
        return list(norm(x).split(D))
    if kind == "stablelm":
        return [own(head) for own, head in zip(norm.norms, x.split(D), strict=True)]
    if kind == "cohere":
        return list(norm(x.view(-1, D)))
    return [norm(head) for head in x.split(D)]


def score(config: Any, query: Tensor, key: Tensor, prior: float = 0.0) -> Tensor:
    """The logit of one key, to which `prior` is added before it is capped."""
    scale = getattr(config, "query_pre_attn_scalar", None)
    factor = 1 / math.sqrt(head_dim(config) if scale is None else scale)
    logit = query @ key * getattr(config, "attention_multiplier", factor) + prior
    cap = config.attn_logit_softcapping if config.model_type == "gemma2" else None
    return logit if cap is None else cap * torch.tanh(logit / cap)


def sliding_window(config: Any, j: int) -> int:
    """How many tokens back, itself included, a token sees in layer j."""
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if window is None or (kinds is not None and kinds[j] != "sliding_attention"):
        return 10**9
    return window


def turn(model: Any, j: int, x: Tensor, position: Any) -> Tensor:
    """Rotary embedding of one head's vector: pair i turns by position times frequency i, and grows by the scale that longer
    windows bring; what is past the pairs stays."""
    config, rotary = model.config, decoder(model).rotary_emb
    if config.model_type == "smollm3" and not config.no_rope_layers[j]:
        return x
    if config.model_type == "cohere2" and config.layer_types[j] != "sliding_attention":
        return x
    if config.model_type == "gemma3_text":
        kind = config.layer_types[j]
        frequencies, scale = getattr(rotary, f"{kind}_inv_freq"), getattr(rotary, f"{kind}_attention_scaling")
    else:
        frequencies, scale = rotary.inv_freq, rotary.attention_scaling
    R = 2 * len(frequencies)
    angles = position * frequencies
    a, b = (x[0:R:2], x[1:R:2]) if config.model_type in INTERLEAVED else (x[: R // 2], x[R // 2 : R])
    a, b = a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()
    turned = torch.stack([a, b], dim=1).flatten() if config.model_type in INTERLEAVED else torch.cat([a, b])
    return torch.cat([turned * scale, x[R:]])


def mix(shares: Tensor, values: list[Tensor]) -> Tensor:
    return sum((s * v for s, v in zip(shares, values, strict=True)), torch.zeros_like(values[0]))
