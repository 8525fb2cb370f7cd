"""Turn what a user names on the command line (files, folders, "-" for standard input) into text.

Plain text, source code and Markdown are taken as they are, HTML is reduced to its main text, PDF to its text layer.
Whatever cannot become text raises one `UsageError` that names the source and says what to do.
"""

import contextlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sharedllm.collection import RECORDS, STORES
from sharedllm.errors import UsageError
from sharedllm.manifest import FORMAT, MANIFEST
from sharedllm.sources_html import html_text
from sharedllm.sources_pdf import pdf_text

STDIN = "-"
DEFAULT_MAX_BYTES = 200_000_000  # per source, before extraction
MAX_CHARACTERS = 200_000_000  # per PDF and per call of `read_sources`, after extraction

HTML_SUFFIXES = frozenset({".html", ".htm", ".xhtml"})
MARKDOWN_SUFFIXES = frozenset({".md", ".markdown"})

_ACCEPTED = "UTF-8 or UTF-16 text, source code, Markdown, HTML and PDF are accepted"
_CHUNK_BYTES = 1 << 20
_SNIFF_BYTES = 8192
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_HTML_START = re.compile(rb"[\xef\xbb\xbf\xff\xfe]*\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype\s+html|html)\b", re.IGNORECASE)
_HTML_CHARSET = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?([\w.:-]+)""", re.IGNORECASE)


@dataclass(frozen=True)
class Document:
    """One source as text: `name` is the path as given (or "standard input"), `text` is never blank."""

    name: str
    text: str


class _Skippable(UsageError):
    """A binary or empty file: an error when the user named it, passed over when it was found in a folder."""


def read_source(source: str | Path, *, stdin: IO[Any] | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> Document:
    """Read one file, or standard input for "-".

    `stdin` replaces `sys.stdin` (a text or a binary stream); `max_bytes` bounds the size of the source in bytes, before
    extraction. Returns a `Document` whose line ends are those of the source. Raises `UsageError` when the source is
    missing, a folder, unreadable, too large, empty, binary, or a broken, locked or scanned PDF.
    """
    if max_bytes <= 0:
        raise UsageError(f"The size limit must be a positive number of bytes, not {max_bytes}.")
    if str(source) == STDIN:
        name, raw = "standard input", _read_stdin(sys.stdin if stdin is None else stdin, max_bytes)
    else:
        name, raw = str(source), read_file(str(source), max_bytes)
    return Document(name, _to_text(name, raw))


def document_of(name: str, raw: bytes) -> Document:
    """Bytes that were received rather than read from a file, as text; raises `UsageError` as `read_source` does."""
    return Document(name, _to_text(name, raw))


def read_sources(
    sources: Sequence[str | Path],
    *,
    stdin: IO[Any] | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
    passed: Callable[[str], None] = lambda path: None,
) -> list[Document]:
    """Read several sources, in the order given; a folder stands for all the readable files below it, sorted by path.

    In a folder, hidden files and folders are skipped, and so are saved contexts, collections, and binary and empty files;
    any other file that cannot be read is an error, so that nothing is lost in silence; `passed` hears the path of each binary
    or empty file, and of each link to a folder, which is not followed. `max_bytes` bounds each source in bytes; all texts
    together are bounded by `MAX_CHARACTERS`. Returns at least one `Document`. Raises `UsageError` as `read_source` does, and for
    no source at all, "-" given twice, or a folder with no readable file.
    """
    if not sources:
        raise UsageError("Nothing to read: name at least one file or folder, or '-' for standard input.")
    check_stdin(sources)
    documents: list[Document] = []
    room = MAX_CHARACTERS
    for source in sources:
        in_folder = str(source) != STDIN and os.path.isdir(source)
        before = len(documents)
        for path in folder_files(source, passed) if in_folder else [source]:
            try:
                document = read_source(path, stdin=stdin, max_bytes=max_bytes)
            except _Skippable:
                if not in_folder:
                    raise
                passed(str(path))
                continue
            room -= len(document.text)
            if room < 0:
                raise UsageError(f"The sources hold over {MAX_CHARACTERS:,} characters in total: name fewer files.")
            documents.append(document)
        if len(documents) == before:
            raise UsageError(f"The folder '{source}' has no readable file: {_ACCEPTED}.")
    return documents


def check_stdin(sources: Sequence[str | Path]) -> None:
    """Raise `UsageError` where standard input is among the sources more than once."""
    if [str(source) for source in sources].count(STDIN) > 1:
        raise UsageError("'-' (standard input) can be given only once: it can be read only once.")


def is_kept(folder: str | Path) -> bool:
    """Whether a folder is a saved context or a collection: what was read of texts, and not texts."""
    records, about = (os.path.join(folder, name) for name in (RECORDS, MANIFEST))
    with contextlib.suppress(OSError, ValueError):
        if os.path.isfile(about):  # its format is the first thing that it says
            with open(about, "rb") as file:
                return f'"{FORMAT}"'.encode() in file.read(_SNIFF_BYTES)
        if os.path.isfile(records) and os.path.isdir(os.path.join(folder, STORES)):
            with open(records, "rb") as file:
                first = file.readline(_SNIFF_BYTES)
            return not first or first.startswith(b'{"source": ')
    return False


def folder_files(folder: str | Path, passed: Callable[[str], None] = lambda path: None) -> list[str]:
    """The files below a folder, sorted, without hidden ones and without what this library keeps there.

    Args:
        passed: hears the path of each link to a folder, which is not followed.
    Raises:
        UsageError: it cannot be read, or is itself a saved context or a collection.
    """

    def refuse(error: OSError) -> None:
        raise UsageError(f"The folder '{error.filename}' cannot be read: {error.strerror}.") from error

    if is_kept(folder):
        raise UsageError(f"'{folder}' is a saved context or a collection, not texts: name the texts themselves.")
    files: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".") and not is_kept(os.path.join(parent, name))]
        for path in filter(os.path.islink, (os.path.join(parent, name) for name in folders)):
            passed(path)
        files += [os.path.join(parent, name) for name in names if not name.startswith(".")]
    return sorted(filter(os.path.isfile, files), key=Path)  # isfile: no sockets, pipes or dangling links


def read_file(name: str, max_bytes: int) -> bytes:
    try:
        with open(name, "rb") as file:
            head = file.read(_SNIFF_BYTES)
            # Before the size, so that a huge binary is called what it is, and does not stop a folder.
            if b"\0" in head and not head.startswith(_UTF16_BOMS) and not is_pdf(name, head):
                raise _Skippable(f"'{name}' is a binary file: {_ACCEPTED}.")
            return _read_bounded(name, file, head, max_bytes)
    except (FileNotFoundError, NotADirectoryError) as error:
        if "://" in name:
            raise UsageError(f"'{name}' is an address, and a file is expected here: download it first.") from error
        raise UsageError(f"'{name}' does not exist: check the path.") from error
    except IsADirectoryError as error:
        raise UsageError(f"'{name}' is a folder, and one file is expected here.") from error
    except UsageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        raise UsageError(f"{name[:200]!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _read_stdin(stream: IO[Any] | None, max_bytes: int) -> bytes:
    if stream is None or stream.closed or stream.isatty():
        what = "closed" if stream is None or stream.closed else "a terminal"
        raise UsageError(f"Standard input is {what}: pipe a text into the command, or name a file instead of '-'.")
    try:
        return _read_bounded("standard input", getattr(stream, "buffer", stream), b"", max_bytes)
    except OSError as error:
        raise UsageError(f"Standard input cannot be read: {error.strerror or error}.") from error


def _read_bounded(name: str, stream: IO[Any], head: bytes, max_bytes: int) -> bytes:
    """Chunk by chunk: a pipe has no size to ask for, and a file can grow."""
    chunks, size = [head], len(head)
    while size <= max_bytes and (chunk := stream.read(_CHUNK_BYTES)):
        chunks.append(chunk.encode("utf-8", "surrogatepass") if isinstance(chunk, str) else chunk)
        size += len(chunks[-1])
    if size > max_bytes:
        raise UsageError(
            f"'{name}' is larger than the limit of {max_bytes:,} bytes: split it, or save it as plain text."
        )
    return b"".join(chunks)


def is_pdf(name: str, raw: bytes) -> bool:
    """Whether a file is a PDF, by how it begins or what it is called."""
    return raw.startswith(b"%PDF-") or Path(name).suffix.lower() == ".pdf"


def _to_text(name: str, raw: bytes) -> str:
    if not raw or raw.isspace():
        raise _Skippable(f"'{name}' is empty: it has no text to read.")
    if is_pdf(name, raw):
        return pdf_text(name, raw, MAX_CHARACTERS)
    suffix = Path(name).suffix.lower()
    head = raw[:_SNIFF_BYTES].replace(b"\0", b"")  # without NUL bytes, ASCII in UTF-16 reads as ASCII
    html = suffix in HTML_SUFFIXES or (suffix not in MARKDOWN_SUFFIXES and _HTML_START.match(head) is not None)
    text = _decode(name, raw, _HTML_CHARSET.search(head) if html else None)
    if html:
        text = html_text(text)
    if not text or text.isspace():
        raise _Skippable(f"'{name}' has no text to read: it holds only white space{' or markup' if html else ''}.")
    return text


def _is_text(raw: bytes) -> bool:
    """Whether bytes that are no UTF-8 are text all the same: no zeros, and hardly a control character."""
    head = raw[:_SNIFF_BYTES]
    controls = sum(byte < 32 and byte not in b"\t\n\r\f" for byte in head)
    return b"\0" not in raw and controls * 100 <= len(head)


def _decode(name: str, raw: bytes, declared: re.Match[bytes] | None) -> str:
    """Decode UTF-16 with its mark, else UTF-8, else the encoding that an HTML page `declared`."""
    text = None
    try:
        text = raw.decode("utf-16" if raw.startswith(_UTF16_BOMS) else "utf-8-sig")
    except UnicodeDecodeError:
        if declared:
            charset = declared[1].decode("ascii", "replace").lower()
            # What a page calls Latin-1 is read as Windows-1252 by every browser (WHATWG Encoding, 4.2).
            charset = {"iso-8859-1": "cp1252", "latin-1": "cp1252", "latin1": "cp1252"}.get(charset, charset)
            with contextlib.suppress(LookupError, ValueError):
                text = raw.decode(charset, "replace")
    if text is None and _is_text(raw):
        raise UsageError(f"'{name}' is text in another encoding than UTF-8; save it as UTF-8, or leave it out.")
    if text is None or "\0" in text:
        raise _Skippable(f"'{name}' is not text that can be decoded (a binary file or another encoding): {_ACCEPTED}.")
    return text
