"""OpenAI's objects, made of the events of an answer."""

from __future__ import annotations

import secrets
import time
from codecs import IncrementalDecoder, getincrementaldecoder
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sharedllm.serve.asking import Usage
from sharedllm.serve.sampling import Chosen
from sharedllm.serve.task import Ended, Piece
from sharedllm.serve.token_bytes import first_text, token_bytes, token_text
from sharedllm.serve.written import UNFINISHED


@dataclass
class Offset:
    """How many characters of a text are there, and the bytes of one that is not whole yet."""

    at: int = 0
    first: bool = True
    """Whether none of its tokens is there yet."""
    decoder: IncrementalDecoder = field(default_factory=lambda: getincrementaldecoder("utf-8")("replace"))


class Shape:
    """How one answer is written: of messages (`chat`) or of a prompt, whole or in pieces.

    Args:
        counted: whether a stream ends with its usage; its other pieces have the field as well then, as null.
    """

    def __init__(self, tokenizer: Any, model: str, chat: bool, counted: bool = False) -> None:
        self.tokenizer, self.model, self.chat, self.counted = tokenizer, model, chat, counted
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self._offsets: dict[int, Offset] = defaultdict(Offset)
        """Of the next token of each choice."""

    def opening(self, index: int) -> dict[str, Any]:
        """The first piece of a choice of messages."""
        return self._piece({"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None})

    def piece(self, piece: Piece) -> dict[str, Any]:
        """One piece of a stream."""
        logprobs = self._logprobs(piece.index, piece.tokens) if piece.tokens else None
        content = {"delta": {"content": piece.text} if piece.text else {}} if self.chat else {"text": piece.text}
        return self._piece({"index": piece.index, **content, "logprobs": logprobs, "finish_reason": piece.finish})

    def closing(self, usage: Usage, ended: Ended) -> dict[str, Any]:
        """The last piece of a stream, which has the usage and no choice."""
        return {**self._head(True), "choices": [], **self._usage(usage, ended)}

    def whole(self, pieces: Sequence[Piece], choices: int, usage: Usage, ended: Ended) -> dict[str, Any]:
        """An answer that is not streamed."""
        found = []
        for index in range(choices):
            own = [piece for piece in pieces if piece.index == index]
            text = "".join(piece.text for piece in own)
            tokens = [token for piece in own for token in piece.tokens]
            content = (
                {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
            )
            logprobs = self._logprobs(index, tokens) if tokens else None
            found.append({"index": index, **content, "logprobs": logprobs, "finish_reason": own[-1].finish})
        return {**self._head(False), "choices": found, **self._usage(usage, ended)}

    def _piece(self, choice: dict[str, Any]) -> dict[str, Any]:
        usage = {"usage": None} if self.counted else {}
        return {**self._head(True), "choices": [choice], **usage}

    def _head(self, streamed: bool) -> dict[str, Any]:
        kind = f"chat.completion{'.chunk' if streamed else ''}" if self.chat else "text_completion"
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _usage(self, usage: Usage, ended: Ended) -> dict[str, Any]:
        return {
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "completion_tokens": ended.generated_tokens,
                "total_tokens": usage.prompt_tokens + ended.generated_tokens,
                "prompt_tokens_details": {"cached_tokens": usage.known_tokens},
            },
            "sharedllm": {"slots": ended.slots, "read_tokens": usage.read_tokens},
        }

    def _logprobs(self, index: int, tokens: Sequence[Chosen]) -> dict[str, Any]:
        if self.chat:
            content = [
                {**self._named(t.token, t.logprob or 0.0), "top_logprobs": [self._named(i, p) for i, p in t.likeliest]}
                for t in tokens
            ]
            return {"content": content, "refusal": None}
        return {
            "tokens": [self._name(t.token) for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [{self._name(i): p for i, p in t.likeliest} for t in tokens],
            "text_offset": [self._offset(index, t.token) for t in tokens],
        }

    def _offset(self, index: int, token: int) -> int:
        """Where in the text of a choice its next token begins."""
        offset, raw = self._offsets[index], token_bytes(self.tokenizer, token)
        at, first, offset.first = offset.at, offset.first, False
        if first and UNFINISHED not in (text := first_text(self.tokenizer, token)):
            offset.at += len(text)
        else:
            offset.at += len(self._text(token) if raw is None else offset.decoder.decode(raw))
        return at

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        raw = token_bytes(self.tokenizer, token)
        return {"token": self._text(token), "logprob": logprob, "bytes": None if raw is None else list(raw)}

    def _name(self, token: int) -> str:
        """What a token is called in the log-probabilities of a prompt: its text, or the bytes of a part of a character."""
        raw = token_bytes(self.tokenizer, token)
        if raw is None:
            return self._text(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _text(self, token: int) -> str:
        return token_text(self.tokenizer, token)
