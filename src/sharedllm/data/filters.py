"""Which files are worth reading: not near-empty, not minified, not a table of data, not the standard library."""

from __future__ import annotations

import re
import sysconfig
from functools import cache
from pathlib import Path

MIN_CHARS = 200  # characters other than blanks
MAX_MEAN_LINE = 200  # characters; code and markup only, since prose may put a paragraph on a line
MAX_LINE = 20_000
MAX_DIGITS = 0.3  # share of the characters other than blanks
STDLIB_LINE = 30  # characters of a line that counts as evidence
STDLIB_SHARE = 0.15  # share of such lines, above which a file is a copy
STDLIB_RUN = 5  # such lines in a row: a function copied into a longer file


def why_dropped(text: str, is_code: bool) -> str | None:
    """The reason to drop this file (`short`, `long lines`, `digits`, `standard library`), or None to keep it."""
    solid = re.sub(r"\s+", "", text)
    if len(solid) < MIN_CHARS:
        return "short"
    lines = text.split("\n")
    filled = [line for line in lines if line.strip()]
    longest = max(map(len, filled))
    if is_code and (longest > MAX_LINE or sum(map(len, filled)) / len(filled) > MAX_MEAN_LINE):
        return "long lines"
    if sum(char.isdigit() for char in solid) > MAX_DIGITS * len(solid):
        return "digits"
    if is_code and copies_stdlib(text):
        return "standard library"
    return None


def copies_stdlib(text: str) -> bool:
    """Whether a file copies from this Python's standard library: many of its longer lines, or some in a row."""
    lines = [line for line in (raw.strip() for raw in text.split("\n")) if len(line) >= STDLIB_LINE]
    known = _stdlib_lines()
    count = run = 0
    for line in lines:
        run = run + 1 if hash(line) in known else 0
        count += run > 0
        if run >= STDLIB_RUN:
            return True
    return len(lines) >= STDLIB_RUN and count > STDLIB_SHARE * len(lines)


@cache
def _stdlib_lines() -> frozenset[int]:
    """Hashes (of this process only) of every longer line of the standard library's sources."""
    root = Path(sysconfig.get_path("stdlib"))
    lines: set[int] = set()
    for path in root.rglob("*.py"):
        if not {"site-packages", "dist-packages"} & set(path.parts):
            for raw in path.read_text(encoding="utf-8", errors="replace").split("\n"):
                line = raw.strip()
                if len(line) >= STDLIB_LINE:
                    lines.add(hash(line))
    return frozenset(lines)
