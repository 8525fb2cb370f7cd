"""What clients of other servers send as a matter of course is taken: histories with tools, fields that ask for nothing."""

from __future__ import annotations

import pytest

SAID = [{"role": "user", "content": "Why?"}]
CHAT = "/v1/chat/completions"
HISTORY = [
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f"}}]},
    {"role": "assistant", "tool_calls": []},
    {"role": "tool", "tool_call_id": "c", "content": "1"},
    {"role": "function", "name": "f", "content": "1"},
    {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
]
SENT = [
    {"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "none"},
    {"functions": [{"name": "f"}], "function_call": "none"},
    {"functions": [], "tools": None},
    {"stop": ""},
    {"stop": ["", "\x00"]},
    {"stream_options": {"include_usage": None}},
    {"top_p": 0},
]


@pytest.mark.parametrize("message", HISTORY)
def test_histories_of_other_servers_are_taken(http, message):
    answer = http.post(CHAT, json={"messages": [*SAID, message, *SAID], "max_tokens": 2})
    assert answer.status_code == 200, answer.text


def test_what_tools_and_refusals_said_is_text():
    from sharedllm.serve.schemas import Message

    said = [Message(**message) for message in HISTORY]
    assert [m.text for m in said] == ["", "", "1", "1", "no"]
    assert [m.speaker for m in said] == ["assistant", "assistant", "user", "user", "assistant"]
    assert Message(role="developer", content="a").speaker == "system"


@pytest.mark.parametrize("more", SENT)
def test_what_asks_for_nothing_is_taken(http, more):
    answer = http.post(CHAT, json={"messages": SAID, "max_tokens": 2, **more})
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == 2


def test_a_top_p_of_nothing_keeps_the_likeliest_token(http):
    body = {"messages": SAID, "max_tokens": 6, "temperature": 2}
    said, likeliest = (http.post(CHAT, json={**body, **more}).json() for more in ({"top_p": 0}, {"temperature": 0}))
    assert said["choices"] == likeliest["choices"]


def test_one_of_one_is_taken(http):
    for more in ({"best_of": 1}, {"best_of": 2, "n": 2}, {"suffix": ""}, {"suffix": None}):
        assert http.post("/v1/completions", json={"prompt": "a", "max_tokens": 1, **more}).status_code == 200
