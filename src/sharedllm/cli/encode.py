"""`sharedllm encode`: read files once and keep what was read."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from glob import has_magic
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sharedllm.cli import common, given

if TYPE_CHECKING:
    from sharedllm.keep import Keep
    from sharedllm.library import Library


FolderOption = Annotated[
    str, typer.Option("-o", "--output", help="Folder to keep the context in; with --separate also an address.")
]
CompactOption = Annotated[
    bool, typer.Option("--compact", help="Keep a quarter of the bytes; each question reads a chunk again.")
]
StoredBitsOption = Annotated[
    int | None,
    typer.Option("--stored-bits", help="Bits of a number that is kept: 16, 8 or 4.", show_default="the adapter's"),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only say what it would take.")]
SeparateOption = Annotated[
    bool, typer.Option("--separate", help="Keep thousands of documents, a store each, to be searched.")
]
MaxMbOption = Annotated[
    float | None, typer.Option("--max-mb", help="With --separate: largest document.", show_default="200")
]
MAX_MB = 200.0


def encode(
    output: FolderOption,
    sources: common.OptionalSourcesArgument = None,
    append: Annotated[bool, typer.Option("--append", help="Keep what the folder holds and add to it.")] = False,
    remove: Annotated[list[str] | None, typer.Option("--remove", metavar="SOURCE", help="Forget a source.")] = None,
    keep_tags: common.KeepTagsOption = False,
    compact: CompactOption = False,
    stored_bits: StoredBitsOption = None,
    dry_run: DryRunOption = False,
    separate: SeparateOption = False,
    max_mb: MaxMbOption = None,
    engine: common.EngineOption = "local",
    ray_address: common.RayAddressOption = None,
    workers: common.WorkersOption = None,
    model: common.ModelOption = None,
    adapter: common.AdapterOption = "default",
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    seed: common.SeedOption = 0,
    as_json: common.JsonOption = False,
) -> None:
    """Read files once and keep the context in a folder, for any number of later questions.

    Each SOURCE is kept as a document of its own. What was read is on the disk: stopped, the same command goes on.
    Documents of the folder that this command does not name are dropped from it, unless --append is given.
    A compact context stays one: what is added to it is compact too.
    With --separate each file has a store of its own, and sources and --output may be addresses such as s3://bucket/folder.
    """
    common.check_engine(engine, ray_address, workers)
    _check_bits(stored_bits)
    others = append or dry_run or keep_tags or stored_bits is not None
    if separate:
        _check_separate(sources, others or bool(remove))
        from sharedllm.cli.separate import read_separately

        loading = {"model": model, "adapter": adapter, "device": device, "dtype": dtype}
        keeping = {"most_bytes": _most_bytes(max_mb), "compact": compact}
        given.check_there([source for source in sources or [] if not has_magic(source)])  # else it is a pattern
        read_separately(sources or [], output, loading, keeping, engine, ray_address, workers, as_json)
        return
    _check_together(output, engine != "local" or max_mb is not None, sources, remove)
    if remove:
        _remove(Path(output), remove, others or compact, as_json)
        return
    given.check_there(sources or [])
    from sharedllm.library import Library

    llm = common.load(model, adapter, device, dtype, seed, stored_bits)
    library = Library(Path(output), llm, compact or None)
    texts = named_texts(library, sources or [], append, keep_tags)
    keep: dict[str, Keep] | None = dict.fromkeys(texts, "tags") if keep_tags else None
    if dry_run:
        _predict(library, texts, keep, as_json)
    else:
        _update(library, texts, not append, keep, as_json)


def _check_bits(stored_bits: int | None) -> None:
    """Raise `UsageError` for a number of bits that nothing is kept in."""
    from sharedllm.config import STORED_BITS, check_choice

    if stored_bits is not None:
        check_choice("--stored-bits", stored_bits, STORED_BITS)


def _check_separate(sources: Sequence[str] | None, others: bool) -> None:
    """Raise `UsageError` for documents with a store each that are not sources alone; `others`: whether other options are given."""
    from sharedllm.errors import UsageError

    if others or not sources:
        raise UsageError(
            "--separate takes sources alone, it always adds: no --append, --remove, --dry-run, --stored-bits or "
            "--keep-tags."
        )


def _check_together(output: str, apart: bool, sources: Sequence[str] | None, remove: Sequence[str] | None) -> None:
    """Raise `UsageError` where documents cannot be kept in, or forgotten from, the one store `output`.

    Args:
        apart: whether an option is given that is for documents with a store each.
    """
    from sharedllm.errors import UsageError
    from sharedllm.manifest import check_target

    if apart or "://" in output:
        raise UsageError("workers, addresses and --max-mb are for documents with a store each; add --separate.")
    if bool(sources) == bool(remove):
        raise UsageError("give either sources to read or --remove SOURCE.")
    check_target(Path(output))


def _update(
    library: Library, texts: Mapping[str, str], only: bool, keep: dict[str, Keep] | None, as_json: bool
) -> None:
    from sharedllm.evaluate.row import machine

    assert library.llm is not None
    started = time.perf_counter()
    try:
        with common.reading_bar() as progress:
            gone = library.update(texts, only=only, progress=progress, keep=keep)
    except KeyboardInterrupt:
        if library.folder.exists():  # else there was no chunk to its end yet
            common.say("what was read is kept: the same command goes on from there.")
        raise
    tell_gone(gone, texts)
    seconds = round(time.perf_counter() - started, 3)
    line = "{context_tokens:,} tokens kept in {context} ({megabytes:,.1f} MB), read in {seconds:,.1f} s"
    _tell({**kept(library), "encode_seconds": seconds, **machine(library.llm)}, line, as_json)


def named_texts(library: Library, sources: Sequence[str], append: bool, keep_tags: bool = False) -> dict[str, str]:
    """The text of each source by the name of its document: as it was given, or as the folder has the same path already.

    Raises:
        UsageError: a source cannot be read, or with `keep_tags` has a tag without its other half; or standard input would take
            the place of another text that came from there.
    """
    from sharedllm.errors import UsageError
    from sharedllm.sources import STDIN

    if append and STDIN in sources and STDIN in library.documents:
        raise UsageError(
            f"{library.folder} has a text from standard input already, whose place this one would take; "
            "write it to a file and name that."
        )
    known = _by_path(library)
    texts: dict[str, str] = {}
    for source in sources:
        path = os.path.normpath(source)
        if (name := known.setdefault(path, source)) not in texts:
            texts[name] = given.text_of([source], keep_tags)
    return texts


def _by_path(library: Library) -> dict[str, str]:
    """The names of a folder's documents by their paths, which may be written in several ways."""
    return {os.path.normpath(name): name for name in library.documents}


def tell_gone(gone: Sequence[str], texts: Mapping[str, str]) -> None:
    """Say whose former text a folder no longer keeps."""
    for what, names in (
        ("replaced by a new text", [name for name in gone if name in texts]),
        ("no longer kept", [name for name in gone if name not in texts]),
    ):
        if names:
            common.say(f"{what}: {', '.join(names)}")


def _most_bytes(max_mb: float | None) -> int:
    """The largest document in bytes; `UsageError` for a number that is no size."""
    from sharedllm.errors import UsageError

    megabytes = MAX_MB if max_mb is None else max_mb
    if not math.isfinite(megabytes) or megabytes * 1e6 < 1:
        raise UsageError(f"--max-mb is {megabytes:g}; give a number of megabytes above 0, such as 200.")
    return int(megabytes * 1e6)


def _remove(folder: Path, sources: Sequence[str], others: bool, as_json: bool) -> None:
    """Forget sources; `UsageError` where `others` says that other options are given."""
    from sharedllm.errors import UsageError
    from sharedllm.library import Library

    if others:
        raise UsageError("--remove goes alone, without --append, --dry-run, --keep-tags, --compact or --stored-bits.")
    library = Library(folder)
    known = _by_path(library)
    library.remove(*(known.get(os.path.normpath(source), source) for source in sources))
    _tell({"removed": len(sources), **kept(library)}, "{removed} removed; {context_tokens:,} tokens left", as_json)


def _predict(library: Library, texts: Mapping[str, str], keep: dict[str, Keep] | None, as_json: bool) -> None:
    """Say what reading would take."""
    plan = library.plan(texts, keep)
    assert library.llm is not None
    seconds = plan.new_tokens / library.llm.reader.speed() if plan.new_tokens else 0.0
    figures = {**kept(library), "context_tokens": plan.tokens, "new_tokens": plan.new_tokens, "bytes": plan.bytes}
    line = "{new_tokens:,} of {context_tokens:,} tokens to read, {megabytes:,.1f} MB to write, about {seconds:,.0f} s"
    _tell({**figures, "encode_seconds": round(seconds, 1)}, line, as_json)


def kept(library: Library) -> dict[str, Any]:
    """What a folder holds, for the command's output."""
    return {
        "context": str(library.folder),
        "documents": library.documents,
        "context_tokens": sum(library.documents.values()),
        "bytes": library.nbytes,
    }


def _tell(figures: dict[str, Any], line: str, as_json: bool) -> None:
    common.finished()
    if as_json:
        common.print_json(figures)
    else:
        common.tell(line.format(**figures, megabytes=figures["bytes"] / 1e6, seconds=figures.get("encode_seconds", 0)))
