"""What mkdocs.yml hooks in: the pages at the root of the checkout, and links that hold on the site as in the checkout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", **{page: page for page in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")}}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)(?:\.\./)*([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return LINK.sub(_on_site, markdown)


def _on_site(link: re.Match[str]) -> str:
    """A link as the site has it; what the site does not have, such as a source file, stays as its words alone."""
    words, target = link[1], link[2].removeprefix("docs/")
    page, hash_, part = target.partition("#")
    page = PAGES.get(page, page)
    here = page in PAGES.values() or ((ROOT / "docs" / page).is_file() and page.endswith((".md", ".svg", ".png")))
    return f"[{words}]({page}{hash_}{part})" if here else words
