"""What mkdocs.yml hooks in: the pages at the root of the checkout, and links that hold on the site as in the checkout."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", **{page: page for page in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")}}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#)([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    folder = posixpath.dirname(page.file.src_uri)
    return LINK.sub(lambda link: site_link(link[1], link[2], folder), markdown)


def site_link(words: str, target: str, folder: str) -> str:
    """A link of a page in `folder` as the site has it; what the site does not have, such as a source file, stays as its
    words alone."""
    path, hash_, part = target.partition("#")
    place = posixpath.normpath(posixpath.join(folder, path)).removeprefix("../").removeprefix("docs/")
    place = PAGES.get(place, place)
    file = ROOT / "docs" / place
    if place not in PAGES.values() and not (file.is_file() and place.endswith((".md", ".svg", ".png"))):
        return words
    return f"[{words}]({posixpath.relpath(place, folder or '.')}{hash_}{part})"
