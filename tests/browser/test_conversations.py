"""Conversations that the browser keeps: none of their questions and answers is lost, and none is mixed with another."""

from __future__ import annotations

import json

import pytest

from tests.browser.test_losses import HELD, PIECE, QUESTION, answers, replace_fetch, send
from tests.browser.test_page import ANSWERED

DONE, STOPPED = f"{PIECE}data: [DONE]\n\nEND", "document.getElementById('stop').hidden"
LAST_IS_HALF = "document.querySelector('#talk li:last-child').textContent === 'Half'"
KEPT = "JSON.parse(localStorage.getItem('sharedllm.conversations'))"
GOOD = {"id": "1", "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}


def test_the_title_of_a_conversation_that_is_being_answered_does_not_end_it(page):
    replace_fetch(page, answers(DONE, PIECE))
    send(page, QUESTION)
    page.wait(ANSWERED.format(1))
    send(page, "And then?")
    page.wait(f"document.querySelectorAll('#talk .assistant').length === 2 && {LAST_IS_HALF}")
    page.click("#past button")
    assert not page.js(STOPPED), "the answer goes on"
    page.click("#stop")
    page.wait(STOPPED)
    assert page.js("[...document.querySelectorAll('#talk li')].map((one) => one.textContent)") == [
        QUESTION, "Half", "And then?", "Half",
    ]  # fmt: skip
    assert len(page.js(KEPT)) == 1 and len(page.js(KEPT)[0]["messages"]) == 4


def test_a_question_outlives_the_page_that_waits_for_its_answer(page, served):
    replace_fetch(page, HELD)
    send(page, QUESTION)
    page.wait(f"!{STOPPED}")
    page.open(f"{served.url}/?left")
    page.wait("document.querySelectorAll('#past li').length === 1")
    page.js("document.querySelector('#past button').click()")  # the list of documents, which comes late, moves it
    assert page.js("document.getElementById('question').value") == QUESTION
    assert page.js("document.querySelectorAll('#talk li').length") == 0
    replace_fetch(page, answers(DONE))
    page.press("Enter")
    page.wait(ANSWERED.format(1))
    assert [one["content"] for one in page.js(KEPT)[0]["messages"]] == [QUESTION, "Half"]


def test_a_question_that_is_left_for_another_conversation_stays_with_its_own(page):
    replace_fetch(page, HELD)
    send(page, QUESTION)
    page.wait(f"!{STOPPED}")
    page.click("#new")
    page.wait(STOPPED)
    assert page.js("document.getElementById('question').value") == ""
    page.click("#past button")
    assert page.js("document.getElementById('question').value") == QUESTION


@pytest.mark.parametrize(
    "kept", [{}, 7, [None, 7, {}, {"id": "2"}, {"id": "3", "messages": [{"role": "user"}]}, {"id": "4", "messages": []}, GOOD]]
)  # fmt: skip
def test_what_is_kept_in_no_known_shape_is_passed_over(page, served, kept):
    page.js(f"localStorage.setItem('sharedllm.conversations', {json.dumps(json.dumps(kept))})")
    page.open(f"{served.url}/?shapes")
    page.wait("document.getElementById('model').textContent.includes('window')")
    titles = page.js("[...document.querySelectorAll('#past li button:first-child')].map((one) => one.textContent)")
    assert titles == (["Why?"] if isinstance(kept, list) else [])


def test_figures_are_those_of_the_answer_that_is_shown(page):
    figures = "document.getElementById('figures').textContent"
    usage = {"choices": [], "usage": {"completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}}}
    replace_fetch(page, answers(f"{PIECE}data: {json.dumps(usage)}\n\ndata: [DONE]\n\nEND", PIECE))
    send(page, QUESTION)
    page.wait(ANSWERED.format(1))
    assert page.js(figures).startswith("1 tokens in")
    send(page, "And then?")
    page.wait(f"document.querySelectorAll('#talk .assistant').length === 2 && {LAST_IS_HALF}")
    assert page.js(figures) == ""
    page.click("#stop")
    page.wait(STOPPED)
    assert page.js(figures) == "Stopped."


def test_as_many_conversations_are_kept_as_the_page_says(page, served):
    talks = [{**GOOD, "id": str(i)} for i in range(50)]
    page.js(f"localStorage.setItem('sharedllm.conversations', {json.dumps(json.dumps(talks))})")
    page.open(f"{served.url}/?many")
    page.wait("document.querySelectorAll('#past li').length === 50")
    assert "keeps the newest 50" in page.text("main")
    replace_fetch(page, answers(DONE))
    send(page, QUESTION)
    page.wait(ANSWERED.format(1))
    assert [one["id"] for one in page.js(KEPT)][1:] == [str(i) for i in range(49)]
