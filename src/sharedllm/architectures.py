"""The parts of an actual model, read through its family's entry in `families.py`.

`Parts` is all that the rest of the library knows about a model. Keys and queries of families whose rotary
pairs are neighbours are put in half-split order on both sides, which leaves every product of the two as it
was: so there is one `rotate` for all.

Shapes: H query heads, K key/value heads, D head dimension, E hidden size, R rotated dimensions.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from sharedllm.errors import UsageError
from sharedllm.families import FAMILIES, Family, decoder_of, guesses
from sharedllm.weights import device_of, linear_weights, normed, without_peft


class Parts:
    """The parts of one loaded decoder model.

    Args:
        family: how to read it; None for the entry of `families.py`, or the likeliest guess.
    Raises:
        UsageError: a part is missing, or the model has no rotary positions.
    """

    def __init__(self, model: Any, family: Family | None = None) -> None:
        model = without_peft(model)
        config: Any = model.config.get_text_config()  # the same, but in a model that takes images as well
        self.config = config
        self.model_type: str = config.model_type
        self.known = self.model_type in FAMILIES
        self.family = family = family or FAMILIES.get(self.model_type) or guesses(model)[0]
        if family.unless and getattr(config, family.unless, False):
            raise UsageError(
                f"this {self.model_type} model has no rotary positions ({family.unless} is set); use another."
            )
        try:
            self.base: Any = decoder_of(model, family.base)
            self.layers: nn.ModuleList = attrgetter(family.layers)(self.base)
            self.rotary: Any = attrgetter(family.rotary)(self.base)
        except AttributeError as error:
            raise UsageError(
                f"this {self.model_type} model is not put together as others of its family are ({error}); use another."
            ) from error
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.heads: int = config.num_attention_heads
        grouped = family.kv_heads(config) if family.kv_heads else getattr(config, "num_key_value_heads", None)
        self.kv_heads: int = grouped or self.heads
        self.head_dim: int = getattr(config, "head_dim", None) or self.hidden_size // self.heads
        self.window: int = config.max_position_embeddings
        self.embedding: Any = without_peft(self.base.get_input_embeddings())

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where token ids go in."""
        return device_of(self.embedding)

    def attention(self, layer: int) -> nn.Module:
        """The module whose output the branch is added to, before a post-norm or a multiplier."""
        return getattr(self.layers[layer], self.family.attention)

    def norm(self, layer: int) -> nn.Module:
        for name in self.family.norms:
            if hasattr(self.layers[layer], name):
                return getattr(self.layers[layer], name)
        return nn.Identity()

    def joined(self, layer: int, residual: Tensor, attended: Tensor) -> Tensor:
        """The hidden state after attention's output has joined the residual, where attention is."""
        family, module = self.family, self.layers[layer]
        residual = residual.to(attended.device)
        if family.post_norm:
            attended = getattr(module, family.post_norm)(attended)
        if family.multiplier:
            attended = attended * getattr(module, family.multiplier)
        return residual + attended

    def device_of(self, layer: int) -> torch.device:
        """Where a layer computes."""
        return device_of(getattr(self.attention(layer), self.family.output))

    def query_norm(self, layer: int) -> nn.Module | None:
        name = self.family.query_norm
        return getattr(self.attention(layer), name, None) if name else None

    def query_heads(self, query: Tensor, norm: nn.Module | None) -> Tensor:
        """Projected queries [B, T, H * D] as heads [B, T, H, D], normed as the family does, in half-split order."""
        dtype, over = query.dtype, self.family.query_norm_over
        if norm is not None and over == "projection":
            query = normed(norm, query)
        query = query.unflatten(-1, (self.heads, self.head_dim))
        if norm is not None and over == "heads first":
            query = normed(norm, query.transpose(1, 2)).transpose(1, 2)
        elif norm is not None and over == "head":
            query = normed(norm, query)
        return self.half_split(query.to(dtype))

    def scaling(self, layer: int) -> float:
        """What the layer's attention multiplies its logits by."""
        return float(getattr(self.attention(layer), "scaling", self.head_dim**-0.5))

    def softcap(self, layer: int) -> float | None:
        """The cap c of the layer's logits, c * tanh(logits / c), or None."""
        name = self.family.softcap
        return getattr(self.attention(layer), name, None) if name else None

    def query_weights(self, layer: int) -> tuple[Tensor, Tensor | None]:
        """Weight [H * D, E] and bias of the layer's query projection."""
        weight, bias = self._linear(layer, self.family.query, self.hidden_size)
        return self._leading(weight, 0), None if bias is None else self._leading(bias, 0)

    def projected(self, layer: int, given: Tensor) -> Tensor:
        """Queries [..., H * D] as the layer itself makes them of what its attention is given, a LoRA's share included."""
        return self._leading(getattr(self.attention(layer), self.family.query)(given), -1)

    def _leading(self, x: Tensor, dim: int) -> Tensor:
        """What of the query projection's outputs, along `dim`, is queries: all, but where it is fused with others."""
        if self.family.query_groups is None:
            return x
        groups, rows = self.family.query_groups(self.config), self.heads * self.head_dim
        x = x.movedim(dim, 0).unflatten(0, (groups, -1))[:, : rows // groups]
        return x.flatten(0, 1).movedim(0, dim)

    def output_weights(self, layer: int) -> Tensor:
        """Weight [E, H * D] of the layer's output projection; its bias is no part of the branch."""
        return self._linear(layer, self.family.output, self.heads * self.head_dim)[0]

    def _linear(self, layer: int, name: str, width: int) -> tuple[Tensor, Tensor | None]:
        module = getattr(self.attention(layer), name)
        try:
            return linear_weights(module, width, self.dtype)
        except UsageError:
            raise
        except (RuntimeError, ValueError, TypeError, AttributeError, ImportError) as error:
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UsageError(
                f"the weights of {name} in layer {layer} ({type(module).__name__}) cannot be read here ({first[:200]}); "
                "put the model on the device its quantisation is made for, or load it without."
            ) from error

    def cos_sin(self, positions: Tensor, layer: int = 0) -> tuple[Tensor, Tensor]:
        """The layer's rotary tables in fp32, half-split, for positions of any shape: [..., R]; R is 0 without rotation."""
        kind = self.rotary_kind(layer)
        if kind is None:
            return (torch.empty(*positions.shape, 0, device=positions.device),) * 2
        flat = positions.reshape(1, -1)
        with torch.autocast(device_type=positions.device.type, enabled=False):
            like = torch.empty(0, dtype=torch.float32, device=positions.device)
            # By `forward`, so that the hook that waits for the model's own calls does not hear of it.
            tables = self.rotary.forward(like, flat, kind) if kind else self.rotary.forward(like, flat)
        cos, sin = (t.reshape(*positions.shape, t.shape[-1]).float().to(positions.device) for t in tables)
        if self.family.interleaved and torch.equal(
            cos[..., ::2], cos[..., 1::2]
        ):  # some tables come half-split already
            cos, sin = self.half_split(cos), self.half_split(sin)
        return cos, sin

    def tables(self, positions: Tensor, layers: int) -> list[tuple[Tensor, Tensor]]:
        """`cos_sin` of each of the lowest layers; layers of a kind share their tables."""
        kinds: dict[str | None, tuple[Tensor, Tensor]] = {}
        for layer in range(layers):
            if (kind := self.rotary_kind(layer)) not in kinds:
                kinds[kind] = self.cos_sin(positions, layer)
        return [kinds[self.rotary_kind(layer)] for layer in range(layers)]

    def rotary_kind(self, layer: int) -> str | None:
        """Which tables a layer uses: None for none, a layer type, or empty where all use the same."""
        if self.family.rotates and not getattr(self.attention(layer), self.family.rotates):
            return None
        return self.config.layer_types[layer] if self.family.rotary_by_type else ""

    def half_split(self, x: Tensor) -> Tensor:
        """Heads [..., D] with the rotated dimensions in half-split order: what the model has at even places first."""
        if not self.family.interleaved:
            return x
        rotated = 2 * self.rotary.inv_freq.shape[0]
        head, rest = x[..., :rotated], x[..., rotated:]
        return torch.cat([head[..., ::2], head[..., 1::2], rest], dim=-1)

    def own_order(self, x: Tensor) -> Tensor:
        """The other way round: heads [..., D] in half-split order as the model itself has them."""
        if not self.family.interleaved:
            return x
        half = self.rotary.inv_freq.shape[0]
        pairs = torch.stack([x[..., :half], x[..., half : 2 * half]], dim=-1)
        return torch.cat([pairs.flatten(-2), x[..., 2 * half :]], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the first R dimensions of x, half-split pairs, in fp32, back in x's dtype.

    `rotate(rotate(x, cos, sin), cos, -sin)` is x times the square of the table's scale (1 but for
    families that scale attention through the table).
    """
    rotated = cos.shape[-1]
    head, rest = x[..., :rotated].float(), x[..., rotated:]
    first, second = head[..., : rotated // 2], head[..., rotated // 2 :]
    turned = head * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned.to(x.dtype), rest], dim=-1)


def rotated_back(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """What `rotate` made x [..., R and more] of, by tables [..., R] of any scale."""
    scale = 1.0 / (cos.square() + sin.square())
    return rotate(x, cos * scale, -sin * scale)
