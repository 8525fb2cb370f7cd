"""Compact contexts: a quarter of the bytes, and each question as if all had been kept."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sharedllm import Context, Library, UsageError, naive
from tests.conftest import CONFIG, tokens
from tests.contexts import assert_one_sentence, assert_same_chunks, chunks_of
from tests.test_generate import counted

WHOLE = dataclasses.replace(CONFIG, chunk_length=32, fine_chunks=1, read_chunks=3, search_layer=1)
CONFIGS = {
    "one chunk whole": WHOLE,
    "two chunks whole": dataclasses.replace(WHOLE, fine_chunks=2),
    "a prior": dataclasses.replace(WHOLE, search_prior=5.0),
    "skipped layers": dataclasses.replace(WHOLE, skipped_layers=2),
    "layers skipped below the search": dataclasses.replace(WHOLE, skipped_layers=1),
    "searched by last": dataclasses.replace(WHOLE, search_by="last"),
    "quotes": dataclasses.replace(WHOLE, search_prior=5.0, quoted_tokens=8),
}
TEXT = tokens(32 * 5 + 11, 4)


def assert_same_memory(a, b):
    assert torch.equal(a.mask, b.mask) and a.nearest == b.nearest
    for x, y in zip(a.keys + a.values, b.keys + b.values, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


@pytest.fixture(params=CONFIGS, ids=str)
def llm(make, request):
    return make(CONFIGS[request.param])


def test_a_question_sees_what_it_would_of_a_context_that_keeps_all(llm):
    few, every = llm.read(TEXT, compact=True), llm.read(TEXT)
    assert few.nbytes < 0.7 * every.nbytes and few.slots == every.slots
    for seed in range(4):
        window = tokens(7, seed)[None]
        assert_same_memory(llm.recall(few, window), llm.recall(every, window))
    assert_same_memory(llm.recall(few, window, search="later"), llm.recall(every, window, search="later"))


def test_it_is_the_mechanism_said_plainly(llm):
    window = tokens(6, 3)
    expected = naive.forward(llm, window.tolist(), [c.tolist() for c in TEXT.split(32)])
    logits = llm(window[None], context=llm.read(TEXT, compact=True)).logits[0]
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-4)


def test_rows_of_a_batch_have_their_own(make):
    llm = make(WHOLE)
    texts, windows = [TEXT, tokens(70, 8)], torch.stack([tokens(6, 1), tokens(6, 2)])
    few, every = ([llm.read(text, compact=c) for text in texts] + [None] for c in (True, False))
    windows = torch.cat([windows, windows[:1]])
    assert_same_memory(llm.recall(few, windows), llm.recall(every, windows))


def test_what_is_kept_from_compression_stays_stored(make, tmp_path):
    llm = make(dataclasses.replace(WHOLE, read_chunks=1))
    keep = [(40, 45), (70, 71)]
    few, every = (llm.read(TEXT, keep=keep, compact=c) for c in (True, False))
    assert [c.tokens.shape[1] for c in chunks_of(few)][:4] == [8, 32, 32, 8]
    few.save(tmp_path / "c")
    window = tokens(6, 3)[None]
    assert_same_memory(llm.recall(Context.load(tmp_path / "c", llm), window), llm.recall(every, window))


def test_a_chunk_is_read_again_once_and_remembered(make, monkeypatch):
    llm = make(WHOLE)
    context = llm.read(TEXT, compact=True)
    reads = counted(monkeypatch, llm.lower, "encode")
    for _ in range(3):
        llm.recall(context, tokens(6, 3)[None])
    assert len(reads) == 1
    for seed in range(40):
        llm.recall(llm.read(TEXT, compact=True), tokens(6, seed)[None])
    assert len(context.again) == 1


def test_few_chunks_are_remembered(make):
    llm = make(WHOLE)
    context = llm.read(tokens(32 * 30), compact=True)
    for chunk in range(30):
        llm.reader.again(context, chunk)
    assert list(context.again) == list(range(22, 30))


def test_a_chunk_that_another_thread_forgets_at_once_is_still_given(make):
    class Forgetful(dict):
        def __setitem__(self, chunk, encoded):
            pass

    llm = make(WHOLE)
    context = llm.read(TEXT, compact=True)
    context.again = Forgetful()
    assert llm.reader.again(context, 1).lengths.tolist() == [32]


def test_appending_is_reading_the_whole(make):
    llm = make(WHOLE)
    context = llm.read(TEXT[:70], compact=True)
    window = tokens(6, 3)[None]
    for cut in (75, 100, 150, len(TEXT)):
        llm.recall(context, window)  # what was read again for a question must not outlive a chunk that grew
        context.append(TEXT[context.tokens : cut])
        assert_same_memory(llm.recall(context, window), llm.recall(llm.read(TEXT[:cut]), window))
    assert_same_chunks(context, llm.read(TEXT, compact=True))
    assert context.compact


def test_it_is_saved_and_cut_and_composed_with_others(make, tmp_path):
    llm = make(WHOLE)
    few, every, other = llm.read(TEXT, compact=True), llm.read(TEXT), llm.read(tokens(100, 9))
    few.save(tmp_path / "c")
    loaded, window = Context.load(tmp_path / "c", llm), tokens(6, 3)[None]
    assert loaded.compact
    assert_same_chunks(loaded, few)
    pairs = [
        (loaded, every),
        (loaded.without_first(2), every.without_first(2)),
        (Context.compose([loaded, other]), Context.compose([every, other])),
        (Context.compose([other, loaded]), Context.compose([other, every])),
    ]
    for a, b in pairs:
        assert_same_memory(llm.recall(a, window), llm.recall(b, window))
    Context.compose([other, loaded]).save(tmp_path / "both")
    assert_same_memory(llm.recall(Context.load(tmp_path / "both", llm), window), llm.recall(pairs[3][1], window))


def test_an_adapter_that_needs_fewer_layers_reads_it_too(make):
    rich, lean = make(WHOLE), make(CONFIGS["skipped layers"])
    window = tokens(6, 3)[None]
    assert_same_memory(lean.recall(rich.read(TEXT, compact=True), window), lean.recall(lean.read(TEXT), window))


def test_one_that_compares_another_layer_cannot(make):
    with pytest.raises(UsageError, match=r"compared_layer 1, this adapter needs") as error:
        make(dataclasses.replace(WHOLE, search_layer=2)).reader.bind(make(WHOLE).read(TEXT, compact=True))
    assert_one_sentence(error)


def test_without_chunks_that_are_read_whole_nothing_is_to_be_saved(make):
    llm = make(dataclasses.replace(WHOLE, fine_chunks=0))
    few, every = (llm.read(TEXT, compact=c) for c in (True, False))
    assert not few.compact
    assert_same_chunks(few, every)


def test_a_library_stays_of_its_kind(make, tmp_path):
    llm = make(WHOLE)
    Library(tmp_path / "few", llm, compact=True).add("a", TEXT)
    Library(tmp_path / "every", llm).add("a", TEXT)
    assert Library(tmp_path / "few", llm).holds("a", TEXT)
    Library(tmp_path / "few", llm).add("b", tokens(90, 5))
    context = Library(tmp_path / "few", llm).context()
    assert context.compact
    assert_same_chunks(context.first(6), llm.read(TEXT, compact=True))
    with pytest.raises(UsageError, match="compact") as error:
        Library(tmp_path / "every", llm, compact=True).add("b", TEXT)
    assert_one_sentence(error)
    plan = Library(tmp_path / "new", llm, compact=True).plan({"a": TEXT})
    small, large = (Library(tmp_path / n, llm).nbytes for n in ("few", "every"))
    assert plan.bytes < small < large


def test_a_chunk_of_a_compact_context_has_another_name(make, tmp_path):
    llm = make(dataclasses.replace(WHOLE, chunk_length=4, tree_depth=1))  # whose candidates are all of its tokens
    names = []
    for compact in (True, False):
        folder = tmp_path / str(compact)
        llm.read(TEXT, compact=compact).save(folder)
        names.append({f.name for f in folder.iterdir() if f.name.startswith("segment")})
    assert not names[0] & names[1]
