"""Reading many documents into stores of their own: all of them, nothing twice, whatever else lies among them."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys

import pytest
import torch

from sharedllm import Context, UsageError, WorkError
from sharedllm.collection.read import batches, read_collection
from sharedllm.collection.sources import Source
from tests.collection.conftest import documents, text
from tests.conftest import CONFIG
from tests.contexts import assert_one_sentence, assert_same_chunks, encoded, files
from tests.source_files import line, pdf
from tests.test_generate import counted


def kept(records):
    return {source for source, record in records.items() if record.state == "kept"}


def test_each_document_has_a_store_and_the_poisoned_ones_a_reason(home, local, tmp_path):
    folder, where = documents(tmp_path / "texts"), tmp_path / "kept"
    heard = []
    records = read_collection([str(folder)], where, local(where), lambda now: heard.append((now.done, now.failed)))
    assert {s.removeprefix(f"{folder}/") for s in kept(records)} == {"0.txt", "2.txt", "4.txt", *(f"more/{i}.txt" for i in (1, 3, 5))}  # fmt: skip
    told = [json.loads(line) for line in (where / "documents.jsonl").read_text().splitlines()]
    assert [t["source"] for t in told] == sorted(records) and len(told) == 9 and heard[-1] == (9, 3)
    for name, word in (("binary", "binary"), ("empty", "empty"), ("huge", "larger than the limit")):
        (entry,) = (t for t in told if t["source"].endswith(f"{name}.txt"))
        assert entry["state"] == "failed" and word in entry["reason"] and "store" not in entry
    for entry in (t for t in told if t["state"] == "kept"):
        number = int(entry["source"].rsplit("/", 1)[1].removesuffix(".txt"))
        context = Context.load(where / "stores" / entry["store"], home.llm)
        assert entry["tokens"] == context.tokens == len(text(number, 40 + number))
        assert_same_chunks(context, encoded(home.llm, home.llm.reader.token_ids(text(number, 40 + number))))


def test_the_same_call_again_reads_what_changed_and_nothing_else(home, local, tmp_path, monkeypatch):
    folder, where = documents(tmp_path / "texts"), tmp_path / "kept"
    read_collection([str(folder)], where, local(where))
    before, calls = files(where), counted(monkeypatch, home.llm.lower, "encode")
    read_collection([str(folder), str(folder), f"{folder}/0.txt"], where, local(where))
    assert files(where) == before and not calls
    (where / "documents.jsonl").unlink()  # as if it had been killed before the manifest was written
    read_collection([str(folder)], where, local(where))
    assert files(where) == before and not calls
    (folder / "empty.txt").write_text(text(50))
    (folder / "0.txt").write_text(text(51))
    records = read_collection([f"{folder}/*.txt"], where, local(where))
    assert len(kept(records)) == 7 and len(calls) == sum(-(-len(text(seed)) // 16) for seed in (50, 51))


def test_stopped_at_any_document_the_same_call_ends_the_same(home, local, tmp_path):
    folder, whole = documents(tmp_path / "texts"), tmp_path / "whole"
    read_collection([str(folder)], whole, local(whole))
    where = tmp_path / "kept"
    for stop in (1, 3):

        def stopped(now, stop=stop):
            if now.done == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            read_collection([str(folder)], where, local(where), stopped)
    read_collection([str(folder)], where, local(where))
    assert files(where) == files(whole)


def test_a_document_that_breaks_its_parser_stops_nothing(home, local, tmp_path, monkeypatch):
    folder, where = documents(tmp_path / "texts", 2), tmp_path / "kept"
    (folder / "broken.html").write_text("<html><body>text</body></html>")

    def breaks(*_arguments):
        raise RecursionError("too deep")

    monkeypatch.setattr("sharedllm.sources.html_text", breaks)
    records = read_collection([str(folder)], where, local(where))
    assert "RecursionError, too deep" in records[f"{folder}/broken.html"].reason and len(kept(records)) == 2


def test_a_pdf_that_takes_for_ever_stops_nothing(home, local, tmp_path, monkeypatch):
    folder, where = documents(tmp_path / "texts", 2), tmp_path / "kept"
    (folder / "good.pdf").write_bytes(pdf([line("amber basin cedar")]))
    records = read_collection([str(folder)], where, local(where))
    assert records[f"{folder}/good.pdf"].tokens == len("amber basin cedar") and len(kept(records)) == 3
    (folder / "for-ever").write_bytes(pdf([b"/F Do"] * 40, b"BT /T 12 Tf " + b"(word ) Tj " * 100_000 + b"ET"))
    monkeypatch.setattr("sharedllm.collection.worker.PDF_SECONDS", 1.0)
    records = read_collection([str(folder)], where, local(where))
    assert "takes more than 1 s" in records[f"{folder}/for-ever"].reason and len(kept(records)) == 3


def test_at_an_address_stores_are_written_and_found_as_in_a_folder(home, local, tmp_path, monkeypatch):
    import fsspec

    folder, where, address = documents(tmp_path / "texts"), tmp_path / "kept", "memory://bucket/kept"
    memory = fsspec.filesystem("memory")
    for file in folder.rglob("*.txt"):
        memory.pipe_file(f"/texts/{file.relative_to(folder)}", file.read_bytes())
    read_collection([str(folder)], f"file://{where}", local(f"file://{where}"))
    records = read_collection(["memory://texts"], address, local(address))
    assert kept(records) == {f"memory:///texts/{name}" for name in ("0.txt", "2.txt", "4.txt", "more/1.txt", "more/3.txt", "more/5.txt")}  # fmt: skip

    def contents(data):
        return sorted(bytes for name, bytes in data.items() if name.endswith(".safetensors"))

    uploaded = {path: memory.cat_file(path) for path in memory.find("/bucket/kept")}
    assert contents(uploaded) == contents(files(where))
    calls = counted(monkeypatch, home.llm.lower, "encode")
    memory.rm_file("/bucket/kept/documents.jsonl")
    assert read_collection(["memory://texts/**/*.txt"], address, local(address)) == records and not calls
    memory.rm("/", recursive=True)


def test_an_upload_that_is_cut_off_leaves_no_manifest_and_is_made_again(home, local, tmp_path, monkeypatch):
    import fsspec

    folder, address = documents(tmp_path / "texts", 1), "memory://cut/kept"
    memory = fsspec.filesystem("memory")
    real, sent = type(memory).put_file, []

    def cut_off(self, local_file, remote, **options):
        sent.append(remote)
        if remote.endswith("context.json") and len(sent) < 9:
            raise TimeoutError("the connection broke")
        real(self, local_file, remote, **options)

    monkeypatch.setattr(type(memory), "put_file", cut_off)
    (record,) = (r for s, r in read_collection([f"{folder}/0.txt"], address, local(address)).items())
    assert record.state == "failed" and "the connection broke" in record.reason and sent[-1].endswith("context.json")
    assert not [path for path in memory.find("/cut") if path.endswith("context.json")]
    sent.extend(["again"] * 9)
    (record,) = read_collection([f"{folder}/0.txt"], address, local(address)).values()
    assert record.state == "kept"
    memory.rm("/", recursive=True)


def test_mistakes_are_one_sentence_and_write_nothing(home, local, tmp_path):
    where = tmp_path / "kept"
    for sources, word in ((["nowhere.txt"], "does not exist"), (["-"], "name files or folders"), ([f"{tmp_path}/*.x"], "no file"), (["what://x"], "no address")):  # fmt: skip
        with pytest.raises(UsageError, match=word) as error:
            read_collection(sources, where, local(where))
        assert_one_sentence(error)
        assert not where.exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    (tmp_path / "a.txt").write_text(text(0))
    with pytest.raises(UsageError, match="choose another folder"):
        read_collection([f"{tmp_path}/a.txt"], tmp_path / "other", local(tmp_path / "other"))
    read_collection([f"{tmp_path}/a.txt"], where, local(where))
    (where / "documents.jsonl").write_text("nonsense\n")
    with pytest.raises(WorkError, match="line 1 is not a record"):
        read_collection([f"{tmp_path}/a.txt"], where, local(where))


def test_a_collection_of_another_model_is_not_mixed(home, local, tmp_path, make):
    from sharedllm.collection.engines import LocalEngine
    from sharedllm.collection.worker import Worker

    (tmp_path / "a.txt").write_text(text(0))
    where = tmp_path / "kept"
    read_collection([f"{tmp_path}/a.txt"], where, local(where))
    with pytest.raises(UsageError, match="another model, adapter"):
        read_collection([f"{tmp_path}/a.txt"], where, LocalEngine(Worker(make(hidden_size=64), where)))


def differing_above(llm):
    """The same model with another layer above those that fingerprints look at."""
    with torch.no_grad():
        for weight in llm.parts.layers[-1].parameters():
            weight.neg_()
    return llm


def test_a_collection_of_a_model_that_differs_in_upper_layers_alone_is_not_mixed_or_searched(tmp_path, make):
    from sharedllm.collection.engines import LocalEngine
    from sharedllm.collection.search import Collection
    from sharedllm.collection.worker import Worker

    llm, other, where = make(), differing_above(make()), tmp_path / "kept"
    assert llm.fingerprint == other.fingerprint and llm.reader.identity != other.reader.identity
    (tmp_path / "a.txt").write_text(text(0))
    read_collection([f"{tmp_path}/a.txt"], where, LocalEngine(Worker(llm, where)))
    assert Collection(where, llm).search("amber?", documents=1)
    with pytest.raises(UsageError, match="another model, adapter"):
        read_collection([f"{tmp_path}/a.txt"], where, LocalEngine(Worker(other, where)))
    with pytest.raises(UsageError, match="another model or adapter"):
        Collection(where, other)


def test_records_that_tell_of_their_model_a_fingerprint_alone_are_added_to_and_searched(tmp_path, make, monkeypatch):
    from sharedllm.collection.engines import LocalEngine
    from sharedllm.collection.search import Collection
    from sharedllm.collection.worker import Worker

    llm, other, where, made_with = make(), differing_above(make()), tmp_path / "kept", Worker.made_with
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text(text(i))
    with monkeypatch.context() as patched:
        patched.setattr(Worker, "made_with", lambda self: re.sub(r"^(\w+)\+\w+", r"\1", made_with(self)))
        (old,) = read_collection([f"{tmp_path}/0.txt"], where, LocalEngine(Worker(llm, where))).values()
    assert "+" not in old.made_with.split(" ")[0] and Collection(where, llm).search("amber?", documents=1)
    records = read_collection([f"{tmp_path}/[01].txt"], where, LocalEngine(Worker(llm, where)))
    assert len(kept(records)) == 2 and old in records.values()
    assert len(Collection(where, llm).search("amber?", documents=2)) == 2
    with pytest.raises(UsageError, match="another model, adapter"):
        read_collection([f"{tmp_path}/1.txt"], where, LocalEngine(Worker(other, where)))


def test_batches_are_of_alike_lengths_the_longest_first():
    sources = [Source(str(n), n, "") for n in (5, 90, 10, 40, 50, 200)]
    assert [[s.bytes for s in batch] for batch in batches(sources, 100)] == [[200], [90], [50, 40, 10], [5]]


def test_killed_between_a_store_and_its_sketch_the_next_run_makes_the_sketch(home, local, tmp_path, monkeypatch):
    from sharedllm.collection.place import Place

    class Killed(BaseException):
        pass

    def cut_off(self, name, data):
        if name.startswith("sketches"):
            raise Killed
        write(self, name, data)

    write, file, where = Place.write, tmp_path / "a.txt", tmp_path / "kept"
    file.write_text(text(0))
    read_collection([str(file)], where, local(where))
    file.write_text(text(1))
    monkeypatch.setattr(Place, "write", cut_off)
    with pytest.raises(Killed):
        read_collection([str(file)], where, local(where))
    monkeypatch.setattr(Place, "write", write)
    calls = counted(monkeypatch, home.llm.lower, "encode")
    read_collection([str(file)], where, local(where))
    assert not calls  # what was read is not read again
    read_collection([str(file)], tmp_path / "whole", local(tmp_path / "whole"))

    def sketches(folder):
        return [data for name, data in files(folder).items() if "sketches" in name]

    assert sketches(where) == sketches(tmp_path / "whole") and len(sketches(where)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every name of a file is text")
def test_a_name_that_is_no_utf8_costs_no_manifest(local, tmp_path):
    (tmp_path / "texts").mkdir()
    names = [str(tmp_path / "texts" / "plain é.txt"), os.fsdecode(os.fsencode(tmp_path / "texts") + b"/caf\xe9.txt")]
    for i, name in enumerate(names):
        with open(name, "w") as file:
            file.write(text(i))
    where = tmp_path / "kept"
    records = read_collection([str(tmp_path / "texts")], where, local(where))
    assert kept(records) == set(names)
    written = (where / "documents.jsonl").read_text(encoding="utf-8")
    assert {json.loads(line)["source"] for line in written.splitlines()} == set(names) and "plain é" in written
    assert read_collection([str(tmp_path / "texts")], where, local(where)) == records


@pytest.mark.parametrize("pattern", ["", "/*", "/**"])
def test_a_collection_inside_the_folder_that_is_read_is_no_document(local, tmp_path, pattern, monkeypatch):
    folder, where = documents(tmp_path / "texts", 2), tmp_path / "texts" / "kept"
    for name in ("binary", "empty", "huge"):
        (folder / f"{name}.txt").unlink()

    def stopped(now):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # killed before the first manifest
        patched.setattr("sharedllm.collection.read.write_records", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            read_collection([f"{folder}{pattern}"], where, local(where), stopped)
    for _ in range(2):
        records = read_collection([f"{folder}{pattern}"], where, local(where))
        assert set(records) == kept(records) == {f"{folder}/0.txt", f"{folder}/more/1.txt"}
    with pytest.raises(UsageError, match="name the texts themselves"):
        read_collection([str(where)], tmp_path / "other", local(tmp_path / "other"))


@pytest.mark.parametrize("pattern", ["", "/**"])
def test_a_remote_collection_inside_what_is_read_is_no_document(local, pattern):
    import fsspec

    memory, address = fsspec.filesystem("memory"), "memory://inside/kept"
    memory.pipe_file("/inside/a.txt", text(0).encode())
    memory.pipe_file("/inside/context.json", b"{}")
    for _ in range(2):
        records = read_collection([f"memory://inside{pattern}"], address, local(address))
        assert kept(records) == {"memory:///inside/a.txt", "memory:///inside/context.json"} == set(records)
    memory.rm("/", recursive=True)


def test_records_that_do_not_say_what_they_are_searched_by_are_added_to(home, local, tmp_path, make, monkeypatch):
    from sharedllm.collection.engines import LocalEngine
    from sharedllm.collection.worker import Worker

    where = tmp_path / "kept"
    for i in range(2):
        (tmp_path / f"{i}.txt").write_text(text(i))
    made_with = Worker.made_with
    monkeypatch.setattr(Worker, "made_with", lambda self: made_with(self).partition(", searched by ")[0])
    (old,) = read_collection([f"{tmp_path}/0.txt"], where, local(where)).values()
    monkeypatch.setattr(Worker, "made_with", made_with)
    records = read_collection([f"{tmp_path}/1.txt"], where, local(where))
    assert len(kept(records)) == 2 and old in records.values()
    other = Worker(make(dataclasses.replace(CONFIG, search_layer=0)), where)
    assert other.llm.config.representing_layer != home.llm.config.representing_layer
    with pytest.raises(UsageError, match="another model, adapter"):
        read_collection([f"{tmp_path}/1.txt"], where, LocalEngine(other))
