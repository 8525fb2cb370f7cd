"""A sketch of a document: the signs of its tokens' representations, by which a question finds it while its store stays closed.

They live in the space that questions are compared in (`relevance`). In each chunk the occurrences of one token are one
vector, their mean; of it, less the document's mean, the signs alone are kept, a bit a number, beside the token's id and how
often it stands there, for the words of a question. That is less than three thousandths of what a store takes, and ranks documents nearly as all of their tokens do; clusters of alike tokens, or every fourth token,
lose the rare words that questions ask for (measured by tools/probes/sketches.py).

Shapes: V vectors of a document, R size of a representation, Q tokens of a question.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sharedllm.config import SharedConfig
from sharedllm.context import Context
from sharedllm.errors import WorkError
from sharedllm.relevance import represented

KIND = "sketch 2"  # 1 had no words


@dataclass
class Sketch:
    """What is kept of a document to find it by."""

    signs: Tensor
    """[V, ceil(R / 8)], uint8: bit i of byte j is set where number 8j + i is above zero."""
    chunk: Tensor
    """[V], number of the chunk, from 0, ascending, int32."""
    token: Tensor
    """[V], id of the token, int32."""
    count: Tensor
    """[V], how often it stands in the chunk, int16."""
    mean: Tensor
    """[R], of the representations of all its tokens, float32."""

    @property
    def chunks(self) -> int:
        """How many chunks the document has."""
        return int(self.chunk[-1]) + 1


def sketch_of(context: Context, config: SharedConfig) -> Sketch:
    """The sketch of an encoded context; it depends on the context alone."""
    rows, before = [], 0
    for block in context.blocks:
        places = block.rep_tokens if config.search_by == "last" else block.compared_tokens
        for reps, mask, at, length in zip(*represented(block, config), places, block.lengths.tolist(), strict=True):
            rows.append((reps[mask], context.ids[before + at[mask]]))
            before += length
    mean = torch.cat([reps for reps, _ in rows]).mean(0)
    words = [ids.unique(return_counts=True) for _, ids in rows]
    signs = [pack_signs(by_token(reps, ids) - mean) for reps, ids in rows]
    chunk = torch.arange(len(rows), dtype=torch.int32).repeat_interleave(torch.tensor([len(s) for s in signs]))
    token, count = (torch.cat(part) for part in zip(*words, strict=True))
    return Sketch(torch.cat(signs), chunk, token.to(torch.int32), count.to(torch.int16), mean)


def represented_by(config: SharedConfig) -> str:
    """What of a token its representation is, which sketches and questions must agree in."""
    return "last" if config.search_by == "last" else f"tokens of layer {config.representing_layer}"


def by_token(reps_PR: Tensor, ids_P: Tensor) -> Tensor:
    """The mean of each token's occurrences, [distinct, R], in the order of token ids."""
    distinct, at = ids_P.unique(return_inverse=True)
    sums = reps_PR.new_zeros(len(distinct), reps_PR.shape[1]).index_add_(0, at, reps_PR)
    return sums / torch.bincount(at)[:, None]


def pack_signs(numbers_VR: Tensor) -> Tensor:
    """A bit a number, as `Sketch.signs` keeps them."""
    bits = F.pad((numbers_VR > 0).to(torch.uint8), (0, -numbers_VR.shape[1] % 8))
    return (bits.unflatten(1, (-1, 8)) << torch.arange(8, dtype=torch.uint8)).sum(2, dtype=torch.uint8)


def unpack_signs(signs: Tensor, size: int) -> Tensor:
    """1 or -1 a number, [V, size], float32."""
    bits = (signs[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten(1)[:, :size].float() * 2 - 1


def nearness(sketches: Sequence[Sketch], question_QR: Tensor) -> list[Tensor]:
    """How near each chunk is to a question, [chunks] a document: late interaction over the vectors, the mean over Q."""
    question = question_QR.float().cpu()
    found = []
    for sketch in sketches:
        asked = F.normalize(question - sketch.mean, dim=1)
        size = asked.shape[1]
        cosines = unpack_signs(sketch.signs, size) @ asked.T / size**0.5
        best = cosines.new_full((sketch.chunks, len(asked)), -1.0)
        best.scatter_reduce_(0, sketch.chunk.long()[:, None].expand_as(cosines), cosines, "amax")
        found.append(best.mean(1))
    return found


def save_sketch(sketch: Sketch, made_of: str = "") -> bytes:
    """The bytes of a sketch.

    Args:
        made_of: what it follows from, for `sketch_made_of`.
    """
    tensors = {name: tensor.contiguous() for name, tensor in vars(sketch).items()}
    return save(tensors, {"made_of": made_of} if made_of else None)


def sketch_made_of(data: bytes) -> str:
    """What `save_sketch` was told; empty where it was told nothing, or the sketch is broken."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return str(header.get("__metadata__", {}).get("made_of", ""))
    except (ValueError, AttributeError):
        return ""


def load_sketch(name: str, data: bytes) -> Sketch:
    """The sketch that `save_sketch` wrote.

    Raises:
        WorkError: it is broken.
    """
    try:
        kept = load(data)
        unsaid = torch.zeros_like(kept["chunk"])
        return Sketch(**{"token": unsaid - 1, "count": unsaid, **kept})  # the first kind had no words
    except (SafetensorError, TypeError, ValueError, KeyError) as error:
        raise WorkError(f"{name} is broken ({error}); remove it and encode again.") from error
