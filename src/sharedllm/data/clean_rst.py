"""reStructuredText to readable text: prose, headings and code blocks stay; what only the doc builder reads goes."""

from __future__ import annotations

import re

DROPPED = ("toctree", "contents", "index", "only", "raw", "sectionauthor", "moduleauthor", "meta", "highlight",
           "include", "literalinclude", "kernel-include", "kernel-figure", "figure", "image", "kernel-doc",
           "currentmodule", "tabularcolumns", "default-domain", "c:namespace", "sectnum",
           "kernel-render", "kernel-feat", "kernel-abi", "cssclass")  # fmt: skip
TABLES = ("flat-table", "list-table")
DIRECTIVE = re.compile(r"(\s*)\.\. (?:\|[^|]+\| )?([\w:-]+)::(?:\s|$)")
UNWRAPPED = ("code-block", "code", "sourcecode", "parsed-literal")
COMMENT = re.compile(r"(\s*)\.\. (?!\S+::)(?!\[)(?!_)(?!\|)")


def rst_to_text(rst: str) -> str:
    """The text of one .rst file without labels, comments, toctrees, images and roles' markup."""
    lines = rst.replace("\r\n", "\n").expandtabs(8).split("\n")
    out: list[str] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        directive = DIRECTIVE.match(line)
        comment = COMMENT.match(line) or re.match(r"(\s*)\.\.$", line)
        dropped = comment or (directive if directive and directive.group(2) in DROPPED else None)
        if line.strip() == ".." and not "".join(lines[at + 1 : at + 2]).strip():
            at += 1  # an empty comment ends there: what is indented after it is text
        elif dropped:
            at = _after_block(lines, at + 1, len(dropped.group(1)))
        elif directive and directive.group(2) in TABLES:
            end = _after_block(lines, at + 1, len(directive.group(1)))
            out += ["", *_table(line[directive.end() :], lines[_skip_options(lines, at + 1) : end]), ""]
            at = end
        elif directive and directive.group(2) in UNWRAPPED:
            at = _skip_options(lines, at + 1)
            out.append("")
        elif re.match(r"\s*\.\. _[^:]*:\s*$", line) or re.match(r":(orphan|Author|Copyright|Date):", line):
            at += 1
        else:
            out.append(_roles(line).rstrip())
            at += 1
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip() + "\n"


def toctree(rst: str) -> list[str]:
    """The names listed by the toctrees of an index file, in order, without titles."""
    names: list[str] = []
    lines = rst.expandtabs(8).split("\n")
    for start, line in enumerate(lines):
        if re.match(r"\s*\.\. toctree::", line):
            indent = len(line) - len(line.lstrip())
            for entry in lines[start + 1 : _after_block(lines, start + 1, indent)]:
                entry = re.sub(r".*<(.*)>", r"\1", entry.strip())
                if entry and not entry.startswith(":"):
                    names.append(entry.removesuffix(".rst"))
    return names


def _after_block(lines: list[str], at: int, indent: int) -> int:
    """The first line from `at` that is neither blank nor indented by more than `indent`."""
    while at < len(lines) and (not lines[at].strip() or len(lines[at]) - len(lines[at].lstrip()) > indent):
        at += 1
    return at


def _table(title: str, lines: list[str]) -> list[str]:
    """A table written as a list of lists (`* - first cell`, `- next cell`): a title line, then `a | b` rows."""
    rows: list[list[str]] = []
    for line in lines:
        start = re.match(r"\s*(\* )?\s*-(?:\s+(.*))?$", line)
        text = _roles(re.sub(r":[cr]span:`\d+`", "", line.strip()))
        if start and (start.group(1) or rows):
            if start.group(1):
                rows.append([])
            rows[-1].append(_roles(re.sub(r":[cr]span:`\d+`", "", start.group(2) or "")).strip())
        elif rows and text and not re.match(r"\.\. _.*:$", text):
            rows[-1][-1] = f"{rows[-1][-1]} {text}".strip()
    return [title.strip(), ""] * bool(title.strip()) + [" | ".join(row) for row in rows]


def _skip_options(lines: list[str], at: int) -> int:
    while at < len(lines) and re.match(r"\s+:[\w-]+:", lines[at]):
        at += 1
    return at


def _roles(line: str) -> str:
    """`:ref:`title <label>`` becomes its title, `:c:func:`name`` its name."""
    line = re.sub(r":[\w:+-]+:`~?([^`<]+?)\s*<[^`>]*>`", r"\1", line)
    return re.sub(r":[a-z][\w:+-]*:`~?([^`]+)`", r"\1", line)
