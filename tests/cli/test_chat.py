"""`sharedllm chat`: what is wrong is said before anything is read, and at a terminal the conversation goes on."""

from __future__ import annotations

import io

import pytest

from tests.cli.test_cli import MODEL, home, run  # noqa: F401

LINES = f"{'Why? ' * 50}\nBlue?\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_window_that_cannot_be_is_refused_before_anything_is_read(run, monkeypatch):  # noqa: F811
    monkeypatch.setattr("sharedllm.cli.given.read", lambda *_: pytest.fail("read"))
    code, out, err = run("chat", "long.txt", "--window", "8", *MODEL)
    assert code == 2 and "it must hold four chunks" in err and out == ""


def test_a_question_that_is_too_long_ends_no_conversation_at_a_terminal(run, monkeypatch):  # noqa: F811
    chat = ("chat", "long.txt", *MODEL, "--max-new-tokens", "2", "--json")
    monkeypatch.setattr("sys.stdin", Terminal(LINES))
    code, out, err = run(*chat)
    assert code == 0 and len(out.splitlines()) == 1 and "ask a shorter one" in err
    monkeypatch.setattr("sys.stdin", io.StringIO(LINES))
    code, out, err = run(*chat)
    assert code == 2 and out == "" and "ask a shorter one" in err


def test_a_conversation_that_finds_no_memory_to_fold_in_goes_on_at_a_terminal(run, monkeypatch):  # noqa: F811
    lines = "a?\n" * 8
    chat = ("chat", *MODEL, "--max-new-tokens", "2", "--json")
    monkeypatch.setattr("sharedllm.reader.room_bytes", lambda *_: 0)
    monkeypatch.setattr("sys.stdin", Terminal(lines))
    code, out, err = run(*chat)
    assert code == 0 and out.count("\n") > 1 and "not enough memory for more of this conversation" in err
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    code, out, err = run(*chat)
    assert code == 1 and "not enough memory for more of this conversation" in err and "Traceback" not in err


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stdin", [None, closed()], ids=["none", "closed"])
def test_without_standard_input_there_is_no_conversation(run, monkeypatch, stdin):  # noqa: F811
    monkeypatch.setattr("sharedllm.cli.common.load", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr("sys.stdin", stdin)
    code, out, err = run("chat", *MODEL)
    assert code == 2 and "standard input is closed" in err and err.count("\n") == 1 and out == ""
