"""The pictures of the page in the documents: the default model reads the text that ships and is asked about it.

`make test-browser PICTURES=docs/figures` writes those that the documents show.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tools.probes.load import served

from sharedllm.evaluate.real import load
from tests.browser.chromium import Chromium

CHARACTERS = 150_000
QUESTIONS = (
    "Which animal is the mascot of both Caltech and MIT?",
    "In which year was the plug pulled on the SAIL computer?",
)
"""Two of those that the shipped adapter answers; a third of them it does not (docs/results/adapter.jsonl)."""
DONE = "document.getElementById('stop').hidden && document.querySelectorAll('.map').length === {}"
SIZES = {"light": (1360, 1000, 1), "dark": (1360, 1000, 1), "phone": (390, 844, 2), "compare": (1360, 1000, 1)}
"""Of each picture: width and height in the page's pixels, and how many of its own one of those takes."""


def draw(page: Chromium, file: Path, folder: Path) -> None:
    """Upload a file, ask about it, look at a passage, and take the pictures."""
    page.upload("#files", file)
    page.wait("document.querySelectorAll('#contexts input:checked').length === 1", 600)
    for i, question in enumerate(QUESTIONS, 1):
        page.click("#question")
        page.write(question)
        page.press("Enter")
        page.wait(f"document.querySelectorAll('#talk .assistant').length === {i}", 600)
        page.wait(DONE.format(1), 600)
    page.choose("#mapped", "0")
    page.wait(DONE.format(1), 300)
    page.js("document.querySelector('.attended button').click()")
    page.wait("!document.getElementById('passage-part').hidden")
    for name, (width, height, scale) in SIZES.items():
        page.screen(width, height, name == "dark", scale=scale)
        shown = "document.getElementById('maps')" if name == "phone" else "document.body"
        if name == "compare":
            page.choose("#against", "2")
            page.wait(DONE.format(2), 300)
        page.js(f"{shown}.scrollIntoView(), document.activeElement.blur()")
        page.picture(folder / f"page-{name}.png")


def test_the_pictures_of_the_documents(chromium, tmp_path):
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed: pip install sharedllm[plot]")
    folder = Path(os.environ.get("PICTURES") or tmp_path)
    document = tmp_path / "jargon-file.txt"
    document.write_text(load().text[:CHARACTERS], encoding="utf-8")
    with served([], 4) as (url, _pid):
        chromium.screen(1360, 900)
        chromium.open(url)
        chromium.wait("document.getElementById('model').textContent.includes('window')")
        chromium.problems.clear()
        draw(chromium, document, folder)
        assert not chromium.problems
    pictures = {name: image.imread(folder / f"page-{name}.png")[..., :3] for name in SIZES}
    for name, (width, height, scale) in SIZES.items():
        assert pictures[name].shape == (height * scale, width * scale, 3)
        assert pictures[name].std() > 0.05, f"there is nothing on page-{name}.png"
    means = {name: float(picture.mean()) for name, picture in pictures.items()}
    assert means.pop("dark") < 0.4 and min(means.values()) > 0.7, means
