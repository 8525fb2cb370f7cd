"""The injection: trained cross-attention branches in the lowest M layers, attached by hooks.

    h <- h + SelfAttn_j(norm_j(h))
    h <- h + O_j(gate * Attention(Q_j(norm'_j(h)), keys_j, values_j))      the branch
    h <- h + MLP_j(norm(h))

A branch adds to what the layer's attention gives, so the model's own code stays as it is and `detach` leaves
nothing behind. Where the layer norms or scales that output on its way to the residual, it does so with the sum:
the branch, whose O starts as the layer's own, is on the scale of attention's output, and the layer brings both to
the residual's. Norm'_j reads the residual as it is with attention alone. Where attention and MLP run side by side,
the MLP of the layer does not see the branch. With no memory set, a branch does nothing at all.

Source: arXiv 2603.04759.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sharedllm.architectures import Parts
from sharedllm.branch import Branch, Memory, Place
from sharedllm.config import SharedConfig
from sharedllm.errors import UsageError
from sharedllm.one_token import OneToken
from sharedllm.own_attention import by_products
from sharedllm.projection import Projection

DETACHED = "this model was detached; call SharedLLM.from_pretrained again to attach it."


class _Turn:
    """Whose turn it is on a model, of the threads that use it and the injections on it; a copy of the model has one of its own."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._whose: tuple[int, Injection] | None = None

    def __reduce__(self) -> tuple[type[_Turn], tuple[()]]:
        return _Turn, ()

    @classmethod
    def on(cls, parts: Parts) -> _Turn:
        """That of the injections which are on a model already, or else a new one."""
        others = [getattr(hook, "__self__", None) for hook in parts.rotary._forward_pre_hooks.values()]
        return next((other._turn for other in others if isinstance(other, Injection)), None) or cls()

    @contextmanager
    def of(self, injection: Injection) -> Iterator[None]:
        """A block in which it is the turn of an injection, in this thread; another thread waits until the block ends."""
        with self.lock:
            before, self._whose = self._whose, (threading.get_ident(), injection)
            try:
                yield
            finally:
                self._whose = before

    def is_of(self, injection: Injection) -> bool:
        """Whether this forward pass is in such a block: by its thread, or by one of autograd's, which compute layers again for a
        backward pass. Code that torch has compiled does not know its thread."""
        if torch.compiler.is_compiling():
            return True
        thread, whose = self._whose or (0, None)
        return whose is injection and (thread == threading.get_ident() or torch._C._current_graph_task_id() >= 0)


class Injection(nn.Module):
    """The adapter (one `Branch` a layer) and its hooks on a model.

    What a model attends to belongs to one answer at a time: threads that read or answer with it wait for each other, also where
    several adapters are on it. A forward pass that a thread makes beside them is the plain model's.
    """

    def __init__(self, parts: Parts, config: SharedConfig) -> None:
        super().__init__()
        injected = range(config.skipped_layers, config.injected_layers)
        # A place for each layer, so that a branch has the number of its layer.
        self.branches = nn.ModuleList(
            Branch(parts, j, config) if j in injected else nn.Identity() for j in range(config.injected_layers)
        )
        self._parts, self._config = parts, config
        self._memory: Memory | None = None
        self._heard: Callable[[Tensor], None] | None = None
        self._place: Place | None = None
        self._turn = _Turn.on(parts)
        self._one_token = OneToken([branch for branch in self.branches if isinstance(branch, Branch)])
        self._began = self._alone = False  # whether `_one_token` knows the memory; whether it takes this forward pass
        self._handles: list[Any] = [parts.rotary.register_forward_pre_hook(self._locate, with_kwargs=True)]
        self._hidden: dict[int, Tensor] = {}
        for j in injected:
            # Bound methods and what is partial of them follow a deep copy, where closures would go on to ask the original.
            note, add = partial(self._note, j), partial(self._add, j)
            self._handles.append(parts.layers[j].register_forward_pre_hook(note, with_kwargs=True))
            self._handles.append(parts.attention(j).register_forward_hook(add))

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy: without what an answer attends to that is at work meanwhile."""
        idle: dict[str, Any] = {
            "_memory": None,
            "_heard": None,
            "_place": None,
            "_began": False,
            "_alone": False,
            "_hidden": {},
        }
        return {**vars(self), **idle}

    @contextmanager
    def reading(self, memory: Memory | None, heard: Callable[[Tensor], None] | None = None) -> Iterator[None]:
        """Within this block the model's forward passes take `memory` in; backward passes that compute layers again belong
        inside as well. `heard` hears of each branch what was attended to, as `Branch.forward` says. Another thread waits
        until the block ends.

        Raises:
            UsageError: there is a memory, and the hooks were removed.
        """
        with self._turn.of(self):
            if memory is not None and not self._handles:
                raise UsageError(DETACHED)
            before = self._memory, self._heard, self._place
            self._memory, self._heard, self._began = memory, heard, False
            try:
                with nullcontext() if memory is None else by_products(self._parts):
                    yield
            finally:
                self._memory, self._heard, self._place = before
                self._began = False
                self._one_token.end()
                self._hidden.clear()

    def forget(self) -> None:
        """Let go of what was made of the model's own weights, so that it is made anew of what they are now."""
        with self._turn.lock:
            for part in self.modules():
                if isinstance(part, Projection):
                    part.forget()
            self._one_token.forget()

    def remove(self) -> None:
        """Take the hooks off the model, once no other thread answers; what is left is the model as it was."""
        with self._turn.lock:
            for handle in self._handles:
                handle.remove()
            self._handles.clear()

    def _locate(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a forward pass: where in the window its tokens stand, as the model tells its rotary embedding."""
        if self._memory is None or not self._turn.is_of(self):
            return
        memory, rows = self._memory, args[0].shape[0]
        if memory.rows != rows:
            memory = memory.expand(rows)
        positions = args[1] if len(args) > 1 else kwargs["position_ids"]
        if positions.ndim == 3:  # [3 or 1, B, T], in time, height and width, which for text are one (Qwen3-VL)
            positions = positions[0]
        window_BT = positions / self._config.chunk_length
        self._memory, self._place = memory, Place.of(memory, window_BT, self._config, self._parts)
        self._alone = self._heard is None and self._one_token.fits(memory, positions.shape[-1])
        if self._alone:
            if not self._began:
                self._one_token.begin(memory)
                self._began = True
            self._one_token.locate(self._place)

    def _note(self, layer: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a layer: what comes in."""
        if self._memory is not None and self._turn.is_of(self):
            self._hidden[layer] = args[0] if args else kwargs["hidden_states"]

    def _add(self, layer: int, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        """After a layer's attention: what it gives, with the branch added."""
        if self._memory is None or not self._turn.is_of(self):
            return None
        attended = output[0] if isinstance(output, tuple) else output
        before = self._hidden[layer]
        if not torch.is_grad_enabled():  # else a backward pass may compute this again, without the layer around it
            del self._hidden[layer]
        hidden = self._parts.joined(layer, before, attended)
        number = layer - self._config.skipped_layers
        if self._alone:
            branch = self._one_token(number, hidden)
        else:
            branch = self.branches[layer](hidden, self._memory, number, self._place, self._heard)
        added = attended + branch
        return (added, *output[1:]) if isinstance(output, tuple) else added


def forget_compiled(model: nn.Module) -> None:
    """Let torch compile anew what it has compiled of a model, whose code would not hear of hooks that came or went since.

    With it goes what was compiled of other models: torch does not tell them apart.
    """
    if "torch._dynamo" in sys.modules and any(_compiled(part) for part in model.modules()):
        torch.compiler.reset()


def _compiled(module: nn.Module) -> bool:
    """Whether a module was compiled: in place, by its forward pass, as a wrapper, or by Hugging Face's `generate`."""
    if module._compiled_call_impl is not None or hasattr(module.forward, "_torchdynamo_orig_callable"):
        return True
    return hasattr(module, "_orig_mod") or hasattr(module, "_compiled_call")
