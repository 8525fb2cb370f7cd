"""Perl's POD to plain text: headings as `#` lines, items as `-`, verbatim kept, formatting codes resolved."""

from __future__ import annotations

import re

NAMED = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/", "amp": "&", "quot": '"', "nbsp": " ", "eacute": "é"}
IGNORED = {"pod", "encoding", "for"}
OPENING = re.compile(r"([A-Z])(<<+\s|<)")


def pod_to_text(pod: str) -> str:
    """The readable text of a POD document; code outside of POD (after `=cut`) is left out."""
    blocks: list[str] = []
    reading, inside, depth = False, 0, 0
    for paragraph in re.split(r"\n[ \t]*\n+", pod.replace("\r\n", "\n").strip("\n")):
        command = re.match(r"=([a-zA-Z]\w*)[ \t]*(.*)\Z", paragraph, re.DOTALL)
        if command is None:
            if reading and not inside and paragraph.strip():
                blocks.append(_body(paragraph))
            continue
        word, rest = command.group(1), " ".join(command.group(2).split())
        reading = word != "cut"
        inside += (word == "begin") - (word == "end" and inside > 0)
        if inside or word in IGNORED:
            continue
        depth = max(0, depth + (word == "over") - (word == "back"))
        if word.startswith("head"):
            blocks.append("#" * int(word[4:] or 1) + " " + _codes(rest).strip())
        elif word == "item":
            label = _codes(rest).strip()
            mark = "" if re.match(r"\d+\.?$", label) else "- "
            blocks.append("  " * max(0, depth - 1) + mark + ("" if label == "*" else label))
    return _joined(blocks)


def _body(paragraph: str) -> str:
    if paragraph[0] in " \t":
        return "\n".join(line.rstrip() for line in paragraph.expandtabs().split("\n")).rstrip()
    return " ".join(_codes(paragraph).split())


def _joined(blocks: list[str]) -> str:
    """Paragraphs with a blank line between them; a bare bullet or number takes the paragraph after it."""
    lines: list[str] = []
    for block in blocks:
        if lines and re.match(r"\s*(-|\d+\.?)\s*$", lines[-1]):
            lines[-1] = lines[-1].rstrip() + " " + block.strip()
        else:
            lines.append(block)
    return "\n\n".join(lines).strip() + "\n" if lines else ""


def _codes(text: str) -> str:
    """Resolves formatting codes such as B<bold>, C<< a -> b >>, E<gt> and L<text|page/section>."""
    return _resolve(text, 0, "")[0]


def _resolve(text: str, at: int, closing: str) -> tuple[str, int]:
    """Reads from `at` up to `closing` (or the end); returns the plain text and the place after `closing`."""
    out: list[str] = []
    while at < len(text):
        if closing and text.startswith(closing, at):
            return "".join(out), at + len(closing)
        code = OPENING.match(text, at)
        if code is None:
            out.append(text[at])
            at += 1
            continue
        angles = code.group(2).strip()
        ending = ">" if len(angles) == 1 else " " + ">" * len(angles)
        inner, at = _resolve(text, code.end(), ending)
        out.append(_meaning(code.group(1), inner.strip() if len(angles) > 1 else inner))
    return "".join(out), at


def _meaning(letter: str, inner: str) -> str:
    if letter in "XZ":
        return ""
    if letter == "E":
        number = re.fullmatch(r"(0x[0-9a-fA-F]+|\d+)", inner)
        if number:
            return chr(int(inner, 0 if inner.startswith("0x") else (8 if inner.startswith("0") else 10)))
        return NAMED.get(inner, inner)
    if letter == "L":
        if "|" in inner:
            return inner.split("|", 1)[0]
        page, _, section = inner.partition("/")
        section = section.strip('"')
        return inner if "://" in inner or not section else f"{section} in {page}" if page else f'"{section}"'
    return inner
