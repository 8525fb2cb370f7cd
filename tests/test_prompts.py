"""Prompts: what the model is shown with the text and without it, and which of its tokens ask."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from sharedllm import UsageError
from sharedllm.prompts import Prompt, not_padding
from tests.conftest import byte_tokenizer, tiny_model

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXT = "Cats sleep."
RULER = dict(before="Memorise the text.\n", between="\n", answer_prefix=" The number is", asks="for cats")
QUESTION = "What is the number for cats?"


@pytest.fixture
def plain():
    return byte_tokenizer()


@pytest.fixture
def chat():
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def said(prompt: Prompt) -> tuple[str, str, str]:
    """Without the text, with it, and what asks."""
    text = torch.tensor(prompt.tokenizer(TEXT)["input_ids"])
    alone, mask = prompt.alone(), prompt.question_mask()
    assert mask.shape == (1, len(alone))
    asks = [token for token, asking in zip(alone, mask[0].tolist(), strict=True) if asking]
    return tuple(prompt.tokenizer.decode(ids) for ids in (alone, prompt.with_text(text), asks))


def test_a_question_alone(plain, chat):
    assert said(Prompt(plain, " Why? ")) == ("Why?\n\nAnswer:", f"{TEXT}\n\nWhy?\n\nAnswer:", "Why?")
    assert said(Prompt(chat, "Why?")) == (
        "<user>Why?</user><assistant>", f"<user>{TEXT}\n\nWhy?</user><assistant>", "Why?",
    )  # fmt: skip


def test_a_benchmarks_template_stands_inside_the_chat_template_and_the_prefix_after_it(chat):
    assert said(Prompt(chat, QUESTION, **RULER)) == (
        f"<user>Memorise the text.\n{QUESTION}</user><assistant> The number is",
        f"<user>Memorise the text.\n{TEXT}\n{QUESTION}</user><assistant> The number is",
        "for cats",
    )


def test_without_a_chat_template_the_prefix_ends_the_text(plain):
    alone, whole, _ = said(Prompt(plain, QUESTION, **RULER))
    assert alone == f"Memorise the text.\n{QUESTION} The number is"
    assert whole == f"Memorise the text.\n{TEXT}\n{QUESTION} The number is"


def test_a_benchmark_may_do_without_the_chat_template(chat):
    assert said(Prompt(chat, "Why?", chat=False)) == ("Why?", f"{TEXT}\n\nWhy?", "Why?")


def test_an_empty_prefix_is_no_prefix(plain):
    assert said(Prompt(plain, "Why?", answer_prefix=""))[0] == "Why?"


def test_what_asks_may_stand_before_the_text(plain):
    prompt = Prompt(plain, "Answer now.", before="Think of cats.\n\n", asks="cats", answer_prefix="")
    assert said(prompt) == ("Think of cats.\n\nAnswer now.", f"Think of cats.\n\n{TEXT}\n\nAnswer now.", "cats")


def test_a_wording_that_ends_in_white_space_keeps_it(chat):
    code = dict(before="Complete the code. \n", between="", answer_prefix="")
    assert said(Prompt(chat, "Next line:", ending="\n", **code)) == (
        "<user>Complete the code.\nNext line:\n</user><assistant>",
        f"<user>Complete the code. \n{TEXT}Next line:\n</user><assistant>",
        "Next line:",
    )


def test_no_text_is_the_question_alone(chat):
    prompt = Prompt(chat, QUESTION, **RULER)
    assert prompt.with_text(torch.tensor([], dtype=torch.long)) == prompt.alone()


def test_mistakes(plain):
    with pytest.raises(UsageError, match="empty"):
        Prompt(plain, "  ")
    with pytest.raises(UsageError, match="no text that can be encoded"):
        Prompt(plain, "caf\udce9?")
    with pytest.raises(UsageError, match="tokenizer"):
        Prompt(None, "Why?")
    for asks in ("dogs", " "):
        with pytest.raises(ValueError, match="no part"):
            Prompt(plain, QUESTION, asks=asks)


def test_without_a_chat_template_a_prompt_begins_as_the_tokenizer_begins_a_text(plain, chat):
    """Llama, Mistral and Gemma answer worse without their first token, and only chat templates write it out."""
    from tokenizers.processors import TemplateProcessing

    for tokenizer in (plain, chat):
        template = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 256), ("</s>", 257)])
        tokenizer.backend_tokenizer.post_processor = template
    start = plain.bos_token_id
    assert plain("a")["input_ids"][0] == start
    prompt, text = Prompt(plain, "Why?"), torch.tensor([5, 6])
    assert prompt.alone()[0] == prompt.with_text(text)[0] == prompt.around_text()[0][0] == start
    assert prompt.with_text(text)[1:3] == [5, 6] and prompt.alone().count(start) == 1
    asks = [t for t, asking in zip(prompt.alone(), prompt.question_mask()[0].tolist(), strict=True) if asking]
    assert plain.decode(asks) == "Why?" and prompt.following()[0][0] != start
    assert start not in Prompt(chat, "Why?").alone()


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({}, [0, 1, 1]),
        ({"generation_config": GenerationConfig(max_new_tokens=3)}, [0, 1, 1]),
        ({"generation_config": GenerationConfig(pad_token_id=7)}, [1, 0, 1]),
        ({"generation_config": GenerationConfig(pad_token_id=7), "pad_token_id": 258}, [0, 1, 1]),
        ({"generation_config": GenerationConfig(eos_token_id=[258])}, [1, 1, 1]),
        ({"eos_token_id": 258}, [1, 1, 1]),
    ],
)
def test_padding_is_what_generate_takes_for_it(kwargs, text):
    assert not_padding(tiny_model(), torch.tensor([[258, 7, 9]]), kwargs).tolist() == [text]
