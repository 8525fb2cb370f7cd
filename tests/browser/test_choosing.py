"""Which documents are chosen for a question, when they were dropped, are read, fail, or belong to a past conversation."""

from __future__ import annotations

import threading

import pytest

from tests.browser.test_losses import CHOSEN, ERROR, PIECE, answers, replace_fetch, send
from tests.browser.test_page import ANSWERED, give
from tests.serve.conftest import LONG

DONE = f"{PIECE}data: [DONE]\n\nEND"
BUSY = "[...document.querySelectorAll('#contexts progress')].filter((bar) => !bar.hidden).length"
AGAIN = "(() => { const k = document.getElementById('key'); k.dispatchEvent(new Event('change')); })()"
LATE = """(() => {
  const sent = window.fetch.bind(window), told = new Promise((done) => { window.tell = done; });
  window.fetch = (path, about = {}) => path === "/v1/contexts" && !about.method ? told.then(() => sent(path, about)) : sent(path, about);
})();"""


@pytest.fixture
def held(served, monkeypatch):
    """An event until which nothing is read."""
    reader, rows, go = served.llm.reader, served.llm.reader.encode_rows, threading.Event()
    with monkeypatch.context() as slow:
        slow.setattr(reader, "encode_rows", lambda *a, **k: (go.wait(60), rows(*a, **k))[1])
        yield go
        go.set()


def drop(page, tmp_path, name: str) -> None:
    """Upload a document and wait until it is being read."""
    file, before = tmp_path / name, page.js(BUSY)
    file.write_text(f"{name} {LONG}")
    page.upload("#files", file)
    page.wait(f"{BUSY} === {before + 1}")


def line_of(page, name: str) -> str:
    return page.js(f"[...document.querySelectorAll('#contexts li')].find((one) => one.textContent.includes('{name}')).textContent")  # fmt: skip


def test_the_question_says_that_no_document_is_chosen_only_then(page, tmp_path):
    assert "No document is chosen" in page.description("#question")
    give(page, tmp_path, "described.txt")
    assert page.description("#question") == ""
    page.click("#contexts li:last-child input")
    assert "No document is chosen" in page.description("#question")


def test_a_file_that_was_taken_is_not_called_refused(page, tmp_path):
    """The server has too much to do when the list is asked for."""
    replace_fetch(
        page,
        """let lost = false;
        window.said = [];
        new MutationObserver(() => said.push(document.getElementById("read").textContent))
          .observe(document.getElementById("read"), { childList: true });
        window.fetch = (path, about = {}) => {
          if (path !== "/v1/contexts" || about.method || lost) return sent(path, about);
          lost = true;
          return Promise.resolve(new Response("<html>", { status: 429 }));
        };""",
    )
    file = tmp_path / "taken.txt"
    file.write_text(f"Of what is taken. {LONG}")
    page.upload("#files", file)
    page.wait(CHOSEN.format("'taken.txt'"), 20)
    assert page.js(f"{ERROR}.hidden") and not any("not taken" in one for one in page.js("said"))


def test_what_another_uploads_is_not_chosen_here(page, served, held, tmp_path):
    httpx = pytest.importorskip("httpx", reason="httpx is not installed")
    other = {"file": ("other.txt", f"Of another. {LONG}".encode())}
    assert httpx.post(f"{served.url}/v1/contexts", files=other, timeout=60).status_code == 202
    file = tmp_path / "own.txt"
    file.write_text(f"Of one's own. {LONG}")
    page.upload("#files", file)
    page.wait(f"{BUSY} === 2")
    held.set()
    page.wait(f"{BUSY} === 0")
    page.wait(CHOSEN.format("'own.txt'"))
    assert "read in" in line_of(page, "other.txt") and not page.js(CHOSEN.format("'other.txt'"))


def test_what_was_dropped_is_chosen_after_the_page_is_loaded_anew(page, served, held, tmp_path):
    drop(page, tmp_path, "anew.txt")
    page.open(f"{served.url}/?anew")
    page.wait(f"{BUSY} === 1")
    held.set()
    page.wait(CHOSEN.format("'anew.txt'"))


def test_what_was_dropped_is_chosen_in_its_own_conversation_alone(page, held, tmp_path):
    replace_fetch(page, answers(DONE, DONE))
    send(page, "Of what?")
    page.wait(ANSWERED.format(1))
    drop(page, tmp_path, "mine.txt")
    page.click("#new")
    held.set()
    page.wait(f"{BUSY} === 0")
    assert "read in" in line_of(page, "mine.txt") and not page.js(CHOSEN.format("'mine.txt'"))
    assert "No document is chosen" in page.text("#ask")
    page.click("#past button")
    assert page.js(CHOSEN.format("'mine.txt'"))


def test_a_past_conversation_opened_before_the_list_is_there_has_its_documents(page, served, tmp_path):
    give(page, tmp_path, "listed.txt")
    replace_fetch(page, answers(DONE))
    send(page, "Of what?")
    page.wait(ANSWERED.format(1))
    made = page.send("Page.addScriptToEvaluateOnNewDocument", source=LATE)
    try:
        page.open(f"{served.url}/?late")
        page.wait("document.querySelectorAll('#past li').length === 1")
        page.js("document.querySelector('#past button').click()")  # the list of documents, which comes late, moves it
        assert page.js("document.querySelectorAll('#contexts li').length") == 0
        page.js("tell()")
        page.wait(CHOSEN.format("'listed.txt'"))
        assert page.js("document.querySelectorAll('#contexts input:checked').length") == 1
    finally:
        page.send("Page.removeScriptToEvaluateOnNewDocument", identifier=made["identifier"])


def test_a_document_that_failed_is_chosen_no_more(page, tmp_path):
    give(page, tmp_path, "failing.txt")
    replace_fetch(
        page,
        """window.fetch = async (path, about = {}) => {
          const answer = await sent(path, about);
          if (path !== "/v1/contexts" || about.method) return answer;
          const told = await answer.json();
          Object.assign(told.data.at(-1), { status: "failed", error: "it cannot be read." });
          return new Response(JSON.stringify(told));
        };""",
    )
    page.js(AGAIN)  # it is listed again
    page.wait("document.getElementById('contexts').textContent.includes('failed: it cannot be read.')")
    assert not page.js(CHOSEN.format("'failing.txt'")) and "No document is chosen" in page.text("#ask")
