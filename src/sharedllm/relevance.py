"""What a question is compared with: how near every node of every tree is to it.

Two ways, `config.search_by`:

- `tokens`: late interaction (ColBERT, arXiv 2004.12832). Every token of the question finds the token of a
  node it is nearest to; a node's score is the sum over the question's tokens. A token is represented by the
  values of one low layer, which are stored anyway, less the mean of the whole context.
- `last`: the method of arXiv 2603.04759. A node is represented by its last token, the question by its last
  token, both by the normed hidden state after the first layer; the score is their cosine.

Shapes: X chunks of a block, Z tokens of a chunk that may be compared, Q tokens of the question, F = 2^L finest spans of a
tree, R size of a representation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sharedllm.config import SharedConfig
from sharedllm.encoded import Encoded
from sharedllm.encoder import LowerModel
from sharedllm.errors import UsageError
from sharedllm.tree import candidate_tokens, placed

ASKING_TOKENS = 64  # of a window's last tokens that are searched with where nothing says which of them ask
CONTINUED_TOKENS = 256  # the same of a window that asks nothing but goes on (docs/LOG.md)


@dataclass
class Nearness:
    """How near the compared tokens of a block are to each token of a question."""

    tokens: Tensor
    """[X, Z], which tokens of each chunk, ascending."""
    cosines: Tensor
    """[X, Z, Q]"""
    by: str
    """As `config.search_by`."""

    def spans(self, borders_XF: Tensor) -> Tensor:
        """Of each finest span of a tree to each token of the question, [X, F, Q]."""
        if self.by == "last":
            ends = (borders_XF[:, 1:] - 1).clamp(min=0)
            at = torch.searchsorted(self.tokens, ends).clamp(max=self.tokens.shape[1] - 1)
            return self.cosines.gather(1, at[:, :, None].expand(-1, -1, self.cosines.shape[2]))
        X, spans, Q = borders_XF.shape[0], borders_XF.shape[1] - 1, self.cosines.shape[2]
        span = torch.searchsorted(borders_XF[:, 1:].contiguous(), self.tokens, right=True)
        found = self.cosines.new_full((X, spans + 1, Q), -1.0)  # past a chunk's end: a span of its own
        found.scatter_reduce_(1, span.clamp(max=spans)[:, :, None].expand(-1, -1, Q), self.cosines, "amax")
        return found[:, :spans]


def node_scores(spans_XFQ: Tensor, by: str) -> list[Tensor]:
    """Scores of all nodes from those of their finest spans: [X, 1] of the roots, [X, 2] of their halves, down to [X, F].

    Args:
        by: as `config.search_by`.
    """
    levels = []
    width = spans_XFQ.shape[1]
    while width:
        parts = spans_XFQ.unflatten(1, (-1, width))
        nodes = parts[:, :, -1] if by == "last" else parts.amax(2)
        levels.append(nodes.sum(2))
        width //= 2
    return levels


def span_scores(
    blocks: Sequence[Encoded], config: SharedConfig, question_QR: Tensor, borders_XF: Sequence[Tensor]
) -> list[Tensor]:
    """How near every finest span of some blocks is to each token of the question, [X, F, Q] a block, in cosine.

    Args:
        borders_XF: of the finest spans, [X, F + 1] a block.
    """
    compared = zip(compare(blocks, config, question_QR), borders_XF, strict=True)  # one block's cosines at a time
    return [near.spans(borders) for near, borders in compared]


def nearest_spans(
    lengths_X: Sequence[Tensor],
    borders_XF: Sequence[Tensor],
    near_XF: Sequence[Tensor],
    alone_XF: Sequence[Tensor],
) -> list[tuple[int, int]]:
    """The finest spans of a context, start and end in its tokens, the nearest to the question first.

    The two of a pair (`near_parts`) are equally near; of those the one that is nearer by itself comes first.

    Args:
        lengths_X, borders_XF, near_XF, alone_XF: tokens of the chunks, borders of their finest spans, how near each is as
            one of a pair and by itself, a tensor a block, in text order.
    """
    near, alone = (torch.cat([x.flatten() for x in some]).tolist() for some in (near_XF, alone_XF))
    spans = placed(lengths_X, borders_XF).tolist()
    order = sorted(range(len(spans)), key=lambda i: (near[i], alone[i]), reverse=True)
    return [(start, end) for start, end in (spans[i] for i in order) if start < end]


def near_parts(spans_XFQ: Sequence[Tensor]) -> list[Tensor]:
    """How near every finest span of some blocks is to the question, [X, F] each: a mean over the tokens that ask of the
    cosine that it or a neighbour comes to.

    With a neighbour, because a statement may lie across a border, and what it says of a thing before the words that name it.

    Args:
        spans_XFQ: of `span_scores`, a tensor a block, in text order.
    """
    every_NQ = torch.cat([spans.flatten(0, 1) for spans in spans_XFQ])
    near_N = every_NQ.mean(1)
    if len(near_N) > 1:
        pairs = torch.maximum(every_NQ[:-1], every_NQ[1:]).mean(1)
        near_N = torch.maximum(F.pad(pairs, (1, 0), value=-torch.inf), F.pad(pairs, (0, 1), value=-torch.inf))
    sizes = [spans.shape[0] * spans.shape[1] for spans in spans_XFQ]
    return [near.view(spans.shape[:2]) for near, spans in zip(near_N.split(sizes), spans_XFQ, strict=True)]


def priors(near_XF: Sequence[Tensor], weight: float) -> list[Tensor]:
    """What the search adds to the logits of attention in every finest span, [X, F] a block: `weight` times what it lacks
    to the nearest of all; 0 at best.

    So attention is a mixture over parts of the text under the search's own distribution over them, p(part | question), as
    in retrieval-augmented models (arXiv 2002.08909).

    Args:
        near_XF: of `near_parts`, a tensor a block.
    """
    nearest = torch.stack([near.max() for near in near_XF]).max()
    return [weight * (near - nearest) for near in near_XF]


def going_on(tokens: int, before: int) -> Tensor:
    """By which of a window's tokens a text that goes on is searched, [tokens]: the last `CONTINUED_TOKENS` of the `before` that
    stand before what is predicted."""
    place = torch.arange(tokens)
    return (place < before) & (place >= before - CONTINUED_TOKENS)


def asking_tokens(
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    question_mask: Tensor | None = None,
    last: int = ASKING_TOKENS,
) -> Tensor:
    """Which tokens of each row ask, [B, T]: without a `question_mask` its `last`; arguments and errors as of `asked`."""
    T = input_ids.shape[1]
    check_mask(input_ids, attention_mask)
    seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -T:].long()
    asking = seen > 0
    if question_mask is None:
        asking &= seen.sum(1, keepdim=True) - seen.cumsum(1) < last
    else:
        asking &= question_mask.to(asking.device).bool()
    if not asking.any(1).all():
        raise UsageError("a row of the window has no token to ask with; check question_mask and attention_mask.")
    return asking


def check_mask(input_ids: Tensor, attention_mask: Tensor | None) -> None:
    """Raise `UsageError` for a mask that does not say of each token of `input_ids` [B, T] whether it is text."""
    (B, T), shape = input_ids.shape, tuple(getattr(attention_mask, "shape", ()))
    if attention_mask is not None and (len(shape) != 2 or shape[0] != B or shape[1] < T):
        raise UsageError(
            f"attention_mask is of shape {list(shape)}; beside a context, or past the window, it must be [{B}, {T}], or longer "
            "where it covers a past."
        )


def asked(
    lower: LowerModel,
    config: SharedConfig,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    question_mask: Tensor | None = None,
) -> list[Tensor]:
    """Representations of the tokens that ask, [Q, R] for each row of `input_ids` [B, T].

    Args:
        attention_mask: [B, T], or longer where it covers a past as well.
        question_mask: [B, T], which tokens ask; None: the last `ASKING_TOKENS` of each row.
    Raises:
        UsageError: in some row no token asks, or the mask is of another shape.
    """
    T = input_ids.shape[1]
    asking = asking_tokens(input_ids, attention_mask, question_mask)
    mask = None if attention_mask is None else attention_mask[:, -T:].long()
    if config.search_by == "last":
        reps = lower.first_layer(input_ids, mask)
        last = (asking.long() * torch.arange(1, T + 1, device=reps.device)).argmax(dim=1)
        return [reps[b, at : at + 1] for b, at in enumerate(last.tolist())]
    reps = token_reps(lower.values(input_ids, mask, config.representing_layer))
    return [rep[row] for rep, row in zip(reps, asking, strict=True)]


def compare(blocks: Sequence[Encoded], config: SharedConfig, question_QR: Tensor) -> Iterator[Nearness]:
    """Compare a question with all blocks of a context, one at a time: a block may be mapped from the disk.

    It is computed where the question is, and given back where the block is.
    """
    question, device = question_QR.float(), question_QR.device
    if config.search_by == "last":
        for block in blocks:
            cosines = F.cosine_similarity(block.reps.to(device).float()[:, :, None], question, dim=3)
            yield Nearness(block.rep_tokens, cosines.to(block.reps.device), "last")
        return

    found = [_summed(block, config, device) for block in blocks]
    mean = sum(total for total, _ in found) / sum(count for _, count in found)
    asked = F.normalize(question - mean, dim=1)
    for block in blocks:
        mask, reps = _compared(block, config), token_reps(compared_values(block, config, device))
        cosines = (F.normalize(reps - mean, dim=2) @ asked.T).to(mask.device)
        yield Nearness(block.compared_tokens, cosines.masked_fill(~mask[:, :, None], -1.0), "tokens")


def _summed(block: Encoded, config: SharedConfig, device: torch.device) -> tuple[Tensor, int]:
    """The sum of a block's representations that are compared, [R] in fp32 on `device`, and how many they are.

    A block remembers it, by what says which they are: no question after the first has to unpack all of a context for its mean.
    """
    layer = -1 if block.kept_apart else config.representing_layer - config.skipped_layers
    which = (layer, *(() if config.fine_chunks else (config.tree_depth, config.slots_per_leaf)))
    if which not in block.sums:
        mask = _compared(block, config)
        reps = token_reps(compared_values(block, config, device))
        block.sums[which] = (reps * mask[:, :, None].to(device)).sum((0, 1)), int(mask.sum())
    total, count = block.sums[which]
    return total.to(device), count


def represented(block: Encoded, config: SharedConfig) -> tuple[Tensor, Tensor]:
    """What `compare` compares of a block: representations [X, Z, R] in fp32, and which of them are, [X, Z]."""
    if config.search_by == "last":
        return block.reps.float(), block.rep_tokens < block.lengths[:, None]
    return token_reps(compared_values(block, config)), _compared(block, config)


def _compared(block: Encoded, config: SharedConfig) -> Tensor:
    """Which of the tokens that may be are compared, [X, Z]: all, or the candidates where an adapter needs no others.

    A context that is trained on stores every token, and must be searched as one that does not.
    """
    at = block.compared_tokens
    real = at < block.lengths[:, None]
    if config.fine_chunks:
        return real
    lengths = [int(n) for n in block.lengths.unique()]
    kept = {n: candidate_tokens(n, config.tree_depth, config.slots_per_leaf).to(real.device) for n in lengths}
    rows = [torch.isin(tokens, kept[int(n)]) for tokens, n in zip(at, block.lengths, strict=True)]
    return real & torch.stack(rows)


def token_reps(values_XKZD: Tensor) -> Tensor:
    """A token's values of all key/value heads in a row, in fp32: [X, Z, K * D]."""
    return values_XKZD.float().transpose(1, 2).flatten(2)


def compared_values(block: Encoded, config: SharedConfig, device: torch.device | None = None) -> Tensor:
    """Values of the layer that represents tokens, [X, K, Z, D], on `device` or where they are kept."""
    if block.kept_apart:
        return block.search_values_on(device)
    return block.values_of(config.representing_layer - config.skipped_layers, device)
