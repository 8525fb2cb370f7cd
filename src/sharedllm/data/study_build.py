"""Writing a study folder: passages are drawn, the model asks and answers about them, and what is good is kept.

Passages are drawn in places: a few neighbours in one document, so that one training context holds several of them.
Every place is a function of the seed and its number alone and is written when it is done, so that a run which was
stopped goes on, and a finished study can be made longer.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sharedllm.data.folder import MANIFEST, Document, TokenFolder
from sharedllm.data.study import FORMAT, PASSAGES, VERSION, Passage, check_origin, origin, read_manifest, read_passages
from sharedllm.data.study_author import INSTRUCTIONS, Pair, Writing
from sharedllm.data.study_filters import fault
from sharedllm.errors import UsageError, WorkError


class Writes(Protocol):
    """What is asked of an author; `study_author.Author` is one."""

    tokenizer: Any
    writing: Writing

    def write(self, passages: Tensor, kinds: Sequence[Sequence[tuple[str, str]]], seed: int) -> list[list[Pair]]: ...


@dataclass(frozen=True)
class Plan:
    """What is drawn; all but `passages` must stay the same when a study goes on.

    Attributes:
        passages: in all; rounded up to whole places.
        per_passage: questions asked about each.
        passage_tokens: length of one.
        neighbours: passages of one place, one behind the other.
        least_tokens: of a document; shorter ones are too short to be a training context.
    """

    passages: int
    per_passage: int = 2
    seed: int = 0
    passage_tokens: int = 1024
    neighbours: int = 4
    least_tokens: int = 5 * 1024

    def __post_init__(self) -> None:
        if self.passages < 1:
            raise UsageError(f"passages is {self.passages}; it must be at least 1.")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; it must be at least 0.")
        if not 1 <= self.per_passage <= len(INSTRUCTIONS):
            raise UsageError(f"per_passage is {self.per_passage}; it must lie between 1 and {len(INSTRUCTIONS)}.")


def write_study(
    out: str | Path,
    folder: TokenFolder,
    author: Writes,
    model: str,
    plan: Plan,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write a study, or go on with the one at `out`; returns its manifest.

    Args:
        model: identity of the model that writes (`Reader.identity`).
        progress: called with one line a place.
    Raises:
        UsageError: `out` holds something else, or a study by another model, of other data or settings; or no document
            is long enough.
        WorkError: it cannot be written.
    """
    out = Path(out)
    settings = {**asdict(plan), **asdict(author.writing)}
    settings.pop("passages")
    about: dict[str, Any] = {"format": FORMAT, "version": VERSION, **origin(folder, model), "settings": settings}
    places, say = Places(folder, plan), progress or (lambda line: None)
    try:
        first = done = _start(out, about, folder, model, plan.neighbours)
        kept, started = 0, time.perf_counter()
        with (out / PASSAGES).open("a", encoding="utf-8") as file:
            while done < plan.passages:
                passages = write_place(author, places, done // plan.neighbours)
                file.writelines(passage.to_line() for passage in passages)
                file.flush()
                os.fsync(file.fileno())
                done += len(passages)
                kept += sum(len(passage.pairs) for passage in passages)
                seconds = time.perf_counter() - started
                left = seconds / (done - first) * max(0, plan.passages - done)
                say(
                    f"{done} of {plan.passages} passages: {kept} pairs, {seconds / max(1, kept):.1f} s each, {left:.0f} s left"
                )
        about["counts"] = _counts(read_passages(out))
        _write_manifest(out, about)
    except OSError as error:
        raise WorkError(f"cannot write the study {out}: {error.strerror or error}.") from error
    return about


class Places:
    """Where passages are drawn: sources by their weight, a source's documents by their length, places evenly."""

    def __init__(self, folder: TokenFolder, plan: Plan) -> None:
        self.folder, self.plan = folder, plan
        self.documents = [d for d in folder.documents(split="train") if d.tokens >= plan.least_tokens]
        if not self.documents:
            raise UsageError(f"the data in {folder.path} has no train document of {plan.least_tokens} tokens.")
        self.shares = folder.shares(self.documents)

    def draw(self, place: int) -> tuple[Document, list[int], list[list[tuple[str, str]]], int]:
        """Document, where its passages start, kinds and instructions for each of them, and a seed."""
        plan = self.plan
        random = np.random.default_rng([plan.seed, place])
        document = self.documents[int(random.choice(len(self.documents), p=self.shares))]
        start = int(random.integers(0, document.tokens - plan.neighbours * plan.passage_tokens + 1))
        starts = [start + i * plan.passage_tokens for i in range(plan.neighbours)]
        names = list(INSTRUCTIONS)
        kinds = []
        for _ in starts:
            chosen = [names[i] for i in random.permutation(len(names))[: plan.per_passage].tolist()]
            kinds.append([(name, INSTRUCTIONS[name][int(random.integers(len(INSTRUCTIONS[name])))]) for name in chosen])
        return document, starts, kinds, int(random.integers(2**31))


def write_place(author: Writes, places: Places, place: int) -> list[Passage]:
    """The passages of a place with the pairs about them that are kept."""
    document, starts, kinds, seed = places.draw(place)
    tokens, length = places.folder.tokens(document), places.plan.passage_tokens
    cut = [torch.from_numpy(np.asarray(tokens[start : start + length], dtype=np.int64)) for start in starts]
    passages = []
    for start, ids, pairs in zip(starts, cut, author.write(torch.stack(cut), kinds, seed), strict=True):
        text, left_out = author.tokenizer.decode(ids.tolist()), Counter[str]()
        kept: list[Pair] = []
        for pair in pairs:
            why = fault(pair.question, pair.answer, text)
            if why is None and pair.question in [other.question for other in kept]:
                why = "asked twice"
            if why is None:
                kept.append(pair)
            else:
                left_out[why] += 1
        passages.append(Passage(document, start, kept, dict(left_out)))
    return passages


def _start(out: Path, about: dict[str, Any], folder: TokenFolder, model: str, neighbours: int) -> int:
    """Make the folder, or cut the one that is there to whole places; returns how many passages it holds."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        out.mkdir(parents=True, exist_ok=True)
        (out / PASSAGES).touch()
        _write_manifest(out, about)
        return 0
    before = read_manifest(out)
    check_origin(out, before, folder, model)
    changed = [k for k, v in about["settings"].items() if before["settings"].get(k) != v]
    if changed:
        raise UsageError(
            f"{out} holds a study with {changed[0]} {before['settings'].get(changed[0])!r}; "
            "choose another output, or remove that folder to start afresh."
        )
    whole = [line for line in read_passages(out).splitlines(keepends=True) if line.endswith(b"\n")]
    whole = whole[: len(whole) - len(whole) % neighbours]
    _write_manifest(out, about)  # without counts: not finished
    os.truncate(out / PASSAGES, sum(map(len, whole)))
    return len(whole)


def _counts(data: bytes) -> dict[str, Any]:
    """How much a study holds, and the hash of its passages."""
    rows = [json.loads(line) for line in data.splitlines()]
    left_out, kinds = Counter[str](), Counter[str]()
    for row in rows:
        left_out.update(row["left_out"])
        kinds.update(pair["kind"] for pair in row["pairs"])
    return {
        "passages": len(rows),
        "pairs": kinds.total(),
        "kinds": dict(sorted(kinds.items())),
        "left_out": dict(sorted(left_out.items())),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def _write_manifest(out: Path, about: dict[str, Any]) -> None:
    part = out / f".{MANIFEST}"
    part.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(out / MANIFEST)
