"""What a build promises: the split, deduplication, a true manifest, the same bytes again, and nothing half written."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import yaml

from sharedllm.cli import main
from sharedllm.data import DataRecipe, TokenFolder, build, builder, fingerprint, shards
from sharedllm.data.recipe import MAX_SHARD_BYTES
from sharedllm.errors import UsageError, WorkError

from .helpers import byte_level, sentences

Make = Callable[..., DataRecipe]
BASE = {"type": "files", "kind": "prose", "licence": "CC0-1.0"}


def read(folder: TokenFolder, tokenizer: Any, **which: str) -> list[str]:
    return [tokenizer.decode(folder.tokens(doc)) for doc in folder.documents(**which)]


def test_texts_come_back_by_split_kind_and_source(tmp_path: Path, make_recipe: Make, tokenizer: Any) -> None:
    lines: list[str] = []
    build(make_recipe(), tmp_path / "out", tokenizer, progress=lines.append)
    folder = TokenFolder.open(tmp_path / "out", tokenizer, verify_hashes=True)
    assert read(folder, tokenizer, split="heldout") == [sentences("islands")]
    assert read(folder, tokenizer, split="train") == [sentences("rivers"), sentences("mountains")]
    assert read(folder, tokenizer, kind="technical") == [sentences("mountains")]
    assert read(folder, tokenizer, source="water") == [sentences("rivers")]
    assert any("held" in line and "tokens" in line for line in lines)


def test_the_manifest_tells_the_truth(tmp_path: Path, make_recipe: Make, tokenizer: Any, texts: Path) -> None:
    out = tmp_path / "out"
    manifest = build(make_recipe(), out, tokenizer)
    assert manifest == json.loads((out / "manifest.json").read_text())
    for shard in manifest["shards"]:
        data = (out / shard["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == shard["sha256"]
        assert len(data) == shard["bytes"] == 2 * shard["tokens"]
    stone = manifest["sources"]["stone"]
    assert stone["files"] == {"mountains.txt": hashlib.sha256((texts / "mountains.txt").read_bytes()).hexdigest()}
    assert (stone["licence"], stone["weight"], stone["kind"], stone["split"]) == ("CC0-1.0", 2.0, "technical", "train")
    rows = [json.loads(line) for line in (out / "documents.jsonl").read_text().splitlines()]
    for split, total in manifest["tokens"].items():
        assert total == sum(row["tokens"] for row in rows if row["split"] == split) > 0
    vocab = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    assert manifest["tokenizer"]["fingerprint"] == hashlib.sha256(vocab.encode()).hexdigest() == fingerprint(tokenizer)


def test_the_same_recipe_gives_the_same_bytes(tmp_path: Path, make_recipe: Make, tokenizer: Any) -> None:
    for name in ("one", "two"):
        build(make_recipe(), tmp_path / name, tokenizer)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["documents.jsonl", "heldout-0.bin", "manifest.json", "train-0.bin"]
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_repeats_are_dropped_and_held_out_text_never_trains(
    tmp_path: Path, make_recipe: Make, tokenizer: Any, texts: Path
) -> None:
    paragraphs = sentences("islands").split("\n\n")
    (texts / "again.txt").write_text(sentences("rivers").replace("\n", " \n"))  # the same words as rivers.txt
    (texts / "leak.txt").write_text(sentences("clouds") + "\n" + paragraphs[3] + "\n\n" + sentences("winds"))
    (texts / "copy.txt").write_text(sentences("islands").upper())
    sources = {
        "all": {**BASE, "paths": ["rivers.txt", "again.txt", "leak.txt", "copy.txt"]},
        "held": {**BASE, "paths": ["held.md"], "split": "heldout"},
    }
    manifest = build(make_recipe(sources), tmp_path / "out", tokenizer)
    train = read(TokenFolder.open(tmp_path / "out"), tokenizer, split="train")
    assert manifest["sources"]["all"]["left_out"] == {"repeated": 2}
    assert len(train) == 2
    assert not any(paragraphs[3] in text for text in train)
    assert any("winds" in text and "clouds" in text for text in train)


def test_a_ceiling_on_tokens_is_kept(tmp_path: Path, make_recipe: Make, tokenizer: Any) -> None:
    source = {**BASE, "paths": ["rivers.txt", "mountains.txt"], "max_tokens": 1000}
    manifest = build(make_recipe({"all": source}), tmp_path / "out", tokenizer)
    assert manifest["sources"]["all"]["tokens"] == manifest["tokens"]["train"] == 1000


def test_shards_stay_below_their_limit_and_long_documents_are_cut(
    tmp_path: Path, make_recipe: Make, tokenizer: Any
) -> None:
    manifest = build(make_recipe(shard_tokens=700), tmp_path / "out", tokenizer)
    assert max(shard["tokens"] for shard in manifest["shards"]) <= 700
    folder = TokenFolder.open(tmp_path / "out", verify_hashes=True)
    assert "".join(read(folder, tokenizer, source="water")) == sentences("rivers")


@pytest.mark.parametrize("vocabulary", [0, 66_000])
def test_no_shard_has_more_bytes_than_can_be_carried(
    tmp_path: Path, make_recipe: Make, monkeypatch: pytest.MonkeyPatch, vocabulary: int
) -> None:
    tokenizer = byte_level(tuple(f"<extra_{n}>" for n in range(vocabulary)))
    build(make_recipe(), tmp_path / "before", tokenizer)
    assert MAX_SHARD_BYTES == 32 * 2**20
    monkeypatch.setattr(builder, "MAX_SHARD_BYTES", 1400)
    manifest = build(make_recipe(), tmp_path / "out", tokenizer)
    assert 700 < max(shard["bytes"] for shard in manifest["shards"]) <= 1400
    for name in ("before", "out"):  # shards of folders built before may be larger
        folder = TokenFolder.open(tmp_path / name, tokenizer, verify_hashes=True)
        assert "".join(read(folder, tokenizer, source="water")) == sentences("rivers")


def test_short_documents_are_joined(tmp_path: Path, make_recipe: Make, tokenizer: Any) -> None:
    source = {**BASE, "paths": ["rivers.txt", "mountains.txt"], "join_below": 2000}
    build(make_recipe({"all": source}), tmp_path / "out", tokenizer)
    (text,) = read(TokenFolder.open(tmp_path / "out"), tokenizer)
    assert "rivers" in text and "mountains" in text


def test_jsonl_rows_of_text_and_chat(tmp_path: Path, make_recipe: Make, tokenizer: Any, texts: Path) -> None:
    messages = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Good day."}]
    rows = [{"text": sentences("forests")}, {"messages": messages}, {"messages": messages}]
    (texts / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    recipe = make_recipe({"rows": {**BASE, "paths": ["rows.jsonl"]}})
    build(recipe, tmp_path / "plain", tokenizer)
    expected = [sentences("forests"), "user: Hello?\n\nassistant: Good day.\n"]
    assert read(TokenFolder.open(tmp_path / "plain"), tokenizer) == expected

    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    tokenizer.chat_template = template
    try:
        build(recipe, tmp_path / "chat", tokenizer)
    finally:
        tokenizer.chat_template = None
    folder = TokenFolder.open(tmp_path / "chat")
    tokens = folder.tokens(folder.documents()[1])
    assert list(tokens).count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2


def test_special_tokens_in_ordinary_text_are_ordinary_text(
    tmp_path: Path, make_recipe: Make, tokenizer: Any, texts: Path
) -> None:
    (texts / "spells.txt").write_text("It writes <|im_end|> out. " + sentences("spells"))
    build(make_recipe({"s": {**BASE, "paths": ["spells.txt"]}}), tmp_path / "out", tokenizer)
    folder = TokenFolder.open(tmp_path / "out")
    assert max(folder.tokens(folder.documents()[0])) < 256


@pytest.mark.parametrize("row", ["{broken", '{"texts": "x"}', '{"messages": [{"role": "user"}]}', '"text"'])
def test_a_wrong_jsonl_row_is_named(tmp_path: Path, make_recipe: Make, tokenizer: Any, texts: Path, row: str) -> None:
    (texts / "rows.jsonl").write_text('{"text": "fine"}\n' + row + "\n")
    with pytest.raises(UsageError, match=r"Line 2 of rows\.jsonl"):
        build(make_recipe({"rows": {**BASE, "paths": ["rows.jsonl"]}}), tmp_path / "out", tokenizer)
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing_half_written_and_the_old_folder_whole(
    tmp_path: Path, make_recipe: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: BinaryIO, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    place = tmp_path / "place"
    build(make_recipe(), place / "old", tokenizer)
    monkeypatch.setattr(shards, "write_bytes", full)
    for name in ("old", "new"):
        with pytest.raises(WorkError, match="No space left on device"):
            build(make_recipe(), place / name, tokenizer)
    assert [path.name for path in place.iterdir()] == ["old"]
    TokenFolder.open(place / "old", tokenizer, verify_hashes=True)


def test_an_earlier_data_folder_is_replaced_and_another_folder_is_not(
    tmp_path: Path, make_recipe: Make, tokenizer: Any, texts: Path
) -> None:
    build(make_recipe(), tmp_path / "out", tokenizer)
    build(make_recipe({"one": {**BASE, "paths": ["rivers.txt"]}}), tmp_path / "out", tokenizer)
    assert list(TokenFolder.open(tmp_path / "out").sources) == ["one"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "texts"]
    with pytest.raises(UsageError, match="not a data folder"):
        build(make_recipe(), texts, tokenizer)


@pytest.mark.parametrize("foreign", ["manifest.json", "passages.jsonl", "study/manifest.json"])
def test_nothing_is_replaced_but_what_a_build_wrote(
    tmp_path: Path, make_recipe: Make, tokenizer: Any, foreign: str
) -> None:
    """Other programs have a manifest.json as well, and so has a study."""
    out = tmp_path / "out"
    if foreign != "manifest.json":
        build(make_recipe(), out, tokenizer)
    (out / foreign).parent.mkdir(parents=True, exist_ok=True)
    (out / foreign).write_text("mine")
    with pytest.raises(UsageError, match="is not a data folder"):
        build(make_recipe(), out, tokenizer)
    assert (out / foreign).read_text() == "mine"


def test_an_interrupt_while_the_folder_is_replaced_keeps_the_old_one(
    tmp_path: Path, make_recipe: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename = tmp_path / "out", os.rename
    build(make_recipe(), out, tokenizer)

    def stopped(old: Path, new: Path) -> None:
        if new == out and old.name != "was":  # the new one, not the old one put back
            raise KeyboardInterrupt
        rename(old, new)

    monkeypatch.setattr(os, "rename", stopped)
    with pytest.raises(KeyboardInterrupt):
        build(make_recipe(), out, tokenizer)
    TokenFolder.open(out, tokenizer, verify_hashes=True)


def test_what_a_killed_build_left_is_put_back_or_removed(tmp_path: Path, make_recipe: Make, tokenizer: Any) -> None:
    place, aside = tmp_path / "place", tmp_path / "place/.out-old-a1b2c3_4"
    build(make_recipe(), place / "out", tokenizer)
    aside.mkdir()
    (place / "out").rename(aside / "was")  # and then it was killed
    (place / ".out-abcdefgh").mkdir()
    os.utime(place / ".out-abcdefgh", (0, 0))
    with pytest.raises(UsageError, match="does not exist"):
        build(make_recipe({"s": {**BASE, "paths": ["gone.txt"]}}), place / "out", tokenizer)
    TokenFolder.open(place / "out", tokenizer, verify_hashes=True)
    assert not (place / ".out-abcdefgh").exists()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"paths": ["gone.txt"]}, "does not exist"),
        ({"paths": ["rivers.txt"], "include": ["*.md"]}, "gave no text; check its paths for files ending in .txt"),
        ({"paths": ["short.jsonl"]}, r"gave no text \(left out: 2 short\); a text needs 200 characters"),
        ({"type": "installed", "package": "no-such-package-here", "paths": []}, "pip install"),
    ],
)
def test_a_source_that_is_not_there(
    tmp_path: Path, make_recipe: Make, tokenizer: Any, texts: Path, source: dict[str, Any], words: str
) -> None:
    (texts / "short.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    with pytest.raises(UsageError, match=words):
        build(make_recipe({"s": {**BASE, **source}}), tmp_path / "out", tokenizer)


def test_a_large_vocabulary_takes_four_bytes(tmp_path: Path, make_recipe: Make) -> None:
    large = byte_level(tuple(f"<extra_{n}>" for n in range(66_000)))
    manifest = build(make_recipe(), tmp_path / "out", large)
    folder = TokenFolder.open(tmp_path / "out", large)
    assert manifest["dtype"] == "uint32"
    assert folder.tokens(folder.documents()[0]).dtype == np.dtype("<u4")
    assert read(folder, large, source="water") == [sentences("rivers")]


def test_an_installed_package_is_read_without_importing_it(tmp_path: Path, make_recipe: Make, tokenizer: Any) -> None:
    source = {"type": "installed", "package": "pyyaml", "kind": "code", "licence": "MIT", "group": "directory",
              "include": ["yaml/*.py"]}  # fmt: skip
    manifest = build(make_recipe({"yaml": source}), tmp_path / "out", tokenizer)
    (text,) = read(TokenFolder.open(tmp_path / "out"), tokenizer)
    assert text.startswith("# yaml/__init__.py\n") and "\n# yaml/scanner.py\n" in text
    assert manifest["sources"]["yaml"]["version"] and manifest["sources"]["yaml"]["files"]["RECORD"]


def test_a_folder_that_nobody_named_is_not_given_to_another_recipe(
    tmp_path: Path, make_recipe: Make, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Where no output is named it is data/text, which holds what the shipped recipes train on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sharedllm.loading.load_tokenizer", lambda model: tokenizer)
    source = {**BASE, "paths": ["texts/rivers.txt"]}
    for name in ("mine", "other"):
        tree = {"name": name, "sources": {name: source}}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))

    def ended(*arguments: str) -> int:
        with pytest.raises(SystemExit) as end:
            main(["data", "build", *arguments])
        return int(end.value.code or 0)

    assert [ended("mine.yaml"), ended("mine.yaml")] == [0, 0], "its own again"
    capsys.readouterr()
    assert ended("other.yaml") == 2
    said = capsys.readouterr().err
    assert "data/text holds the text of another recipe (mine); name a folder for that of other with -o" in said
    assert list(TokenFolder.open("data/text").sources) == ["mine"]
    assert ended("other.yaml", "-o", "data/text") == 0
    assert list(TokenFolder.open("data/text").sources) == ["other"]
