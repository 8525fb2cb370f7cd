"""The bytes that a token stands for: also of one that is a part of a character, which alone decodes to no text."""

from __future__ import annotations

import re
from typing import Any

from sharedllm.serve.written import UNFINISHED

PRINTED = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
OTHERS = [byte for byte in range(256) if byte not in PRINTED]
BYTES = {chr(byte): byte for byte in PRINTED} | {chr(256 + i): byte for i, byte in enumerate(OTHERS)}
"""The bytes by the characters that byte-level vocabularies write them with, those of GPT-2."""
SINGLE = re.compile(r"<0x([0-9A-F]{2})>")  # a byte in vocabularies of SentencePiece


def token_bytes(tokenizer: Any, token: int) -> bytes | None:
    """The bytes of a token; None where its vocabulary does not tell them."""
    text = str(tokenizer.decode([token]))
    if UNFINISHED not in text:
        return text.encode()
    piece = str(tokenizer.convert_ids_to_tokens(token))
    if single := SINGLE.fullmatch(piece):
        return bytes([int(single[1], 16)])
    if not all(letter in BYTES for letter in piece):
        return None
    raw = bytes(BYTES[letter] for letter in piece)
    return raw if raw.decode(errors="replace") == text else None
