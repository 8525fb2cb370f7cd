"""A module's weights, wherever and however they are kept: offloaded, quantised, below a LoRA, under accelerate's hooks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from sharedllm.errors import UsageError

SCALES = ("weight_scale_inv", "weight_scale")
"""Where a layer of eight bits keeps what its weight is multiplied by, in transformers and the libraries it loads by."""


def without_peft(model: Any) -> Any:
    """The model or module inside a wrapper of the peft library.

    A branch starts from the weights below a LoRA, not from their sum: so both adapters may be put on in either order.
    """
    for name in ("get_base_model", "get_base_layer"):
        if hasattr(model, name):
            return without_peft(getattr(model, name)())
    return model


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """Within this block the module's weights are where it computes, also those that accelerate keeps elsewhere."""
    from accelerate.utils import align_module_device

    with ExitStack() as stack:
        for part in module.modules():
            stack.enter_context(align_module_device(part))
        yield


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes, which for an offloaded one is not where its weights are."""
    module = without_peft(module)
    device = first_weight(module).device
    place = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return torch.device(place) if device.type == "meta" and place is not None else device


def first_weight(module: nn.Module) -> Tensor:
    """The first parameter of a module, or where it has none, as some that are quantised, its first buffer.

    Raises:
        UsageError: it has neither.
    """
    for weight in chain(module.parameters(), module.buffers()):
        return weight
    raise UsageError(
        f"a {type(module).__name__} of this model has no weights that can be found; load it without its quantisation."
    )


def is_plain(weight: Tensor) -> bool:
    """Whether a weight is numbers as they are, not codes of a quantisation, as numbers of eight bits are too."""
    return type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point() and weight.element_size() > 1


@torch.no_grad()
def linear_weights(module: Any, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Weight [out, width] and bias of a linear map: its own, or a copy where it is offloaded or, in `dtype`, quantised.

    A quantised map is read by what it does to the rows of the identity, so that no kind needs code of its own; but for
    floats of eight bits with a scale beside them, whose layers may cut off what they are given.

    Raises:
        UsageError: it has no weights.
    """
    module = without_peft(module)
    offloaded = first_weight(module).device.type == "meta"
    with present(module):
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        kept = None if bias is None else bias.detach().clone()
        if isinstance(module, nn.Linear) and is_plain(module.weight):
            return (module.weight.detach().clone(), kept) if offloaded else (module.weight, bias)
        if weight is not None and (scaled := scaled_weight(module, weight)) is not None:
            return scaled.to(dtype), kept
        if bias is not None:
            module.bias = None  # a large bias would round the weights away
        try:
            rows = module(torch.eye(width, dtype=dtype, device=first_weight(module).device))
        finally:
            if bias is not None:
                module.bias = bias
        return rows.T.contiguous(), kept


def scaled_weight(module: Any, weight: Tensor) -> Tensor | None:
    """Floats of eight bits [out, in] times the scale beside them, in fp32: one for all, for a row, or for a block.

    None where the weight is of another kind, or its scale is kept in another way.
    """
    scale = next((s for name in SCALES if (s := getattr(module, name, None)) is not None), None)
    floats = type(weight) in (Tensor, nn.Parameter) and weight.is_floating_point()
    if scale is None or not floats or is_plain(weight):
        return None
    rows, columns = weight.shape
    scale = scale.detach().float()
    if block := getattr(module, "block_size", None):
        scale = scale.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    if scale.numel() > 1 and tuple(scale.shape) not in ((rows, 1), (rows, columns)):
        return None
    return weight.detach().float() * scale


def normed(norm: nn.Module, x: Tensor) -> Tensor:
    """What a norm makes of `x`, in its dtype, also where its weights are kept in another, as in training.

    Families' own norms take any; those of torch do not on a GPU.
    """
    plain = [part for part in norm.modules() if isinstance(part, nn.LayerNorm | nn.RMSNorm) and part.weight is not None]
    y: Tensor = norm(x.to(plain[0].weight.dtype) if plain else x)
    return y.to(x.dtype)


def unhook(module: nn.Module) -> None:
    """Take what accelerate put on a module off a copy of it: by its `forward` the copy would call the other."""
    for name in ("_hf_hook", "_old_forward", "forward"):
        vars(module).pop(name, None)


def copied(module: nn.Module) -> nn.Module:
    """A copy of a small module with weights of its own, without hooks, wherever its weights are kept."""
    with present(module):
        hooks: dict[int, Any] = {id(part._hf_hook): None for part in module.modules() if hasattr(part, "_hf_hook")}
        fresh = copy.deepcopy(module, hooks)
    for part in fresh.modules():
        unhook(part)
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    return fresh
