"""The page in two tabs, and a keyboard that composes."""

from __future__ import annotations

from tests.browser.test_choosing import DONE
from tests.browser.test_losses import QUESTION, answers, replace_fetch, send
from tests.browser.test_page import ANSWERED

KEPT = "JSON.parse(localStorage.getItem('sharedllm.conversations') || '[]')"


def test_enter_that_ends_a_composition_sends_nothing(page):
    page.click("#question")
    page.write("Kana")
    enter = "document.getElementById('question').dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', keyCode: %d, bubbles: true, cancelable: true}))"
    assert page.js(enter % 229), "its default is not prevented"
    assert page.js("document.getElementById('question').value") == "Kana"


def test_a_duplicated_tab_has_a_conversation_of_its_own(page, served):
    page.open(f"{served.url}/?again2")  # loaded anew
    copied = page.js("JSON.stringify(Object.entries(sessionStorage))")
    replace_fetch(page, answers(DONE))
    send(page, QUESTION)
    page.wait(ANSWERED.format(1))
    first = page.js(KEPT)[0]["id"]
    source = f"sessionStorage.clear(); for (const [n, v] of {copied}) sessionStorage.setItem(n, v); localStorage.removeItem('sharedllm.conversations');"
    made = page.send("Page.addScriptToEvaluateOnNewDocument", source=source)
    page.open(f"{served.url}/?copy")
    page.send("Page.removeScriptToEvaluateOnNewDocument", identifier=made["identifier"])
    replace_fetch(page, answers(DONE))
    send(page, QUESTION)
    page.wait(ANSWERED.format(1))
    assert page.js(KEPT)[0]["id"] != first


def test_a_tab_that_is_loaded_anew_has_its_conversation_still(page, served):
    ids = []
    for i in range(2):
        page.open(f"{served.url}/?anew{i}")
        ids.append(
            page.js(
                "import('/kept.js').then(() => { dispatchEvent(new Event('pagehide')); return sessionStorage.getItem('sharedllm.fresh'); })"
            )
        )
    assert ids[0] == ids[1] and len(ids[0]) > 5
