"""A library of documents in one folder: added, removed, composed in any order, each chunk kept once."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest
import torch

import sharedllm.saved
from sharedllm import Context, Library, SharedConfig, SharedLLM, UsageError, WorkError
from sharedllm.chunks import AS_SET, Stored
from sharedllm.encoded import Encoded
from sharedllm.store_write import writing
from tests.conftest import CONFIG, tokens
from tests.contexts import assert_one_sentence, assert_same_chunks, encoded, files, segments
from tests.test_generate import counted

WINDOW = tokens(6, 1)[None]
A, B, C = tokens(16 * 5, 1), tokens(16 * 3, 2), tokens(16 * 4 + 7, 3)


@pytest.fixture
def llm(make):
    return make()


@pytest.fixture
def library(llm, tmp_path):
    library = Library(tmp_path / "lib", llm)
    library.update({"a": A, "b": B, "c": C})
    return library


def logits(llm, context):
    return llm(WINDOW, context=context).logits


# Composing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["abc", "bac", "ba", "b"])
def test_documents_in_any_order_are_what_reading_them_in_that_order_gives(llm, library, order):
    whole = encoded(llm, torch.cat([{"a": A, "b": B, "c": C}[name] for name in order]))
    assert_same_chunks(library.context(list(order)), whole)
    assert torch.equal(library.context(list(order)).ids, whole.ids)
    assert torch.equal(logits(llm, library.context(list(order))), logits(llm, whole))
    composed = Context.compose([library.context([name]) for name in order])
    assert torch.equal(logits(llm, composed), logits(llm, whole))


def test_a_short_last_chunk_stays_one_wherever_its_document_stands(llm, library):
    context = library.context(["c", "a"])
    assert [int(n) for block in context.blocks for n in block.lengths] == [16] * 4 + [7] + [16] * 5
    assert_same_chunks(context.without_first(5), encoded(llm, A))
    assert torch.equal(context.without_first(5).ids, A.int())
    context.append(tokens(9, 7))
    assert_same_chunks(context.without_first(5), encoded(llm, torch.cat([A, tokens(9, 7)])))


def test_texts_that_were_not_encoded_compose_too(llm):
    short, other, long = llm.read(tokens(20, 1)), llm.read(tokens(30, 2)), llm.read(tokens(100, 3))
    assert Context.compose([short, other]).chunks == 0
    whole = Context.compose([short, long])
    assert [int(n) for block in whole.blocks for n in block.lengths] == [16, 4] + [16] * 6 + [4]
    assert llm.ask(Context.compose([short, other]), "who?", max_new_tokens=4)


def test_contexts_of_different_models_or_settings_do_not_compose(llm, make):
    other = make(dataclasses.replace(CONFIG, chunk_length=32))
    for context in (other.read(A), make(hidden_size=16).read(A)):
        with pytest.raises(UsageError, match=r"different|another|chunk_length") as error:
            Context.compose([llm.read(A), context])
        assert_one_sentence(error)
    with pytest.raises(UsageError, match="at least one"):
        Context.compose([])


# Adding and removing --------------------------------------------------------------------------


def test_what_is_in_the_library_is_not_read_again(llm, library, monkeypatch):
    calls = counted(monkeypatch, llm.lower, "encode")
    library.add("a again", A)
    library.add("c", torch.cat([C, tokens(11, 4)]))  # the ragged 7 and 11 more: one full chunk and 2 tokens
    assert [tuple(ids.shape) for ids, *_ in calls] == [(1, 16), (1, 2)]
    assert library.documents == {"a": 80, "b": 48, "c": 82, "a again": 80}
    assert_same_chunks(library.context(["c"]), encoded(llm, torch.cat([C, tokens(11, 4)])))


def test_equal_chunks_are_kept_once(llm, library, tmp_path):
    before = library.nbytes
    chunks = sum(f.stat().st_size for f in segments(library.folder))
    library.add("all", torch.cat([A, B, A, A, C]))
    assert sum(f.stat().st_size for f in segments(library.folder)) == chunks
    assert library.nbytes - before < 2000  # names of chunks in the manifest
    repeated = Library(tmp_path / "repeated", llm)
    repeated.add("same", tokens(16, 9).repeat(50))
    (segment,) = segments(repeated.folder)
    assert segment.stat().st_size < chunks / 5
    assert_same_chunks(repeated.context(), encoded(llm, tokens(16, 9).repeat(50)))


def test_a_removed_document_is_gone_and_so_are_its_bytes(llm, library, tmp_path):
    library.add("d", B)  # shares its chunks with b
    library.remove("b", "c")
    assert library.documents == {"a": 80, "d": 48}
    fresh = Library(tmp_path / "fresh", llm)
    fresh.update({"a": A, "d": B})
    assert {f.name for f in segments(library.folder)} == {f.name for f in segments(fresh.folder)}
    assert torch.equal(logits(llm, library.context()), logits(llm, fresh.context()))
    with pytest.raises(UsageError, match="no document 'b'; it has: d") as error:
        library.remove("a", "b")
    assert_one_sentence(error)
    assert library.documents == {"a": 80, "d": 48}


def test_a_document_that_was_replaced_leaves_nothing_once_it_is_removed(llm, library, tmp_path):
    long = tokens(16 * 8, 9)
    library.add("d", long)
    library.add("d", torch.cat([long[:16], tokens(16 * 3, 10)]))  # shares its first chunk with the one before
    library.add("e", tokens(16 * 2, 11))
    library.remove("d", "e")
    fresh = Library(tmp_path / "fresh", llm)
    fresh.update({"a": A, "b": B, "c": C})
    assert sum(f.stat().st_size for f in segments(library.folder)) == sum(
        f.stat().st_size for f in segments(fresh.folder)
    )


def test_a_plan_counts_what_is_lost(library):
    assert library.whole and library.plan({"a": A, "b": B, "c": C}).new_tokens == 0
    segment = segments(library.folder)[0]
    segment.write_bytes(segment.read_bytes()[:-9])
    assert not library.whole and library.plan({"a": A, "b": B, "c": C}).new_tokens > 0


def test_update_only_drops_the_other_documents(library):
    library.update({"c": C}, only=True)
    assert library.documents == {"c": 71} and len(segments(library.folder)) == 2


def test_a_plan_says_what_will_be_read_and_written(llm, library):
    new = {"c": C, "d": torch.cat([A, tokens(16 * 70 + 5, 8)])}
    plan = library.plan(new)
    before = {f.name: f.stat().st_size for f in segments(library.folder)}
    told = []
    library.update(new, progress=lambda done, total: told.append((done, total)))
    assert (plan.tokens, plan.new_tokens) == (71 + 80 + 1125, 1125) and told[-1] == (1125, 1125)
    written = sum(f.stat().st_size for f in segments(library.folder) if f.name not in before)
    headers = 1500 * (len(segments(library.folder)) - len(before))
    assert plan.bytes < written < plan.bytes + headers


@pytest.mark.parametrize(
    "changes", [{}, {"stored_bits": 4}, {"fine_chunks": 1, "stored_bits": 8}, {"search_by": "last"}]
)
def test_the_layout_of_a_chunk_is_that_of_an_encoded_one(make, changes):
    llm = make(dataclasses.replace(CONFIG, **changes))
    for n in (1, 5, 16):
        for stored in (AS_SET, Stored(compact=True), Stored(whole=True, compact=True)):
            planned = llm.reader.layout(n, stored)
            real = llm.reader.encode_rows(tokens(n)[None].int(), stored=stored)
            assert {k: (t.shape, t.dtype) for k, t in vars(planned).items()} == {
                k: (t.shape, t.dtype) for k, t in vars(real).items()
            }


def test_a_library_of_another_model_or_settings_is_refused(make, library):
    before = files(library.folder)
    for llm in (make(hidden_size=16), make(dataclasses.replace(CONFIG, slots_per_leaf=3))):
        with pytest.raises(UsageError, match="choose another folder") as error:
            Library(library.folder, llm)
        assert_one_sentence(error)
    with pytest.raises(UsageError, match="no model to read with"):
        Library(library.folder).add("d", A)
    with pytest.raises(UsageError, match="holds 3 documents"):
        library.context().save(library.folder)
    assert files(library.folder) == before


# On the disk ----------------------------------------------------------------------------------


def test_a_segment_cut_short_is_read_again_by_the_same_call(llm, library, monkeypatch):
    expected = library.context()
    segment = segments(library.folder)[0]
    whole = segment.read_bytes()
    segment.unlink()
    segment.write_bytes(whole[:-9])
    with pytest.raises(WorkError, match="encode the text again"):
        library.context()
    library.update({"a": A, "b": B, "c": C})
    assert segment.read_bytes() == whole
    assert_same_chunks(library.context(), expected)


def test_where_memory_allows_more_chunks_are_read_at_once_and_kept_as_ever(llm, tmp_path, monkeypatch):
    text = tokens(16 * 20 + 5, 9)
    monkeypatch.setattr(sharedllm.saved, "SEGMENT_BYTES", 1)
    Library(tmp_path / "one", llm).add("text", text)
    expected, rows = llm.read(text), counted(monkeypatch, llm.lower, "encode")
    monkeypatch.setattr("sharedllm.reader.chunk_batch", lambda *_: 8)
    Library(tmp_path / "eight", llm).add("text", text)
    assert [len(ids) for ids, *_ in rows] == [8, 8, 4, 1], "though a segment holds a single chunk"
    assert {f.name for f in segments(tmp_path / "eight")} == {f.name for f in segments(tmp_path / "one")}
    rows.clear()
    monkeypatch.setattr("sharedllm.reader.chunk_batch", lambda *_: 19)
    read = llm.read(text)
    assert [len(ids) for ids, *_ in rows] == [16, 4, 1] and [len(b.lengths) for b in read.blocks] == [8, 8, 4, 1]
    for mine, one in zip(read.blocks, expected.blocks, strict=True):
        torch.testing.assert_close(mine.keys, one.keys)
        torch.testing.assert_close(mine.values, one.values)


def test_a_disk_too_small_is_said_before_anything_is_read(llm, library, monkeypatch):
    calls, before = counted(monkeypatch, llm.lower, "encode"), files(library.folder)
    monkeypatch.setattr("sharedllm.library.shutil.disk_usage", lambda _: type("Usage", (), {"free": 9999}))
    with pytest.raises(WorkError, match=r"takes 0\.\d MB and the disk has 0\.0 MB free") as error:
        library.add("d", tokens(16 * 30, 9))
    assert_one_sentence(error)
    assert not calls and files(library.folder) == before


@pytest.mark.parametrize(("kind", "number", "again"), [("segment", 3, 0), ("part", 8, 2)])
def test_a_disk_that_fills_up_keeps_what_was_whole(llm, library, monkeypatch, kind, number, again):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(sharedllm.saved, "SEGMENT_BYTES", 3 * llm.reader.layout(16).nbytes)
    text = torch.cat([tokens(16 * 6, 9), tokens(16 * 3, 10)])
    real, limits = sharedllm.store_write.save_file, resource.getrlimit(resource.RLIMIT_FSIZE)
    written = []

    def fails(tensors, path):
        written.append(path.name.startswith(kind))
        if sum(written) == number and written[-1]:  # the system refuses the write, half way through the file
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            real(tensors, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(sharedllm.store_write, "save_file", fails)
    with pytest.raises(WorkError, match="it is as it last was") as error:
        library.add("d", text)
    assert_one_sentence(error)
    assert library.documents == {"a": 80, "b": 48, "c": 71}
    assert not [f for f in files(library.folder) if "unfinished" in f]
    calls = counted(monkeypatch, llm.lower, "encode")
    library.add("d", text)
    assert len(calls) == again, "only what could not be written is read again"
    assert not list(library.folder.glob("part-*")), "a segment that is whole needs no parts"
    assert_same_chunks(library.context(["d"]), encoded(llm, text))


def test_one_process_writes_at_a_time(library):
    with writing(library.folder):
        for write in (
            lambda: library.add("d", A),
            lambda: library.remove("a"),
            lambda: library.context(["a"]).save(library.folder),
        ):
            with pytest.raises(UsageError, match="another process is writing") as error:
                write()
            assert_one_sentence(error)
        assert library.context().tokens == 199  # reading goes on


def test_the_size_is_told_while_another_process_removes_a_segment(library, monkeypatch):
    size, iterdir = library.nbytes, Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda folder: [*iterdir(folder), folder / "segment-gone.safetensors"])
    assert library.nbytes == size > 0


@pytest.mark.skipif(sys.platform != "linux", reason="counts the pages of a mapped file")
def test_a_question_loads_what_it_takes_in_and_no_more(make, tmp_path, monkeypatch):
    sizes = dict(injected_layers=4, chunk_length=1024, tree_depth=3, slots_per_leaf=8, search_layer=1)
    config = SharedConfig(**sizes, fine_chunks=1, read_chunks=2)
    llm: SharedLLM = make(config, head_dim=64, max_position_embeddings=1024)
    real = llm.reader.encode_rows
    monkeypatch.setattr(llm.reader, "encode_rows", lambda ids, told, *_: Encoded.cat([real(ids[:1], told)] * len(ids)))
    Library(tmp_path / "c", llm).add("text", tokens(1024 * 32))
    size = sum(f.stat().st_size for f in segments(tmp_path / "c"))
    context = Context.load(tmp_path / "c", llm)
    assert resident(tmp_path / "c") < 0.03 * size
    llm(WINDOW, context=context)
    # An eighth is the values of one layer of four, a sixteenth two chunks of 32; the system maps up to 2 MB at once.
    assert 0.12 * size < resident(tmp_path / "c") < 0.5 * size


def resident(folder: Path) -> int:
    """Bytes of the files in a folder that are mapped into this process and in memory."""
    total, counts = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            counts = str(folder) in line
        elif counts and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total
