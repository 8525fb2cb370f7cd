"""What each method shows the model when it is asked a question, and what it answers."""

from __future__ import annotations

import pytest
import torch

from sharedllm import UsageError
from sharedllm.methods import create
from sharedllm.prompts import Prompt
from tests.conftest import tokens


@pytest.fixture
def llm(make):
    return make(max_position_embeddings=2048)


def plain_greedy(llm, ids: list[int], new: int) -> list[int]:
    """One token after the other from a whole forward pass, as far as the model goes without its end token."""
    given = list(ids)
    for _ in range(new):
        given.append(int(llm.model(input_ids=torch.tensor([given])).logits[0, -1].argmax()))
        if given[-1] == llm.model.config.eos_token_id:
            break
    return given[len(ids) :]


def test_full_is_shown_all_of_it(llm):
    past, prompt = tokens(300), Prompt(llm.tokenizer, "Where is it?")
    method = create("full", llm, 16)
    assert method.shown(method.prepare(past), prompt, 5) == prompt.with_text(past)
    new = method.ask(method.prepare(past), prompt, 5)
    assert new.tolist() == plain_greedy(llm, prompt.with_text(past), 5)


@pytest.mark.parametrize("window", [30, 100, 1000])
def test_truncate_is_shown_the_newest_that_fits(llm, window):
    past, prompt = tokens(300), Prompt(llm.tokenizer, "Where is it?")
    method = create("truncate", llm, window)
    frame = llm.tokenizer("\n\nWhere is it?\n\nAnswer:")["input_ids"]
    kept = min(300, window - len(frame) - 5)
    shown = method.shown(method.prepare(past), prompt, 5)
    assert shown == [*past[300 - kept :].tolist(), *frame]
    assert len(shown) + 5 <= window
    assert method.ask(method.prepare(past), prompt, 5).tolist() == plain_greedy(llm, shown, 5)


def test_truncate_without_room_for_text_is_shown_the_question_alone(llm):
    prompt = Prompt(llm.tokenizer, "Where is it?")
    frame = len("\n\nWhere is it?\n\nAnswer:")
    assert create("truncate", llm, frame + 5).shown(tokens(300), prompt, 5) == prompt.alone()
    with pytest.raises(UsageError, match=f"window of {frame + 4} tokens.*--window"):
        create("truncate", llm, frame + 4).ask(tokens(300), prompt, 5)


def test_shared_answers_as_the_library_does(make):
    llm = make()
    past, question = tokens(300), "Where is it?"
    prompt, method = Prompt(llm.tokenizer, question), create("shared", llm, 16)
    context = method.prepare(past)
    assert method.shown(context, prompt, 5) == prompt.alone()
    new = method.ask(context, prompt, 5)
    assert llm.tokenizer.decode(new, skip_special_tokens=True).strip() == llm.ask(context, question, 5)
    assert new.tolist() != plain_greedy(llm, prompt.alone(), 5), "the context has no influence"
