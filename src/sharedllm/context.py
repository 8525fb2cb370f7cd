"""A context: a text that was read once, kept as candidate slots and node representations.

Complete chunks are encoded for good; a ragged last chunk is encoded again when the text goes on, so
that appending gives what reading the whole would have given. The token ids stay as well (4 bytes
each), so that a text which fits the model's window need not be compressed at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sharedllm.config import SharedConfig
from sharedllm.encoder import Encoded
from sharedllm.errors import UsageError, WorkError
from sharedllm.files import replaceable, replaced_folder
from sharedllm.memory import find
from sharedllm.packing import GROUP
from sharedllm.tree import slot_tokens

if TYPE_CHECKING:
    from sharedllm.architectures import Parts
    from sharedllm.model import SharedLLM
    from sharedllm.reader import Reader

FORMAT = "sharedllm-context"
STORED_UNDER = ("injected_layers", "chunk_length", "tree_depth", "slots_per_leaf", "fine_chunks")
VERSION = 2
ABOUT_FILE, SLOTS_FILE = "context.json", "slots.safetensors"
Progress = Callable[[int, int], None]
"""Called with tokens read so far and tokens in all."""


class Context:
    """A text that was read: `llm.read(text)` makes one.

    Attributes:
        blocks: encoded chunks in text order.
        ids: all token ids, int32.
    """

    def __init__(self, reader: Reader | None, fingerprint: str, shape: dict[str, int]) -> None:
        self.reader = reader
        self.fingerprint = fingerprint
        self.shape = shape
        """Settings that say which slots are stored, by the names in `STORED_UNDER`."""
        self.blocks: list[Encoded] = []
        self.ids = torch.empty(0, dtype=torch.int32)

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
        return sum(int(b.lengths.sum()) for b in self.blocks)

    @property
    def slots(self) -> int:
        """Slots one question selects, over all chunks it reads (each layer has as many)."""
        if not self.blocks:
            return 0
        config = self.reader.config if self.reader is not None else self.config
        return sum(int(slot_tokens(f.leaves, f.slots[:, None, None])[1].sum()) for f in find(self.blocks, config))

    @property
    def nbytes(self) -> int:
        """Bytes kept: all candidate slots, representations and token ids."""
        return sum(b.nbytes for b in self.blocks) + self.ids.numel() * self.ids.element_size()

    @property
    def config(self) -> SharedConfig:
        return SharedConfig.from_dict(self.shape)

    def append(self, more: str | Sequence[int] | Tensor, progress: Progress | None = None) -> None:
        """Read on; the complete chunks before are not read again.

        Raises:
            UsageError: the context was loaded without a model (pass `llm` to `Context.load`).
        """
        if self.reader is None:
            raise UsageError("this context has no model to read with; load it with Context.load(folder, llm).")
        self.reader.append(self, more, progress)

    def first(self, chunks: int) -> Context:
        """A view of the first `chunks` chunks, sharing their storage; what is not encoded yet is encoded now."""
        return self._cut(0, chunks)

    def without_first(self, chunks: int) -> Context:
        """A view of what follows the first `chunks` chunks, as if it alone had been read."""
        return self._cut(chunks, None)

    def _cut(self, start: int, end: int | None) -> Context:
        if self.encoded_tokens < self.tokens and self.reader is not None:
            self.reader.encode(self)
        end = self.chunks if end is None else end
        part = Context(self.reader, self.fingerprint, self.shape)
        before = 0
        for block in self.blocks:
            size = len(block.lengths)
            first, last = max(start - before, 0), min(end - before, size)
            if first < last:
                part.blocks.append(block[first:last])
            before += size
        skipped = start * self.shape["chunk_length"]
        part.ids = self.ids[skipped : skipped + part.encoded_tokens]
        return part

    def save(self, folder: str | Path) -> None:
        """Write `context.json` and `slots.safetensors` into `folder`, whole or not at all.

        Raises:
            UsageError: `folder` exists and is not a saved context.
            WorkError: the disk is full or cannot be written; what was there before stays.
        """
        folder = Path(folder)
        check_target(folder)
        tensors: dict[str, Tensor] = {"ids": self.ids}
        for i, block in enumerate(self.blocks):
            for name, tensor in vars(block).items():
                tensors[f"{i:06d}.{name}"] = tensor.contiguous()
        about = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.fingerprint,
            "tokens": self.tokens,
            "blocks": len(self.blocks),
            **self.shape,
        }
        with replaced_folder(folder) as temporary:
            save_file(tensors, temporary / "slots.safetensors")
            (temporary / "context.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path, llm: SharedLLM | None = None) -> Context:
        """Read a saved context; with `llm`, bound to it and moved to its device.

        Raises:
            UsageError: not a context, of another version, or made with another model.
            WorkError: the files are broken or cut short.
        """
        folder = Path(folder)
        about = _read_about(folder)
        try:
            context = cls(None, str(about["model"]), {name: int(about[name]) for name in STORED_UNDER})
            tokens, blocks = int(about["tokens"]), int(about["blocks"])
            with safe_open(folder / "slots.safetensors", framework="pt") as stored:
                context.ids = stored.get_tensor("ids")
                for i in range(blocks):
                    fields = {n: stored.get_tensor(f"{i:06d}.{n}") for n in Encoded.__dataclass_fields__}
                    context.blocks.append(Encoded(**fields))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise WorkError(f"the context in {folder} is broken ({error}); encode the text again.") from error
        if context.tokens != tokens:
            raise WorkError(
                f"the context in {folder} holds {context.tokens} tokens, not {tokens}; encode the text again."
            )
        if llm is not None:
            try:
                llm.reader.bind(context)
            except WorkError as error:
                raise WorkError(f"the context in {folder} is broken: {error}") from error
        return context

    def check(self, parts: Parts) -> None:
        """Raise `WorkError` when the stored shapes contradict each other, the settings or the model."""
        M, K, D, E = self.shape["injected_layers"], parts.kv_heads, parts.head_dim, parts.hidden_size
        for block in self.blocks:
            (X,), P, R = block.lengths.shape, block.tokens.shape[-1], block.rep_tokens.shape[-1]
            kept: Sequence[tuple[int, ...]] = [(M, X, K, P, D)] * 2
            scales: Sequence[tuple[int, ...]] = [(M, X, 0)] * 4
            if block.keys.dtype == torch.uint8:
                half = block.keys.shape[-1] * 2 == D
                kept = [(M, X, K, P, D // 2 if half else D)] * 2
                scales = [(M, X, K, -(-P // min(GROUP, max(P, 1))), D)] * 2 + [(M, X, K, P, 1)] * 2
            expected = [(X,), (X, P), *kept, *scales, (X, R), (X, R, E)]
            if [tuple(tensor.shape) for tensor in vars(block).values()] != expected:
                raise WorkError("the parts of the context do not fit together; encode the text again.")


def check_target(folder: Path) -> None:
    """Raise `UsageError` when saving to `folder` would overwrite something that is not a context."""
    replaceable(folder, (ABOUT_FILE, SLOTS_FILE), "a saved context")
    file = folder / ABOUT_FILE
    try:
        ours = not file.exists() or json.loads(file.read_text(encoding="utf-8"))["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        ours = False
    if not ours:
        raise UsageError(f"{folder} holds another program's {ABOUT_FILE}; choose another folder.")


def _read_about(folder: Path) -> dict[str, Any]:
    file = folder / "context.json"
    if not file.is_file():
        raise UsageError(f"{folder} is not a saved context: it has no context.json.")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkError(f"{file} cannot be read ({error}); encode the text again.") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UsageError(f"{folder} is not a saved context: its context.json is of another kind.")
    if about.get("version") != VERSION:
        raise UsageError(
            f"the context in {folder} has format version {about.get('version')}, this release reads {VERSION}; "
            "encode the text again."
        )
    return about
