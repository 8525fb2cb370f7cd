"""In which order the files of a source are read: a manual's chapters as its author ordered them, else by path."""

from __future__ import annotations

import posixpath

from sharedllm.data.clean_html import next_page
from sharedllm.data.clean_rst import toctree


def reading_order(texts: dict[str, str]) -> list[str]:
    """The paths of `texts` ({path: raw text}), folder by folder.

    HTML pages follow their `next` links from the first page on; .rst files follow the toctree of their index.rst.
    """
    folders: dict[str, list[str]] = {}
    for path in sorted(texts):
        folders.setdefault(posixpath.dirname(path), []).append(path)
    out: list[str] = []
    for folder, paths in folders.items():
        out += _pages({path: texts[path] for path in paths}) if _is_html(paths) else _index_first(folder, paths, texts)
    return out


def _is_html(paths: list[str]) -> bool:
    return all(path.endswith((".html", ".htm")) for path in paths)


def _pages(pages: dict[str, str]) -> list[str]:
    """Pages along their `next` links, from the one that no other page calls its next; leftovers by path."""
    links = {}
    for path, html in pages.items():
        target = next_page(html)
        links[path] = posixpath.join(posixpath.dirname(path), target) if target else ""
    targets = set(links.values())
    order: list[str] = []
    seen: set[str] = set()
    for start in [*(path for path in pages if path not in targets and links[path] in pages), *pages]:
        while start in pages and start not in seen:
            seen.add(start)
            order.append(start)
            start = links[start]
    return order


def _index_first(folder: str, paths: list[str], texts: dict[str, str]) -> list[str]:
    index = posixpath.join(folder, "index.rst")
    if index not in texts:
        return paths
    listed = [posixpath.join(folder, name + ".rst") for name in toctree(texts[index])]
    here = set(paths)
    first = list(dict.fromkeys(path for path in [index, *listed] if path in here))
    return first + [path for path in paths if path not in set(first)]
