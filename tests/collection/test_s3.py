"""A collection in S3, as a local server stands in for it."""

from __future__ import annotations

import pytest

from sharedllm.collection import place
from sharedllm.collection.read import read_collection
from sharedllm.collection.search import Collection
from tests.collection.conftest import documents, text
from tests.test_generate import counted


@pytest.fixture
def bucket(monkeypatch):
    """The address of an empty bucket."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    server = pytest.importorskip("moto.server", reason="moto is not installed: pip install 'moto[server]'")
    running = server.ThreadedMotoServer(port=0)
    running.start()
    host, port = running.get_host_and_port()
    for name, value in (("AWS_ENDPOINT_URL", f"http://{host}:{port}"), ("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")):  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    if not s3fs.S3FileSystem().exists("texts"):
        s3fs.S3FileSystem().mkdir("texts")
    yield "s3://texts"
    s3fs.S3FileSystem.clear_instance_cache()
    running.stop()


def test_documents_are_read_from_a_bucket_into_it_and_asked_there(bucket, home, local, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setattr(place, "CACHE", tmp_path / "cache")
    folder, where = documents(tmp_path / "texts", 4), f"{bucket}/kept"
    fsspec.filesystem("s3").put(str(folder), "texts/read", recursive=True)
    records = read_collection([f"{bucket}/read"], where, local(where))
    assert sum(r.state == "kept" for r in records.values()) == 4 and len(records) == 7
    calls = counted(monkeypatch, home.llm.lower, "encode")
    assert read_collection([f"{bucket}/read"], where, local(where)) == records and not calls
    collection = Collection(where, home.llm)
    hits = collection.search("amber?", documents=4)
    assert sorted(hit.source[-5:] for hit in hits) == ["0.txt", "1.txt", "2.txt", "3.txt"]
    (first,) = (hit for hit in hits if hit.source.endswith("0.txt"))
    assert collection.context([first]).tokens == first.tokens == len(text(0))
    fsspec.filesystem("s3").pipe_file("texts/read/0.txt", text(9).encode())
    changed = read_collection([f"{bucket}/read"], where, local(where))
    assert len(calls) == -(-len(text(9)) // 16) and changed[first.source].tokens == len(text(9))
    assert Collection(where, home.llm).context([first]).ids.tolist() == home.llm.reader.token_ids(text(9)).tolist()


def test_a_bucket_that_is_not_there_is_one_sentence(bucket, home, local, tmp_path):
    from sharedllm import WorkError

    (tmp_path / "a.txt").write_text(text(0))
    with pytest.raises(WorkError, match="write to s3://nowhere/kept: there is no nowhere"):
        read_collection([f"{tmp_path}/a.txt"], "s3://nowhere/kept", local("s3://nowhere/kept"))
