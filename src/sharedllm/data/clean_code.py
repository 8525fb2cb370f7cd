"""Source code for reading: the licence header goes, everything else stays as written."""

from __future__ import annotations

import re

LICENCE = re.compile(r"copyright|licen[sc]e|all rights reserved|spdx|generated from|automatically generated", re.I)


def clean_code(text: str) -> str:
    """The code without its leading comment lines, if those speak of a licence, without trailing blanks."""
    lines = [line.rstrip() for line in text.replace("\r\n", "\n").split("\n")]
    end = 0
    while end < len(lines) and (not lines[end] or lines[end].startswith("#")):
        end += 1
    if LICENCE.search("\n".join(lines[:end])):
        lines = lines[end:]
    return re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines)).strip("\n") + "\n"


def path_line(path: str) -> str:
    """The comment line that says which file follows."""
    return f"# {path}\n"
