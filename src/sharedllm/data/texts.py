"""Texts to measure on: plain `.txt` files of sources that nothing is trained on, one a kind of text."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sharedllm.data.clean_code import clean_code, path_line
from sharedllm.data.dedup import Deduper
from sharedllm.data.documents import SEPARATOR, drafts
from sharedllm.data.fetch import default_cache, fetch
from sharedllm.data.recipe import DataRecipe
from sharedllm.demo import reference_text
from sharedllm.errors import WorkError
from sharedllm.files import replaced_file


def write_texts(
    recipe: DataRecipe, out: Path, progress: Callable[[str], None] | None = None, cache: Path | None = None
) -> list[Path]:
    """Write `<source>.txt` for every source of a recipe, and two that every Python brings.

    Those are `python-library.txt` (source code of the standard library's own modules) and
    `python-reference.txt` (the language reference and docstrings).

    Raises:
        UsageError: a source that cannot be had here.
        WorkError: a failed download or write.
    """
    say, written = progress or (lambda line: None), []
    texts: dict[str, Callable[[], str]] = {"python-library": python_library, "python-reference": reference_text}
    for spec in recipe.sources:
        say(f"{spec.name}: fetching")
        fetched = fetch(spec, cache or default_cache(), recipe.folder)
        found = drafts(spec, fetched, Deduper(), lambda messages: "\n".join(m["content"] for m in messages))
        texts[spec.name] = partial(SEPARATOR.join, [d.text for d in found.documents])
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, make in texts.items():
            text = make()
            with replaced_file(out / f"{name}.txt") as unfinished:
                unfinished.write_text(text, encoding="utf-8")
            written.append(out / f"{name}.txt")
            say(f"{name}: {len(text):,} characters")
    except OSError as error:
        raise WorkError(f"cannot write to {out}: {error.strerror or error}.") from error
    return written


def python_library() -> str:
    """The standard library's top-level modules, file by file, each headed by its name."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return SEPARATOR.join(
        path_line(f.name) + clean_code(f.read_text(encoding="utf-8", errors="replace")) for f in files
    )
