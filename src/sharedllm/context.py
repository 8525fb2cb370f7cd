"""A context: a text that was read once, kept as candidate slots and node representations.

Complete chunks are encoded for good; a ragged last chunk is encoded again when the text goes on, so
that appending gives what reading the whole would have given. The token ids stay as well (4 bytes
each), so that a text which fits the model's window need not be compressed at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sharedllm.config import SharedConfig
from sharedllm.encoded import Encoded
from sharedllm.errors import UsageError, WorkError
from sharedllm.keep import Keep, Span, clipped, merged, shifted, span_mask
from sharedllm.loading import same_model
from sharedllm.manifest import STORED_UNDER
from sharedllm.memory import find
from sharedllm.packing import GROUP
from sharedllm.saved import open_documents, write

if TYPE_CHECKING:
    from sharedllm.architectures import Parts
    from sharedllm.model import SharedLLM
    from sharedllm.reader import Reader

LAYERS = ("injected_layers", "skipped_layers", "compared_layer")
"""Settings that say which layers are kept; a context that keeps more serves an adapter that needs fewer."""
NOT_ENCODED = "a context that was not encoded needs a model; load it with Context.load(folder, llm)."
Progress = Callable[[int, int], None]
"""Called with tokens read so far and tokens in all."""


class Context:
    """A text that was read: `llm.read(text)` makes one.

    Attributes:
        blocks: encoded chunks in text order.
        ids: all token ids, int32.
        keep: spans of tokens kept from compression, ascending and apart; see `keep`.
    """

    def __init__(self, reader: Reader | None, fingerprint: str, shape: dict[str, int]) -> None:
        self.reader = reader
        self.fingerprint = fingerprint
        self.shape = shape
        """Settings that say which slots are stored, by the names in `STORED_UNDER`."""
        self.blocks: list[Encoded] = []
        self.ids = torch.empty(0, dtype=torch.int32)
        self.keep: list[Span] = []
        self.again: dict[int, Encoded] = {}
        """Chunks that were read again for a question, by their numbers; see `Reader.again`."""

    @property
    def tokens(self) -> int:
        """How many tokens were read."""
        return len(self.ids)

    @property
    def chunks(self) -> int:
        """How many chunks are encoded; 0 while the text fits the window and nothing asked for slots."""
        return sum(b.lengths.shape[0] for b in self.blocks)

    @property
    def encoded_tokens(self) -> int:
        """How many of the tokens are in encoded chunks; fewer than `tokens` where some were only tokenised so far."""
        return sum(int(b.lengths.sum()) for b in self.blocks)

    @property
    def slots(self) -> int:
        """Slots taken in without a question (each layer has as many); a question that reads a chunk in whole takes in more."""
        if not self.blocks:
            return 0
        config = self.reader.config if self.reader is not None else self.config
        return sum(int(found.taken().sum()) for found in find(self.blocks, config, keep=self.keep))

    @property
    def compact(self) -> bool:
        """Whether of each chunk only the tokens are stored that its tree may choose, and of all what a question is compared
        with. What a question takes in besides, a chunk that is read whole above all, is read again from the token ids."""
        return bool(self.shape["compact"])

    @property
    def nbytes(self) -> int:
        """Bytes kept: all candidate slots, representations and token ids."""
        return sum(b.nbytes for b in self.blocks) + self.ids.numel() * self.ids.element_size()

    @property
    def config(self) -> SharedConfig:
        """The settings it was read under, as far as they say what is stored; the others are as by default."""
        return SharedConfig.from_dict({n: v for n, v in self.shape.items() if n not in ("compared_layer", "compact")})

    def append(self, more: str | Sequence[int] | Tensor, progress: Progress | None = None, keep: Keep = None) -> None:
        """Read on; the complete chunks before are not read again, and a ragged one when the text completes it, is asked or saved.
        Where that fails or is stopped, the context stays as it was.

        Args:
            progress, keep: as for `SharedLLM.read`; ranges are counted from where `more` begins.
        Raises:
            UsageError: the context was loaded without a model (pass `llm` to `Context.load`), or `keep` fits not.
        """
        if self.reader is None:
            raise UsageError("this context has no model to read with; load it with Context.load(folder, llm).")
        self.reader.append(self, more, progress, keep)

    def first(self, chunks: int) -> Context:
        """A view of the first `chunks` chunks, sharing their storage; what is not encoded yet is encoded now.

        Raises:
            UsageError: there is something to encode and no model; see `load`.
        """
        return self._cut(0, chunks)

    def without_first(self, chunks: int) -> Context:
        """A view of what follows the first `chunks` chunks, as if it alone had been read; otherwise as `first`."""
        return self._cut(chunks, None)

    def _cut(self, start: int, end: int | None) -> Context:
        with _apart(self.reader):
            if self.encoded_tokens < self.tokens:
                if self.reader is None:
                    raise UsageError(NOT_ENCODED)
                self.reader.encode(self)
            whole = view_of(self)
        end = whole.chunks if end is None else end
        part = Context(self.reader, self.fingerprint, self.shape)
        before = 0
        for block in whole.blocks:
            size = len(block.lengths)
            first, last = max(start - before, 0), min(end - before, size)
            if first < last:
                part.blocks.append(block if last - first == size else block[first:last])
            before += size
        lengths = torch.cat([block.lengths for block in whole.blocks]) if whole.blocks else torch.empty(0)
        skipped = int(lengths[:start].sum())
        part.ids = whole.ids[skipped : skipped + part.encoded_tokens]
        part.keep = clipped(whole.keep, skipped, skipped + part.tokens)
        return part

    @classmethod
    def compose(cls, contexts: Sequence[Context]) -> Context:
        """One context of several, in the order given; nothing is read again, and their storage is shared.

        A text that ends inside a chunk keeps that short chunk. Texts that fit the window together are read there.

        Raises:
            UsageError: none given, or they were made with different models or settings.
        """
        if not contexts:
            raise UsageError("there is nothing to compose; give at least one context.")
        reader = next((c.reader for c in contexts if c.reader is not None), None)
        with _apart(reader):
            return cls._composed(reader, contexts)

    @classmethod
    def _composed(cls, reader: Reader | None, contexts: Sequence[Context]) -> Context:
        """The same, with the contexts in this thread's hands alone, for the first reader that one of them has."""
        if reader is not None:
            contexts = [reader.bind(context) for context in contexts]
        shapes = [context.shape for context in contexts]
        shape = {name: min(s[name] for s in shapes) for name in STORED_UNDER}
        shape |= {name: max(s[name] for s in shapes) for name in ("skipped_layers", "compared_layer", "compact")}
        for name in STORED_UNDER:
            if name not in (*LAYERS, "fine_chunks", "compact") and any(s[name] != shape[name] for s in shapes):
                raise UsageError(f"the contexts were made with different {name}; encode them with one adapter.")
        known = max((context.fingerprint for context in contexts), key=len)
        if not all(same_model(context.fingerprint, known) for context in contexts):
            raise UsageError("the contexts were made with different models; encode them with one.")
        whole, at = cls(reader, known, shape), 0
        for context in contexts:
            whole.keep += shifted(context.keep, at)
            at += context.tokens
        whole.ids, whole.keep = torch.cat([context.ids for context in contexts]), merged(whole.keep)
        unread = [context for context in contexts if context.encoded_tokens < context.tokens]
        if len(unread) == len(contexts) and (reader is None or whole.tokens <= reader.lower.parts.window):
            return whole
        if unread and reader is None:
            raise UsageError(NOT_ENCODED)
        for context in unread:
            assert reader is not None
            reader.encode(context)
        devices = {block.lengths.device for context in contexts for block in context.blocks}
        place = devices.pop() if len(devices) == 1 else torch.device("cpu")
        for context in contexts:
            whole.again |= {whole.chunks + chunk: kept for chunk, kept in context.again.items()}
            whole.blocks += [block.to(place) for block in layers_of(context.blocks, context.shape, shape)]
        return whole

    def save(self, folder: str | Path) -> None:
        """Write the context into `folder`, as one document; chunks that are there are not written again. What another thread
        appends meanwhile is not written.

        Raises:
            UsageError: `folder` is not a saved context, or holds several documents (see `Library`).
            WorkError: the disk is full or cannot be written; what was there before stays, whole.
        """
        with _apart(self.reader):
            if self.blocks and self.encoded_tokens < self.tokens and self.reader is not None:
                self.reader.encode(self)
            whole = view_of(self)
        write(Path(folder), whole)

    @classmethod
    def load(cls, folder: str | Path, llm: SharedLLM | None = None, documents: Sequence[str] | None = None) -> Context:
        """Open a saved context. Its slots stay on the disk; a question loads those that it takes in.

        Args:
            llm: the model to bind it to; without one it cannot be asked or appended to.
            documents: names of those to take, in that order; None: all, in the order they were added.
        Raises:
            UsageError: not a context, of another version, or made with another model; no such document.
            WorkError: the files are broken or cut short.
        """
        fingerprint, shape, found = open_documents(Path(folder), documents)
        parts = []
        for ids, blocks, keep in found:
            part = cls(None, fingerprint, shape)
            part.ids, part.blocks, part.keep = ids, blocks, keep
            parts.append(part)
        if llm is not None:
            try:
                parts = [llm.reader.bind(part) for part in parts]
            except WorkError as error:
                raise WorkError(f"the context in {folder} is broken: {error}") from error
            except UsageError as error:
                raise UsageError(f"{folder}: {error}") from error
        return parts[0] if len(parts) == 1 else cls.compose(parts)

    def check(self, parts: Parts) -> None:
        """Raise `WorkError` when what is stored contradicts itself, the settings or the model."""
        if self.tokens and not 0 <= int(self.ids.min()) <= int(self.ids.max()) < parts.vocab_size:
            raise WorkError("the context has token ids that are not in the model's vocabulary; encode the text again.")
        C, fitting = self.shape["chunk_length"], self.encoded_tokens <= self.tokens
        M = self.shape["injected_layers"] - self.shape["skipped_layers"]
        K, D, E = parts.kv_heads, parts.head_dim, parts.hidden_size
        for block in self.blocks:
            (X,), P, R = block.lengths.shape, block.tokens.shape[-1], block.rep_tokens.shape[-1]
            kept: Sequence[tuple[int, ...]] = [(M, X, K, P, D)] * 2
            scales: Sequence[tuple[int, ...]] = [(M, X, 0)] * 4
            if block.keys.dtype == torch.uint8:
                half = block.keys.shape[-1] * 2 == D
                kept = [(M, X, K, P, D // 2 if half else D)] * 2
                scales = [(M, X, K, -(-P // min(GROUP, max(P, 1))), D)] * 2 + [(M, X, K, P, 1)] * 2
            searched: Sequence[tuple[int, ...]] = [(X, 0)] * 3
            if self.shape["compared_layer"] >= 0:
                Z = int(block.lengths[0]) if self.compact else P
                searched = [(*s[1:3], Z, *s[4:]) if len(s) == 5 else s[1:] for s in (kept[1], *scales[2:])]
            expected = [(X,), (X, P), *kept, *scales, (X, R), (X, R, E), *searched]
            fitting &= 0 < int(block.lengths.min()) <= int(block.lengths.max()) <= C
            if not fitting or [tuple(tensor.shape) for tensor in vars(block).values()] != expected:
                raise WorkError("the parts of the context do not fit together; encode the text again.")
        if self.keep and not self._holds_its_spans():
            raise WorkError("the context lacks tokens that it is to keep; encode the text again.")

    def _holds_its_spans(self) -> bool:
        """Whether the kept tokens are in the text, and every chunk with one of them stores all of its tokens."""
        if self.keep[0][0] < 0 or self.keep[-1][1] > self.tokens:
            return False
        start, kept = 0, span_mask(self.keep, self.tokens)
        for block in self.blocks:
            for n in block.lengths.tolist():
                if block.tokens.shape[1] < n and kept[start : start + n].any():
                    return False
                start += n
        return True


def view_of(context: Context) -> Context:
    """A context with the same storage: what is done to either leaves the other alone."""
    view = copy.copy(context)
    view.blocks, view.again = list(context.blocks), {}
    return view


def _apart(reader: Reader | None) -> AbstractContextManager[None]:
    """A block in which no other thread reads on; without a reader none can."""
    return nullcontext() if reader is None else reader.lower.apart()


@contextmanager
def restored(context: Context, unless: Callable[[], object] = lambda: False) -> Iterator[None]:
    """A block after which the context is as before where it fails or is stopped, so that whoever does it again does not have
    the text twice; but for what is so by then, `unless`."""
    before = context.ids, context.keep, list(context.blocks)
    try:
        yield
    except BaseException:
        if not unless():
            context.ids, context.keep, context.blocks = before
            context.again.clear()
        raise


def layers_of(blocks: Sequence[Encoded], shape: dict[str, int], wanted: dict[str, int]) -> list[Encoded]:
    """Blocks that keep the layers of `shape`, with those of `wanted` alone."""
    start, end = (wanted[name] - shape["skipped_layers"] for name in ("skipped_layers", "injected_layers"))
    apart = wanted["compared_layer"]
    compared = None if apart == shape["compared_layer"] or apart < 0 else apart - shape["skipped_layers"]
    return [block.layers(start, end, compared) for block in blocks]
