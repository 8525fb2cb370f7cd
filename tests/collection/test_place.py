"""Where a collection lies: folders, addresses, and stores that are fetched while others write."""

from __future__ import annotations

import json
import os
import time

import fsspec
import pytest
from huggingface_hub import HfFileSystem
from huggingface_hub.errors import BucketNotFoundError, RepositoryNotFoundError

from sharedllm import UsageError, WorkError
from sharedllm.collection import place
from sharedllm.collection.place import Place
from sharedllm.files import STALE_SECONDS

STORE = "/fetched/stores/a"
OLD, NEW = (f"segment-{letter * 32}.safetensors" for letter in "ab")


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """fsspec's file system in memory, empty again afterwards, and a cache of its own."""
    monkeypatch.setattr(place, "CACHE", tmp_path / "cache")
    system = fsspec.filesystem("memory")
    yield system
    system.rm("/", recursive=True)


def manifest(*segments: str, **about: str) -> bytes:
    return json.dumps({**about, "segments": {name: {} for name in segments}}).encode()


def write(memory, segment: str) -> None:
    """Write a store of one segment, and remove that of before, as an upload does."""
    memory.pipe_file(f"{STORE}/{segment}", segment.encode())
    memory.pipe_file(f"{STORE}/context.json", manifest(segment))
    for path in memory.ls(STORE, detail=False):
        if not path.endswith((segment, "context.json")):
            memory.rm_file(path)


def test_a_store_that_is_written_anew_while_it_is_fetched_comes_whole(memory, monkeypatch):
    write(memory, OLD)
    real, fetched = type(memory).get_file, []

    def replaced(self, remote, file, **options):
        fetched.append(remote)
        if len(fetched) == 1:
            write(memory, NEW)
        real(self, remote, file, **options)

    monkeypatch.setattr(type(memory), "get_file", replaced)
    folder = Place("memory://fetched").fetch("stores/a")
    assert NEW in (folder / "context.json").read_text() and (folder / NEW).read_text() == NEW
    assert len(fetched) == 2


def test_a_store_that_was_written_since_it_was_listed_comes_whole(memory, monkeypatch):
    told: dict = {}
    ls = type(memory).ls
    monkeypatch.setattr(type(memory), "ls", lambda self, path, **o: told.setdefault(path, ls(self, path, **o)))
    monkeypatch.setattr(type(memory), "invalidate_cache", lambda self, path=None: told.clear())
    for segment in (OLD, NEW):
        memory.pipe_file(f"{STORE}/{segment}", b"it")
        memory.pipe_file(f"{STORE}/context.json", manifest(segment))
        assert (Place("memory://fetched").fetch("stores/a") / segment).exists()


def test_a_store_of_another_model_is_not_taken_from_the_cache(memory):
    for model in ("f00d+1", "f00d+2", "f00d+1"):  # whose segments have the same names
        memory.pipe_file(f"{STORE}/{OLD}", model.encode())
        memory.pipe_file(f"{STORE}/context.json", manifest(OLD, model=model))
        assert (Place("memory://fetched").fetch("stores/a") / OLD).read_text() == model


def test_a_fetched_store_holds_what_its_manifest_names_and_nothing_of_before(memory):
    write(memory, OLD)
    memory.pipe_file(f"{STORE}/part-{'c' * 32}.safetensors", b"it")
    folder = Place("memory://fetched").fetch("stores/a")
    assert {file.name for file in folder.iterdir()} == {"context.json", OLD}
    left = [folder / f"{OLD}.{i}.unfinished" for i in range(2)]
    for file in left:
        file.write_bytes(b"it")
    os.utime(left[0], (time.time() - 2 * STALE_SECONDS,) * 2)
    write(memory, NEW)
    assert Place("memory://fetched").fetch("stores/a") == folder
    assert {file.name for file in folder.iterdir()} == {"context.json", NEW, left[1].name}, "one may be on its way"


def test_of_a_store_segments_and_manifest_are_uploaded_alone(memory):
    with Place("memory://fetched").store("stores/a") as folder:
        folder.mkdir()
        left = (f"part-{'c' * 32}.safetensors", f"{NEW}.unfinished", ".lock")
        for name in (OLD, *left):
            (folder / name).write_bytes(b"it")
        (folder / "context.json").write_bytes(manifest(OLD))
    assert set(memory.ls(STORE, detail=False)) == {f"{STORE}/context.json", f"{STORE}/{OLD}"}


def test_of_several_files_those_that_are_not_there_are_left_out_and_another_error_is_told(memory, monkeypatch):
    kept, real = Place("memory://several"), type(memory).cat_file
    for name in ("a", "b"):
        kept.write(name, name.encode())
    assert kept.read_all(["a", "none", "b"]) == {"a": b"a", "b": b"b"} and kept.read_all([]) == {}

    def refused(self, path, *arguments, **options):
        if path.endswith("/b"):
            raise PermissionError("no key was given")
        return real(self, path, *arguments, **options)

    monkeypatch.setattr(type(memory), "cat_file", refused)
    with pytest.raises(WorkError, match="cannot read memory://several: no key was given"):
        kept.read_all(["a", "b"])


def test_a_store_that_is_not_there_is_told(memory):
    with pytest.raises(UsageError, match="holds no stores/a"):
        Place("memory://fetched").fetch("stores/a")


def test_stores_of_two_backends_are_fetched_to_two_folders(memory, tmp_path):
    (tmp_path / "kept" / "stores" / "a").mkdir(parents=True)
    (tmp_path / "kept" / "stores" / "a" / "context.json").write_text("{}")
    memory.pipe_file(f"{tmp_path}/kept/stores/a/context.json", b"{}")
    one, other = (Place(f"{kind}://{tmp_path}/kept") for kind in ("local", "memory"))
    assert one.root == other.root and one.fetch("stores/a") != other.fetch("stores/a")


def test_the_names_in_a_folder(memory, tmp_path):
    for kept in (Place("memory://named"), Place(tmp_path / "named")):
        assert kept.names("stores") == set()
        for name in ("a", "b"):
            kept.write(f"stores/{name}/context.json", b"{}")
        assert kept.names("stores") == {"a", "b"}


def test_the_working_folder_and_the_root_are_places(memory, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Place("").write("documents.jsonl", b"it")
    assert (tmp_path / "documents.jsonl").read_bytes() == b"it"
    assert Place("/").root == "/" and Place("kept/").root == "kept"
    Place("memory://").write("documents.jsonl", b"it")
    assert memory.cat_file("/documents.jsonl") == b"it"


@pytest.fixture
def hub(monkeypatch):
    """The Hugging Face Hub with `user/name` of each kind, empty; gives what is written there by path."""
    written: dict[str, bytes] = {}

    def found(error, name):
        return (True, None) if name == "user/name" else (False, error.__new__(error))

    monkeypatch.setattr(HfFileSystem, "_repo_and_revision_exist", lambda self, kind, name, revision: found(RepositoryNotFoundError, name))  # fmt: skip
    monkeypatch.setattr(HfFileSystem, "_bucket_exists", lambda self, name: found(BucketNotFoundError, name))
    monkeypatch.setattr(HfFileSystem, "pipe_file", lambda self, path, data: written.update({path: data}))
    HfFileSystem.clear_instance_cache()
    yield written
    HfFileSystem.clear_instance_cache()


@pytest.mark.parametrize("top", ["user/name", "datasets/user/name", "spaces/user/name", "buckets/user/name", "user/name@refs/pr/1"])  # fmt: skip
def test_a_repository_of_the_hub_is_a_place(hub, top):
    for where in (f"hf://{top}", f"hf://{top}/a/kept"):
        Place(where).write("documents.jsonl", b"it")
    assert hub == dict.fromkeys((f"{top}/documents.jsonl", f"{top}/a/kept/documents.jsonl"), b"it")


@pytest.mark.parametrize("top", ["user/other", "datasets/user/other", "buckets/user/other"])
def test_a_repository_of_the_hub_that_is_not_there_is_one_sentence(hub, top):
    with pytest.raises(WorkError, match=f"write to hf://{top}/kept: there is no {top}"):
        Place(f"hf://{top}/kept").write("documents.jsonl", b"it")
    assert not hub
