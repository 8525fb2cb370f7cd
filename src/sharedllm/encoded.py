"""What is kept of chunks that were read: keys and values of some tokens, and what they are searched by.

Shapes: X chunks, C tokens a chunk, P tokens stored of each, Z tokens compared, M layers kept (all that read but
`skipped_layers`), K key/value heads, D head dimension, R stored representations, E hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sharedllm.packing import group_of, pack_keys, pack_values, unpack

SEARCHED = ("search_values", "search_low", "search_step")
LAYERED = ("keys", "values", "key_low", "key_step", "value_low", "value_step")  # whose chunk axis is the second
MERGED_CHUNKS = 8  # chunks a block holds: a question walks few blocks, and joining one takes little memory


class Remembered:
    """What was counted of chunks that do not change, beside what is kept: not among `vars`, and so neither written nor copied
    to what is made of them.

    Attributes:
        sums: of the representations that are compared, with how many they are; see `relevance`.
    """

    __slots__ = ("sums",)
    sums: dict[tuple[int, ...], tuple[Tensor, int]]


@dataclass
class Encoded(Remembered):
    """What is kept of chunks that were read together."""

    lengths: Tensor
    """[X], tokens of each chunk."""
    tokens: Tensor
    """[X, P], which tokens of the chunk are stored, ascending; past the end of a chunk: C."""
    keys: Tensor
    """[M, X, K, P, D], before rotation, in half-split order (see `architectures`); packed: codes in uint8,
    [M, X, K, P, D * bits / 8]."""
    values: Tensor
    """[M, X, K, P, D], or codes."""
    key_low: Tensor
    """[M, X, K, G, D] as `packing` says; [M, X, 0] where nothing is packed. The same for the three below."""
    key_step: Tensor
    value_low: Tensor
    """[M, X, K, P, 1]."""
    value_step: Tensor
    rep_tokens: Tensor
    """[X, R], which tokens have a representation stored, ascending; past the end: C. R is 0 unless `search_by` is `last`."""
    reps: Tensor
    """[X, R, E], normed hidden state after the first layer."""
    search_values: Tensor
    """[X, K, Z, D], or codes: values of one layer kept apart; [X, 0] where there are none. Z is P, or all tokens."""
    search_low: Tensor
    """[X, K, Z, 1]; [X, 0] where they are not packed. The same for the next."""
    search_step: Tensor

    def __post_init__(self) -> None:
        self.sums = {}

    @property
    def compared_tokens(self) -> Tensor:
        """[X, Z], the tokens of each chunk that a question is compared with, ascending; past the end of a chunk: C."""
        Z = self.search_values.shape[2] if self.kept_apart else self.tokens.shape[1]
        if Z == self.tokens.shape[1]:
            return self.tokens
        return torch.arange(Z, device=self.tokens.device).repeat(len(self.tokens), 1)

    @property
    def kept_apart(self) -> bool:
        """Whether what a question is compared with is kept apart."""
        return self.search_values.dim() > 2

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in vars(self).values())

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Encoded:
        """From tensors by name; contexts saved by earlier releases lack those of the search."""
        none = tensors["value_low"].new_zeros(len(tensors["lengths"]), 0)
        return cls(**{**dict.fromkeys(SEARCHED, none), **tensors})

    @classmethod
    def cat(cls, parts: list[Encoded]) -> Encoded:
        """Join chunks of the same stored shape."""
        if len(parts) == 1:
            return parts[0]
        names = cls.__dataclass_fields__
        return cls(**{n: torch.cat([getattr(p, n) for p in parts], dim=int(n in LAYERED)) for n in names})

    def __getitem__(self, chunks: slice) -> Encoded:
        return Encoded(**{n: t[:, chunks] if n in LAYERED else t[chunks] for n, t in vars(self).items()})

    def to(self, device: torch.device) -> Encoded:
        if all(t.device == device for t in vars(self).values()):
            return self
        return Encoded(**{n: t.to(device) for n, t in vars(self).items()})

    def layers(self, start: int, end: int, compared: int | None = None) -> Encoded:
        """The same with the keys and values of these of its layers alone.

        Args:
            compared: a layer of its own whose values are kept apart for the search; None: what is so now stays.
        """
        if compared is None and (start, end) == (0, len(self.keys)):
            return self
        kept = {n: t[start:end] if n in LAYERED else t for n, t in vars(self).items()}
        if compared is not None:
            kept |= dict(
                zip(SEARCHED, (t[compared] for t in (self.values, self.value_low, self.value_step)), strict=True)
            )
        return Encoded(**kept)

    def joins(self, other: Encoded) -> bool:
        """Whether `cat` can join its chunks and those of `other`: of one length, and as much kept of each in numbers as fine."""

        def kinds(kept: Encoded) -> list[tuple[torch.dtype, torch.Size]]:
            return [(t.dtype, (t[:, :0] if n in LAYERED else t[:0]).shape) for n, t in vars(kept).items()]

        return int(self.lengths[0]) == int(other.lengths[0]) and kinds(self) == kinds(other)

    def packed(self, bits: int) -> Encoded:
        """The same with keys and values at 8 or 4 bits a number; 16 leaves them as they are."""
        if bits == 16:
            return self
        searched = packed_values(self.search_values, bits) if self.search_values.numel() else {}
        return Encoded(**{**vars(self), **packed_layer(self.keys, self.values, bits), **searched})

    def at(self, chunk_S: Tensor, stored_S: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [M, K, S, D] of some stored tokens, named by their chunk and their place among the stored."""

        def take(x: Tensor, at: Tensor) -> Tensor:
            return x[:, chunk_S, :, at].permute(1, 2, 0, 3)

        keys, values = take(self.keys, stored_S), take(self.values, stored_S)
        if keys.dtype != torch.uint8:
            return keys, values
        D, group = self.key_low.shape[-1], group_of(stored_S, self.tokens.shape[1])
        return (
            unpack(keys, take(self.key_low, group), take(self.key_step, group), D),
            unpack(values, take(self.value_low, stored_S), take(self.value_step, stored_S), D),
        )

    def values_of(self, layer: int, device: torch.device | None = None) -> Tensor:
        """Values of all stored tokens in one of its layers, [X, K, P, D], on `device` or where they are kept."""
        return self._numbers(self.values[layer], self.value_low[layer], self.value_step[layer], device)

    def search_values_on(self, device: torch.device | None = None) -> Tensor:
        """Values that are kept apart, [X, K, Z, D], on `device` or where they are kept."""
        return self._numbers(self.search_values, self.search_low, self.search_step, device)

    def _numbers(self, values: Tensor, low: Tensor, step: Tensor, device: torch.device | None) -> Tensor:
        values, low, step = (t.to(device) for t in (values, low, step))
        return values if values.dtype != torch.uint8 else unpack(values, low, step, self.key_low.shape[-1])


def add(blocks: list[Encoded], new: Encoded) -> None:
    """Put chunks of one length behind others, at most `MERGED_CHUNKS` a block and joined to the last one while that has room.

    A block itself stays as it is, since views of a context and other threads have it too.
    """
    for i in range(0, len(new.lengths), MERGED_CHUNKS):
        some, last = new[i : i + MERGED_CHUNKS], blocks[-1] if blocks else None
        if last is not None and len(last.lengths) + len(some.lengths) <= MERGED_CHUNKS and last.joins(some):
            blocks[-1] = Encoded.cat([last, some.to(last.lengths.device)])
        else:
            blocks.append(some)


def packed_values(values: Tensor, bits: int) -> dict[str, Tensor]:
    """Values [X, K, Z, D] that are kept for the search, as `packed_layer`."""
    none = values.new_zeros(len(values), 0)
    return dict(zip(SEARCHED, (values, none, none) if bits == 16 else pack_values(values, bits), strict=True))


def packed_layer(keys: Tensor, values: Tensor, bits: int) -> dict[str, Tensor]:
    """Keys and values [..., K, P, D] at 8 or 4 bits a number, or 16 as they are, by the names of `Encoded`'s fields."""
    if bits == 16:
        none = keys.new_zeros(keys.shape[0], 0)
        return dict(zip(LAYERED, (keys, values, none, none, none, none), strict=True))
    (keys, key_low, key_step), (values, value_low, value_step) = pack_keys(keys, bits), pack_values(values, bits)
    return dict(zip(LAYERED, (keys, values, key_low, key_step, value_low, value_step), strict=True))


def gather_tokens(states_XKCD: Tensor, tokens_XP: Tensor) -> Tensor:
    """States of the named tokens: [X, K, C, D] and [X, P] to [X, K, P, D]; a token past C gives the last one."""
    index = tokens_XP.clamp(max=states_XKCD.shape[2] - 1)[:, None, :, None]
    return states_XKCD.gather(2, index.expand(-1, states_XKCD.shape[1], -1, states_XKCD.shape[3]))
