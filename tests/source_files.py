"""Files of the formats that are read, for the tests of reading them."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from sharedllm.errors import UsageError
from sharedllm.sources import read_source

ARTICLE = """<html><head><title>T</title><style>p { color: crimson }</style><script>var evil = 1;</script></head><body>
<article><h1>On turtles</h1><p>Turtles are older than snakes, and outlive most of them.</p>
<p>They carry caf&eacute;s on their backs.</p></article><script>moreEvil()</script></body></html>"""
FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"


def pdf_of(objects: list[bytes]) -> bytes:
    """A PDF of these objects, numbered from 1; the first is the catalog."""
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    head = b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    trailer = b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, len(out))
    return out + head + table + trailer


def stream(data: bytes, entries: bytes = b"") -> bytes:
    packed = zlib.compress(data)
    return b"<< /Length %d /Filter /FlateDecode %s >>\nstream\n%s\nendstream" % (len(packed), entries, packed)


def pdf(contents: list[bytes], form: bytes = b"") -> bytes:
    """A PDF with one page for each content stream; `form` can be drawn on any page with `/F Do`."""
    kids = b" ".join(b"%d 0 R" % (5 + 2 * i) for i in range(len(contents)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(contents)),
        FONT,
        stream(form, b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /Font << /T 3 0 R >> >>"),
    ]
    for i, content in enumerate(contents):
        resources = b"<< /Font << /T 3 0 R >> /XObject << /F 4 0 R >> >>"
        page = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Resources %s /Contents %d 0 R >>"
        objects += [page % (resources, 6 + 2 * i), stream(content)]
    return pdf_of(objects)


def line(text: str) -> bytes:
    return b"BT /T 12 Tf 72 700 Td (%s) Tj ET" % text.encode()


def save(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(source: str | Path, **options: object) -> str:
    """The sentence that refuses `source`; it must name the source and be one line."""
    with pytest.raises(UsageError) as caught:
        read_source(source, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    assert ("tandard input" if str(source) == "-" else str(source)) in message
    return message
