"""`sharedllm.sources`: every format becomes text, and every wrong input becomes one clear sentence."""

import io
import logging
import os
import subprocess
import sys
import warnings
import zlib
from pathlib import Path

import pytest

from sharedllm import sources
from sharedllm.errors import UsageError
from sharedllm.sources import Document, read_source, read_sources

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


# Plain text


@pytest.mark.parametrize("name", ["notes.txt", "main.rs", "README", "data.csv", "x.unknown"])
def test_text_of_any_suffix_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    text = "  première ligne\r\n\tsecond 中文 line 🙂\n\n"
    path = save(tmp_path, name, text)
    assert read_source(path) == Document(str(path), text)
    assert read_source(str(path)) == Document(str(path), text)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_understood_and_removed(tmp_path: Path, encoding: str) -> None:
    assert read_source(save(tmp_path, "a.txt", "żółw 🐢\n".encode(encoding))).text == "żółw 🐢\n"


def test_utf16_big_endian_with_a_mark(tmp_path: Path) -> None:
    assert read_source(save(tmp_path, "a.txt", b"\xfe\xff" + "żółw".encode("utf-16-be"))).text == "żółw"


def test_markdown_keeps_its_markup_even_when_it_opens_with_html(tmp_path: Path) -> None:
    text = "<html>\n# Title\n*some* <b>text</b>\n"
    assert read_source(save(tmp_path, "a.md", text)).text == text


def test_source_code_that_mentions_other_formats_stays_source_code(tmp_path: Path) -> None:
    text = 'MAGIC = b"%PDF-1.4"\nPAGE = "<!doctype html><html><script>keep()</script>"\n'
    assert read_source(save(tmp_path, "a.py", text)).text == text


# HTML

ARTICLE = """<html><head><title>T</title><style>p { color: crimson }</style><script>var evil = 1;</script></head><body>
<article><h1>On turtles</h1><p>Turtles are older than snakes, and outlive most of them.</p>
<p>They carry caf&eacute;s on their backs.</p></article><script>moreEvil()</script></body></html>"""


@pytest.mark.parametrize("name", ["a.html", "a.htm", "a.XHTML", "by-content.txt", "no-suffix"])
def test_html_gives_its_text_without_scripts_and_styles(tmp_path: Path, name: str) -> None:
    text = read_source(save(tmp_path, name, "<!DOCTYPE html>\n" + ARTICLE)).text
    assert text.splitlines() == [
        "On turtles",
        "Turtles are older than snakes, and outlive most of them.",
        "They carry cafés on their backs.",
    ]


@pytest.mark.parametrize("start", ["<html>", "\n <HTML lang='en'>", '<?xml version="1.0" encoding="UTF-8"?>\n<html>'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_html_is_recognised_by_how_it_starts(tmp_path: Path, start: str, encoding: str) -> None:
    page = start + "<body><p>Hello ż.</p><script>evil()</script></body></html>"
    assert read_source(save(tmp_path, "page", page.encode(encoding))).text == "Hello ż."


def test_html_in_an_encoding_it_declares(tmp_path: Path) -> None:
    page = '<html><head><meta charset="ISO-8859-1"></head><body><p>Un \x93caf\xe9\x94.</p></body></html>'
    assert read_source(save(tmp_path, "a.html", page.encode("latin-1"))).text == "Un “café”."


def test_html_where_trafilatura_finds_nothing_gives_its_plain_text(tmp_path: Path) -> None:
    page = "<footer><div>First <b>bold</b> line</div>second<br>third<style>x{}</style><script>evil()</script></footer>"
    path = save(tmp_path, "a.html", f"<html><head><title>T</title></head><body>{page}</body></html>")
    assert read_source(path).text == "First bold line\nsecond\nthird"


def test_html_still_gives_its_text_when_trafilatura_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> str:
        raise RecursionError

    monkeypatch.setattr("trafilatura.extract", broken)
    assert "Turtles are older" in read_source(save(tmp_path, "a.html", ARTICLE)).text


def test_a_book_in_html_keeps_its_chapter_titles_and_not_its_menu(tmp_path: Path) -> None:
    paragraph = "<p>Call me Ishmael. Some years ago, never mind how long precisely, I thought I would sail {}.{}.</p>"
    chapters = [f"<h2>CHAPTER {i}</h2>" + "".join(paragraph.format(i, j) for j in range(5)) for i in range(30)]
    body = "<nav><a href='/'>Site menu</a></nav>" + "".join(f"<div>{chapter}</div>" for chapter in chapters)
    text = read_source(save(tmp_path, "a.html", f"<html><body>{body}</body></html>")).text
    assert [title for title in text.splitlines() if title.startswith("CHAPTER")] == [f"CHAPTER {i}" for i in range(30)]
    assert text.count("Ishmael") == 150
    assert "Site menu" not in text


def test_html_with_a_text_of_more_than_10_mb_is_whole(tmp_path: Path) -> None:
    page = (
        "<html><body><pre>"
        + "line of text here, and on it goes for a while\n" * 240_000
        + "THE END</pre></body></html>"
    )
    assert len(page) > 10_500_000
    assert read_source(save(tmp_path, "a.html", page)).text.rstrip().endswith("THE END")


@pytest.mark.parametrize("page", ["<html><body><script>evil()</script></body></html>", "<!-- nothing -->", "<html>"])
def test_html_without_text_is_refused(tmp_path: Path, page: str) -> None:
    assert "no text" in refusal(save(tmp_path, "a.html", page))


# PDF


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


# Files that are not text


@pytest.mark.parametrize("content", [b"ab\0cd", b"\x89PNG\r\n\x1a\n\0\0", "café".encode("latin-1"), b"\xff\xfea\0\0\0"])
def test_binary_file_is_refused_and_says_what_is_accepted(tmp_path: Path, content: bytes) -> None:
    message = refusal(save(tmp_path, "a.bin", content))
    assert "binary file" in message
    for accepted in ("UTF-8", "Markdown", "HTML", "PDF"):
        assert accepted in message


def test_binary_file_is_found_beyond_its_first_bytes(tmp_path: Path) -> None:
    assert "binary file" in refusal(save(tmp_path, "a.txt", b"text " * 10_000 + b"\0"))


@pytest.mark.parametrize("content", [b"", b" \n\t\r\n", b"\xef\xbb\xbf", "\ufeff\u2003 \n".encode("utf-16-le")])
@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.html"])
def test_empty_file(tmp_path: Path, name: str, content: bytes) -> None:
    assert "no text" in refusal(save(tmp_path, name, content))


def test_empty_pdf_file(tmp_path: Path) -> None:
    assert "is empty" in refusal(save(tmp_path, "a.pdf", b""))


def test_missing_file(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.txt")
    assert "does not exist" in refusal(save(tmp_path, "a.txt", "x") / "below-a-file.txt")
    assert "download" in refusal("https://example.org/page.html")


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "a\ud800b"])
def test_path_that_no_file_can_have(path: str) -> None:
    for read in (lambda: read_source(path), lambda: read_sources([path])):
        with pytest.raises(UsageError) as caught:
            read()
        assert len(str(caught.value)) < 400


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, "a.txt", "x")
    if os.geteuid() == 0:  # root reads everything

        def denied(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", denied)
    path.chmod(0)
    assert "Permission denied" in refusal(path)


def test_size_limit_is_in_bytes_and_inclusive(tmp_path: Path) -> None:
    path = save(tmp_path, "a.txt", "é" * 10)
    assert read_source(path, max_bytes=20).text == "é" * 10
    assert "19 bytes" in refusal(path, max_bytes=19)
    big = save(tmp_path, "b.txt", "x" * 3_000_000)
    assert len(read_source(big, max_bytes=3_000_000).text) == 3_000_000
    assert "2,999,999 bytes" in refusal(big, max_bytes=2_999_999)


def test_size_limit_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="positive"):
        read_source(save(tmp_path, "a.txt", "x"), max_bytes=0)


def test_a_folder_is_not_one_document(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)


# Several sources and folders


def test_sources_keep_their_order_and_a_folder_is_sorted(tmp_path: Path) -> None:
    last = save(tmp_path, "z.txt", "given first")
    for name in ("b/2.md", "b/1.txt", "a.py", "b-c.txt", "b/deep/er/3.html"):
        save(tmp_path, f"docs/{name}", f"content of {name}")
    save(tmp_path, "docs/book.pdf", pdf([line("content of book.pdf")]))
    for name in (".hidden.txt", ".git/config", "b/.cache/x.txt"):
        save(tmp_path, f"docs/{name}", "hidden")
    save(tmp_path, "docs/__init__.py", "")
    save(tmp_path, "docs/photo.png", b"\x89PNG\0\0")
    (tmp_path / "docs/dangling.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "docs/b/loop").symlink_to(tmp_path / "docs", target_is_directory=True)
    documents = read_sources([last, tmp_path / "docs"])
    names = ["a.py", "b/1.txt", "b/2.md", "b/deep/er/3.html", "b-c.txt", "book.pdf"]
    assert documents[0] == Document(str(last), "given first")
    assert documents[1:] == [Document(str(tmp_path / "docs" / name), f"content of {name}") for name in names]


def test_a_hidden_file_is_read_when_named(tmp_path: Path) -> None:
    assert read_sources([save(tmp_path, ".env", "secret")])[0].text == "secret"


@pytest.mark.parametrize("files", [{}, {".hidden": b"x"}, {"a.bin": b"\0", "empty.txt": b"", "sub/.x": b"x"}])
def test_folder_with_no_readable_file(tmp_path: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        save(tmp_path, name, content)
    with pytest.raises(UsageError, match="no readable file"):
        read_sources([tmp_path])


def test_binary_file_larger_than_the_limit_does_not_stop_a_folder(tmp_path: Path) -> None:
    save(tmp_path, "model.bin", b"\0" * 1000)
    save(tmp_path, "a.txt", "text")
    assert [document.text for document in read_sources([tmp_path], max_bytes=100)] == ["text"]


def test_a_scan_in_a_folder_is_an_error_not_a_silent_loss(tmp_path: Path) -> None:
    save(tmp_path, "a.txt", "text")
    scan = save(tmp_path, "scan.pdf", pdf([b""]))
    with pytest.raises(UsageError, match="OCR") as caught:
        read_sources([tmp_path])
    assert str(scan) in str(caught.value)


def test_a_named_binary_or_empty_file_is_an_error_beside_others(tmp_path: Path) -> None:
    good = save(tmp_path, "a.txt", "text")
    for bad in (save(tmp_path, "a.bin", b"\0"), save(tmp_path, "e.txt", "")):
        with pytest.raises(UsageError, match=bad.name):
            read_sources([good, bad])


def test_a_file_called_dash_in_a_folder_is_not_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, "-", "a file")
    monkeypatch.chdir(tmp_path)
    assert [document.text for document in read_sources(["."], stdin=io.BytesIO(b"standard input"))] == ["a file"]


def test_all_texts_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [save(tmp_path, name, "x" * 50) for name in ("a.txt", "b.txt", "c.txt")]
    monkeypatch.setattr(sources, "MAX_CHARACTERS", 149)
    assert len(read_sources(paths[:2])) == 2
    with pytest.raises(UsageError, match="149 characters in total"):
        read_sources(paths)


def test_no_source_at_all() -> None:
    with pytest.raises(UsageError, match="Nothing to read"):
        read_sources([])


# Standard input


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "stdin", [io.BytesIO("żółw\n".encode()), io.StringIO("żółw\n"), io.BytesIO("żółw\n".encode("utf-16"))]
)
def test_standard_input(stdin: io.BytesIO) -> None:
    assert read_source("-", stdin=stdin) == Document("standard input", "żółw\n")


def test_standard_input_of_the_process_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfpiped"), encoding="ascii"))
    assert read_source("-").text == "piped"


def test_standard_input_in_any_format() -> None:
    assert read_source("-", stdin=io.BytesIO(pdf([line("Hello.")]))).text == "Hello."
    assert "evil" not in read_source("-", stdin=io.BytesIO(ARTICLE.encode())).text


def test_standard_input_among_other_sources_at_most_once(tmp_path: Path) -> None:
    path = save(tmp_path, "a.txt", "file")
    assert [d.text for d in read_sources([path, "-"], stdin=io.BytesIO(b"piped"))] == ["file", "piped"]
    stdin = io.BytesIO(b"piped")
    with pytest.raises(UsageError, match="only once"):
        read_sources(["-", path, Path("-")], stdin=stdin)
    assert stdin.tell() == 0


def test_standard_input_without_end_is_not_read_to_its_end() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            self.given += size
            assert 0 < self.given < 10_000_000
            return b"x" * size

    assert "2,000,000 bytes" in refusal("-", stdin=Endless(), max_bytes=2_000_000)


def test_standard_input_that_gives_nothing() -> None:
    closed = io.BytesIO()
    closed.close()
    assert "is a terminal" in refusal("-", stdin=Terminal("typed"))
    assert "is closed" in refusal("-", stdin=closed)
    assert "is empty" in refusal("-", stdin=io.BytesIO(b"\n"))
    assert "binary" in refusal("-", stdin=io.BytesIO(b"\0\1"))
    assert "10 bytes" in refusal("-", stdin=io.BytesIO(b"x" * 11), max_bytes=10)


# Manners


def test_libraries_are_silent_and_their_loggers_left_as_they_were(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("pypdf").setLevel(logging.INFO)
    page = pdf([line("Hello.")])
    read_source(save(tmp_path, "a.pdf", page.replace(b"startxref\n", b"startxref\n9")))  # pypdf repairs it and warns
    read_source(save(tmp_path, "a.html", "just words, no tag"))  # trafilatura logs an error
    assert logging.getLogger("pypdf").level == logging.INFO
    logging.getLogger("pypdf").setLevel(logging.NOTSET)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_importing_the_module_loads_no_heavy_library() -> None:
    check = "import sys, sharedllm.sources; print({'pypdf', 'trafilatura', 'lxml'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
