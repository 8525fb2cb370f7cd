"""The lower model: the LLM's own embedding and lowest M layers, reading chunks side by side.

It is a view of the loaded model, not a copy: the same modules in a shorter list. What it reads are
the keys and values that those layers compute anyway; they are caught where the model hands them to
its cache, so no family needs code of its own here.

Shapes: as in `encoded`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from sharedllm.architectures import Parts, rotated_back
from sharedllm.encoded import LAYERED, Encoded, gather_tokens, packed_layer, packed_values
from sharedllm.weights import unhook

NO_MORE = {"output_hidden_states": False, "output_attentions": False}
"""Whatever the model's configuration says: nobody reads them here."""


@dataclass(frozen=True)
class Wanted:
    """What of chunks that are read is kept."""

    tokens: Tensor
    """[X, P], those whose keys and values are, ascending, past a chunk's end filled with C or more."""
    rep_tokens: Tensor
    """[X, R], those whose representation is, in the same way."""
    bits: int = 16
    """Of a number, as `Encoded.packed`."""
    compared: int = -1
    """The layer whose values are kept apart, for questions to be compared with; -1: none."""
    compared_tokens: Tensor | None = None
    """[X, Z], the tokens of which they are; None: all."""


class _Caught(Exception):
    """All that was wanted of a forward pass is there."""


class _Catch(DynamicCache):
    """A cache that keeps the wanted tokens' keys and values of each layer and lets the rest go.

    What is packed is so one layer after the other, so that only one is there in full.

    Args:
        layers: those of which keys and values are wanted.
        stop: end the forward pass, by `_Caught`, with the last layer's keys and values.
    """

    def __init__(self, wanted: Wanted, parts: Parts, layers: range, stop: bool) -> None:
        super().__init__()
        self.wanted, self.parts, self.layers_wanted, self.stop, self.layer = wanted, parts, layers, stop, -1
        self.searched: dict[str, Tensor] = {}
        self.tables = [(cos[:, None], sin[:, None]) for cos, sin in parts.tables(wanted.tokens, layers.stop)]
        self.kept: dict[str, list[Tensor]] = {name: [] for name in LAYERED}

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.layer += 1
        if self.layer in self.layers_wanted:
            self._keep(key_states, value_states)
        if self.layer == self.wanted.compared:
            values = self._taken(value_states, self.wanted.compared_tokens)
            self.searched = packed_values(values, self.wanted.bits)
        if self.stop and self.layer == self.layers_wanted.stop - 1:
            raise _Caught
        return key_states, value_states

    def _keep(self, key_states: Tensor, value_states: Tensor) -> None:
        keys, values = (self._taken(states, self.wanted.tokens) for states in (key_states, value_states))
        cos, sin = self.tables[self.layer]
        keys = rotated_back(self.parts.half_split(keys), cos, sin)
        for name, kept in packed_layer(keys, values, self.wanted.bits).items():
            self.kept[name].append(kept)

    def _taken(self, states: Tensor, tokens: Tensor | None) -> Tensor:
        """Of states [X, K, C, D] those of some tokens, where the chunks are to be kept."""
        if tokens is not None and tokens.shape[1] < states.shape[2]:  # as many are all, in their order
            states = gather_tokens(states, tokens.to(states.device))
        return states.to(self.wanted.tokens.device)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without what a model in training does: dropout, and layers that are computed again and so take no cache."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


class LowerModel:
    """The lowest `layers` layers of a decoder, run over chunks with positions from 0.

    Of the lowest `skipped` no keys and values are kept.

    Every parameter is the loaded model's own (the same storage).
    """

    def __init__(self, parts: Parts, layers: int, skipped: int = 0) -> None:
        self.parts, self.kept = parts, range(skipped, layers)
        self.apart: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered while chunks are read, so that slots of a running answer stay out of them."""
        self.reweighted: Callable[[], None] = lambda: None
        """Called where weights of the model may have become others without torch's knowing: peft merges LoRAs through `.data`."""
        self._view: Any = copy.copy(parts.base)
        unhook(self._view)
        # Else transformers puts hooks on the layers in the name of the view, which the model would put there once more.
        self._view._output_capturing_hooks_installed = True
        lowest = nn.ModuleList(list(parts.layers[:layers]))
        self._own = {parts.family.layers: lowest, parts.family.final_norm: nn.Identity()}

    @property
    def module(self) -> Any:
        """The view, always the same object; what the model has beside its layers is as it is there now, such as an embedding
        that a LoRA was put on."""
        self._view._modules = {**self.parts.base._modules, **self._own}
        return self._view

    @property
    def device(self) -> torch.device:
        return self.parts.device

    @property
    def dtype(self) -> torch.dtype:
        return self.parts.dtype

    def first_layer(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Normed hidden state after the first layer, [B, T, E]."""
        short = LowerModel(self.parts, 1).module
        with self.apart(), evaluating(short):
            out = short(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **NO_MORE)
        hidden: Tensor = out.last_hidden_state
        return self._norm_first(hidden)

    def values(self, input_ids: Tensor, attention_mask: Tensor | None, layer: int) -> Tensor:
        """Values of one layer (from 0), [B, K, T, D]."""
        short = LowerModel(self.parts, layer + 1, skipped=layer)
        every = torch.arange(input_ids.shape[1], device=self.device).expand(len(input_ids), -1)
        caught = _Catch(Wanted(every, every[:, :0]), self.parts, short.kept, stop=short.may_stop)
        with self.apart():
            short.fill(caught, input_ids=input_ids, attention_mask=attention_mask)
        return caught.kept["values"][0]

    @property
    def may_stop(self) -> bool:
        """Whether a forward pass may end inside the top layer, whose attention and MLP nobody reads.

        Not where something waits for the layer's end: weights divided over processes or kept elsewhere, compiled code.
        """
        inside = [self.module, *self._layers[-1].modules()]
        awaited = ("unshard", "_hf_hook", "_orig_mod")
        return not any(hasattr(m, name) for m in inside for name in awaited) and not any(
            m._compiled_call_impl for m in inside
        )

    @property
    def _layers(self) -> nn.ModuleList:
        layers: nn.ModuleList = getattr(self.module, self.parts.family.layers)
        return layers

    def fill(self, caught: _Catch, **inputs: Any) -> None:
        """A forward pass into a cache."""
        with evaluating(self.module), suppress(_Caught):
            self.module(**inputs, past_key_values=caught, use_cache=True, **NO_MORE)

    def _norm_first(self, hidden: Tensor) -> Tensor:
        return self.parts.norm(1)(hidden).to(self.device)

    def encode(self, input_ids_XC: Tensor, lengths_X: Tensor, wanted: Wanted) -> Encoded:
        """Read chunks once and keep what is wanted.

        Args:
            input_ids_XC: chunks, padded at the right (causal attention never looks there).
            lengths_X: tokens of each chunk.
        """
        stop = self.kept.stop > 1 and self.may_stop  # what comes out of the first layer is wanted
        caught = _Catch(wanted, self.parts, self.kept, stop)
        first: list[Tensor] = []
        thread = threading.get_ident()

        def note(_module: nn.Module, _args: object, output: Any) -> None:
            if not torch.compiler.is_compiling() and threading.get_ident() != thread:
                return  # the model's own pass in another thread
            hidden = output[0] if isinstance(output, tuple) else output
            first.append(gather_tokens(hidden[:, None], wanted.rep_tokens.to(hidden.device))[:, 0])

        with self.apart():  # the layer is the model's own, and another thread may be answering
            handle = self._layers[0].register_forward_hook(note)
            try:
                self.fill(caught, input_ids=input_ids_XC)
            finally:
                handle.remove()
        kept = {name: torch.stack(layers) for name, layers in caught.kept.items()}
        told = {"rep_tokens": wanted.rep_tokens, "reps": self._norm_first(first[0])}
        return Encoded.of({"lengths": lengths_X, "tokens": wanted.tokens, **kept, **told, **caught.searched})
