"""Where each model family keeps the parts this library touches.

One `Family` an entry; adding a family is adding an entry (and a row to the tests). `Parts` reads an
actual model through its entry and is all that the rest of the library knows about it.
"""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from sharedllm.errors import UsageError


@dataclass(frozen=True)
class Family:
    """Attribute names of a family, relative to the decoder (`base`), a layer, or its attention."""

    base: str = "model"
    embedding: str = "embed_tokens"
    layers: str = "layers"
    rotary: str = "rotary_emb"
    final_norm: str = "norm"
    attention: str = "self_attn"
    after: str = "self_attn"
    """The layer's module whose output is added to the residual: the branch is added to it."""
    norm: str = "input_layernorm"
    """The layer's norm that the branch's own norm starts as a copy of."""
    query: str = "q_proj"
    output: str = "o_proj"
    query_norm: str | None = None


LLAMA = Family()
FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "qwen3": Family(query_norm="q_norm"),
}


class Parts:
    """The parts of one loaded decoder model.

    Raises:
        UsageError: the family is unknown, or the model has no rotary positions.
    """

    def __init__(self, model: nn.Module) -> None:
        config: Any = model.config
        self.model_type: str = config.model_type
        if self.model_type not in FAMILIES:
            raise UsageError(
                f"models of the family {self.model_type!r} cannot be attached: it has no entry, or no rotary "
                f"positions; known are {', '.join(sorted(FAMILIES))} (see architectures.py to add one)."
            )
        self.family = family = FAMILIES[self.model_type]
        self.base: Any = attrgetter(family.base)(model)
        self.layers: nn.ModuleList = attrgetter(family.layers)(self.base)
        self.rotary: nn.Module = attrgetter(family.rotary)(self.base)
        self.hidden_size: int = config.hidden_size
        self.vocab_size: int = config.vocab_size
        self.heads: int = config.num_attention_heads
        self.kv_heads: int = getattr(config, "num_key_value_heads", None) or self.heads
        self.head_dim: int = getattr(config, "head_dim", None) or self.hidden_size // self.heads
        self.window: int = config.max_position_embeddings

    def attention(self, layer: int) -> nn.Module:
        return getattr(self.layers[layer], self.family.attention)

    def norm(self, layer: int) -> nn.Module:
        return getattr(self.layers[layer], self.family.norm)

    def after(self, layer: int) -> nn.Module:
        return getattr(self.layers[layer], self.family.after)

    def query_norm(self, layer: int) -> nn.Module | None:
        name = self.family.query_norm
        return getattr(self.attention(layer), name) if name else None

    def scaling(self, layer: int) -> float:
        """What the layer's attention multiplies its logits by."""
        return float(getattr(self.attention(layer), "scaling", self.head_dim**-0.5))

    def query_weights(self, layer: int) -> tuple[Tensor, Tensor | None]:
        """Weight [H * D, E] and bias of the layer's query projection."""
        projection = getattr(self.attention(layer), self.family.query)
        return projection.weight, projection.bias

    def output_weights(self, layer: int) -> Tensor:
        """Weight [E, H * D] of the layer's output projection."""
        return getattr(self.attention(layer), self.family.output).weight

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The model's own rotary tables in fp32 for positions of any shape: [..., R], R rotated dimensions."""
        flat = positions.reshape(1, -1)
        with torch.autocast(device_type=positions.device.type, enabled=False):
            cos, sin = self.rotary(torch.empty(0, dtype=torch.float32, device=positions.device), flat)
        shape = (*positions.shape, cos.shape[-1])
        return cos.reshape(shape).float(), sin.reshape(shape).float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of the first R dimensions of x, half-split pairs, in fp32, back in x's dtype.

    `rotate(rotate(x, cos, sin), cos, -sin)` is x times the square of the table's scale (1 but for
    families that scale attention through the table).
    """
    rotated = cos.shape[-1]
    head, rest = x[..., :rotated].float(), x[..., rotated:]
    first, second = head.chunk(2, dim=-1)
    turned = head * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned.to(x.dtype), rest], dim=-1)
