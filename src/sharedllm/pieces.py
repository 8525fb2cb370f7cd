"""A text to token ids a piece at a time, where that gives the ids of the whole: what a tokenizer tells of a text at once (ids,
places, words) takes many times the bytes of the ids."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from sharedllm.data.encode import split


def piece_ids(tokenizer: Any, text: str, cuts: Callable[[], bool]) -> Tensor:
    """Token ids of a text, [n] int32, without special tokens.

    Args:
        cuts: says whether the tokenizer `cuts_between_lines`; asked of long texts alone.
    """
    pieces = split(text)
    if len(pieces) > 1 and not cuts():
        pieces = [text]
    coded = (tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"] for piece in pieces)
    return torch.cat([torch.tensor(ids, dtype=torch.int32) for ids in coded])


def cuts_between_lines(tokenizer: Any) -> bool:
    """Whether a text may be cut before a single line end (`\\n` or `\\r\\n`) between two characters that are no white space.

    So it is where words are told apart by the pattern of GPT-2, to which such a line end is a word of its own. Others join it to
    what stands before (Llama 3: `.` and the line end), or know no words (SentencePiece): of those nothing is said.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        return False
    told = json.loads(backend.to_str())
    model, words = told["model"], told["pre_tokenizer"] or {}
    words = words["pretokenizers"] if words.get("type") == "Sequence" else [words]
    by_pattern = [w for w in words if w.get("type") == "ByteLevel" and w["use_regex"] and not w["add_prefix_space"]]
    others = [w for w in words if w not in by_pattern and w.get("type") != "Digits"]
    reaching = [
        a
        for a in told["added_tokens"]
        if a["lstrip"] or a["rstrip"] or a["single_word"] or not {"\n", "\r"}.isdisjoint(a["content"])
    ]
    plain = model["type"] == "BPE" and not model["dropout"] and told["normalizer"] is None
    return plain and bool(by_pattern) and not others and not reaching
