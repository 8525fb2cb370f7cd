"""Collections of which something was lost or cut off: the same call makes it whole."""

from __future__ import annotations

import shutil

import fsspec
import pytest

from sharedllm.collection.read import read_collection
from tests.collection.conftest import text
from tests.contexts import files


@pytest.mark.parametrize("lost", ["sketches", "stores"])
def test_a_store_or_a_sketch_that_is_lost_is_made_again(local, tmp_path, lost):
    where = tmp_path / "kept"
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text(text(i))
    read_collection([f"{tmp_path}/*.txt"], where, local(where))
    before, gone = files(where), min((where / lost).iterdir())
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    read_collection([f"{tmp_path}/*.txt"], where, local(where))
    assert files(where) == before


def test_a_store_cut_short_is_made_again(local, tmp_path):
    where = tmp_path / "kept"
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text(text(i))
    read_collection([f"{tmp_path}/*.txt"], where, local(where))
    before, segments = files(where), sorted((where / "stores").glob("*/segment-*"))
    segments[0].write_bytes(segments[0].read_bytes()[:-9])
    segments[-1].unlink()
    read_collection([f"{tmp_path}/*.txt"], where, local(where))
    assert files(where) == before


def test_a_sketch_that_is_lost_at_an_address_is_made_again(local, tmp_path):
    memory, address = fsspec.filesystem("memory"), "memory://lost/kept"
    (tmp_path / "a.txt").write_text(text(0))
    read_collection([f"{tmp_path}/a.txt"], address, local(address))
    (sketch,) = memory.find("/lost/kept/sketches")
    before = memory.cat_file(sketch)
    memory.rm_file(sketch)
    read_collection([f"{tmp_path}/a.txt"], address, local(address))
    assert memory.cat_file(sketch) == before
    memory.rm("/", recursive=True)


def test_a_segment_that_is_lost_at_an_address_is_made_again_where_its_sketch_is_removed(local, tmp_path):
    memory, address = fsspec.filesystem("memory"), "memory://lost/kept"
    (tmp_path / "a.txt").write_text(text(0))
    read_collection([f"{tmp_path}/a.txt"], address, local(address))
    before = {path: memory.cat_file(path) for path in memory.find("/lost/kept")}
    segment = max(path for path in before if "segment-" in path)
    (sketch,) = memory.find("/lost/kept/sketches")
    memory.rm([segment, sketch])
    read_collection([f"{tmp_path}/a.txt"], address, local(address))
    assert {path: memory.cat_file(path) for path in memory.find("/lost/kept")} == before
    memory.rm("/", recursive=True)


def test_an_upload_that_was_killed_inside_what_is_read_is_no_document(local, monkeypatch):
    memory, address = fsspec.filesystem("memory"), "memory://around/kept"
    memory.pipe_file("/around/a.txt", text(0).encode())
    put_file = type(memory).put_file

    def killed(self, file, remote, **options):
        if remote.endswith("context.json"):
            raise KeyboardInterrupt
        put_file(self, file, remote, **options)

    with monkeypatch.context() as patched:
        patched.setattr(type(memory), "put_file", killed)
        patched.setattr("sharedllm.collection.read.write_records", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            read_collection(["memory://around"], address, local(address))
    assert any("segment-" in path for path in memory.find("/around/kept/stores"))
    (record,) = read_collection(["memory://around"], address, local(address)).values()
    assert (record.source, record.state) == ("memory:///around/a.txt", "kept")
    memory.rm("/", recursive=True)
