"""A long text is tokenised in pieces only where that gives the ids of the whole."""

from __future__ import annotations

import random

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sharedllm.data import encode
from sharedllm.pieces import cuts_between_lines, piece_ids
from tests.conftest import tiny_model
from tests.test_generate import counted

LLAMA_3 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PARTS = ["a", "word", "Ü", "7", "12", ".", ")", "'", "'s", " ", "  ", "\t", "\n", "\n\n", "\r\n", "\x1c", "\xa0", "é", "中文", "\U0001f422", "<|x|>"]  # fmt: skip


def mixed(seed: int, parts: int = 400) -> str:
    """Words, numbers, signs and white space of every kind beside each other."""
    drawn = random.Random(seed)
    return "".join(drawn.choice(PARTS) for _ in range(parts))


def trained(words, normalizer=None, **added):
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer, raw.normalizer = words, normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator([mixed(s) for s in range(9)], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))  # fmt: skip
    raw.add_special_tokens(["<|x|>"])
    if added:
        from tokenizers import AddedToken

        raw.add_tokens([AddedToken("word", **added)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    tokenizer.split_special_tokens = True
    return tokenizer


def byte_level(**settings):
    return pre_tokenizers.ByteLevel(add_prefix_space=False, **settings)


GPT_2 = byte_level()
EXACT = {
    "gpt-2": dict(words=GPT_2),
    "smollm": dict(words=pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT_2])),
}
OTHERS = {
    "llama 3": dict(
        words=pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), byte_level(use_regex=False)])
    ),
    "one word": dict(words=byte_level(use_regex=False)),
    "a space before": dict(words=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "changed before": dict(words=GPT_2, normalizer=normalizers.Strip()),
    "takes white space": dict(words=GPT_2, rstrip=True),
}


@pytest.mark.parametrize("name", EXACT)
def test_ids_of_pieces_are_those_of_the_whole(name, monkeypatch):
    tokenizer = trained(**EXACT[name])
    assert cuts_between_lines(tokenizer)
    monkeypatch.setattr(encode, "PIECE", 20)
    for text in (*(mixed(seed) for seed in range(20, 60)), "", "\n", "no line ends " * 9):
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = piece_ids(tokenizer, text, lambda: True)
        assert ids.dtype == torch.int32 and ids.tolist() == whole
    assert len(encode.split(mixed(20))) > 3


@pytest.mark.parametrize("name", EXACT)
def test_a_text_with_the_line_ends_of_windows_is_cut_too(name, monkeypatch):
    tokenizer, text = trained(**EXACT[name]), "a word.\r\n7 words, 12\r\n\r\nword\r\n½ é)\r\n" * 20
    whole = tokenizer(text, add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(encode, "PIECE", 20)
    pieces = encode.split(text)
    assert len(pieces) > 10 and "".join(pieces) == text
    assert piece_ids(tokenizer, text, lambda: True).tolist() == whole
    tokenizer.add_tokens(["d.\r"])
    assert not cuts_between_lines(tokenizer)


@pytest.mark.parametrize("name", OTHERS)
def test_of_other_tokenizers_nothing_is_promised(name, monkeypatch):
    tokenizer = trained(**OTHERS[name])
    assert not cuts_between_lines(tokenizer) and not cuts_between_lines(object())
    monkeypatch.setattr(encode, "PIECE", 20)
    calls = counted(monkeypatch, PreTrainedTokenizerFast, "__call__")
    ids = piece_ids(tokenizer, mixed(1), lambda: cuts_between_lines(tokenizer))
    assert len(calls) == 1 and ids.tolist() == tokenizer(mixed(1), add_special_tokens=False)["input_ids"]


def test_a_text_is_read_in_pieces(monkeypatch):
    from sharedllm import SharedLLM

    tokenizer = trained(**EXACT["gpt-2"])
    llm = SharedLLM.from_pretrained(tiny_model(vocab_size=4096), adapter="none", tokenizer=tokenizer)
    monkeypatch.setattr(encode, "PIECE", 20)
    whole = llm.reader.text_tokenizer(mixed(2), add_special_tokens=False)["input_ids"]
    calls = counted(monkeypatch, PreTrainedTokenizerFast, "__call__")
    assert llm.read(mixed(2)).ids.tolist() == whole and len(calls) > 3
