"""The map: what of a text is quoted, which maps can be compared, and fields that a finger can hit."""

from __future__ import annotations

from tests.browser.test_page import ANSWERED, ask, give
from tests.serve.test_quotes import quoting  # noqa: F401


def test_what_is_quoted_is_marked_and_told(chromium, quoting, tmp_path):  # noqa: F811
    chromium.screen(1200, 900)
    chromium.open(f"{quoting.url}/")
    chromium.wait("document.getElementById('model').textContent.includes('window')")
    chromium.problems.clear()
    give(chromium, tmp_path)
    ask(chromium, "Item 7 is kept?", 1)
    assert "32 of the tokens are quoted word for word" in chromium.text("#maps")
    named = [name for role, name in chromium.controls() if role == "button" and "quoted word for word" in name]
    lines = chromium.js(
        "[...document.querySelectorAll('.map .leaf')].filter((one) => one.querySelector('.quotes i')).length"
    )
    assert 0 < len(named) == lines
    whole = [name for name in named if "all quoted" in name]
    assert all(name.startswith("Chunk ") for name in named) and whole, named
    over = """[...document.querySelectorAll('.map .quotes i')].every((line) => {
      const at = line.getBoundingClientRect(), field = line.closest('.leaf').getBoundingClientRect();
      return at.height >= 3 && at.width >= 2 && at.left >= field.left - 1 && at.right <= field.right + 2;
    })"""
    assert chromium.js(over) and "quoted word for word" in chromium.text(".legend")
    assert not chromium.problems


def test_only_maps_that_can_be_compared_are(page, tmp_path):
    give(page, tmp_path)
    ask(page, "Where is item 3?", 1)
    page.js("document.querySelectorAll('#contexts input:checked').forEach((box) => box.click())")
    give(page, tmp_path, "short.txt", "Item 1 is here.")
    for i, question in enumerate(("Where?", "Is it?"), 2):
        page.click("#question")
        page.write(question)
        page.press("Enter")
        page.wait(ANSWERED.format(i))
        page.wait(f"document.querySelector('#maps h3')?.textContent === '{question}'")
    page.choose("#against", "2")
    page.wait("document.getElementById('differ').textContent.includes('fits the window')")
    page.choose("#against", "0")
    page.wait("document.getElementById('differ').textContent.includes('different documents')")
    assert page.js("document.querySelectorAll('.map .differs').length") == 0
    assert page.js("document.querySelectorAll('.map').length") == 1


def test_fields_of_the_map_are_large_enough_to_be_hit(page, tmp_path):
    give(page, tmp_path)
    ask(page, "Where is item 3?", 1)
    heights = "[...document.querySelectorAll('.map .leaf')].map((one) => one.getBoundingClientRect().height)"
    assert min(page.js(heights)) >= 24, "WCAG 2.2, 2.5.8"
    flat = "[...document.querySelectorAll('.map .bar')].map((one) => one.getBoundingClientRect().height)"
    assert min(page.js(flat)) >= 6, "they hold what shows how finely each is read"
