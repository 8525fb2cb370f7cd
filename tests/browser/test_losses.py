"""The page when a connection, the focus or the browser's store is lost, and when an answer is empty."""

from __future__ import annotations

import json

import pytest

from tests.browser.test_page import ask, give
from tests.serve.conftest import LONG

QUESTION, FOCUS = "Where is item 3?", "document.activeElement.id"
HELD = """window.fetch = (path, about = {}) => path !== "/v1/chat/completions" ? sent(path, about) : new Promise((done, fail) =>
  about.signal.addEventListener("abort", () => fail(new DOMException("", "AbortError"))));"""

PIECE = "data: " + json.dumps({"choices": [{"delta": {"content": "Half"}, "finish_reason": None}]}) + "\n\n"
ERROR = "document.getElementById('error')"


def answers(*streams: str) -> str:
    """A script that answers the first questions with these bytes of a stream; it ends where they end so, else stays open."""
    return f"""const streams = {json.dumps(streams)};
    window.fetch = (path, about = {{}}) => {{
      if (path === "/v1/map") return new Promise(() => {{}});
      if (path !== "/v1/chat/completions") return sent(path, about);
      const told = streams.shift();
      return Promise.resolve(new Response(new ReadableStream({{ start(flow) {{
        flow.enqueue(new TextEncoder().encode(told));
        if (told.endsWith("END")) flow.close();
        about.signal.addEventListener("abort", () => flow.error(new DOMException("", "AbortError")));
      }} }})));
    }};"""


def replace_fetch(page, script: str) -> None:
    """Answer the page's requests with `script`, which may call the real `sent`."""
    page.js(f"(() => {{ const sent = window.fetch.bind(window); {script} }})()")


def send(page, question: str) -> None:
    page.click("#question")
    page.write(question)
    page.press("Enter")


def test_the_focus_is_not_lost_with_a_button(page):
    replace_fetch(page, HELD)
    page.click("#question")
    page.write(QUESTION)
    page.click("#send")
    page.wait("!document.getElementById('stop').hidden")
    assert page.js(FOCUS) == "question"
    page.js("document.getElementById('stop').focus()")
    page.press("Enter")
    page.wait("document.getElementById('stop').hidden")
    assert page.js(FOCUS) == "question" and page.js("document.getElementById('question').value") == QUESTION


def test_a_question_goes_back_only_into_its_own_conversation(page):
    replace_fetch(page, HELD)
    send(page, QUESTION)
    page.wait("!document.getElementById('stop').hidden")
    page.click("#new")
    page.wait("document.getElementById('stop').hidden")
    assert page.js("document.getElementById('question').value") == ""
    assert page.js("document.querySelectorAll('#talk li').length") == 0


def test_an_empty_answer_is_told(page, monkeypatch):
    monkeypatch.setattr("sharedllm.serve.written.Written.push", lambda self, token: "")
    monkeypatch.setattr("sharedllm.serve.written.Written.finish", lambda self: "")
    send(page, QUESTION)
    page.wait("!document.getElementById('error').hidden")
    assert page.text("#error") == "The model gave an empty answer. Ask in other words."
    assert page.js("document.getElementById('question').value") == QUESTION


def test_a_broken_connection_is_told_in_a_sentence(page):
    body = "new ReadableStream({ pull(flow) { flow.error(new TypeError('network error')); } })"
    replace_fetch(
        page,
        f"window.fetch = (path, about) => path === '/v1/chat/completions' ? Promise.resolve(new Response({body})) "
        ": sent(path, about);",
    )
    send(page, QUESTION)
    page.wait("!document.getElementById('error').hidden")
    assert page.text("#error") == "The connection to the server broke off. Ask again."


@pytest.mark.parametrize("end", ["flow.close()", "flow.error(new TypeError('network error'))"])
def test_a_reading_is_followed_again_when_its_connection_is_lost(page, tmp_path, end):
    """The list says that the document is still read, and what tells of it ends at once, the first time."""
    body = f"new ReadableStream({{ pull(flow) {{ {end}; }} }})"
    replace_fetch(
        page,
        f"""let lost = false, listed = false;
        window.fetch = async (path, about) => {{
          if (path.endsWith("/events") && !lost) {{ lost = true; return new Response({body}); }}
          const answer = await sent(path, about);
          if (path !== "/v1/contexts" || about.method || listed) return answer;
          const told = await answer.json();
          if (told.data.length) {{ listed = true; told.data.at(-1).status = "reading"; }}
          return new Response(JSON.stringify(told));
        }};""",
    )
    file = tmp_path / "lost.txt"
    file.write_text(LONG + end)
    page.upload("#files", file)
    reading = "document.querySelector('#contexts li:last-child progress')"
    page.wait(f"{reading} && !{reading}.hidden")
    page.wait(f"document.getElementById('contexts').textContent.includes('lost.txt') && {reading}.hidden", 20)
    assert page.js("document.getElementById('error').hidden")


def test_the_page_works_where_the_browser_keeps_no_data(page, served):
    block = """for (const store of ["sessionStorage", "localStorage"])
      Object.defineProperty(window, store, { get() { throw new DOMException("", "SecurityError"); } });"""
    made = page.send("Page.addScriptToEvaluateOnNewDocument", source=block)
    try:
        page.open(f"{served.url}/?blocked")
        page.wait("document.getElementById('model').textContent.includes('window')")
        page.js("(() => { const k = document.getElementById('key'); k.value = 'abc'; k.dispatchEvent(new Event('change')); })()")  # fmt: skip
        kept = page.js("import('/server.js').then((server) => server.key.get())")
        assert kept == "abc"
        replace_fetch(page, answers(f"{PIECE}data: [DONE]\n\nEND"))
        send(page, QUESTION)
        page.wait(
            "document.getElementById('stop').hidden && document.querySelectorAll('#talk .assistant').length === 1"
        )
        assert page.text("#talk .assistant") == "Half"
        assert page.text("#error") == "The conversation is not kept: this browser's settings forbid it."
    finally:
        page.send("Page.removeScriptToEvaluateOnNewDocument", identifier=made["identifier"])


def test_an_answer_that_breaks_off_without_an_error_is_told_and_kept(page):
    replace_fetch(page, answers(f"{PIECE}END"))
    send(page, QUESTION)
    page.wait(f"!{ERROR}.hidden")
    assert page.text("#error") == "The connection to the server broke off. Ask again."
    assert page.text("#talk .assistant") == "Half" and page.js("document.querySelectorAll('#past li').length") == 1


def test_a_conversation_that_is_deleted_while_it_is_answered_stays_deleted(page):
    replace_fetch(page, answers(f"{PIECE}data: [DONE]\n\nEND", PIECE))
    send(page, QUESTION)
    page.wait("document.querySelectorAll('#past li').length === 1")
    send(page, QUESTION)
    page.wait("document.querySelectorAll('#talk .assistant').length === 2")
    page.wait("document.querySelector('#talk li:last-child').textContent === 'Half'")
    page.js("document.querySelector('#past li button:last-child').click()")
    page.js("document.getElementById('stop').click()")
    page.wait("document.getElementById('stop').hidden")
    assert page.js("document.querySelectorAll('#past li, #talk li').length") == 0
    assert page.js("localStorage.getItem('sharedllm.conversations')") == "[]"


def test_a_conversation_that_the_browser_does_not_keep_is_told(page):
    replace_fetch(page, answers(f"{PIECE}data: [DONE]\n\nEND"))
    page.js("window.setItem = Storage.prototype.setItem")
    try:
        page.js("void (Storage.prototype.setItem = () => { throw new DOMException('', 'SecurityError'); })")
        send(page, QUESTION)
        page.wait(f"!{ERROR}.hidden")
        assert page.text("#error") == "The conversation is not kept: this browser's settings forbid it."
    finally:
        page.js("void (Storage.prototype.setItem = window.setItem)")


CHOSEN = """[...document.querySelectorAll('#contexts li')].some((one) =>
  one.textContent.includes({}) && one.querySelector('input').checked)"""


def test_a_document_that_is_read_before_it_is_listed_is_chosen(page, tmp_path):
    replace_fetch(
        page,
        """window.fetch = async (path, about = {}) => {
          const answer = await sent(path, about);
          if (path === "/v1/contexts" && about.method === "POST") {
            const { id } = await answer.clone().json();
            while ((await (await sent(`/v1/contexts/${id}`)).json()).status === "reading");
          }
          return answer;
        };""",
    )
    file = tmp_path / "at-once.txt"
    file.write_text("It is short.")
    page.upload("#files", file)
    page.wait(CHOSEN.format("'at-once.txt'"), 20)
    assert "at-once.txt: ready." in page.text("#read")


AWAY = "throw new TypeError('refused')"
PROXY = "return new Response('<html>', {{ status: {} }})"  # what stands before a server that is started anew


@pytest.mark.parametrize("away", [AWAY, *map(PROXY.format, (429, 502, 503, 504))])
def test_a_reading_is_looked_for_until_the_server_answers(page, tmp_path, away):
    """A server that is started anew: what tells of a reading ends, and then the list cannot be had."""
    replace_fetch(
        page,
        """let lost = 0, listed = false;
        window.fetch = async (path, about = {}) => {
          if (path.endsWith("/events") && !lost) { lost = 1; return new Response(""); }
          if (path === "/v1/contexts" && !about.method && lost === 1) { lost = 2; AWAY; }
          const answer = await sent(path, about);
          if (path !== "/v1/contexts" || about.method || listed) return answer;
          listed = true;
          const told = await answer.json();
          told.data.at(-1).status = "reading";
          return new Response(JSON.stringify(told));
        };""".replace("AWAY", away),
    )
    file = tmp_path / "restarted.txt"
    file.write_text(f"Of the restart. {LONG}")
    page.upload("#files", file)
    page.wait("document.getElementById('read').textContent.includes('asked again')", 20)
    page.wait(CHOSEN.format("'restarted.txt'"), 20)
    assert page.text("#read") == "restarted.txt: ready." and page.js(f"{ERROR}.hidden")


def test_a_proxy_without_its_server_is_told_in_a_sentence(page):
    replace_fetch(
        page,
        "window.fetch = (path, about) => path === '/v1/chat/completions' "
        "? Promise.resolve(new Response('<html>', { status: 502 })) : sent(path, about);",
    )
    send(page, QUESTION)
    page.wait(f"!{ERROR}.hidden")
    assert page.text("#error") == "The server is starting again, or has too much to do. Try again in a moment."


def test_what_is_wrong_with_a_question_stays_while_a_reading_is_followed(page, tmp_path):
    """What tells of the reading ends each time at once, so that it is looked for every two seconds."""
    replace_fetch(
        page,
        """window.looked = 0;
        window.reading = true;
        window.fetch = async (path, about = {}) => {
          if (path === "/v1/chat/completions") return new Response("");
          if (path.endsWith("/events")) { looked += 1; return new Response(""); }
          const answer = await sent(path, about);
          if (path !== "/v1/contexts" || about.method) return answer;
          const told = await answer.json();
          if (reading) told.data.at(-1).status = "reading";
          return new Response(JSON.stringify(told));
        };""",
    )
    file = tmp_path / "followed.txt"
    file.write_text(f"Of what is followed. {LONG}")
    page.upload("#files", file)
    page.wait("looked > 0")
    send(page, QUESTION)
    page.wait(f"!{ERROR}.hidden")
    page.js("window.looked = 0")
    page.wait("looked > 1", 20)
    assert page.text("#error") == "The connection to the server broke off. Ask again."
    page.js("void (window.reading = false)")
    page.wait(CHOSEN.format("'followed.txt'"), 20)


def test_a_document_that_was_deleted_elsewhere_leaves_the_list(page, tmp_path):
    file = tmp_path / "elsewhere.txt"
    file.write_text(f"Of elsewhere. {LONG}")
    page.upload("#files", file)
    page.wait(CHOSEN.format("'elsewhere.txt'"))
    page.js("fetch(`/v1/contexts/${document.querySelector('#contexts li:last-child input').id}`, { method: 'DELETE' })")
    page.click("#contexts li:last-child button")
    page.wait("!document.getElementById('contexts').textContent.includes('elsewhere.txt')")
    page.wait(f"!{ERROR}.hidden")
    assert "It was deleted" in page.text("#error")
    page.problems.clear()  # the question before it is deleted, and the refusal, which Chromium logs


def test_the_passage_that_was_clicked_last_is_shown(page, tmp_path):
    give(page, tmp_path)
    ask(page, QUESTION, 1)
    replace_fetch(
        page,
        """let first = null;
        window.fetch = (path, about) => {
          if (!path.includes("/text?")) return sent(path, about);
          if (!first) return new Promise((done) => { first = done; }).then(() => sent(path, about));
          setTimeout(first, 300);
          return sent(path, about);
        };""",
    )
    page.js("[...document.querySelectorAll('.map .leaf')].slice(0, 2).forEach((leaf) => leaf.click())")
    page.wait("!document.getElementById('passage-part').hidden")
    shown = page.js("document.getElementById('passage').textContent")
    page.js("new Promise((done) => setTimeout(done, 1000))")
    assert shown and page.js("document.getElementById('passage').textContent") == shown


def test_a_key_that_cannot_be_sent_is_told(page):
    page.js("(() => { const k = document.getElementById('key'); k.value = '\u201cabc\u201d'; k.dispatchEvent(new Event('change')); })()")  # fmt: skip
    page.wait(f"!{ERROR}.hidden")
    assert "The API key holds a character that no key has" in page.text("#error")


def test_a_folder_that_is_dropped_is_told(page):
    page.js(
        """(() => {
          const folder = new File([], "notes"), drop = new Event("drop");
          folder.slice = () => ({ arrayBuffer: () => Promise.reject(new DOMException("", "NotFoundError")) });
          Object.defineProperty(drop, "dataTransfer", { value: { files: [folder] } });
          document.getElementById("drop").dispatchEvent(drop);
        })()"""
    )
    page.wait(f"!{ERROR}.hidden")
    assert page.text("#error").startswith("notes: it cannot be read. Choose a file, not a folder")
