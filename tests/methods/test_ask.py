"""What each method shows the model when it is asked a question, and what it answers."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sharedllm import UsageError
from sharedllm.evaluate.stopping import stopping
from sharedllm.memory import find, nearest_of
from sharedllm.methods import METHODS, create
from sharedllm.methods.base import plain_nll
from sharedllm.methods.estimate import cache_bytes
from sharedllm.methods.streaming import BLOCK
from sharedllm.prompts import Prompt
from sharedllm.quote import quotes
from sharedllm.recall import asks
from tests.conftest import CONFIG, tokens


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


def test_full_reads_a_text_once_and_answers_the_same(llm):
    past, method = tokens(300), create("full", llm, 16)
    prompts = [Prompt(llm.tokenizer, question) for question in ("Where is it?", "Who sends the letter, and when?")]
    read = method.prepare_to_ask(past, prompts[0])
    passed: list[int] = []
    handle = llm.model.register_forward_pre_hook(
        lambda module, args, kwargs: passed.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        answers = [method.ask(read, prompt, 5).tolist() for prompt in (*prompts, prompts[0])]
    finally:
        handle.remove()
    assert answers == [plain_greedy(llm, prompt.with_text(past), 5) for prompt in (*prompts, prompts[0])]
    assert max(passed) < 100, "the text is not read again"
    assert method.kept_bytes(read) == past.nbytes + cache_bytes(llm, len(past))
    other = Prompt(llm.tokenizer, "Where is it?", before="Read this:\n")
    assert method.ask(read, other, 5).tolist() == plain_greedy(llm, other.with_text(past), 5), "read behind other words"
    assert method.ask(method.prepare_to_ask(past[:0], prompts[0]), prompts[0], 5).tolist() == plain_greedy(
        llm, prompts[0].alone(), 5
    )


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


def test_retrieval_shows_the_passages_that_shared_quotes_and_the_plain_model_answers(make):
    llm = make(replace(CONFIG, quoted_tokens=12), max_position_embeddings=512)
    past, prompt = tokens(300), Prompt(llm.tokenizer, "Where is it?")
    ours, method = create("shared", llm, 16), create("retrieval", llm, 16)
    context = method.prepare(past)
    shown = method.shown(context, prompt, 5)
    assert shown == ours.shown(context, prompt, 5) and len(shown) > len(prompt.alone())
    assert method.ask(context, prompt, 5).tolist() == plain_greedy(llm, shown, 5)
    assert method.attended_bytes(context, prompt, 5) < ours.attended_bytes(context, prompt, 5)


def test_retrieval_scores_a_window_behind_what_is_nearest_to_the_tokens_before_its_targets(make):
    llm = make(replace(CONFIG, quoted_tokens=12), max_position_embeddings=512)
    ids = tokens(300)
    past, window = ids[:-9], ids[-9:]
    method = create("retrieval", llm, 9)
    context = method.prepare(past)
    asking = torch.cat([past[-60:], window[:4]])[None]
    config = llm.config
    question, words = asks(llm, context, asking, None)
    found = find(context.blocks, config, question, words=words)
    quoted = quotes(context, nearest_of(context.blocks, found), 12, llm.tokenizer).long()
    assert len(quoted) >= 12
    torch.testing.assert_close(method.score(context, window, 5), plain_nll(llm, torch.cat([quoted, window]), 5))
    changed = torch.cat([window[:4], window[4:] + 1])
    assert torch.equal(method._behind_passages(context, asking[0], window), torch.cat([quoted, window]))
    assert not torch.equal(method.score(context, changed, 5), method.score(context, window, 5))
    assert torch.equal(method.score(None, window, 5), plain_nll(llm, window, 5))


@pytest.mark.parametrize("name", METHODS)
def test_an_answer_ends_where_a_benchmark_says_and_has_a_token_at_least(make, name):
    llm = make(max_position_embeddings=512, eos_token_id=None)
    method, prompt = create(name, llm, 100), Prompt(llm.tokenizer, "Where?")
    past = method.prepare_to_ask(tokens(150), prompt)
    free = method.ask(past, prompt, 8).tolist()

    def ended_by(token: int) -> list[int]:
        tokenizer = SimpleNamespace(encode=lambda text, add_special_tokens: [0, token])
        with stopping(SimpleNamespace(model=llm.model, tokenizer=tokenizer), "\n"):
            return method.ask(past, prompt, 8).tolist()

    other = next(token for token in free if token != free[0])
    assert ended_by(other) == free[: free.index(other) + 1]
    assert ended_by(free[0])[0] != free[0]
    assert method.ask(past, prompt, 8).tolist() == free


def test_rows_say_the_rules_that_no_setting_has(llm):
    found = {}
    for name in METHODS:
        method = create(name, llm, 16)
        found[name] = [method.rules(True, 63), method.rules(True, 64), method.rules(False)]
    searched = [{}, {"searched_by": 256}, {}]
    read = [{}, {}, {"read_in_prompt": True, "block": BLOCK, "sinks_apart": True}]
    once = [{}, {}, {"read_once": True}]
    assert {name: rules for name, rules in found.items() if any(rules)} == {
        "shared": searched, "shared-compact": searched, "streaming": read, "full": once, "yarn": once,
    }  # fmt: skip
