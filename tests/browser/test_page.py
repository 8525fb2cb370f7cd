"""The page as a person uses it: with a mouse, with keys alone, with a screen reader, on a phone, in the dark."""

from __future__ import annotations

import threading

import pytest

from tests.serve.conftest import LONG

QUESTION, OTHER = "Where is item 3?", "And the box of item 9?"
ANSWERED = "document.querySelectorAll('#talk .assistant').length === {} && document.getElementById('stop').hidden"
MAPPED = "document.querySelectorAll('.map').length === {}"
CONTRAST = """(() => {
  const light = (text) => { const c = text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2] + 0.05; };
  const ground = light(getComputedStyle(document.body).backgroundColor);
  const inks = [...document.querySelectorAll('p, li, h1, h2, h3, label')].map((e) => light(getComputedStyle(e).color));
  return Math.min(...inks.map((ink) => Math.max(ink, ground) / Math.min(ink, ground)));
})()"""


def give(page, tmp_path, name="items.txt", text=LONG) -> None:
    """Upload a document and wait until it is read and chosen."""
    file = tmp_path / name
    file.write_text(text)
    before = page.js("document.querySelectorAll('#contexts input:checked').length")
    page.upload("#files", file)
    page.wait(f"document.querySelectorAll('#contexts input:checked').length === {before + 1}")


def ask(page, question: str, answers: int) -> None:
    page.click("#question")
    page.write(question)
    page.press("Enter")
    page.wait(ANSWERED.format(answers))
    page.wait(MAPPED.format(1))


def test_a_document_is_read_asked_mapped_and_two_questions_compared(page, tmp_path):
    give(page, tmp_path)
    assert "items.txt" in page.text("#contexts") and f"{len(LONG)} tokens" in page.text("#contexts")
    assert "items.txt: ready." in page.text("#read")
    ask(page, QUESTION, 1)
    assert page.text("#talk .user") == QUESTION and "16 tokens in" in page.text("#figures")
    assert f"slots stand for {len(LONG)} tokens in" in page.text("#maps") and "full attention would keep" in page.text(
        "#maps"
    )
    assert page.js("document.querySelectorAll('.map .chosen').length") > 0
    assert page.js("document.querySelectorAll('.map .heat-5').length") > 0, "the passage attended to most"
    page.click(".map .heat-5")
    page.wait("!document.getElementById('passage-part').hidden")
    assert page.js("document.getElementById('passage').textContent") in LONG
    ask(page, OTHER, 2)
    page.js(
        "(() => { window.signals = []; const send = fetch; "
        "window.fetch = (path, about) => { signals.push(about.signal); return send(path, about); }; })()"
    )
    page.choose("#against", "1")
    page.choose("#against", "0")
    page.wait(MAPPED.format(2))
    assert page.js("signals.map((one) => one.aborted)") == [True, True, False, False], "the first search was dropped"
    assert "The two questions chose different passages in" in page.text("#differ")
    assert page.js("document.getElementById('found').textContent").count("slots stand for") == 2
    assert not page.js("document.getElementById('maps').hasAttribute('aria-live')"), "a map is too long to be read out"
    marked = page.js("[...document.querySelectorAll('.map')].map((m) => m.querySelectorAll('.differs').length)")
    assert marked[0] == marked[1], "what one chose instead of the other"


def test_a_conversation_is_kept_in_the_browser(page, served):
    ask_alone = "What is kept?"
    page.click("#question")
    page.write(ask_alone)
    page.press("Enter")
    page.wait(ANSWERED.format(1))
    said = page.text("#talk .assistant")
    page.open(f"{served.url}/?later")
    page.wait("document.querySelectorAll('#past li').length === 1")
    told = "fetch('/v1/contexts').then((answer) => answer.json()).then((list) => list.data.length)"
    page.wait(
        f"document.querySelectorAll('#contexts li').length === {page.js(told)}"
    )  # what comes late moves the button
    assert page.js("document.querySelectorAll('#talk li').length") == 0
    page.click("#past button")
    assert page.text("#talk .user") == ask_alone and page.text("#talk .assistant") == said
    page.click("#past li button:last-child")
    assert page.js("document.querySelectorAll('#past li').length") == 0
    page.problems.clear()  # the map of a question without a document is refused, and the page says so


def test_a_past_conversation_has_its_documents_again(page, tmp_path):
    ticked = "[...document.querySelectorAll('#contexts input')].map((box) => box.checked)"
    page.js("document.querySelectorAll('#contexts input:checked').forEach((box) => box.click())")
    assert "No document is chosen" in page.text("#ask")
    give(page, tmp_path, "one.txt")
    assert "No document is chosen" not in page.text("#ask")
    kept = page.js(ticked)
    ask(page, QUESTION, 1)
    assert "The answer was cut at 16 tokens." in page.text("#figures")
    page.click("#new")
    page.js("window.first = document.querySelector('#contexts li')")
    give(page, tmp_path, "two.txt", LONG[::-1])
    assert page.js("window.first.isConnected"), "the lines are changed in place"
    page.click("#contexts li:last-child input")
    page.click("#contexts li:nth-last-child(2) input")
    assert "No document is chosen" in page.text("#ask")
    page.click("#past button")
    page.wait(MAPPED.format(1))
    assert page.js(ticked) == [*kept, False] and "No document is chosen" not in page.text("#ask")
    page.click("#contexts li:last-child button")
    page.wait(f"document.querySelectorAll('#contexts li').length === {len(kept)}")
    assert all("a dialog: Delete two.txt" in problem for problem in page.problems)
    page.problems.clear()


def test_keys_alone_reach_everything(page, tmp_path):
    give(page, tmp_path)
    ask(page, QUESTION, 1)
    page.js("(() => { const top = document.querySelector('h1'); top.tabIndex = -1; top.focus(); })()")
    reached = []
    for _ in range(200):  # each document that other tests left takes two
        page.press("Tab")
        reached.append(
            page.js("document.activeElement.id || document.activeElement.className || document.activeElement.tagName")
        )
        if "leaf" in reached[-1]:
            break
    for name in ("files", "new", "question", "send", "mapped", "against"):
        assert name in reached, reached
    assert any(name.startswith("ctx_") for name in reached) and "leaf" in reached[-1], reached
    before = page.js("document.activeElement.getAttribute('aria-label')")
    page.press("ArrowDown")
    page.press("ArrowLeft")
    page.press("ArrowRight")
    after = page.js("document.activeElement.getAttribute('aria-label')")
    assert after != before and after.startswith("Chunk ")
    page.press("Enter")
    page.wait("document.activeElement.id === 'passage'")


def test_a_screen_reader_hears_a_name_of_every_control(page, tmp_path):
    give(page, tmp_path)
    ask(page, QUESTION, 1)
    controls = page.controls()
    assert len(controls) > 20 and all(name.strip() for _role, name in controls), controls
    assert ("checkbox", "items.txt") in controls and ("button", "delete items.txt") in controls
    assert any(name.startswith("Chunk 1, tokens 0 to ") and "attention" in name for _role, name in controls)
    assert page.js("document.documentElement.lang") == "en"
    assert page.js("[...document.querySelectorAll('[role=status], [role=alert], [aria-live]')].length") >= 5


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1200])
def test_text_can_be_read_on_every_screen(page, tmp_path, width, dark):
    page.screen(width, 740, dark)
    give(page, tmp_path, "a_name_without_any_place_to_break_it_at_" * 3 + ".txt")
    ask(page, "Why" * 30, 1)
    assert page.js("document.scrollingElement.scrollWidth") <= width, "nothing is wider than the screen"
    assert page.js(CONTRAST) >= 4.5, "WCAG 2.2, 1.4.3"


def test_nothing_that_is_shown_is_run(page, tmp_path, monkeypatch):
    """Markup in a document, its name, a question or an answer is shown as text."""
    evil = "<img src=x onerror='window.ran=1'><script>window.ran=1</script><svg onload=window.ran=1>"
    monkeypatch.setattr("sharedllm.serve.written.Written.push", lambda self, token: evil)
    give(page, tmp_path, "<img src=x onerror=window.ran=1>.txt", f"{evil} " * 6)
    page.click("#question")
    page.write("<img src=x onerror=window.ran=1>")
    page.press("Enter")
    page.wait(ANSWERED.format(1))
    page.wait(MAPPED.format(1))
    page.click(".map .leaf")
    page.wait("!document.getElementById('passage-part').hidden")
    assert evil in page.js("document.querySelector('#talk .assistant').textContent")
    assert page.js("window.ran === undefined && !document.querySelector('img, svg, main script')")


def test_the_policy_refuses_scripts_that_are_put_in_all_the_same(page):
    page.js("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    page.js(
        "(() => { const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s); })()"
    )
    page.js("new Promise((done) => setTimeout(done, 300))")
    assert page.js("window.ran === undefined")
    assert any("Content Security Policy" in problem for problem in page.problems)
    page.problems.clear()


def test_an_error_says_what_to_do(page, served, tmp_path):
    file = tmp_path / "nothing.pdf"
    file.write_bytes(b"%PDF-1.7 broken")
    page.upload("#files", file)
    page.wait("!document.getElementById('error').hidden")
    assert page.text("#error").startswith("'nothing.pdf' is not a PDF that can be read (broken or cut short): ")
    assert page.text("#error").endswith(".") and "\n" not in page.text("#error")
    assert page.js("document.getElementById('error').getAttribute('role')") == "alert"
    page.problems.clear()  # Chromium logs the refusal


def test_files_that_are_refused_do_not_keep_others_back_and_a_phone_shows_why(page, tmp_path):
    page.screen(360, 740)
    files = [tmp_path / name for name in ("bad.pdf", "good.txt", "worse.pdf")]
    for file in files:
        file.write_bytes(LONG.encode() if file.suffix == ".txt" else b"%PDF-1.7 broken")
    page.upload("#files", *files)
    page.wait("document.getElementById('error').textContent.includes('worse.pdf')")
    page.wait("document.getElementById('contexts').textContent.includes('good.txt')")
    assert "bad.pdf" in page.text("#error") and "good.txt" not in page.text("#error")
    assert page.js("document.getElementById('files').value") == ""
    page.js("scrollTo(0, document.body.scrollHeight)")
    top, bottom = page.js("(() => { const r = document.getElementById('error').getBoundingClientRect(); return [r.top, r.bottom]; })()")  # fmt: skip
    assert 0 <= top < bottom <= 740, "it stays in sight"
    page.problems.clear()  # Chromium logs the refusals


def test_the_edges_of_the_maps_fields_can_be_seen(page, tmp_path):
    give(page, tmp_path)
    ask(page, QUESTION, 1)
    for dark in (False, True):
        page.screen(1200, 740, dark)
        for side in ("Left", "Top"):
            edges = CONTRAST.replace("'p, li, h1, h2, h3, label'", "'.map .bar'")
            assert page.js(edges.replace("(e).color", f"(e).border{side}Color")) >= 3, "WCAG 2.2, 1.4.11"
            widths = f"[...document.querySelectorAll('.map .bar')].map((e) => parseFloat(getComputedStyle(e).border{side}Width))"
            assert min(page.js(widths)) >= 1


def test_a_browser_keeps_its_name_towards_replicas(page, served):
    names = """(async () => {
      const { call, post } = await import("/server.js"), sent = [], real = window.fetch;
      window.fetch = (path, about) => { sent.push(about.headers["x-session-id"]); return Promise.resolve(new Response("{}")); };
      await call("/v1/contexts");
      await post("/v1/map", {}, { headers: { extra: "1" } });
      window.fetch = real;
      return sent;
    })()"""
    first = page.js(names)
    assert first[0] == first[1] == page.js("localStorage.getItem('sharedllm.session')") and len(first[0]) == 32
    page.open(f"{served.url}/?later")
    page.wait("document.getElementById('model').textContent.includes('window')")
    assert page.js(names) == first
    page.js("localStorage.clear()")
    page.open(f"{served.url}/?other")
    page.wait("document.getElementById('model').textContent.includes('window')")
    assert page.js(names)[0] != first[0]


def test_many_documents_that_are_read_take_one_connection(page, served, tmp_path, monkeypatch):
    reader, rows, go = served.llm.reader, served.llm.reader.encode_rows, threading.Event()
    page.js(
        "(() => { window.paths = []; const send = fetch; "
        "window.fetch = (path, about) => { paths.push(path); return send(path, about); }; })()"
    )
    files = [tmp_path / f"many{i}.txt" for i in range(7)]
    for i, file in enumerate(files):
        file.write_text(f"{i} {LONG}")
    with monkeypatch.context() as slow:
        slow.setattr(reader, "encode_rows", lambda *a, **k: (go.wait(60), rows(*a, **k))[1])
        page.upload("#files", *files)
        page.wait("[...document.querySelectorAll('#contexts progress')].filter((bar) => !bar.hidden).length > 2")
        assert page.js("paths.filter((path) => path.endsWith('/events'))") == ["/v1/contexts/events"]
        go.set()
    read = "[...document.querySelectorAll('#contexts li')].filter((e) => e.textContent.includes('many') && e.querySelector('input').checked)"
    page.wait(f"{read}.length === 7")


def test_the_edges_of_fields_and_buttons_can_be_seen(page):
    for dark in (False, True):
        page.screen(1200, 740, dark)
        edges = CONTRAST.replace("'p, li, h1, h2, h3, label'", "'button, input:not(#files), select, textarea'")
        assert page.js(edges.replace("(e).color", "(e).borderTopColor")) >= 3, "WCAG 2.2, 1.4.11"
    page.js("document.getElementById('send').disabled = true")
    assert page.js("getComputedStyle(document.getElementById('send')).opacity") == "0.55"
    assert page.js("getComputedStyle(document.getElementById('send')).cursor") == "default"
