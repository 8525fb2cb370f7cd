"""What stays in the window and what is read, by the rule of docs/SERVE.md; a token is a byte here."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from sharedllm.prompts import Prompt
from sharedllm.serve.chat import Said
from sharedllm.serve.failures import ApiError
from sharedllm.serve.split import Room, split_messages, split_tokens
from tests.conftest import byte_tokenizer
from tests.serve.conftest import beginning
from tests.test_generate import counted

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
    assert window == "Read.\n\nWho?\n\nAnswer:" and read == text.removesuffix("\n\nWho?")
    assert asked(found) == "Read.\n\nWho?"
    window, read, _ = split(("user", "z" * 300))
    assert window.count("z") <= 40 and window.count("z") + read.count("z") == 300, "nothing is lost"


def test_of_a_long_message_is_read_what_the_next_turn_reads_first():
    text = "\n Read.\n\n\n\n" + "p" * 150 + " \n \n\n\n" + "q" * 100 + "\n\n\n\nWho?\n\n"
    window, read, _ = split(("user", text))
    assert window == "\n Read.\n\nWho?\n\nAnswer:" and read == text[: text.index("\n\n\n\nWho?")]
    _, after, _ = split(("user", text), ("assistant", "No."), ("user", "Why?"))
    assert after.startswith(text) and after.startswith(read)


@pytest.mark.parametrize("size", range(4))
def test_a_long_paragraph_is_cut_between_characters(size):
    text = "x" * size + "😀" * 80
    window, read, _ = split(("user", text))
    kept = window.removesuffix("\n\nAnswer:")
    assert read + kept == text and 5 <= len(kept) <= 10, "about 40 bytes of it stay"


@pytest.mark.parametrize(
    "messages",
    [
        [("system", "Be brief."), ("user", f"Read.\n\n{'p' * 20_000}\n\n{'q' * 20_000}\n\nWho?")],
        [("user", "z" * 40_000)],
        [("system", "Be brief."), ("user", "z" * 40_000), ("assistant", "No."), ("user", "Why?")],
        [("system", "S" * 40_000), ("user", "Why?")],
    ],
    ids=["paragraphs", "one paragraph", "older", "system"],
)
def test_a_long_message_is_tokenised_once_and_split_as_a_short_one(monkeypatch, messages):
    expected = split(*messages)[:2]  # in which it is short enough to be tokenised again and again
    for module in ("chat", "split"):
        monkeypatch.setattr(f"sharedllm.serve.{module}.PIECE", 1000)
    calls = counted(monkeypatch, PreTrainedTokenizerFast, "__call__")
    assert split(*messages)[:2] == expected
    assert sum(len(text) for _, text in calls) < 60_000


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


@pytest.mark.parametrize("size", [300, 900, 980, 1100, 3000])
@pytest.mark.parametrize("known", [0, 20_000])
def test_a_long_system_message_leaves_the_question_whole(size, known):
    question = "What colour is the door of the house in the second chapter of this book?"
    said = [Said("system", "S" * size), Said("user", "u" * 9000), Said("assistant", "a"), Said("user", question)]
    said = said[:1] + said[3:] if known else said
    given = torch.zeros(known, dtype=torch.int32) if known else None
    found = split_messages(TOKENIZER, said, given, Room(positions=8192, window=1024, answer=256))
    window = TOKENIZER.decode(found.ids)
    assert len(question) == 72 and window.endswith(f"S\n\n{question}\n\nAnswer:") and asked(found) == question
    assert len(found.ids) <= 1024
    read = "" if found.reads is None else TOKENIZER.decode(found.reads)
    assert window.count("S") + read.count("S") == size, "nothing is lost"
    short = size < 512 or (known and size == 900)
    assert short or read.startswith("S" * 100), "what the system message lost is read first"


def test_a_question_has_half_the_window_where_a_system_message_leaves_less():
    room = Room(positions=200, window=80, answer=20)
    window, read, found = split(("system", "S" * 40), ("user", "y" * 300))
    assert window.count("S") == 40 and window.count("y") == 20 and read == "y" * 280
    template = "{% for m in messages %}" + "T" * 50 + "{{m.content}}{% endfor %}"
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    found = split_messages(tokenizer, [Said("system", "S" * 9), Said("user", "y" * 38)], torch.zeros(500), room)
    assert tokenizer.decode(found.ids).count("y") == 38, "the model can hold it"


def test_a_window_begins_as_the_tokenizer_begins_a_text():
    tokenizer, said = beginning(), [Said("user", "Why?")]
    alone = Prompt(tokenizer, "Why?")
    for text in (None, torch.zeros(500, dtype=torch.int32)):
        found = split_messages(tokenizer, said, text, ROOM)
        assert found.ids == alone.alone() and found.ids[:2] == [
            256,
            *tokenizer("W", add_special_tokens=False).input_ids,
        ]
    assert found.asking.tolist() == alone.question_mask().tolist()
    text = torch.tensor([5, 6])
    assert split_messages(tokenizer, said, text, ROOM).ids == alone.with_text(text)
    found = split_tokens(list(range(250)), None, ROOM, [256])
    assert found.ids == [256, *range(171, 250)] and found.reads.tolist() == list(range(171))
    assert split_tokens([1, 2], torch.tensor([3]), ROOM, [256]).ids == [256, 3, 1, 2]
    tokenizer.chat_template = "{% for m in messages %}<s>{{m.content}}{% endfor %}"
    assert split_messages(tokenizer, said, None, ROOM).ids.count(256) == 1, "the template has it"


def test_what_has_to_stay_and_does_not_fit_is_refused():
    with pytest.raises(ApiError, match="positions") as error:
        split_messages(TOKENIZER, [Said("user", "x" * 100)], None, Room(positions=200, window=80, answer=195))
    assert error.value.status == 400 and error.value.code == "context_length_exceeded"
