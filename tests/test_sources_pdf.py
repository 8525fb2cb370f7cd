"""What is read of a PDF, and what of one that is broken, locked or a bomb."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pytest

from sharedllm import sources
from sharedllm.sources import read_source
from tests.source_files import line, pdf, pdf_of, refusal, save, stream


def test_pdf_pages_are_joined_by_blank_lines(tmp_path: Path) -> None:
    path = save(tmp_path, "a.pdf", pdf([line("Page one."), b"", line("Page three.")]))
    assert read_source(path).text == "Page one.\n\nPage three."


def test_pdf_is_recognised_by_how_it_starts(tmp_path: Path) -> None:
    assert read_source(save(tmp_path, "download", pdf([line("Hello.")]))).text == "Hello."


def test_pdf_text_drawn_by_a_form_is_read(tmp_path: Path) -> None:
    assert read_source(save(tmp_path, "a.pdf", pdf([b"/F Do"], form=line("In a form.")))).text == "In a form."


def test_pdf_text_can_be_encoded_whatever_its_font_maps_to(tmp_path: Path) -> None:
    cmap = b"1 begincodespacerange <00> <ff> endcodespacerange\n2 beginbfchar <41> <d800> <42> <0000> endbfchar"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /Resources << /Font << /T 4 0 R >> >> /Contents 5 0 R >>",
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /ToUnicode 6 0 R >>",
        stream(line("xAyBz")),
        stream(cmap),
    ]
    text = read_source(save(tmp_path, "a.pdf", pdf_of(objects))).text
    assert text.encode("utf-8")
    assert "\0" not in text
    assert "x" in text
    assert text.endswith("yz")


def test_pdf_without_a_text_layer_needs_ocr(tmp_path: Path) -> None:
    message = refusal(save(tmp_path, "scan.pdf", pdf([b"0 0 m 9 9 l S", b""])))
    assert "2 page(s)" in message
    assert "scanned" in message
    assert "OCR" in message


def test_pdf_without_pages(tmp_path: Path) -> None:
    assert "without pages" in refusal(save(tmp_path, "a.pdf", pdf([])))


@pytest.mark.parametrize("broken", [b"%PDF-1.4\nnothing else", pdf([line("Hello.")])[:150], b"not a pdf at all"])
def test_broken_pdf(tmp_path: Path, broken: bytes) -> None:
    assert "not a PDF that can be read" in refusal(save(tmp_path, "a.pdf", broken))


def encrypted(user_password: str) -> bytes:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf([line("Secret.")]))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        writer.encrypt(user_password, owner_password="owner", algorithm="RC4-128")
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


def test_encrypted_pdf_is_read_when_its_password_is_empty(tmp_path: Path) -> None:
    assert read_source(save(tmp_path, "a.pdf", encrypted(""))).text == "Secret."


def test_encrypted_pdf_with_a_password_is_refused(tmp_path: Path) -> None:
    assert "password" in refusal(save(tmp_path, "a.pdf", encrypted("user")))


def test_encrypted_pdf_that_needs_a_package_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pypdf.errors import DependencyError

    def needs_package(*_: object) -> None:
        raise DependencyError("cryptography>=3.1 is required for AES algorithm")

    monkeypatch.setattr("pypdf.PdfReader", needs_package)
    assert "pip install cryptography" in refusal(save(tmp_path, "a.pdf", pdf([line("x")])))


@pytest.mark.parametrize(
    "bomb",
    [
        pdf([line("a" * 600)] * 2),  # more than the limit over its pages
        pdf([line("a" * 1200)]),  # within one page
        pdf([b"/F Do " * 5000], form=line("a" * 20)),  # in a form drawn many times
    ],
)
def test_pdf_that_expands_beyond_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bomb: bytes) -> None:
    path = save(tmp_path, "bomb.pdf", bomb)
    monkeypatch.setattr(sources, "MAX_CHARACTERS", 1000)
    assert "expands to over 1,000 characters" in refusal(path)


def test_reading_a_bomb_stops_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after the whole page: the form below is drawn 5000 times, and the limit is met at the 50th."""
    from pypdf import PageObject

    path = save(tmp_path, "bomb.pdf", pdf([b"/F Do " * 5000], form=line("a" * 20)))
    calls, extract = [], PageObject.extract_xform_text

    def counted(*args: object, **kwargs: object) -> str:
        calls.append(1)
        return extract(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(PageObject, "extract_xform_text", counted)
    monkeypatch.setattr(sources, "MAX_CHARACTERS", 1000)
    refusal(path)
    assert 0 < len(calls) < 60


def test_decoded_streams_of_a_pdf_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pypdf import PdfReader
    from pypdf.generic import StreamObject

    readers: list[PdfReader] = []

    class Watched(PdfReader):
        def __init__(self, file: io.BytesIO) -> None:
            super().__init__(file)
            readers.append(self)

    monkeypatch.setattr("pypdf.PdfReader", Watched)
    monkeypatch.setattr("sharedllm.sources_pdf._FORGET_SECONDS", 0.0)
    path = save(tmp_path, "a.pdf", pdf([line(f"Page {i}.") for i in range(4)]))
    assert read_source(path).text == "Page 0.\n\nPage 1.\n\nPage 2.\n\nPage 3."
    streams = [item for item in readers[0].resolved_objects.values() if isinstance(item, StreamObject)]
    assert len(streams) == 4
    assert [item.decoded_self for item in streams] == [None] * 4
