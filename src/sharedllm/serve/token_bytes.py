"""The text and the bytes that a token stands for inside an answer: also of one that is a part of a character, which alone
decodes to no text, and of one that begins with a space, which some decoders take away from what they begin with."""

from __future__ import annotations

import re
from typing import Any

from sharedllm.serve.written import UNFINISHED

PRINTED = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
OTHERS = [byte for byte in range(256) if byte not in PRINTED]
BYTES = {chr(byte): byte for byte in PRINTED} | {chr(256 + i): byte for i, byte in enumerate(OTHERS)}
"""The bytes by the characters that byte-level vocabularies write them with, those of GPT-2."""
SINGLE = re.compile(r"<0x([0-9A-F]{2})>")  # a byte in vocabularies of SentencePiece


def token_text(tokenizer: Any, token: int) -> str:
    """What a token adds to a text: behind itself, where no decoder takes its space away."""
    alone = first_text(tokenizer, token)
    if UNFINISHED in alone:
        return alone
    twice = str(tokenizer.decode([token, token]))
    return twice[len(alone) :] if twice.startswith(alone) else alone


def first_text(tokenizer: Any, token: int) -> str:
    """The text that begins with a token, and has no other."""
    return str(tokenizer.decode([token]))


def token_bytes(tokenizer: Any, token: int) -> bytes | None:
    """The bytes of a token; None where its vocabulary does not tell them."""
    text = token_text(tokenizer, token)
    if UNFINISHED not in text:
        return text.encode()
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if single := SINGLE.fullmatch(piece):
        return bytes([int(single[1], 16)])
    if not all(letter in BYTES for letter in piece):
        return None
    raw = bytes(BYTES[letter] for letter in piece)
    return raw if raw.decode(errors="replace") == text else None
