"""Which documents a list of names means: each once, and nothing but files."""

from __future__ import annotations

import os

import fsspec
import pytest

from sharedllm import UsageError
from sharedllm.collection.place import Place
from sharedllm.collection.sources import Source, find_sources, read_bytes
from tests.contexts import assert_one_sentence


@pytest.fixture
def memory():
    """fsspec's file system in memory, empty again afterwards."""
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def names(*sources: str) -> list[str]:
    return [source.name for source in find_sources(sources)]


def test_a_document_that_is_named_twice_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    again = ("./texts/a.txt", "texts//a.txt", f"{tmp_path}/texts/*.txt", f"file://{tmp_path}/texts/a.txt")
    assert names("texts", *again) == ["texts/a.txt"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pattern_means_files_alone_as_a_folder_does(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    assert names(f"{tmp_path}/*.txt") == names(str(tmp_path)) == [f"{tmp_path}/a.txt"]


@pytest.mark.parametrize("pattern", ["**", "**/*.txt"])
def test_two_stars_do_not_go_round_in_linked_folders(tmp_path, pattern):
    folder = tmp_path / "docs"
    (folder / "b").mkdir(parents=True)
    for name in ("a.txt", "b/z.txt"):
        (folder / name).write_text(name)
    (folder / "b" / "loop").symlink_to(folder, target_is_directory=True)
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    assert sorted(names(f"{folder}/{pattern}")) == [f"{folder}/a.txt", f"{folder}/b/z.txt"]
    assert names(f"{tmp_path}/link/*.txt") == [f"{tmp_path}/link/a.txt"], "one that is named is followed"


def test_a_file_that_is_removed_while_files_are_listed_is_left_out(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("a")
    listed = [f"{tmp_path}/a.txt", f"{tmp_path}/gone.txt"]
    monkeypatch.setattr("sharedllm.collection.sources.folder_files", lambda _folder: listed)
    assert names(str(tmp_path)) == listed[:1]


def test_a_hidden_folder_that_a_pattern_names_is_looked_into(memory):
    for name in ("a.txt", ".b.txt", ".c/d.txt"):
        memory.pipe_file(f"/.hidden/{name}", b"text")
    for pattern in ("*", "**"):
        assert names(f"memory://.hidden/{pattern}") == ["memory:///.hidden/a.txt"]


def test_what_a_killed_reading_left_is_no_document(memory, tmp_path):
    part = f"part-{'0a' * 16}.safetensors"
    for name in ("a.txt", part, f"{part}.unfinished", f"kept/{part}", "kept/.lock"):
        memory.pipe_file(f"/left/{name}", b"text")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"text")
    for pattern in ("", "/**"):
        assert names(f"memory://left{pattern}") == ["memory:///left/a.txt"]
        assert names(f"{tmp_path}{pattern}") == [f"{tmp_path}/a.txt"]
    memory.pipe_file("/left/kept/context.json", b"{}")
    assert names("memory://left") == ["memory:///left/a.txt"], "it is a store"


def test_what_a_backend_listed_before_is_asked_for_again(memory, monkeypatch):
    told: dict = {}
    find = type(memory).find
    monkeypatch.setattr(type(memory), "find", lambda self, path, **o: told.setdefault(path, find(self, path, **o)))
    monkeypatch.setattr(type(memory), "invalidate_cache", lambda self, path=None: told.clear())
    for i in range(2):
        memory.pipe_file(f"/listed/{i}.txt", b"text")
        assert len(names("memory://listed")) == i + 1


def test_a_document_that_is_larger_than_was_listed_is_refused(memory):
    memory.pipe_file("/grown.txt", b"x" * 100)
    assert len(read_bytes(Source("memory:///grown.txt", 0, ""), 100)) == 100
    with pytest.raises(UsageError, match="larger than the limit of 99 bytes"):
        read_bytes(Source("memory:///grown.txt", 0, ""), 99)


@pytest.mark.parametrize("address", ["ftp://host/docs", "ftp://host/docs/*.txt", "ftp://user:secret@host:21/docs"])
def test_an_address_whose_files_would_not_say_all_of_it_is_refused(address):
    for look in (lambda: find_sources([address]), lambda: Place(address)):
        with pytest.raises(UsageError, match=r"says more than a path \(host") as error:
            look()
        assert_one_sentence(error)
