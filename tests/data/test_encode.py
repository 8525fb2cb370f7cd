"""Encoding in pieces gives the tokens of the whole, and leaves the caller's tokenizer as it was."""

from __future__ import annotations

from typing import Any

import pytest

from sharedllm.data import encode


def test_pieces_join_to_the_text_and_its_tokens(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "def f(x):\n    return x\n\n\nvalue = 1\nother = 2\n" * 30 + "é\n"
    whole = encode.Encoder(tokenizer).encode(text)
    monkeypatch.setattr(encode, "PIECE", 50)
    assert len(encode.split(text)) > 10 and "".join(encode.split(text)) == text
    assert (encode.Encoder(tokenizer).encode(text) == whole).all()
    assert tokenizer.decode(whole) == text


def test_the_callers_tokenizer_keeps_its_settings(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.enable_truncation(5)
    try:
        assert len(encode.Encoder(tokenizer).encode("a long enough text")) == 18
        assert tokenizer.backend_tokenizer.truncation["max_length"] == 5
    finally:
        tokenizer.backend_tokenizer.no_truncation()
    assert not tokenizer.backend_tokenizer.encode_special_tokens
