"""What stays in the window and what is read, by the rule of docs/SERVE.md; a token is a byte here."""

from __future__ import annotations

import pytest
import torch

from sharedllm.serve.chat import Said
from sharedllm.serve.failures import ApiError
from sharedllm.serve.split import Room, split_messages, split_tokens
from tests.conftest import byte_tokenizer

ROOM = Room(positions=200, window=80, answer=20)
TOKENIZER = byte_tokenizer()


def split(*messages, given=None):
    found = split_messages(TOKENIZER, [Said(role, text) for role, text in messages], given, ROOM)
    read = "" if found.reads is None else TOKENIZER.decode(found.reads)
    return TOKENIZER.decode(found.ids), read, found


def asked(found) -> str:
    return TOKENIZER.decode(torch.tensor(found.ids)[found.asking[0]])


def test_what_fits_stays_whole():
    window, read, found = split(("system", "Be brief."), ("user", "x" * 120))
    assert window == f"Be brief.\n\n{'x' * 120}\n\nAnswer:" and read == "" and not found.attends


def test_older_messages_are_read_and_the_newest_stay():
    turns = [("user", "a" * 80), ("assistant", "b" * 60), ("user", "c" * 20), ("assistant", "d" * 9), ("user", "e?")]
    window, read, found = split(("system", "Be brief."), *turns)
    assert window == f"Be brief.\n\n{'c' * 20}\n\n{'d' * 9}\n\ne?\n\nAnswer:"
    assert read == f"{'a' * 80}\n\n{'b' * 60}"
    assert found.attends and asked(found) == "e?"


def test_a_long_message_keeps_its_first_and_last_paragraph():
    text = "\n\n".join(["Read.", "p" * 150, "q" * 100, "Who?"])
    window, read, found = split(("user", text))
    assert window == "Read.\n\nWho?\n\nAnswer:" and read == f"{'p' * 150}\n\n{'q' * 100}"
    assert asked(found) == "Read.\n\nWho?"
    window, read, _ = split(("user", "z" * 300))
    assert window.count("z") <= 40 and window.count("z") + read.count("z") == 300, "nothing is lost"


def test_a_given_context_is_read_in_the_window_if_it_fits():
    text = TOKENIZER("The sky.", return_tensors="pt").input_ids[0]
    window, _, found = split(("user", "Why?"), given=text)
    assert window == "The sky.\n\nWhy?\n\nAnswer:" and not found.attends
    window, read, found = split(("user", "Why?"), given=torch.zeros(500, dtype=torch.int32))
    assert window == "Why?\n\nAnswer:" and read == "" and found.attends


def test_tokens_without_messages():
    found = split_tokens(list(range(250)), None, ROOM)
    assert found.ids == list(range(170, 250)) and found.reads.tolist() == list(range(170))
    assert split_tokens([1, 2], torch.tensor([3]), ROOM).ids == [3, 1, 2]


def test_what_has_to_stay_and_does_not_fit_is_refused():
    with pytest.raises(ApiError, match="positions") as error:
        split(("system", "s" * 190), ("user", "x" * 100))
    assert error.value.status == 400 and error.value.code == "context_length_exceeded"
