"""Pictures of the server's page for the documents: `python -m tools.draw_page`, with Chromium installed.

Starts `sharedllm serve` with the default model, has it read the text that ships, asks two questions of those it answers, and
writes docs/figures/page-light.png, page-dark.png, page-phone.png and page-compare.png.
"""

from __future__ import annotations

import argparse
import shlex
import tempfile
from pathlib import Path

from tests.browser.chromium import Chromium
from tools.probes.load import served

from sharedllm.evaluate.real import load

FIGURES = Path(__file__).parent.parent / "docs/figures"
QUESTIONS = (
    "Which animal is the mascot of both Caltech and MIT?",
    "In which year was the plug pulled on the SAIL computer?",
)
"""Two of those that the shipped adapter answers; a third of them it does not (docs/results/adapter.jsonl)."""
DONE = "document.getElementById('stop').hidden && document.querySelectorAll('.map').length === {}"


def document(folder: Path, characters: int) -> Path:
    """The text of `sharedllm eval real` as a file."""
    shipped = load()
    file = folder / "jargon-file.txt"
    file.write_text(shipped.text[:characters], encoding="utf-8")
    return file


def draw(page: Chromium, url: str, file: Path) -> None:
    page.screen(1360, 900)
    page.open(url)
    page.wait("document.getElementById('model').textContent.includes('window')")
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
    sizes = (("light", 1360, 1000, False), ("dark", 1360, 1000, True), ("phone", 390, 844, False))
    for name, width, height, dark in sizes:
        page.screen(width, height, dark, scale=1 if width > 600 else 2)
        page.js(
            f"document.{'getElementById(`maps`)' if width < 600 else 'body'}.scrollIntoView(), document.activeElement.blur()"
        )
        page.picture(FIGURES / f"page-{name}.png")
    page.screen(1360, 1000)
    page.choose("#against", "2")
    page.wait(DONE.format(2), 300)
    page.js("scrollTo(0, 0)")
    page.picture(FIGURES / "page-compare.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--characters", type=int, default=150_000, help="of the document")
    parser.add_argument("--serve", default="", help="more options of `sharedllm serve`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served(shlex.split(args.serve), 4) as (url, _pid):
        browser = Chromium(Path(folder) / "profile")
        try:
            draw(browser, url, document(Path(folder), args.characters))
        finally:
            browser.close()


if __name__ == "__main__":
    main()
