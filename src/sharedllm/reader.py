"""Reading: from text to an encoded context, a few chunks at a time, and on from where one ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from sharedllm.config import SharedConfig
from sharedllm.context import LAYERS, MERGED_CHUNKS, Context, Progress, layers_of
from sharedllm.encoder import Encoded, LowerModel
from sharedllm.errors import UsageError
from sharedllm.hardware import chunk_batch
from sharedllm.keep import Keep, Span, checked, clipped, keep_spans, merged, shifted, span_mask
from sharedllm.manifest import STORED_UNDER
from sharedllm.tree import candidate_tokens, tree_borders


def chunk_rows(ids: Tensor, length: int) -> Iterator[Tensor]:
    """Token ids [n] cut into chunks: all complete ones, [X, C], then the ragged last one, [1, n % C]."""
    full = len(ids) // length
    if full:
        yield ids[: full * length].view(full, length)
    if len(ids) % length:
        yield ids[None, full * length :]


def chunk_runs(ids: Tensor, length: int, keep: Sequence[Span]) -> Iterator[tuple[Tensor, bool]]:
    """The same cut once more, where chunks that hold a kept token meet chunks that do not, and whether they do."""
    kept = [bool(part.any()) for part in span_mask(keep, len(ids)).split(length)]
    for rows in chunk_rows(ids, length):
        here, kept = kept[: len(rows)], kept[len(rows) :]
        runs = [(whole, len(list(run))) for whole, run in groupby(here)]
        for (whole, _), some in zip(runs, rows.split([size for _, size in runs]), strict=True):
            yield some, whole


class Reader:
    """Fills contexts by the lower model; memory grows with the slots kept, not with the text."""

    def __init__(self, lower: LowerModel, config: SharedConfig, fingerprint: str, tokenizer: Any) -> None:
        self.lower, self.config, self.fingerprint, self.tokenizer = lower, config, fingerprint, tokenizer

    def new_context(self) -> Context:
        """An empty context of this model."""
        return Context(self, self.fingerprint, {name: getattr(self.config, name) for name in STORED_UNDER})

    def append(
        self,
        context: Context,
        more: str | Sequence[int] | Tensor,
        progress: Progress | None = None,
        keep: Keep = None,
    ) -> None:
        """Read `more` on; the context's complete chunks are not read again.

        Nothing is encoded while all of it fits the model's window.
        """
        self.bind(context)
        ids, spans = self.tokenised(more, keep)
        context.keep = merged([*context.keep, *shifted(spans, context.tokens)])
        context.ids = torch.cat([context.ids, ids])
        if context.blocks or context.tokens > self.lower.parts.window:
            self.encode(context, progress)

    def bind(self, context: Context) -> Context:
        """Check that a context was made with this model and these settings; its slots stay where they are kept.

        Raises:
            UsageError: it was not; the sentence says what differs.
        """
        if context.reader is self:
            return context
        if context.fingerprint != self.fingerprint:
            raise UsageError("the context was made with another model; encode the text again with this one.")
        for name, stored in context.shape.items():
            here = getattr(self.config, name)
            richer = {
                "injected_layers": stored > here,
                "skipped_layers": stored < here,
                "compared_layer": here < 0 or context.shape["skipped_layers"] <= here,
                "fine_chunks": stored > 0,
            }.get(name)
            if stored != here and not richer:
                raise UsageError(
                    f"the context was made with {name} {stored}, this adapter needs {here}; encode the text again."
                )
        context.check(self.lower.parts)
        if self.config.search_by == "last" and any(block.reps.shape[1] == 0 for block in context.blocks):
            raise UsageError(
                "the context was made for search_by tokens, this adapter searches by last; encode the text again."
            )
        if context.shape["skipped_layers"] < self.config.skipped_layers:
            self._narrow(context)
        context.shape = {**context.shape, "fine_chunks": self.config.fine_chunks}
        context.reader = self
        return context

    def _narrow(self, context: Context) -> None:
        """Leave in a context only the layers that this adapter needs."""
        needed = {name: getattr(self.config, name) for name in LAYERS}
        context.blocks = layers_of(context.blocks, context.shape, needed)
        context.shape = {**context.shape, **needed}

    @torch.no_grad()
    def encode(self, context: Context, progress: Progress | None = None, every_token: bool = False) -> None:
        """Encode what a context has read and not encoded yet; a ragged last chunk is taken up again.

        Args:
            every_token: keep every token's keys and values, not only the candidates (training, where
                split points are noisy).
        """
        C = self.config.chunk_length
        if (
            context.shape["injected_layers"] > self.config.injected_layers
        ):  # what follows has as many as this adapter needs
            self._narrow(context)
        if context.blocks and int(context.blocks[-1].lengths[-1]) < C:
            context.blocks.pop()
        done, total = context.encoded_tokens, context.tokens

        def told(tokens: int) -> None:
            nonlocal done
            done += tokens
            if progress is not None:
                progress(done, total)

        place = context.blocks[0].lengths.device if context.blocks else self.lower.device
        for rows, whole in chunk_runs(context.ids[done:], C, clipped(context.keep, done, total)):
            for some in rows.split(MERGED_CHUNKS):
                context.blocks.append(self.encode_rows(some, told, every_token, whole).to(place))

    @torch.no_grad()
    def encode_rows(
        self,
        ids_XC: Tensor,
        told: Callable[[int], None] | None = None,
        every_token: bool = False,
        whole: bool = False,
    ) -> Encoded:
        """Encode chunks of one length, as many side by side as memory holds.

        Args:
            told: hears how many tokens were read.
            every_token: as for `encode`.
            whole: store every token all the same, in the bits of the settings: the chunks hold kept spans.
        """
        n = ids_XC.shape[1]
        tokens, reps = self._kept(n, every_token, whole)
        done = []
        for rows in ids_XC.split(self.side_by_side(n)):
            lengths = torch.full((len(rows),), n, device=self.lower.device)
            stored, told_of = (t.to(self.lower.device).expand(len(rows), -1).contiguous() for t in (tokens, reps))
            bits = 16 if every_token else self.config.stored_bits
            done.append(self.lower.encode(rows.to(self.lower.device, torch.long), lengths, stored, told_of, bits))
            if told is not None:
                told(rows.numel())
        return Encoded.cat(done)

    def side_by_side(self, n: int) -> int:
        """How many chunks of `n` tokens are read at once."""
        parts = self.lower.parts
        a_token = 2 * parts.kv_heads * parts.head_dim * self.config.branches + 12 * parts.hidden_size
        return chunk_batch(self.lower.device, n * a_token * self.lower.dtype.itemsize)

    def speed(self) -> float:
        """Tokens read a second, timed on one chunk after another has warmed the machine up."""
        chunk = torch.zeros(1, self.config.chunk_length, dtype=torch.int32)
        self.encode_rows(chunk)
        started = time.perf_counter()
        self.encode_rows(chunk)
        return chunk.numel() / (time.perf_counter() - started)

    def layout(self, n: int, whole: bool = False) -> Encoded:
        """What is kept of a chunk of `n` tokens, without its numbers: on torch's `meta` device."""
        tokens, reps = self._kept(n, whole=whole)
        parts = self.lower.parts
        keys = torch.empty(self.config.branches, 1, parts.kv_heads, len(tokens), parts.head_dim)
        keys = keys.to("meta", self.lower.dtype)
        none = keys.new_empty(*keys.shape[:2], 0)
        told = torch.empty(1, len(reps), parts.hidden_size, device="meta", dtype=self.lower.dtype)
        lengths, tokens, reps = (t.to("meta")[None] for t in (torch.tensor(n), tokens, reps))
        searched = keys[0] if self.config.compared_layer >= 0 else none[0]
        kept = (keys, keys, none, none, none, none, reps, told, searched, none[0], none[0])
        return Encoded(lengths, tokens, *kept).packed(self.config.stored_bits)

    def _kept(self, n: int, every_token: bool = False, whole: bool = False) -> tuple[Tensor, Tensor]:
        """Which tokens of a chunk of `n` are stored, and which have a representation."""
        depth = self.config.tree_depth
        if every_token or whole or self.config.fine_chunks:
            tokens = torch.arange(n)
        else:
            tokens = candidate_tokens(n, depth, self.config.slots_per_leaf)
        if self.config.search_by != "last":
            return tokens, torch.arange(0)
        if every_token:
            return tokens, torch.arange(n)
        return tokens, (tree_borders(torch.tensor([n]), depth)[0, 1:] - 1).clamp(min=0).unique()

    def tokenised(self, text: str | Sequence[int] | Tensor, keep: Keep = None) -> tuple[Tensor, list[Span]]:
        """Token ids of a text, [n] int32, and the spans of them that are kept from compression.

        Raises:
            UsageError: `keep` does not fit the text; see `keep`.
        """
        if not keep:
            return self.token_ids(text), []
        if isinstance(text, str) and self.tokenizer is not None:
            coded, spans = keep_spans(self.tokenizer, text, keep)
            return self.token_ids(coded), spans
        ids = self.token_ids(text)
        if keep == "tags":
            raise UsageError("keep is 'tags', which stand in text; with token ids give ranges of tokens.")
        return ids, checked(keep, len(ids), "tokens")

    def token_ids(self, text: str | Sequence[int] | Tensor) -> Tensor:
        """Token ids of a text, [n] int32, without special tokens; ids given are checked."""
        if isinstance(text, str):
            if self.tokenizer is None:
                raise UsageError(
                    "there is no tokenizer to read text with; give from_pretrained a tokenizer, or pass token ids."
                )
            text = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        ids = torch.as_tensor(text, dtype=torch.int64).cpu().flatten()  # as int32 a large id would wrap
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.lower.parts.vocab_size:
            raise UsageError(f"token ids must lie between 0 and {self.lower.parts.vocab_size - 1}.")
        return ids.int()
