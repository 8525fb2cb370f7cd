"""The page when a connection, the focus or the browser's store is lost, and when an answer is empty."""

from __future__ import annotations

import pytest

from tests.serve.conftest import LONG

QUESTION, FOCUS = "Where is item 3?", "document.activeElement.id"
HELD = """window.fetch = (path, about = {}) => path !== "/v1/chat/completions" ? sent(path, about) : new Promise((done, fail) =>
  about.signal.addEventListener("abort", () => fail(new DOMException("", "AbortError"))));"""


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
    block = (
        "Object.defineProperty(window, 'sessionStorage', { get() { throw new DOMException('', 'SecurityError'); } })"
    )
    made = page.send("Page.addScriptToEvaluateOnNewDocument", source=block)
    try:
        page.open(f"{served.url}/?blocked")
        page.wait("document.getElementById('model').textContent.includes('window')")
        page.js("(() => { const k = document.getElementById('key'); k.value = 'abc'; k.dispatchEvent(new Event('change')); })()")  # fmt: skip
        kept = page.js("import('/server.js').then((server) => server.key.get())")
        assert kept == "abc"
    finally:
        page.send("Page.removeScriptToEvaluateOnNewDocument", identifier=made["identifier"])
