"""`sharedllm.sources`: every format becomes text, and every wrong input becomes one clear sentence."""

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sharedllm import sources
from sharedllm.errors import UsageError
from sharedllm.sources import Document, read_source, read_sources
from tests.source_files import ARTICLE, line, pdf, refusal, save

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


# Files that are not text


@pytest.mark.parametrize("content", [b"ab\0cd", b"\x89PNG\r\n\x1a\n\0\0", b"\xff\xfea\0\0\0"])
def test_binary_file_is_refused_and_says_what_is_accepted(tmp_path: Path, content: bytes) -> None:
    message = refusal(save(tmp_path, "a.bin", content))
    assert "binary file" in message
    for accepted in ("UTF-8", "Markdown", "HTML", "PDF"):
        assert accepted in message


def test_text_in_another_encoding_is_never_lost_in_silence(tmp_path: Path) -> None:
    text = save(tmp_path, "vertrag.txt", "Die Käufer übernehmen die Gebühr.\r\n".encode("cp1252"))
    save(tmp_path, "a.txt", "text")
    save(tmp_path, "b.bin", bytes(range(1, 256)))
    for named in ([text], [tmp_path]):
        with pytest.raises(UsageError, match="save it as UTF-8, or leave it out") as caught:
            read_sources(named)
        assert str(text) in str(caught.value)
    text.unlink()
    assert [document.text for document in read_sources([tmp_path])] == ["text"]


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
    for address in ("https://example.org/page.html", "s3://bucket/notes.txt"):
        assert "is an address" in refusal(address) and "download" in refusal(address)


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


def test_a_link_to_a_folder_is_not_followed_and_is_told(tmp_path: Path) -> None:
    save(tmp_path, "docs/a.txt", "text")
    save(tmp_path, "other/b.txt", "text")
    for name in ("link", ".hidden"):
        (tmp_path / "docs" / name).symlink_to(tmp_path / "other", target_is_directory=True)
    passed: list[str] = []
    assert len(read_sources([tmp_path / "docs"], passed=passed.append)) == 1
    assert passed == [str(tmp_path / "docs" / "link")]


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
    check = "import sys, sharedllm.sources; print({'pypdf', 'trafilatura', 'lxml', 'torch'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_text_is_taken_out_for_a_user_without_a_home() -> None:
    homeless = "import os, pwd, sys; os.environ.pop('HOME', None); pwd.getpwuid = lambda uid: {}[uid]; "
    check = f"{homeless}import sharedllm.collection.place, sharedllm.extract; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.stderr) == ("False", "")


def test_what_the_library_keeps_in_a_folder_is_no_text_of_it(tmp_path: Path) -> None:
    save(tmp_path, "a.txt", "text")
    contents = {
        "context": ("context.json", '{\n "format": "sharedllm-context"'),
        "collection": ("documents.jsonl", '{"source": "a.txt"}\n'),
        "theirs": ("context.json", '{"format": "another"}'),
        "data": ("documents.jsonl", '{"text": "hello"}\n'),
    }
    for folder, (name, content) in contents.items():
        (tmp_path / folder / "stores").mkdir(parents=True)
        save(tmp_path / folder, name, content)
    read = [Path(document.name).parent.name for document in read_sources([tmp_path])]
    assert read == [tmp_path.name, "data", "theirs"]
    (tmp_path / "collection" / "stores").rmdir()
    assert len(read_sources([tmp_path])) == 4
    with pytest.raises(UsageError, match="name the texts themselves"):
        read_sources([tmp_path / "context"])
