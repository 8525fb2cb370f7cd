"""Building a token folder from a recipe: fetch, clean, deduplicate, tokenise, write, and only then put in place.

The folder holds `<split>-<n>.bin` (flat tokens), `documents.jsonl` (which document lies where) and `manifest.json`
(what it is made of, with hashes and licences). The same recipe, archives and tokenizer give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sharedllm.data.dedup import Deduper
from sharedllm.data.documents import Draft, drafts
from sharedllm.data.encode import Encoder
from sharedllm.data.fetch import OWN_FILES, Fetched, default_cache, fetch
from sharedllm.data.filters import MIN_CHARS
from sharedllm.data.folder import DOCUMENTS, FORMAT, MANIFEST, Document
from sharedllm.data.recipe import MAX_SHARD_BYTES, SPLITS, DataRecipe, SourceSpec
from sharedllm.data.shards import ShardWriter
from sharedllm.errors import UsageError
from sharedllm.files import replaced_folder

WRITTEN = re.compile(rf"{re.escape(MANIFEST)}|{re.escape(DOCUMENTS)}|({'|'.join(SPLITS)})-\d+\.bin")
SHORTEST_CUT = 4096  # tokens: a document is cut to fit a source's budget only where this much of it remains


def build(
    recipe: DataRecipe,
    out: str | Path,
    tokenizer: Any,
    progress: Callable[[str], None] | None = None,
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Builds the recipe's text into the folder `out` and returns the manifest written there.

    `progress` is called with one line a source. `cache` keeps fetched archives between builds (the user's cache
    folder by default). An earlier token folder at `out` is replaced at the end, and stays whole if anything fails.
    Raises UsageError for a recipe that cannot be met here, WorkError for a failed download or write.
    """
    out, say = Path(out), progress or (lambda line: None)
    _check_replaceable(out)
    encoder = Encoder(tokenizer)
    with replaced_folder(out) as partial:
        job = _Build(recipe, partial, encoder, say, Path(cache) if cache else default_cache())
        try:
            return job.run()
        finally:
            job.abandon()


class _Build:
    """One run of `build`: reads sources one by one into `folder`."""

    def __init__(
        self, recipe: DataRecipe, folder: Path, encoder: Encoder, say: Callable[[str], None], cache: Path
    ) -> None:
        self.recipe, self.folder, self.encoder, self.say, self.cache = recipe, folder, encoder, say, cache
        self.limit = min(recipe.shard_tokens, MAX_SHARD_BYTES // encoder.dtype.itemsize)
        self.writers = {split: ShardWriter(folder, split, self.limit) for split in SPLITS}
        self.documents: list[Document] = []
        self.deduper = Deduper()

    def run(self) -> dict[str, Any]:
        """Reads every source, held-out ones first, and writes the listing and the manifest."""
        read = {}
        for spec in sorted(self.recipe.sources, key=lambda source: source.split != "heldout"):
            read[spec.name] = self._source(spec)
        for writer in self.writers.values():
            writer.close()
        listing = "".join(json.dumps(asdict(doc), ensure_ascii=False) + "\n" for doc in self.documents).encode()
        (self.folder / DOCUMENTS).write_bytes(listing)
        manifest = {
            "format": FORMAT,
            "recipe": self.recipe.name,
            "dtype": {2: "uint16", 4: "uint32"}[self.encoder.dtype.itemsize],
            "tokenizer": {"fingerprint": self.encoder.fingerprint, "vocab_size": self.encoder.vocab_size},
            "tokens": {split: sum(shard.tokens for shard in self.writers[split].shards) for split in SPLITS},
            "documents": {"count": len(self.documents), "sha256": hashlib.sha256(listing).hexdigest()},
            "shards": [asdict(shard) for split in SPLITS for shard in self.writers[split].shards],
            "sources": {spec.name: read[spec.name] for spec in self.recipe.sources},
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
        (self.folder / MANIFEST).write_text(text, encoding="utf-8")
        return manifest

    def abandon(self) -> None:
        for writer in self.writers.values():
            writer.abandon()

    def _source(self, spec: SourceSpec) -> dict[str, Any]:
        """Reads one source into the shards; returns its entry of the manifest."""
        self.say(f"{spec.name}: fetching")
        fetched = fetch(spec, self.cache, self.recipe.folder)
        found = drafts(spec, fetched, self.deduper, self.encoder.chat)
        before, total = len(self.documents), 0
        for draft in _in_budget_order(found.documents, spec):
            left = None if spec.max_tokens is None else spec.max_tokens - total
            if left is not None and left < min(SHORTEST_CUT, spec.max_tokens or 0):
                break
            total += self._write(draft, spec, left)
        count = len(self.documents) - before
        dropped = ", ".join(f"{number} {reason}" for reason, number in sorted(found.dropped.items())) or "none"
        odd = "".join(f"; read as {what}: {number}" for what, number in sorted(found.odd.items()))
        self.say(f"{spec.name}: {total:,} tokens in {count:,} documents (files left out: {dropped}{odd})")
        if not total:
            raise UsageError(f"Source '{spec.name}' gave no text{_why_nothing(spec, fetched, dropped)}.")
        kept = {key: getattr(spec, key) for key in ("type", "package", "kind", "weight", "split", "licence")}
        return {
            **kept,
            "version": fetched.version,
            "files": fetched.hashes,
            "tokens": total,
            "documents": count,
            "left_out": dict(sorted(found.dropped.items())),
        }

    def _write(self, draft: Draft, spec: SourceSpec, left: int | None) -> int:
        """Writes one document, cut to `left` tokens, in pieces of at most a shard; returns the tokens written."""
        tokens = self.encoder.encode(draft.text, draft.special)[:left]
        for start in range(0, len(tokens), self.limit):
            piece = tokens[start : start + self.limit]
            shard, at = self.writers[spec.split].add(piece)
            self.documents.append(Document(spec.name, spec.kind, spec.split, shard, at, len(piece), draft.name))
        return len(tokens)


def _check_replaceable(out: Path) -> None:
    """Raise UsageError where replacing `out` would delete anything but what a build writes."""
    if not out.exists():
        return
    held = sorted(path.name for path in out.iterdir()) if out.is_dir() else [out.name]
    foreign = [name for name in held if not WRITTEN.fullmatch(name)]
    if foreign:
        raise UsageError(f"{out} is not a data folder alone (there is {foreign[0]}); name another folder or remove it.")
    if held and not {MANIFEST, DOCUMENTS} <= set(held):
        raise UsageError(f"{out} exists and is not a data folder; name another folder or remove it.")


def check_unnamed(recipe: DataRecipe, out: Path) -> None:
    """Raise UsageError where `out`, which nobody named, holds the text of another recipe.

    A folder whose manifest cannot be read is left to `build`.
    """
    try:
        held = json.loads((out / MANIFEST).read_text(encoding="utf-8"))["recipe"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if held != recipe.name:
        raise UsageError(
            f"{out} holds the text of another recipe ({held}); name a folder for that of {recipe.name} with -o, or {out} itself "
            "to replace it."
        )


def _why_nothing(spec: SourceSpec, fetched: Fetched, dropped: str) -> str:
    """What follows `gave no text`: the likeliest mistake."""
    if fetched.members:
        return f" (left out: {dropped}); a text needs {MIN_CHARS} characters other than blanks and must be no repeat"
    wanted = f" its paths for files ending in {', '.join(OWN_FILES)}, and" if spec.type == "files" else ""
    return f"; check{wanted} its include and exclude globs"


def _in_budget_order(documents: list[Draft], spec: SourceSpec) -> list[Draft]:
    """Reading order; under a ceiling a shuffled one, the same in every build, so that every part has a chance."""
    if spec.max_tokens is None:
        return documents
    return sorted(documents, key=lambda draft: hashlib.sha256(f"{spec.name}/{draft.name}".encode()).digest())
