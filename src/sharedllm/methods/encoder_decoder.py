"""`encoder-decoder`: chunks of the past through a whole encoder, cross-attention in every layer, CEPE (arXiv 2402.16617).

    h <- h + SelfAttn_j(norm_j(h))
    h <- h + O_j(Attention(Q_j(norm'_j(h)), K_j(c), V_j(c)))      c: last hidden states of all tokens of all chunks
    h <- h + MLP_j(norm(h))

Every layer has its own trained norm and projections; O starts at zero, so that an untrained one changes
nothing. Cross-attention has no positions. Where CEPE trains a small bidirectional encoder, the encoder here
is the LLM itself, frozen: all its layers, causal in each chunk. Keys and values are projected once a text
and kept for all its questions, which costs memory and saves time; CEPE keeps c and projects it again.

Shapes: B rows, T window tokens, S tokens of all chunks, H query heads, K key/value heads, D head
dimension, E hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sharedllm.adapter import check_adapter, load_weights, read_described, save_adapter, weights_digest
from sharedllm.architectures import Parts
from sharedllm.attention import attend
from sharedllm.config import check_keys
from sharedllm.errors import UsageError
from sharedllm.hardware import chunk_batch
from sharedllm.methods.base import Method, opened, plain_generate, plain_nll
from sharedllm.methods.estimate import Passes, cache_bytes, in_chunks, one_pass
from sharedllm.model import SharedLLM
from sharedllm.prompts import Prompt
from sharedllm.weights import copied, normed

KIND = "sharedllm-encoder-decoder"


@dataclass(frozen=True)
class CrossConfig:
    """Settings saved with trained cross-attention.

    Raises:
        UsageError: `chunk_length` is not a whole number of at least 1.
    """

    chunk_length: int = 256
    """Tokens that the encoder reads together."""

    def __post_init__(self) -> None:
        if not isinstance(self.chunk_length, int) or self.chunk_length < 1:
            raise UsageError(f"chunk_length is {self.chunk_length!r}; it must be a whole number of at least 1.")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Projected:
    """What is cross-attended to: keys and values, a tensor a layer, [B, K, S, D]; one row serves any number.

    `mask` [B, S] is True where a row has a token; None: everywhere.
    """

    keys: list[Tensor]
    values: list[Tensor]
    mask: Tensor | None = None


class CrossAttention(nn.Module):
    """The trained weights of one layer."""

    def __init__(self, parts: Parts, layer: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = parts.heads, parts.kv_heads, parts.head_dim
        E, H, K = parts.hidden_size, self.heads * self.head_dim, self.kv_heads * self.head_dim
        output, random = parts.output_weights(layer), torch.Generator().manual_seed(layer)

        def drawn(outputs: int) -> nn.Parameter:
            return nn.Parameter((torch.randn(outputs, E, generator=random) / E**0.5).to(output))

        self.norm = copied(parts.norm(layer)).requires_grad_(True)
        self.query, self.key, self.value = drawn(H), drawn(K), drawn(K)
        self.output = nn.Parameter(torch.zeros_like(output))

    def project(self, states_BSE: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, K, S, D] of the encoder's last hidden states."""
        B, S, _ = states_BSE.shape
        keys, values = (F.linear(states_BSE, w.to(states_BSE.dtype)) for w in (self.key, self.value))
        keys, values = (x.view(B, S, self.kv_heads, self.head_dim).transpose(1, 2) for x in (keys, values))
        return keys, values

    def forward(self, hidden_BTE: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """What is added to the residual, [B, T, E]."""
        (B, T, _), dtype = hidden_BTE.shape, hidden_BTE.dtype
        H, K, D = self.heads, self.kv_heads, self.head_dim
        query = F.linear(normed(self.norm, hidden_BTE), self.query.to(dtype))
        # Rows and key/value heads share an axis and the group broadcasts, so that grouped keys are read in place.
        query = query.view(B, T, H, D).transpose(1, 2).reshape(B * K, H // K, T, D)
        keys, values = (x.expand(B, -1, -1, -1).reshape(B * K, 1, -1, D) for x in (keys, values))
        bias = None
        if mask is not None:
            bias = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
            bias = bias.repeat_interleave(K, dim=0)[:, None, None]
        attended = attend(query, keys, values, bias, D**-0.5, frozen=False)
        return F.linear(attended.view(B, H, T, D).transpose(1, 2).reshape(B, T, H * D), self.output.to(dtype))


class CrossAttentions(nn.Module):
    """Cross-attention for every layer of a decoder."""

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(CrossAttention(parts, j) for j in range(len(parts.layers)))
        self._past: Projected | None = None
        self._attached = False

    def project(self, states_BSE: Tensor, mask: Tensor | None = None) -> Projected:
        pairs = [layer.project(states_BSE) for layer in self.layers]
        return Projected([k for k, _ in pairs], [v for _, v in pairs], mask)

    @contextmanager
    def reading(self, parts: Parts, past: Projected | None) -> Iterator[None]:
        """Within this block the model's layers attend to `past`, by hooks that are gone afterwards; inside another such
        block, to this one's instead of that one's, and to nothing where it is None."""
        before, self._past = self._past, past
        attaching, handles = past is not None and not self._attached, list[Any]()
        self._attached |= attaching
        try:
            for j in range(len(self.layers) if attaching else 0):
                handles += self._attach(parts, j)
            yield
        finally:
            self._past = before
            self._attached &= not attaching
            for handle in handles:
                handle.remove()

    def _attach(self, parts: Parts, j: int) -> list[Any]:
        residual: list[Tensor] = []

        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            residual.append(args[0] if args else kwargs["hidden_states"])

        def add(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            past, attended = self._past, output[0] if isinstance(output, tuple) else output
            hidden = parts.joined(j, residual.pop(), attended)
            if past is None:
                return output
            crossed = self.layers[j](hidden, past.keys[j], past.values[j], past.mask)
            return (attended + crossed, *output[1:]) if isinstance(output, tuple) else attended + crossed

        return [
            parts.layers[j].register_forward_pre_hook(note, with_kwargs=True),
            parts.attention(j).register_forward_hook(add),
        ]


class EncoderDecoder(Method):
    """A question stands alone in the window; all of the text is encoded.

    Args:
        weights: folder written by `save`; None leaves the cross-attention untrained.
    Raises:
        UsageError: `weights` is no such folder, or was trained for another model.
        WorkError: a file in it is broken.
    """

    name = "encoder-decoder"

    def __init__(
        self, llm: SharedLLM, window: int, weights: str | Path | None = None, config: CrossConfig | None = None
    ) -> None:
        super().__init__(llm, window)
        self.cross, self.config, self.trained = CrossAttentions(llm.parts), config or CrossConfig(), weights is not None
        if weights is not None:
            described = read_described(weights, KIND)
            check_keys(described["config"], CrossConfig().to_dict(), str(weights))
            check_adapter(described, llm.parts, weights)
            self.config = CrossConfig(**described["config"])
            load_weights(weights, self.cross)
        self._digest = weights_digest(self.cross) if self.trained else None

    def save(self, folder: str | Path, about: dict[str, Any] | None = None, dtype: torch.dtype | None = None) -> None:
        """Write the cross-attention's weights; see `adapter.save_adapter`."""
        llm = self.llm
        save_adapter(folder, self.cross, self.config, llm.parts, llm.fingerprint, about, dtype, KIND)

    @torch.no_grad()
    def encode(self, ids: Tensor) -> Tensor:
        """The encoder's last hidden states [1, S, E] of token ids [S], each chunk read on its own from position 0."""
        C, E = self.config.chunk_length, self.llm.parts.hidden_size
        batch = chunk_batch(self.llm.device, 12 * C * E * self.llm.dtype.itemsize) * C
        whole = len(ids) - len(ids) % C
        groups = [group.view(-1, C) for group in ids[:whole].split(batch)] if whole else []
        if whole < len(ids):
            groups.append(ids[None, whole:])
        states = [
            self.llm.parts.base(input_ids=group.to(self.llm.device), use_cache=False).last_hidden_state
            for group in groups
        ]
        return torch.cat([x.reshape(1, -1, E) for x in states], dim=1)

    @torch.no_grad()
    def prepare(self, past: Tensor) -> Projected | None:
        return self.cross.project(self.encode(past)) if len(past) else None

    def score(self, past: Projected | None, window: Tensor, targets: int) -> Tensor:
        with self.cross.reading(self.llm.parts, past):
            return plain_nll(self.llm, opened(self.llm, window), targets)

    def generate(self, past: Projected | None, window: Tensor, max_new_tokens: int, **kwargs: Any) -> Tensor:
        with self.cross.reading(self.llm.parts, past):
            return plain_generate(self.llm, window, max_new_tokens, **kwargs)

    def shown(self, past: Projected | None, prompt: Prompt, max_new_tokens: int) -> list[int]:
        return prompt.alone()

    def ask(self, past: Projected | None, prompt: Prompt, max_new_tokens: int) -> Tensor:
        with self.cross.reading(self.llm.parts, past):
            return super().ask(past, prompt, max_new_tokens)

    def peak_bytes(self, tokens: int, scored: int = 0) -> int:
        """The last hidden states and every layer's keys and values of all tokens, besides what the window takes."""
        llm = self.llm
        states = tokens * llm.parts.hidden_size * llm.dtype.itemsize
        return cache_bytes(llm, tokens) + max(2 * states, super().peak_bytes(tokens, scored))

    def reading(self, tokens: int) -> Passes:
        return in_chunks(tokens, self.config.chunk_length)

    def answering(self, tokens: int) -> Passes:
        seen = self.positions(tokens)
        return one_pass(seen, tokens)

    def added(self) -> list[nn.Module]:
        return [self.cross]

    def kept_bytes(self, past: Projected | None) -> int:
        return 0 if past is None else sum(x.nbytes for x in (*past.keys, *past.values))

    def attended_bytes(self, past: Projected | None, prompt: Prompt, max_new_tokens: int) -> int:
        return self.kept_bytes(past)

    def quality_reason(self) -> str | None:
        if self.trained:
            return None
        return "the cross-attention is untrained and adds nothing, so only its speed and memory say something"

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), **self.config.to_dict(), "trained": self.trained, "weights": self._digest}
