"""A question finds, among many stored documents, those worth composing."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save

from sharedllm import Library, UsageError, WorkError
from sharedllm.cli import main
from sharedllm.collection import place
from sharedllm.collection.engines import LocalEngine
from sharedllm.collection.read import read_collection
from sharedllm.collection.search import Collection, Hit, is_collection
from sharedllm.collection.sketch import (
    Sketch,
    load_sketch,
    nearness,
    pack_signs,
    save_sketch,
    sketch_made_of,
    sketch_of,
    unpack_signs,
)
from sharedllm.collection.words import Postings
from sharedllm.collection.worker import Worker
from sharedllm.prompts import Prompt
from sharedllm.relevance import represented
from tests.collection.conftest import text
from tests.conftest import CONFIG
from tests.contexts import assert_one_sentence, encoded

QUESTION = "7919#48+02=?"


@pytest.fixture(scope="module")
def many(home, tmp_path_factory):
    """A collection of twenty documents, of which the eighth alone has the question's letters in a row."""
    folder = tmp_path_factory.mktemp("many")
    (folder / "texts").mkdir()
    for i in range(20):
        middle = f"{QUESTION:16}" if i == 7 else ""  # a chunk of its own
        (folder / "texts" / f"{i:02}.txt").write_text(text(i, 12)[:48] + middle + text(100 + i, 12))
    read_collection([str(folder / "texts")], folder / "kept", LocalEngine(Worker(home.llm, folder / "kept")))
    return folder / "kept"


def plain_score(llm, contexts, question):
    """Of each context's nearest chunk: loops over chunks and the question's tokens."""
    prompt = Prompt(llm.tokenizer, question)
    (asked,) = llm.query(torch.tensor([prompt.alone()]), question_mask=prompt.question_mask())
    chunks = [[rep[m] for b in c.blocks for rep, m in zip(*represented(b, llm.config), strict=True)] for c in contexts]
    mean = torch.cat([row for rows in chunks for row in rows]).mean(0)
    return [
        max(
            sum(max(float(F.cosine_similarity(q - mean, t - mean, dim=0)) for t in row) for q in asked) / len(asked)
            for row in rows
        )
        for rows in chunks
    ]  # fmt: skip


def test_the_document_is_found_and_scored_as_by_opening_all(home, many):
    collection = Collection(many, home.llm)
    stores = [collection.folder(record.store) for record in collection.records]
    from sharedllm import Context

    plain = plain_score(home.llm, [Context.load(store, home.llm) for store in stores], QUESTION)
    every = collection.search(QUESTION, documents=20, opened=20)
    by_source = {record.source: score for record, score in zip(collection.records, plain, strict=True)}
    assert [hit.source for hit in every] == sorted(by_source, key=by_source.__getitem__, reverse=True)
    for hit in every:
        assert hit.score == pytest.approx(by_source[hit.source], abs=1e-4)
    assert every[0].source.endswith("07.txt")
    for opened in (None, 0, 4):
        (best,) = collection.search(QUESTION, documents=1, opened=opened)
        assert best.source.endswith("07.txt")


def test_a_sketch_keeps_the_signs_of_each_tokens_mean(home):
    llm = home.llm
    ids = llm.reader.token_ids(text(3, 20))[:40]  # two chunks and a half
    context = encoded(llm, ids)
    sketch = sketch_of(context, llm.config)
    rows = [rep[m] for b in context.blocks for rep, m in zip(*represented(b, llm.config), strict=True)]
    kept = [t[t < n] for b in context.blocks for t, n in zip(b.tokens, b.lengths, strict=True)]
    mean, at = torch.cat(rows).mean(0), 0
    signs = unpack_signs(sketch.signs, len(mean))
    for chunk, (row, tokens) in enumerate(zip(rows, kept, strict=True)):
        of = ids[chunk * 16 + tokens]
        for token in sorted(set(of.tolist())):
            expected = row[of == token].mean(0) - mean
            assert sketch.chunk[at] == chunk and torch.equal(signs[at] > 0, expected > 0)
            assert (sketch.token[at], sketch.count[at]) == (token, (of == token).sum())
            at += 1
    assert at == len(sketch.signs)
    again = load_sketch("sketch", save_sketch(sketch))
    assert all(torch.equal(a, b) for a, b in zip(vars(again).values(), vars(sketch).values(), strict=True))


@pytest.mark.parametrize("search_by", ["tokens", "last"])
def test_a_compact_collection_is_found_by_the_same_sketches(make, tmp_path, search_by):
    config = dataclasses.replace(CONFIG, chunk_length=32, fine_chunks=1, read_chunks=3, search_by=search_by)
    llm = make(config)
    (tmp_path / "texts").mkdir()
    for i in range(3):
        (tmp_path / "texts" / f"{i}.txt").write_text(text(i, 30))
    found = {}
    for name, compact in (("whole", False), ("compact", True)):
        engine = LocalEngine(Worker(llm, tmp_path / name, compact=compact))
        records = read_collection([str(tmp_path / "texts")], tmp_path / name, engine)
        assert [record.state for record in records.values()] == ["kept"] * 3, [r.reason for r in records.values()]
        collection = Collection(tmp_path / name, llm)
        found[name] = [s.signs for s in collection.sketches], collection.search(QUESTION, documents=2)
    assert all(torch.equal(a, b) for a, b in zip(found["whole"][0], found["compact"][0], strict=True))
    assert [hit.source for hit in found["whole"][1]] == [hit.source for hit in found["compact"][1]]


def test_signs_of_any_number_of_dimensions_come_back():
    numbers = torch.randn(5, 13, generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack_signs(pack_signs(numbers), 13), numbers.sign())


def test_a_documents_score_is_that_of_its_nearest_chunk():
    """Two chunks: each has one of the question's tokens, or both in one."""
    first, second = torch.eye(16)[0] * 8 - 0.5, torch.eye(16)[1] * 8 - 0.5
    question, mean = torch.stack([first, second]), torch.zeros(16)

    def document(*chunks):
        places = torch.arange(len(chunks), dtype=torch.int32).repeat_interleave(torch.tensor([len(c) for c in chunks]))
        return Sketch(pack_signs(torch.cat([torch.stack(c) for c in chunks])), places, places, places, mean)

    documents = [document([first], [second]), document([first, second], [-first])]
    apart, together = (float(near.amax()) for near in nearness(documents, question))
    cosine = [float(F.cosine_similarity(q.sign(), q, dim=0)) for q in question]
    assert together == pytest.approx(sum(cosine) / 2) and apart < together - 0.05


def plain_words(chunks: list[list[int]], asking: set[int]) -> list[float]:
    """BM25 of every chunk as a share of the best one's, with k1 = 1.2 and b = 0.75: loops over chunks and words."""
    mean, found = sum(map(len, chunks)) / len(chunks), []
    for chunk in chunks:
        score = 0.0
        for word in asking:
            n, held = chunk.count(word), sum(word in other for other in chunks)
            rare = math.log(1 + (len(chunks) - held + 0.5) / (held + 0.5))
            score += rare * n * 2.2 / (n + 1.2 * (0.25 + 0.75 * len(chunk) / mean))
        found.append(score)
    return [score / max(found) for score in found]


def test_words_count_beside_nearness(home, make, tmp_path):
    config = dataclasses.replace(CONFIG, fine_chunks=1)
    plain, wordy = (make(dataclasses.replace(config, search_words=weight)) for weight in (0.0, 2.0))
    (tmp_path / "texts").mkdir()
    for i in range(8):
        word = "QZX" if i == 5 else ""  # in no other document; to random weights it is as near as any
        (tmp_path / "texts" / f"{i}.txt").write_text(text(i, 20 + i) + word)
    read_collection([str(tmp_path / "texts")], tmp_path / "kept", LocalEngine(Worker(plain, tmp_path / "kept")))
    near, both = Collection(tmp_path / "kept", plain), Collection(tmp_path / "kept", wordy)
    question = "QZX"
    prompt = Prompt(plain.tokenizer, question)
    asking = torch.tensor(prompt.alone())[prompt.question_mask()[0]]
    chunks = [c.tolist() for r in near.records for c in near.context([Hit("", r.store, 0, 0.0)]).ids.split(16)]
    shares = torch.cat(both.postings.shares(asking)).tolist()
    assert shares == pytest.approx(plain_words(chunks, set(asking.tolist())), abs=1e-5) and max(shares) == 1
    for opened in (0, 8):
        assert both.search(question, documents=1, opened=opened)[0].source.endswith("5.txt")
        scores = {hit.source: hit.score for hit in near.search(question, documents=8, opened=opened)}
        for hit in both.search(question, documents=8, opened=opened):
            assert -1e-5 <= hit.score - scores[hit.source] <= 2.0 + 1e-5
    assert not torch.cat(both.postings.shares(torch.tensor([255]))).any()


def test_a_document_that_was_read_again_since_its_sketch_was_made_is_found_all_the_same(home, many, tmp_path):
    where = tmp_path / "changed"
    shutil.copytree(many, where)
    collection = Collection(where, home.llm)
    assert collection.sketches
    (record,) = [r for r in collection.records if r.source.endswith("07.txt")]
    Library(where / "stores" / record.store, home.llm).update({record.source: text(7, 40) + QUESTION}, only=True)
    for opened in (0, 20):
        assert len(collection.search(QUESTION, documents=20, opened=opened)) == 20


def test_ask_answers_from_the_documents_found(home, many, capsys):
    names = ("--model", home.loading["model"], "--adapter", home.loading["adapter"], "--dtype", "float32")
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as ended:
        main(["ask", str(many), "-q", QUESTION, "--documents", "2", "--max-new-tokens", "3", "--json", *names])
    torch.set_num_threads(threads)
    out = capsys.readouterr()
    assert not ended.value.code, out.err
    told = json.loads(out.out.splitlines()[-1])
    assert len(told["documents"]) == 2 and told["documents"][0]["source"].endswith("07.txt")
    assert told["context_tokens"] == sum(d["tokens"] for d in told["documents"]) and told["find_seconds"] > 0


def test_a_collection_without_documents_says_so(home, tmp_path):
    with pytest.raises(UsageError, match="holds no document to ask"):
        Collection(tmp_path, home.llm)


def test_a_collection_is_asked_with_the_model_and_the_search_it_was_made_with(home, many, make, tmp_path):
    for llm in (make(num_key_value_heads=4), make(dataclasses.replace(CONFIG, search_layer=0))):
        with pytest.raises(UsageError, match="made with another model or adapter") as error:
            Collection(many, llm)
        assert_one_sentence(error)
    old = tmp_path / "old"  # its records do not say what they are searched by
    shutil.copytree(many, old)
    told = (old / "documents.jsonl").read_text()
    (old / "documents.jsonl").write_text(told.replace(", searched by tokens of layer 2", ""))
    assert "searched by" in told and "searched by" not in (old / "documents.jsonl").read_text()
    assert Collection(old, home.llm).search(QUESTION, documents=1)[0].source.endswith("07.txt")
    with pytest.raises(UsageError, match="made with another model or adapter"):
        Collection(old, make(dataclasses.replace(CONFIG, search_by="last"))).search(QUESTION)


def test_sketches_of_earlier_releases_are_read(many):
    data = next((many / "sketches").iterdir()).read_bytes()
    sketch = load_sketch("new", data)
    old = save_sketch(sketch)
    assert sketch_made_of(data) and sketch_made_of(old) == ""
    assert torch.equal(load_sketch("old", old).signs, sketch.signs)
    first = load_sketch("first", save({"signs": sketch.signs, "chunk": sketch.chunk, "mean": sketch.mean}))
    assert first.count.sum() == 0 and not torch.cat(Postings([first]).shares(sketch.token)).any()
    assert [sketch_made_of(broken) for broken in (b"", b"\x02\0\0\0\0\0\0\0[]", b"x" * 9)] == [""] * 3


def test_a_folder_with_records_and_no_stores_is_no_collection(many, tmp_path):
    (tmp_path / "documents.jsonl").write_text('{"text": "hello"}\n')
    assert not is_collection(str(tmp_path)) and is_collection(str(many))


def test_two_processes_fetch_one_remote_store_at_once(tmp_path, monkeypatch):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe_file("/twice/stores/a/context.json", b'{"segments": {"segment-x.safetensors": {}}}')
    memory.pipe_file("/twice/stores/a/segment-x.safetensors", b"z" * 1000)
    monkeypatch.setattr(place, "CACHE", tmp_path)
    real, both, unfinished = type(memory).get_file, Barrier(2, timeout=20), []

    def together(self, remote, file, **options):
        unfinished.append(file)
        real(self, remote, file, **options)
        both.wait()  # each has its file and none has its name yet

    monkeypatch.setattr(type(memory), "get_file", together)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: place.Place("memory://twice").fetch("stores/a"), range(2))
    assert one == other and len(set(unfinished)) == 2
    assert sorted(f.name for f in one.iterdir()) == ["context.json", "segment-x.safetensors"]
    memory.rm("/", recursive=True)


def test_an_address_that_does_not_answer_is_told(monkeypatch):
    import fsspec

    def refused(self, path, **_options):
        raise PermissionError("no key was given")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "exists", refused)
    with pytest.raises(WorkError, match="cannot read memory://bucket/kept: no key was given") as error:
        is_collection("memory://bucket/kept")
    assert_one_sentence(error)
    assert not is_collection("x" * 5000), "reading it says what is wrong"


def test_a_record_that_leads_out_of_its_collection_is_refused(home, many, tmp_path):
    told = (many / "documents.jsonl").read_text()
    (tmp_path / "documents.jsonl").write_text(told.replace('"store": "', '"store": "../../kept/stores/', 1))
    with pytest.raises(WorkError, match="line 1 is not a record"):
        Collection(tmp_path, home.llm)
