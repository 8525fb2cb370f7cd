"""HTML to its main text; with `sources.py`, which says when a source is HTML."""

import contextlib
import re
from collections.abc import Sequence
from typing import Any

from sharedllm.quiet import quiet

_HTML_INLINE = frozenset(("a", "abbr", "b", "big", "cite", "code", "em", "font", "i", "mark", "q", "s", "small", "span",
                          "strong", "sub", "sup", "tt", "u", "wbr"))  # fmt: skip


_DROPPED = r"(?!(?:script|style|template)\b)"  # with what is in them
_OPENED = re.compile(rf"<keep>((?:\s*<{_DROPPED}[a-zA-Z][^>]*>)+)")
_CLOSED = re.compile(rf"((?:</{_DROPPED}[a-zA-Z][^>]*>\s*)+)</keep>")


def html_text(page: str) -> str:
    """The main text of a page with its titles, scripts and styles left out; "" for a page without text.

    `<keep>` and `</keep>` stay in it (see `keep`); a page whose main text lacks some of them is taken whole.
    """
    if "<keep>" not in page and "</keep>" not in page:
        return _html_text(page, ())
    # As text of its own a tag outlives the parser; it goes to the words it is about, since a parser moves text between blocks.
    page = _CLOSED.sub(r"</keep>\1", _OPENED.sub(r"\1<keep>", page))
    bars = "\u27e6"
    while f"{bars}keep" in page or f"{bars}/keep" in page:
        bars += "\u27e6"
    start, end = f"{bars}keep\u27e7", f"{bars}/keep\u27e7"
    text = _html_text(page.replace("<keep>", start).replace("</keep>", end), (start, end))
    return text.replace(start, "<keep>").replace(end, "</keep>")


def _html_text(page: str, marks: Sequence[str]) -> str:
    """As `html_text`, of a page without tags of its own.

    Args:
        marks: pieces of text none of which may be lost.
    """
    with quiet("trafilatura", "htmldate", "courlan", "justext"):
        from lxml import etree, html
        from trafilatura import extract

        # huge_tree: without it libxml2 drops a text of more than 10 MB, such as a book in one <pre>.
        parser = html.HTMLParser(encoding="utf-8", huge_tree=True, remove_comments=True, remove_pis=True)
        try:
            tree = html.document_fromstring(page.encode(), parser=parser)
        except (etree.LxmlError, ValueError):  # among them lxml's error for a page with no element
            return ""
        for element in list(tree.iter("script", "style", "template")):
            element.drop_tree()
        body = tree.find("body")
        whole = (tree if body is None else body).text_content() if marks else ""
        text = ""
        with contextlib.suppress(Exception):  # whatever fails in there, the plain text of the page is still at hand
            text = extract(tree) or ""
            if _lost_titles(tree, text):
                _wrap_in_main(tree)
                text = max(text, extract(tree) or "", key=len)
        lost = any(text.count(mark) != whole.count(mark) for mark in marks)
        return text if text.strip() and not lost else _plain_html_text(tree)


def _lost_titles(tree: Any, text: str) -> bool:
    """Whether most of the first 50 titles are missing in `text`, for the reason that `_wrap_in_main` removes."""
    if tree.find("body") is None or any(True for _ in tree.iter("article", "main")):
        return False
    titles = [" ".join(heading.text_content().split()) for heading in tree.iter("h1", "h2", "h3")][:50]
    return sum(title not in text for title in titles) > len(titles) / 2


def _wrap_in_main(tree: Any) -> None:
    """Put the body of `tree` in a <main>.

    trafilatura drops the titles of a page whose paragraphs are in no <article> or <main>, which books often are; it
    takes a <main> whole, still without menus and footers.
    """
    body = tree.find("body")
    outer = body.makeelement("body")
    tree.replace(body, outer)
    body.tag = "main"
    outer.append(body)


def _plain_html_text(tree: Any) -> str:
    body = tree.find("body")
    root = tree if body is None else body
    for element in root.iter():
        if element.tag not in _HTML_INLINE:
            element.text, element.tail = "\n" + (element.text or ""), "\n" + (element.tail or "")
    lines = (" ".join(line.split()) for line in root.text_content().splitlines())
    return "\n".join(line for line in lines if line)
