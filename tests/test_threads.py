"""Threads that use one model: each answer has the context that was given to it, and none is left behind."""

from __future__ import annotations

import copy
import dataclasses
import threading

import pytest
import torch

from tests.conftest import CONFIG, tokens
from tests.contexts import assert_same_chunks

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
