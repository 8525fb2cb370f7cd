"""From a source's files to its documents: reading order, cleaning by file type, filters, deduplication, grouping.

Long documents matter here, because a training sample is thousands of tokens of one document.
"""

from __future__ import annotations

import codecs
import gzip
import posixpath
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sharedllm.data.bible import MAGIC, bible_books
from sharedllm.data.clean_code import clean_code, path_line
from sharedllm.data.clean_html import html_to_text
from sharedllm.data.clean_pod import pod_to_text
from sharedllm.data.clean_rst import rst_to_text
from sharedllm.data.dedup import Deduper
from sharedllm.data.fetch import Fetched
from sharedllm.data.filters import why_dropped
from sharedllm.data.jsonl import jsonl_rows
from sharedllm.data.order import reading_order
from sharedllm.data.r_data import r_texts
from sharedllm.data.recipe import SourceSpec
from sharedllm.errors import WorkError

CODE = (".py", ".c", ".h", ".js", ".ts", ".rs", ".go", ".java", ".sql", ".sh")
CLEANERS: dict[str, Callable[[str], str]] = {
    ".html": html_to_text, ".htm": html_to_text, ".pod": pod_to_text, ".rst": rst_to_text,
    **dict.fromkeys(CODE, clean_code),
}  # fmt: skip
SEPARATOR = "\n\n\n"
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
BROKEN, OTHER = "broken UTF-8", "Windows-1252 or Latin-1"  # what is said of files that are no clean text


@dataclass(frozen=True)
class Draft:
    """A document before tokenising; `special` says that the text holds a chat template's special tokens."""

    name: str
    text: str
    special: bool = False


@dataclass
class Drafts:
    """A source's documents in reading order, how many files were dropped for which reason, and how many were read as
    something else than whole UTF-8 or UTF-16."""

    documents: list[Draft] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    odd: Counter[str] = field(default_factory=Counter)


def drafts(spec: SourceSpec, fetched: Fetched, deduper: Deduper, chat: Callable[[list[dict[str, str]]], str]) -> Drafts:
    """The documents of one fetched source. `chat` renders a jsonl row's messages as text.

    Raises UsageError for a jsonl row that is neither text nor chat, WorkError for a damaged file.
    """
    deduper.start_source(spec.split == "heldout")
    result = Drafts()
    parts: list[Draft] = []
    for draft in _texts(fetched.members, chat, result.odd):
        is_code = draft.name.endswith(CODE)
        reason = None if draft.special else why_dropped(draft.text, is_code)
        if reason is None and not deduper.is_new(draft.text):
            reason = "repeated"
        if reason is None and not is_code and not draft.special:
            draft = Draft(draft.name, deduper.without_repeats(draft.text))
            reason = "repeated" if len(draft.text.strip()) < 100 else None
        if reason is None:
            parts.append(draft)
        else:
            result.dropped[reason] += 1
    result.documents = _joined(list(_grouped(spec, parts)), spec.join_below)
    return result


def _texts(
    members: dict[str, bytes], chat: Callable[[list[dict[str, str]]], str], odd: Counter[str]
) -> Iterator[Draft]:
    """Every member, cleaned, in reading order; a jsonl file and packed books give several texts.

    Counts in `odd` the files that are no clean text, by what they were read as.
    """
    raw = {}
    for path, data in members.items():
        if path.endswith(".gz"):
            try:
                data = gzip.decompress(data)
            except (OSError, EOFError, zlib.error) as error:
                raise WorkError(f"The file {path} is not valid gzip ({error}); fetch its source again.") from error
            path = path.removesuffix(".gz")
        if data[:4] == MAGIC or path.endswith(".rdb"):
            books = bible_books(data) if data[:4] == MAGIC else r_texts(data)
            yield from (Draft(name, text) for name, text in books.items())
        else:
            raw[path], read_as = decoded(data)
            odd.update([] if read_as is None else [read_as])
    for path in reading_order(raw):
        if path.lower().endswith(".jsonl"):
            for name, text, special in jsonl_rows(path, raw[path], chat):
                yield Draft(name, _unified(text) if special else _plain(_unified(text)), special)
        else:
            yield Draft(path, CLEANERS.get(posixpath.splitext(path)[1].lower(), _plain)(raw[path]))


def decode(data: bytes) -> str:
    """Bytes as text; see `decoded`."""
    return decoded(data)[0]


def decoded(data: bytes) -> tuple[str, str | None]:
    """Bytes as text, and what they were read as where that is not whole UTF-8, or UTF-16 after its byte order mark.

    One damaged byte does not make a file one of another encoding: where at least as many characters beyond ASCII are whole in
    UTF-8 as are broken, those are replaced. Else it is Windows-1252, or Latin-1 where that has no such character. Without a
    byte order mark, NUL bytes and carriage returns.
    """
    if data.startswith(UTF16):
        return _unified(data.decode("utf-16", "replace")), None
    try:
        return _unified(data.decode("utf-8-sig")), None
    except UnicodeDecodeError:
        pass
    text = data.decode("utf-8-sig", "replace")
    broken, beyond = text.count("\ufffd"), len(text) - len(text.encode("ascii", "ignore"))
    if data.startswith(codecs.BOM_UTF8) or broken <= beyond - broken:
        return _unified(text), BROKEN
    try:
        return _unified(data.decode("cp1252")), OTHER
    except UnicodeDecodeError:
        return _unified(data.decode("latin-1")), OTHER


def _unified(text: str) -> str:
    """A text without NUL bytes, and with line ends of one kind."""
    return text.replace("\x00", "").replace("\r\n", "\n").replace("\r", "\n")


def _plain(text: str) -> str:
    text = re.sub(r"[ \t\f]+\n", "\n", text.expandtabs(8) + "\n")
    return re.sub(r"\n{4,}", "\n\n\n", text).strip("\n") + "\n"


def _grouped(spec: SourceSpec, parts: list[Draft]) -> Iterator[Draft]:
    """Parts of one directory or of the source put together; each chat stays on its own."""
    if spec.group == "file":
        yield from parts
        return
    groups: dict[str, list[Draft]] = {}
    for index, part in enumerate(parts):
        folder = (posixpath.dirname(part.name) or spec.name) if spec.group == "directory" else spec.name
        groups.setdefault(f"{part.name}#{index}" if part.special else folder, []).append(part)
    for name, group in groups.items():
        if group[0].special:
            yield group[0]
        else:
            yield Draft(name, SEPARATOR.join(_headed(part) for part in group))


def _headed(part: Draft) -> str:
    text = part.text.strip("\n") + "\n"
    return path_line(part.name) + text if part.name.endswith(CODE) else text


def _joined(documents: list[Draft], shortest: int) -> list[Draft]:
    """Documents below `shortest` characters joined with the ones after them, the last with the one before it.

    Chats are joined with chats alone: what spells a special token in another text is no such token.
    """
    if not shortest:
        return documents
    out: list[Draft] = []
    waiting: dict[bool, list[Draft]] = {False: [], True: []}
    for draft in documents:
        group = waiting[draft.special]
        group.append(draft)
        if sum(len(item.text) for item in group) >= shortest:
            out.append(_one(group))
            waiting[draft.special] = []
    for special, group in waiting.items():
        before = [i for i, draft in enumerate(out) if draft.special == special]
        if group:
            out.append(_one([out.pop(i) for i in before[-1:]] + group))
    return out


def _one(group: list[Draft]) -> Draft:
    if len(group) == 1:
        return group[0]
    text = SEPARATOR.join(item.text.strip("\n") for item in group) + "\n"
    return Draft(f"{group[0].name} … {group[-1].name}", text, group[0].special)
