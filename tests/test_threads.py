"""Threads that use one model: each answer has the context that was given to it, and none is left behind."""

from __future__ import annotations

import copy
import dataclasses
import threading
import time
from collections.abc import Callable

import pytest
import torch

from sharedllm import SharedLLM, UsageError
from sharedllm.context import Context
from sharedllm.store_write import Writer
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


def beside(module: torch.nn.Module, work: Callable[[], object]) -> list[object]:
    """What another thread gives that works while a module is called, the first time from now on."""
    found: list[object] = []

    def begin(*_: object) -> None:
        handle.remove()
        thread = threading.Thread(target=lambda: found.append(work()))
        thread.start()
        thread.join(30)

    handle = module.register_forward_pre_hook(begin)
    return found


def test_a_plain_pass_beside_an_answer_hears_of_no_context_and_leaves_the_answer_alone(llm):
    memory, other = llm.recall(llm.read(tokens(70, 1)), IDS), tokens(5, 2)[None]
    plain = llm.model(other).logits
    with llm.injection.reading(memory):
        expected = llm.model(IDS).logits
        found = beside(llm.parts.attention(1), lambda: llm.model(other).logits)
        torch.testing.assert_close(llm.model(IDS).logits, expected)
    torch.testing.assert_close(found, [plain])


def test_a_plain_pass_beside_what_is_read_is_not_taken_for_it(make):
    llm, text = make(dataclasses.replace(CONFIG, search_by="last")), tokens(70, 3)
    expected = llm.read(text)
    found = beside(llm.parts.layers[0], lambda: llm.model(IDS))
    assert_same_chunks(llm.read(text), expected)
    assert found, "the other thread never came; the test is empty"


def test_layers_that_another_thread_computes_again_take_the_context_in(llm):
    llm.model.gradient_checkpointing_enable()
    llm.model.train()
    memory, gradients = llm.recall(llm.read(tokens(70, 1)), IDS), []
    for elsewhere in (False, True):
        llm.injection.zero_grad()
        with llm.injection.reading(memory):
            loss = llm.model(IDS, use_cache=False).logits.square().mean()
            if elsewhere:  # as autograd does on a GPU
                thread = threading.Thread(target=loss.backward)
                thread.start()
                thread.join(30)
            else:
                loss.backward()
        gradients.append([p.grad.clone() for p in llm.injection.parameters() if p.grad is not None])
    assert len(gradients[0]) > 0
    torch.testing.assert_close(*gradients)


def test_two_adapters_on_one_model_take_turns(llm):
    other, text, done = SharedLLM.from_pretrained(llm.model, "none", CONFIG), tokens(70, 3), []
    expected = other.read(text)
    reading = threading.Thread(target=lambda: done.append(other.read(text)))
    with llm.injection.reading(llm.recall(llm.read(tokens(70, 1)), IDS)):
        assert_same_chunks(other.read(text), expected)
        reading.start()
        reading.join(0.2)
        assert not done, "it did not wait"
    reading.join(30)
    assert_same_chunks(done[0], expected)


def test_a_model_is_detached_when_no_thread_answers_any_more(llm):
    memory, detaching = llm.recall(llm.read(tokens(70, 1)), IDS), threading.Thread(target=llm.detach)
    with llm.injection.reading(memory):
        expected = llm.model(IDS).logits
        detaching.start()
        detaching.join(0.2)
        assert torch.equal(llm.model(IDS).logits, expected)
    detaching.join(30)
    assert hooks(llm.model) == []
    with pytest.raises(UsageError, match="detached"), llm.injection.reading(memory):
        pass


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


def test_what_is_appended_while_a_context_is_saved_is_not_saved(llm, monkeypatch, tmp_path):
    text, put = tokens(16 * 9 + 5, 5), Writer.put
    context, whole = llm.read(text), llm.read(text)
    begun = slowly(llm, monkeypatch)
    reading = threading.Thread(target=lambda: context.append(tokens(40, 6)))

    def late(*args):
        if reading.ident is None:
            reading.start()
            assert begun.wait(30)
        put(*args)

    monkeypatch.setattr(Writer, "put", late)
    context.save(tmp_path / "c")
    reading.join(60)
    loaded = Context.load(tmp_path / "c", llm)
    assert loaded.ids.tolist() == text.tolist()
    assert_same_chunks(loaded, whole)


@pytest.mark.parametrize("way", ["cut", "composed"])
def test_what_is_appended_while_a_context_is_shared_stays_out(llm, monkeypatch, way):
    contexts = [llm.read(tokens(n, n)) for n in (70, 80)]
    begun = slowly(llm, monkeypatch)
    reading, encoded_tokens = threading.Thread(target=lambda: contexts[0].append(tokens(40, 6))), Context.encoded_tokens

    def late(context):
        found = encoded_tokens.fget(context)
        if reading.ident is None:
            reading.start()
            begun.wait(0.3)
        return found

    monkeypatch.setattr(Context, "encoded_tokens", property(late))
    found = contexts[0].first(5) if way == "cut" else Context.compose(contexts)
    reading.join(60)
    assert (contexts[0].tokens, contexts[0].encoded_tokens) == (110, 110)
    assert found.tokens == found.encoded_tokens == (70 if way == "cut" else 150)


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
