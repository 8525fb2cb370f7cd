"""Reading: from text to an encoded context, a few chunks at a time, and on from where one ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sharedllm.config import SharedConfig
from sharedllm.context import STORED_UNDER, Context, Progress
from sharedllm.encoder import Encoded, LowerModel
from sharedllm.errors import UsageError
from sharedllm.hardware import chunk_batch
from sharedllm.tree import candidate_tokens, tree_borders

MERGED_CHUNKS = 32  # chunks a stored block holds, so that a question walks few blocks


class Reader:
    """Fills contexts by the lower model; memory grows with the slots kept, not with the text."""

    def __init__(self, lower: LowerModel, config: SharedConfig, fingerprint: str, tokenizer: Any) -> None:
        self.lower, self.config, self.fingerprint, self.tokenizer = lower, config, fingerprint, tokenizer

    def new_context(self) -> Context:
        """An empty context of this model."""
        return Context(self, self.fingerprint, {name: getattr(self.config, name) for name in STORED_UNDER})

    def append(self, context: Context, more: str | Sequence[int] | Tensor, progress: Progress | None = None) -> None:
        """Read `more` on; the context's complete chunks are not read again.

        Nothing is encoded while all of it fits the model's window.
        """
        self.bind(context)
        context.ids = torch.cat([context.ids, self.token_ids(more)])
        if context.blocks or context.tokens > self.lower.parts.window:
            self.encode(context, progress)

    def bind(self, context: Context) -> Context:
        """Check that a context was made with this model and these settings, and move it to the device.

        Raises:
            UsageError: it was not; the sentence says what differs.
        """
        if context.reader is self:
            return context
        if context.fingerprint != self.fingerprint:
            raise UsageError("the context was made with another model; encode the text again with this one.")
        for name, stored in context.shape.items():
            here = getattr(self.config, name)
            richer = stored > here if name == "injected_layers" else name == "fine_chunks" and stored > 0
            if stored != here and not richer:
                raise UsageError(
                    f"the context was made with {name} {stored}, this adapter needs {here}; encode the text again."
                )
        context.check(self.lower.parts)
        if self.config.search_by == "last" and any(block.reps.shape[1] == 0 for block in context.blocks):
            raise UsageError(
                "the context was made for search_by tokens, this adapter searches by last; encode the text again."
            )
        context.shape = {**context.shape, "fine_chunks": self.config.fine_chunks}
        for i, block in enumerate(context.blocks):
            moved = {
                n: t.to(self.lower.device, self.lower.dtype if t.is_floating_point() else None)
                for n, t in vars(block).items()
            }
            context.blocks[i] = Encoded(**moved)
        context.reader = self
        return context

    @torch.no_grad()
    def encode(self, context: Context, progress: Progress | None = None, every_token: bool = False) -> None:
        """Encode what a context has read and not encoded yet; a ragged last chunk is taken up again.

        Args:
            every_token: keep every token's keys and values, not only the candidates (training, where
                split points are noisy).
        """
        C, M = self.config.chunk_length, self.config.injected_layers
        if context.shape["injected_layers"] > M:  # read by more layers than this adapter needs; what follows has M
            context.blocks = [block.lowest(M) for block in context.blocks]
            context.shape = {**context.shape, "injected_layers": M}
        if context.blocks and int(context.blocks[-1].lengths[-1]) < C:
            context.blocks.pop()
        at, total = context.encoded_tokens, context.tokens
        parts = self.lower.parts
        kv = 2 * parts.kv_heads * parts.head_dim * M
        batch = chunk_batch(self.lower.device, C * (kv + 12 * parts.hidden_size) * self.lower.dtype.itemsize)
        fresh: list[Encoded] = []
        while at < total:
            full = min(batch, (total - at) // C)
            taken = full * C if full else total - at
            fresh.append(self._encode_chunks(context.ids[at : at + taken].view(max(full, 1), -1), every_token))
            at += taken
            if sum(f.lengths.shape[0] for f in fresh) >= MERGED_CHUNKS or at == total or (total - at) < C:
                context.blocks.append(Encoded.cat(fresh))
                fresh = []
            if progress is not None:
                progress(at, total)

    def _encode_chunks(self, ids_XC: Tensor, every_token: bool) -> Encoded:
        """Encode chunks of one length; packed, unless every token is wanted for training."""
        X, n = ids_XC.shape
        depth = self.config.tree_depth
        if every_token or self.config.fine_chunks:
            tokens = torch.arange(n)  # storage of its own, or safetensors refuses it
        else:
            tokens = candidate_tokens(n, depth, self.config.slots_per_leaf)
        if self.config.search_by != "last":
            reps = torch.arange(0)
        elif every_token:
            reps = torch.arange(n)
        else:
            reps = (tree_borders(torch.tensor([n]), depth)[0, 1:] - 1).clamp(min=0).unique()
        lengths = torch.full((X,), n, device=self.lower.device)
        tokens, reps = (t.to(self.lower.device).expand(X, -1).contiguous() for t in (tokens, reps))
        encoded = self.lower.encode(ids_XC.to(self.lower.device, torch.long), lengths, tokens, reps)
        return encoded if every_token else encoded.packed(self.config.stored_bits)

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
