"""Threads that use one model: each answer has the context that was given to it, and none is left behind."""

from __future__ import annotations

import copy
import dataclasses
import threading
import time
from collections.abc import Callable

import pytest
import torch

from tests.conftest import CONFIG, hooks, tokens
from tests.contexts import assert_same_chunks, encoded

IDS = tokens(9)[None]


@pytest.fixture
def llm(make):
    return make()


def test_a_thread_waits_until_another_has_answered(llm):
    contexts = [llm.read(tokens(70, seed)) for seed in (1, 2)]
    expected = [llm(IDS, context=context).logits for context in contexts]
    plain = llm(IDS).logits
    inside, go, order, found = threading.Event(), threading.Event(), [], []

    def first() -> None:
        with llm.injection.reading(llm.recall(contexts[0], IDS)):
            inside.set()
            go.wait(30)
            found.append(llm.model(IDS).logits)
            order.append("first")

    def second() -> None:
        inside.wait(30)
        found.append(llm(IDS, context=contexts[1]).logits)
        order.append("second")

    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    inside.wait(30)
    threads[1].join(0.5)
    assert threads[1].is_alive(), "the second did not wait"
    go.set()
    for thread in threads:
        thread.join(30)
    assert order == ["first", "second"]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(llm.model(IDS).logits, plain)


def test_a_copy_of_an_attached_model_computes_the_same(llm):
    torch.testing.assert_close(copy.deepcopy(llm.model)(IDS).logits, llm.model(IDS).logits)


def test_a_copy_takes_in_what_it_is_given_and_nothing_else(llm):
    context = llm.read(tokens(70, 1))
    expected, plain = llm.answer(context, "who?", 4), llm.model(IDS).logits
    twin, before = copy.deepcopy(llm), copy.deepcopy(llm.model)
    answer = twin.answer(twin.read(tokens(70, 1)), "who?", 4)
    assert (answer.text, answer.slots) == (expected.text, expected.slots)
    assert torch.equal(twin(IDS, context=context).logits, llm(IDS, context=context).logits)
    with llm.injection.reading(llm.recall(context, IDS)):
        assert not torch.equal(llm.model(IDS).logits, plain), "the context adds nothing; the test is empty"
        within = copy.deepcopy(llm.model)
        for copied in (twin.model, before, within):
            assert torch.equal(copied(IDS).logits, plain), "it heard of the other's context"
        assert_same_chunks(twin.read(tokens(70, 1)), context)
    assert torch.equal(within(IDS).logits, plain)
    assert torch.equal(twin.detach()(IDS).logits, plain) and hooks(twin.model) == [] and hooks(llm.model) != []


def test_what_another_thread_answers_is_not_taken_for_what_is_read(make):
    llm, text = make(dataclasses.replace(CONFIG, search_by="last")), tokens(70, 3)
    expected, found = llm.read(text), []
    waiting, apart = threading.Event(), llm.lower.apart

    def noted():
        waiting.set()
        return apart()

    llm.lower.apart = noted
    reading = threading.Thread(target=lambda: found.append(llm.read(text)))
    with llm.injection.reading(None):
        reading.start()
        assert waiting.wait(30)
        llm.model(IDS)
    reading.join(30)
    assert_same_chunks(found[0], expected)


def slowly(llm, monkeypatch) -> threading.Event:
    """Let reading take so long that another thread comes between; set as soon as it begins."""
    begun, encode = threading.Event(), llm.lower.encode

    def slow(*args):
        begun.set()
        time.sleep(0.1)
        return encode(*args)

    monkeypatch.setattr(llm.lower, "encode", slow)
    return begun


def side_by_side(work: Callable[[], object], count: int = 3) -> list[object]:
    """What as many threads give that begin at once."""
    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(work())) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == count, "a thread failed"
    return found


@pytest.mark.parametrize("way", ["generate", "ask"])
def test_threads_that_use_a_context_first_encode_it_once(llm, monkeypatch, way):
    text = tokens(60, 5)

    def use(context):
        if way == "ask":
            return llm.ask(context, "who?", 4)
        return llm.generate(IDS, context=context, max_new_tokens=4, do_sample=False, pad_token_id=258).tolist()

    whole = encoded(llm, text)
    expected, context = use(whole), llm.read(text)
    slowly(llm, monkeypatch)
    assert side_by_side(lambda: use(context)) == [expected] * 3
    assert_same_chunks(context, whole)


@pytest.mark.parametrize("length", [0, 70])
def test_a_question_waits_until_what_is_appended_is_read(llm, monkeypatch, length):
    text, more = tokens(length, 5), tokens(110 - length, 6)
    context, whole = llm.read(text), llm.read(torch.cat([text, more]))
    expected = llm.answer(whole, "who?", 4)
    begun = slowly(llm, monkeypatch)
    reading = threading.Thread(target=lambda: context.append(more))
    reading.start()
    assert begun.wait(30)
    answer = llm.answer(context, "who?", 4)
    reading.join(60)
    assert (answer.text, answer.slots) == (expected.text, expected.slots)
    assert_same_chunks(context, whole)


def test_a_long_text_that_is_read_keeps_no_answer_waiting_to_its_end(llm, monkeypatch):
    known, done = llm.read(tokens(70, 5)), []
    begun = slowly(llm, monkeypatch)
    reading = threading.Thread(target=lambda: done.append(llm.read(tokens(16 * 20, 6))))
    reading.start()
    assert begun.wait(30)
    with llm.injection.reading(llm.recall(known, IDS)):
        assert not done, "it had to wait until all was read"
    reading.join(60)
    assert done[0].chunks == 20
