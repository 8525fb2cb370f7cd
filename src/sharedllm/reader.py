"""Reading: from text to an encoded context, a few chunks at a time, and on from where one ended."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from sharedllm.binding import bound
from sharedllm.chunks import AS_SET, Stored, chunk_runs, stored_tokens
from sharedllm.config import SharedConfig
from sharedllm.context import Context, Progress, restored
from sharedllm.encoded import MERGED_CHUNKS, Encoded, add
from sharedllm.encoder import LowerModel, Wanted
from sharedllm.errors import UsageError, WorkError
from sharedllm.hardware import chunk_batch, finished, room_bytes
from sharedllm.keep import Keep, Span, checked, clipped, keep_spans, merged, shifted
from sharedllm.loading import identity, lora_state, same_model
from sharedllm.manifest import STORED_UNDER
from sharedllm.pieces import cuts_between_lines, piece_ids
from sharedllm.prompts import check_encodable

LENGTHS = 8  # that a ragged chunk is padded to while it is read
REMEMBERED = 8  # chunks of a context that were read again for a question: as many as one question may take in whole


class Reader:
    """Fills contexts by the lower model; memory grows with the slots kept, not with the text."""

    def __init__(self, lower: LowerModel, config: SharedConfig, fingerprint: str, tokenizer: Any) -> None:
        self.lower, self.config, self.fingerprint, self.tokenizer = lower, config, fingerprint, tokenizer
        self._identity: tuple[list[Any], str] | None = None  # under which LoRAs, and what it is
        self._loras: list[Any] | None = None  # when the identity was asked for last
        self._views: WeakKeyDictionary[Context, Context] = WeakKeyDictionary()  # by the contexts of other adapters

    @property
    def identity(self) -> str:
        """Of the model that reads, with the LoRAs that are on it now; see `loading.identity`."""
        loras = lora_state(self.lower.parts)
        if self._loras is not None and loras != self._loras:
            self.lower.reweighted()
        self._loras = loras
        state = [lora[1:] for lora in loras]  # merged ones change nothing of what the model computes
        if self._identity is None or self._identity[0] != state:
            self._identity = state, identity(self.lower.parts, self.fingerprint)
        return self._identity[1]

    @cached_property
    def text_tokenizer(self) -> Any:
        """The tokenizer for texts: `<|im_end|>` in one is the characters it is written with, so that no document speaks in
        the words of the chat template. A copy, since threads tokenise prompts with the other beside it."""
        tokenizer = copy.deepcopy(self.tokenizer)
        tokenizer.split_special_tokens = True
        return tokenizer

    @cached_property
    def _cuts(self) -> bool:
        """Whether the tokenizer gives the same ids of a text that is given to it in pieces."""
        return cuts_between_lines(self.text_tokenizer)

    def new_context(self, compact: bool = False) -> Context:
        """An empty context of this model; see `Context.compact`."""
        compact = compact and self.config.fine_chunks > 0  # else no more than the candidates are stored anyway
        about = {**self.about(compact), "compact": int(compact)}
        return Context(self, self.identity, {name: about[name] for name in STORED_UNDER})

    def about(self, compact: bool) -> dict[str, Any]:
        """The settings, and which layer's values are kept apart to be compared."""
        return {**self.config.to_dict(), "compared_layer": self.config.compared_layer(compact)}

    def read(
        self,
        text: str | Sequence[int] | Tensor,
        progress: Progress | None = None,
        keep: Keep = None,
        compact: bool = False,
    ) -> Context:
        """A new context of a text, which is in no other thread's hands yet: others answer between two of its chunks."""
        context = self.new_context(compact)
        self._append(context, *self.tokenised(text, keep), progress)
        return context

    def append(
        self,
        context: Context,
        more: str | Sequence[int] | Tensor,
        progress: Progress | None = None,
        keep: Keep = None,
    ) -> None:
        """Read `more` on; the context's complete chunks are not read again. Other threads wait.

        Nothing is encoded while all of it fits the model's window, nor while no chunk is completed: what asks or saves the
        context takes up the rest. Where reading fails or is stopped, the context stays as it was.

        Raises:
            UsageError: as `bind`, or the context keeps more than this reader would read on.
        """
        if self.bind(context) is not context:
            raise UsageError(
                "the context keeps more than this adapter reads; append with the model it was read with, or read all of it "
                "with this one."
            )
        ids, spans = self.tokenised(more, keep)
        with self.lower.apart():
            self._append(context, ids, spans, progress)

    def _append(self, context: Context, ids: Tensor, spans: Sequence[Span], progress: Progress | None) -> None:
        """The same with token ids, and the context in this thread's hands alone."""
        with restored(context):
            context.keep = merged([*context.keep, *shifted(spans, context.tokens)])
            context.ids = torch.cat([context.ids, ids])
            if self._completes(context) if context.blocks else context.tokens > self.lower.parts.window:
                self._encode(context, progress)

    def _completes(self, context: Context) -> bool:
        """Whether what is not encoded yet completes a chunk of a context; else the last one would be read again for each line
        that is appended."""
        last, C = int(context.blocks[-1].lengths[-1]), self.config.chunk_length
        return last % C + context.tokens - context.encoded_tokens >= C

    def bind(self, context: Context) -> Context:
        """A context that this reader's adapter can ask, and go on with: the same one, or a view of it; see `binding.bound`.

        Raises:
            UsageError: it was made with another model or other settings; the sentence says what differs.
        """
        if not same_model(context.fingerprint, self.identity):
            raise UsageError("the context was made with another model; encode the text again with this one.")
        if context.reader is self:
            return context
        if (view := self._views.get(context)) is not None and view.ids is context.ids:
            return view
        found = bound(self, context)
        if found is not context:
            self._views[context] = found  # remembered, with what is encoded of it, until that one goes on
        return found

    def encode(self, context: Context, progress: Progress | None = None, every_token: bool = False) -> None:
        """Encode what a context has read and not encoded yet; a ragged last chunk is taken up again.

        Args:
            every_token: keep every token's keys and values, not only the candidates (training, where
                split points are noisy).
        """
        if context.encoded_tokens < context.tokens:
            with self.lower.apart():  # of two threads that use a context first, one encodes it
                self._encode(context, progress, every_token)

    @torch.no_grad()
    def _encode(self, context: Context, progress: Progress | None, every_token: bool = False) -> None:
        """The same, with the context in this thread's hands alone."""
        C = self.config.chunk_length
        if context.encoded_tokens == context.tokens:
            return
        if context.blocks and int(context.blocks[-1].lengths[-1]) < C:
            last = context.blocks.pop()
            context.blocks += [last[:-1]] if len(last.lengths) > 1 else []
            context.again.pop(context.chunks, None)
        done, total = context.encoded_tokens, context.tokens

        def told(tokens: int) -> None:
            nonlocal done
            done += tokens
            if progress is not None:
                progress(done, total)

        place = context.blocks[0].lengths.device if context.blocks else self.lower.device
        runs = [
            (rows, Stored(every_token, whole, context.compact))
            for rows, whole in chunk_runs(context.ids[done:], C, clipped(context.keep, done, total))
        ]
        self._check_room(runs, place)
        for rows, stored in runs:
            for some in rows.split(self.at_once(rows.shape[1])):
                encoded = self.encode_rows(some, told, stored).to(place)
                add(context.blocks, encoded)

    def _check_room(self, runs: Sequence[tuple[Tensor, Stored]], place: torch.device) -> None:
        """Raise `WorkError` where the memory of `place` cannot hold what would be kept of chunks [X, n] each."""
        needed = sum(len(rows) * self.layout(rows.shape[1], stored).nbytes for rows, stored in runs)
        if needed > (free := room_bytes(place, needed)):
            fewer = self.config.fine_chunks > 0 and not any(stored.compact or stored.every_token for _, stored in runs)
            raise WorkError(
                f"the text would take {needed / 1e6:,.1f} MB of memory and {free / 1e6:,.1f} MB are free; read it with "
                "`sharedllm encode`, which writes to the disk while it reads"
                f"{', with --compact a quarter of that' if fewer else ''}."
            )

    @torch.no_grad()
    def encode_rows(
        self,
        ids_XC: Tensor,
        told: Callable[[int], None] | None = None,
        stored: Stored = AS_SET,
    ) -> Encoded:
        """Encode chunks of one length, as many side by side as memory holds.

        Args:
            told: hears how many tokens were read.
            stored: what is kept of them.
        """
        n, device = ids_XC.shape[1], self.lower.device
        kept = stored_tokens(self.config, n, stored)
        compared = self.config.compared_layer(stored.compact)
        done = []
        for rows in ids_XC.split(self.side_by_side(n)):
            lengths = torch.full((len(rows),), n, device=device)
            tokens, reps, some = (t.to(device).expand(len(rows), -1).contiguous() for t in kept)
            wanted = Wanted(tokens, reps, self.config.stored_bits, compared, some)
            done.append(self.lower.encode(self._rounded(rows.to(device, torch.long)), lengths, wanted))
            if told is not None:
                told(rows.numel())
        return Encoded.cat(done)

    @torch.no_grad()
    def again(self, context: Context, chunk: int) -> Encoded:
        """A chunk of a context, by its number from 0, read once more with every token; the last few are remembered."""
        found = context.again.get(chunk)
        if found is None:
            lengths = [n for block in context.blocks for n in block.lengths.tolist()]
            start = sum(lengths[:chunk])
            ids = context.ids[start : start + lengths[chunk]]
            for old in list(context.again)[: 1 - REMEMBERED]:
                context.again.pop(old, None)  # which another thread may have done
            context.again[chunk] = found = self.encode_rows(ids[None], stored=Stored(whole=True))
        return found

    def _rounded(self, rows: Tensor) -> Tensor:
        """Chunks [X, n], padded at the right to one of `LENGTHS` lengths.

        Libraries keep the code that they make for each shape they meet (for a chunk it takes a megabyte or two), so that
        ragged chunks of every length would fill a server's memory (docs/LOG.md).
        """
        n, C = rows.shape[1], self.config.chunk_length
        return F.pad(rows, (0, min(-n % max(1, C // LENGTHS), max(0, C - n))))

    def side_by_side(self, n: int) -> int:
        """How many chunks of `n` tokens are read at once."""
        parts = self.lower.parts
        a_token = 2 * parts.kv_heads * parts.head_dim * self.config.branches + 12 * parts.hidden_size
        return chunk_batch(self.lower.device, n * a_token * self.lower.dtype.itemsize)

    def at_once(self, n: int, most: int = MERGED_CHUNKS) -> int:
        """How many chunks of `n` tokens one `encode_rows` takes: as memory allows, in whole groups of `most` that are kept
        together, and one such at least."""
        return max(most, self._together(n) // most * most)

    def step(self, n: int) -> int:
        """How many chunks of `n` tokens are read before what was read goes to the disk."""
        return self.side_by_side(n)

    def a_pass(self, n: int) -> int:
        """How many chunks of `n` tokens of a long text go through the layers at a time."""
        return min(self.at_once(n), self.side_by_side(n))

    def _together(self, n: int) -> int:
        """How many chunks of `n` tokens memory allows to be read at once, by all that read."""
        return self.side_by_side(n)

    def speed(self) -> float:
        """Tokens read a second, timed on as many chunks as are read side by side after others have warmed the machine up."""
        C, seconds = self.config.chunk_length, 0.0
        chunks = torch.zeros(self.a_pass(C), C, dtype=torch.int32)
        for _ in range(2):
            started = time.perf_counter()
            self.encode_rows(chunks)
            finished(self.lower.device)
            seconds = time.perf_counter() - started
        return chunks.numel() / seconds

    def layout(self, n: int, stored: Stored = AS_SET) -> Encoded:
        """What is kept of a chunk of `n` tokens, without its numbers: on torch's `meta` device."""
        tokens, reps, compared = stored_tokens(self.config, n, stored)
        parts = self.lower.parts
        keys = torch.empty(self.config.branches, 1, parts.kv_heads, len(tokens), parts.head_dim)
        keys = keys.to("meta", self.lower.dtype)
        none = keys.new_empty(*keys.shape[:2], 0)
        told = torch.empty(1, len(reps), parts.hidden_size, device="meta", dtype=self.lower.dtype)
        lengths, tokens, reps = (t.to("meta")[None] for t in (torch.tensor(n), tokens, reps))
        apart = self.config.compared_layer(stored.compact) >= 0
        searched = keys.new_empty(1, parts.kv_heads, len(compared), parts.head_dim) if apart else none[0]
        kept = (keys, keys, none, none, none, none, reps, told, searched, none[0], none[0])
        return Encoded(lengths, tokens, *kept).packed(self.config.stored_bits)

    def tokenised(self, text: str | Sequence[int] | Tensor, keep: Keep = None) -> tuple[Tensor, list[Span]]:
        """Token ids of a text, [n] int32, and the spans of them that are kept from compression.

        Raises:
            UsageError: `keep` does not fit the text, see `keep`; or that is none, see `token_ids`.
        """
        if not keep:
            return self.token_ids(text), []
        if isinstance(text, str) and self.tokenizer is not None:
            check_encodable("what is to be read", text)
            coded, spans = keep_spans(self.text_tokenizer, text, keep)
            return self.token_ids(coded), spans
        ids = self.token_ids(text)
        if keep == "tags":
            raise UsageError("keep is 'tags', which stand in text; with token ids give ranges of tokens.")
        return ids, checked(keep, len(ids), "tokens")

    def token_ids(self, text: str | Sequence[int] | Tensor) -> Tensor:
        """Token ids of a text, [n] int32, without special tokens, even where it spells them; ids given are checked.

        Raises:
            UsageError: there is no tokenizer, the text holds what none can take, or ids are outside the vocabulary.
        """
        if isinstance(text, str):
            if self.tokenizer is None:
                raise UsageError(
                    "there is no tokenizer to read text with; give from_pretrained a tokenizer, or pass token ids."
                )
            check_encodable("what is to be read", text)
            ids = piece_ids(self.text_tokenizer, text, lambda: self._cuts)
        else:
            ids = torch.as_tensor(text, dtype=torch.int64).cpu().flatten()  # as int32 a large id would wrap
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self.lower.parts.vocab_size:
            raise UsageError(f"token ids must lie between 0 and {self.lower.parts.vocab_size - 1}.")
        return ids.int()
