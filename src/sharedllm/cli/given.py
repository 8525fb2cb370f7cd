"""What the commands make of the sources they are given: texts, contexts, the nearest documents of a collection."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sharedllm.cli.common import reading_bar, say

if TYPE_CHECKING:
    from pathlib import Path

    from sharedllm.context import Context
    from sharedllm.model import SharedLLM
    from sharedllm.sources import Document

NAMED = 5  # files that are passed over, by name


def read(llm: SharedLLM, sources: Sequence[str], keep_tags: bool = False) -> tuple[Context, float]:
    """The context of some sources, saved contexts among them, and the seconds that reading took.

    Texts that follow each other are read as one; with `keep_tags`, what stands between their tags is kept.
    """
    import time
    from itertools import groupby

    from sharedllm.context import Context

    contexts, seconds = [], 0.0
    groups = [(saved, list(group)) for saved, group in groupby(sources, key=is_saved)]
    folders = [folder for saved, group in groups if saved for folder in group]
    opened = {folder: Context.load(folder, llm) for folder in folders}  # first, since one may be refused
    for saved, group in groups:
        if saved:
            contexts += [opened[folder] for folder in group]
            continue
        text = text_of(group, keep_tags)
        started = time.perf_counter()
        with reading_bar() as progress:
            contexts.append(llm.read(text, progress=progress, keep="tags" if keep_tags else None))
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    whole = contexts[0] if len(contexts) == 1 else Context.compose(contexts)  # reads short texts beside others
    return whole, seconds + time.perf_counter() - started


def encode(llm: SharedLLM, context: Context) -> float:
    """Encode what a context has read and not encoded yet; the seconds that took."""
    import time

    started = time.perf_counter()
    if context.encoded_tokens < context.tokens:
        with reading_bar() as progress:
            llm.reader.encode(llm.reader.bind(context), progress)
    return time.perf_counter() - started


def found(
    llm: SharedLLM, sources: Sequence[str], question: str, documents: int
) -> tuple[list[str], list[dict[str, Any]], float]:
    """The sources with each collection among them replaced by those of its documents that are nearest to a question.

    Also what was found, an entry a document, and the seconds that finding took.
    """
    import time

    from sharedllm.collection.search import Collection, is_collection

    named: list[str] = []
    hits: list[dict[str, Any]] = []
    started = time.perf_counter()
    for source in sources:
        if not is_collection(source):
            named.append(source)
            continue
        collection = Collection(source, llm)
        for hit in collection.search(question, documents):
            named.append(str(collection.folder(hit.store)))
            hits.append({"source": hit.source, "tokens": hit.tokens, "score": round(hit.score, 4)})
    return named, hits, time.perf_counter() - started


def is_saved(source: str) -> bool:
    """Whether a source is a saved context, or what is left of one; not asked of pathlib, which fails where a name is too
    long for a file."""
    from sharedllm.manifest import FORMAT, MANIFEST

    about = os.path.join(source, MANIFEST)
    if not os.path.isfile(about):
        return False
    try:
        with open(about, "rb") as file:
            told = json.load(file)
    except (OSError, ValueError):
        return True
    return not isinstance(told, dict) or told.get("format") == FORMAT  # another program's file may have this name


def check_there(sources: Sequence[str]) -> None:
    """Raise `UsageError` for a file or folder that is not there, as reading it would once a model is loaded."""
    from sharedllm.collection.place import is_address
    from sharedllm.sources import DEFAULT_MAX_BYTES, STDIN, read_file

    for source in sources:
        if source != STDIN and not is_address(source) and not os.path.exists(source):
            read_file(source, DEFAULT_MAX_BYTES)


def refuse_collections(sources: Sequence[str]) -> None:
    """Raise `UsageError` for a collection where texts or saved contexts are expected."""
    from sharedllm.collection.search import is_collection
    from sharedllm.errors import UsageError

    if kept := [source for source in sources if is_collection(source)]:
        raise UsageError(f"{kept[0]} is a collection, which `sharedllm ask` alone answers from; ask it there.")


def text_of(sources: Sequence[str], keep_tags: bool = False, output: Path | None = None) -> str:
    """The text of some sources, a blank line between files.

    Args:
        keep_tags: whether each file is checked for tags without their other half.
        output: as for `documents_of`.
    """
    from sharedllm.errors import UsageError

    refuse_collections(sources)
    if saved := [source for source in sources if is_saved(source)]:
        raise UsageError(f"{saved[0]} is a saved context, and a text is expected here; name the files it was made of.")
    documents = documents_of(sources, output)
    if keep_tags:
        check_tags(documents)
    return "\n\n".join(document.text for document in documents)


def check_tags(documents: Sequence[Document]) -> None:
    """Raise `UsageError`, with its name, for a file in which a tag has no other half: joined, those of two files may seem to."""
    from sharedllm.errors import UsageError
    from sharedllm.keep import untagged

    for document in documents:
        try:
            untagged(document.text)
        except UsageError as error:
            raise UsageError(f"{document.name}: {error}") from error


def documents_of(sources: Sequence[str], output: Path | None = None) -> list[Document]:
    """The files of some sources as texts, saying on stderr which files of folders have none.

    Args:
        output: the results file, which is no text where it lies in one of the folders; see `check_output`.
    """
    from sharedllm.sources import read_sources

    passed: list[str] = []
    documents = read_sources(list(sources), passed=passed.append)
    if passed:
        more = f" and {len(passed) - NAMED} more" if len(passed) > NAMED else ""
        say(f"passed over, binary, empty or a linked folder: {', '.join(passed[:NAMED])}{more}")
    if output is None:
        return documents
    return [document for document in documents if os.path.realpath(document.name) != os.path.realpath(output)]


def check_output(output: Path, texts: Sequence[str]) -> None:
    """Raise `UsageError` for a results file that is one of the texts, to which rows would be added."""
    from sharedllm.errors import UsageError

    written = os.path.realpath(output)
    for text in texts:
        read = os.path.realpath(text)
        inside = written.startswith(os.path.join(read, "")) and not _has_rows(output)
        if written == read or inside:
            raise UsageError(f"-o is {output}, which is read with --text; name another file.")


def _has_rows(file: Path) -> bool:
    """Whether a file has results rows and nothing else, or is not there."""
    from sharedllm.errors import WorkError
    from sharedllm.evaluate.results import read_rows

    try:
        return all("task" in row for row in read_rows(file))
    except WorkError:
        return False
