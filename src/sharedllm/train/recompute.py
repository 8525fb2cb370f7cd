"""Layers computed again in the backward pass instead of keeping what they need there (activation checkpointing).

transformers has a switch for it, which from some releases on leaves out hooks when it computes again, and the injection
is hooks. So each layer is called through a wrapper for as long as it is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputed(nn.Module):
    """A layer, hooks included, of which only inputs and outputs are kept."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(self.layer, *args, use_reentrant=False, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What models ask of their layers besides calling them, such as the kind of their attention."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("layer"), name)


@contextmanager
def recomputed(layers: nn.ModuleList) -> Iterator[None]:
    """Within this block the layers' forward passes keep little."""
    plain = list(layers)
    for j, layer in enumerate(plain):
        layers[j] = Recomputed(layer)
    try:
        yield
    finally:
        for j, layer in enumerate(plain):
            layers[j] = layer
