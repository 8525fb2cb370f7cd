"""HTML manuals to plain text: headings as `#` lines, list items as `-`, table rows with `|`, code blocks as they are.

Navigation bars, tables of contents, scripts and page furniture of DocBook and Sphinx pages are left out.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser

SKIP_TAGS = {"head", "script", "style", "nav", "footer", "svg", "button", "form", "noscript"}
SKIP_NAMES = {
    "navheader", "navfooter", "docnav", "banner", "toc", "indexterm", "index", "sphinxsidebar", "related", "headerlink",
    "footer", "breadcrumbs", "toctree-wrapper", "linenos", "list-of-tables", "list-of-examples", "list-of-figures",
    "legalnotice", "authorgroup", "copyright", "mediaobject", "sphinxsidebarwrapper",
}  # fmt: skip
SKIP_IDS = {"banner", "title", "searchbox"}
VOID = {"br", "hr", "img", "input", "link", "meta", "col", "area", "base", "embed", "source", "wbr"}
HEADINGS = {f"h{level}": "#" * level + " " for level in range(1, 7)}
BLOCKS = {"p", "div", "pre", "ul", "ol", "li", "dl", "dt", "dd", "table", "tr", "blockquote", "section", "article",
          "body", "main", "caption", "figure", *HEADINGS}  # fmt: skip
TIGHT = {("item", "item"), ("row", "row"), ("term", "body"), ("term", "term")}


def html_to_text(html: str) -> str:
    """The readable text of one HTML page; paragraphs are separated by a blank line."""
    parser = _Reader()
    parser.feed(html)
    parser.close()
    parser.flush()
    lines = []
    for index, (sort, text) in enumerate(parser.blocks):
        if index:
            lines.append("\n" if (parser.blocks[index - 1][0], sort) in TIGHT else "\n\n")
        lines.append(text)
    return "".join(lines).strip() + "\n" if lines else ""


def next_page(html: str) -> str | None:
    """The file name that `<link rel="next">` of a page's head points to, without its anchor, or None."""
    for tag in re.findall(r"<link\b[^>]*>", html[:20000]):
        if re.search(r"""\brel=["']next["']""", tag):
            href = re.search(r"""\bhref=["']([^"'#]+)""", tag)
            return href.group(1) if href else None
    return None


class _Reader(HTMLParser):
    """Collects (sort, text) blocks, sort being one of para, head, item, row, term, body, code."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[tuple[str, str]] = []
        self.stack: list[tuple[str, bool, bool]] = []  # tag, skipped, a table cell whose inside stays on one line
        self.lists: list[int] = []  # of each open list: the number of its last item, or -1 for bullets
        self.buffer: list[str] = []
        self.sort, self.prefix = "para", ""
        self.pre = self.indent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            if tag == "br" and not self._skipped():
                self.buffer.append("\n" if self.pre else " ")
            return
        names = {key: (value or "").split() for key, value in attrs if key in ("class", "id", "role")}
        classes = set(names.get("class", []))
        skipped = self._skipped() or tag in SKIP_TAGS or bool(classes & SKIP_NAMES)
        skipped = skipped or bool(set(names.get("id", [])) & SKIP_IDS) or "navigation" in names.get("role", [])
        cell = tag in ("td", "th") and "func_table_entry" not in classes
        inline = (self._inline() or cell) and tag != "pre"
        self.stack.append((tag, skipped, inline))
        if not skipped:
            self._open(tag, inline, cell)

    def _open(self, tag: str, inline: bool, cell: bool) -> None:
        if cell:
            self.buffer.append(" | " if "".join(self.buffer).strip() else "")
        elif inline:
            self.buffer.append(" " if tag in BLOCKS else "")
        elif tag in BLOCKS or tag in ("td", "th"):
            self.flush()
            self._begin(tag)

    def _begin(self, tag: str) -> None:
        """Sets what the next block is, now that a block element opened."""
        if tag in HEADINGS:
            self.sort, self.prefix = "head", HEADINGS[tag]
        elif tag in ("ul", "ol"):
            self.lists.append(0 if tag == "ol" else -1)
        elif tag == "li":
            ordered = bool(self.lists) and self.lists[-1] >= 0
            if ordered:
                self.lists[-1] += 1
            self.sort, self.prefix = "item", f"{self.lists[-1]}. " if ordered else "- "
        elif tag == "dt":
            self.sort = "term"
        elif tag == "dd":
            self.sort, self.indent = "body", self.indent + 4
        elif tag == "tr":
            self.sort = "row"
        elif tag == "pre":
            self.pre += 1

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID or not any(open_tag == tag for open_tag, _, _ in self.stack):
            return
        while self.stack:
            open_tag, skipped, inline = self.stack.pop()
            if not skipped and not inline and (open_tag in BLOCKS or open_tag in ("td", "th")):
                self.flush()
                self._end(open_tag)
            if open_tag == tag:
                return

    def _end(self, tag: str) -> None:
        if tag in ("ul", "ol") and self.lists:
            self.lists.pop()
        elif tag == "dd":
            self.indent = max(0, self.indent - 4)
        elif tag == "pre":
            self.pre = max(0, self.pre - 1)
        if tag in HEADINGS or tag in ("li", "dt", "dd", "tr"):
            self.sort, self.prefix = "para", ""

    def handle_data(self, data: str) -> None:
        if not self._skipped():
            self.buffer.append(data if self.pre else re.sub(r"\s+", " ", data))

    def flush(self) -> None:
        """Ends the block being read, if it holds any text."""
        raw = re.sub(r"(\s*[§¶])+\s*$", "", "".join(self.buffer))  # what is left of links to the place itself
        self.buffer = []
        if not raw.strip():
            return
        pad = " " * (self.indent + 2 * max(0, len(self.lists) - 1))
        if self.pre:
            text = "\n".join(("    " + pad + line).rstrip() for line in raw.strip("\n").rstrip().split("\n"))
            self.blocks.append(("code", text))
            return
        within = "  " if self.lists and not self.prefix else ""
        self.blocks.append((self.sort, pad + within + self.prefix + " ".join(raw.split())))
        self.prefix = ""
        if self.sort in ("item", "body"):
            self.sort = "para"

    def _skipped(self) -> bool:
        return bool(self.stack) and self.stack[-1][1]

    def _inline(self) -> bool:
        return bool(self.stack) and self.stack[-1][2]
