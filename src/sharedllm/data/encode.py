"""Text to token numbers with a Hugging Face fast tokenizer, and the tokenizer's fingerprint."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sharedllm.errors import UsageError

PIECE = 100_000  # characters given to the tokenizer at once
CUT = re.compile(r"(?<=\S)\r?\n(?=\S)")  # before `\r`, which some join to `\n` where a digit follows


def fingerprint(tokenizer: Any) -> str:
    """The sha256, in hexadecimal, of the tokenizer's vocabulary (added tokens included) as JSON with sorted keys.

    Takes a transformers fast tokenizer or a tokenizers.Tokenizer; raises UsageError for anything else.
    """
    vocab = json.dumps(_backend(tokenizer).get_vocab(), sort_keys=True)
    return hashlib.sha256(vocab.encode()).hexdigest()


class Encoder:
    """Encodes whole documents; works on a copy, so that the caller's tokenizer keeps its settings."""

    def __init__(self, tokenizer: Any) -> None:
        self.fingerprint = fingerprint(tokenizer)
        self._original = tokenizer
        self._backend = Tokenizer.from_str(_backend(tokenizer).to_str())
        self._backend.no_padding()
        self._backend.no_truncation()
        vocab = self._backend.get_vocab()
        self.vocab_size = max(vocab.values()) + 1
        self.dtype = np.dtype("<u2") if self.vocab_size <= 65_536 else np.dtype("<u4")

    def encode(self, text: str, special: bool = False) -> np.ndarray:
        """The token numbers of `text`, shape (T,), dtype `self.dtype`; no special token is added.

        With `special`, special tokens spelled out in the text (a chat template's) become their own numbers; without,
        they are ordinary text.
        """
        self._backend.encode_special_tokens = not special
        pieces = [text] if special else split(text)
        encodings = self._backend.encode_batch_fast(pieces, add_special_tokens=False)
        return np.concatenate([np.array(item.ids, dtype=self.dtype) for item in encodings])

    def chat(self, messages: list[dict[str, str]]) -> str:
        """Messages as text: by the tokenizer's chat template, or as `role: content` paragraphs where it has none."""
        if getattr(self._original, "chat_template", None):
            return str(self._original.apply_chat_template(messages, tokenize=False))
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages) + "\n"


def split(text: str) -> list[str]:
    """Pieces of about PIECE characters that join to `text`, cut before single line ends between words.

    Byte-level tokenizers never merge across such a place, so cutting there leaves their tokens the same.
    """
    pieces, start = [], 0
    while len(text) - start > PIECE:
        cut = CUT.search(text, start + PIECE)
        if cut is None:
            break
        pieces.append(text[start : cut.start()])
        start = cut.start()
    return [*pieces, text[start:]]


def _backend(tokenizer: Any) -> Tokenizer:
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not isinstance(backend, Tokenizer):
        raise UsageError(f"Expected a fast Hugging Face tokenizer; {type(tokenizer).__name__} has no fast backend.")
    return backend
