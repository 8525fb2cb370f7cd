"""A saved context: round trips, what a full disk leaves behind."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import sharedllm.store_write
from sharedllm import Context, Library, SharedLLM, UsageError, WorkError
from sharedllm.encoded import MERGED_CHUNKS
from sharedllm.manifest import VERSION
from sharedllm.store import chunk_kind
from sharedllm.store_write import writing
from tests.conftest import CONFIG, byte_tokenizer, randomize, tiny_model, tokens
from tests.contexts import assert_one_sentence, assert_same_chunks, encoded, files, segments

WINDOW = tokens(6, 1)[None]


@pytest.fixture
def llm(make):
    return make()


@pytest.mark.parametrize("length", [0, 40, 87, 16 * 40])
def test_a_round_trip_gives_the_same_logits_and_answers(llm, tmp_path, length):
    context = llm.read(tokens(length, 2))
    context.save(tmp_path / "c")
    loaded = Context.load(tmp_path / "c", llm)
    assert (loaded.tokens, loaded.chunks, loaded.slots, loaded.nbytes) == (
        context.tokens,
        context.chunks,
        context.slots,
        context.nbytes,
    )
    assert torch.equal(loaded.ids, context.ids)
    assert_same_chunks(loaded, context)
    assert llm.ask(loaded, "who?", max_new_tokens=6) == llm.ask(context, "who?", max_new_tokens=6)
    assert torch.equal(llm(WINDOW, context=loaded).logits, llm(WINDOW, context=context).logits)


def test_a_loaded_context_reads_on(llm, tmp_path):
    text = tokens(120, 2)
    llm.read(text[:87]).save(tmp_path / "c")
    loaded = Context.load(tmp_path / "c", llm)
    loaded.append(text[87:])
    assert_same_chunks(loaded, llm.read(text))


def test_a_fresh_process_model_reads_the_context(llm, tmp_path):
    llm.read(tokens(87)).save(tmp_path / "c")
    again = randomize(SharedLLM.from_pretrained(tiny_model(), "none", CONFIG, tokenizer=byte_tokenizer()))
    context = Context.load(tmp_path / "c", again)
    assert torch.equal(again(WINDOW, context=context).logits, llm(WINDOW, context=llm.read(tokens(87))).logits)


def test_a_context_saved_in_bfloat16_serves_a_float32_model(tmp_path):
    half = SharedLLM.from_pretrained(tiny_model().bfloat16(), "none", CONFIG, tokenizer=byte_tokenizer())
    context = half.read(tokens(87))
    context.save(tmp_path / "c")
    full_model = tiny_model()
    full_model.load_state_dict({n: p.float() for n, p in half.model.state_dict().items()})
    full = randomize(SharedLLM.from_pretrained(full_model, "none", CONFIG, tokenizer=byte_tokenizer()))
    loaded = Context.load(tmp_path / "c", full)
    for kept, block in zip(context.blocks, loaded.blocks, strict=True):
        for name in ("keys", "values"):
            assert torch.equal(getattr(block, name), getattr(kept, name))
    fresh = full(WINDOW, context=full.read(tokens(87)), search="later").logits
    near = full(WINDOW, context=loaded, search="later").logits
    assert (near - fresh).norm() < 0.1 * (fresh - full(WINDOW).logits).norm()


def test_a_context_is_json_and_safetensors_only(llm, tmp_path):
    llm.read(tokens(87)).save(tmp_path / "c")
    whole, ragged = segments(tmp_path / "c")
    assert sorted(files(tmp_path / "c")) == sorted([".lock", "context.json", whole.name, ragged.name])
    about = json.loads((tmp_path / "c" / "context.json").read_text())
    assert (about["model"], about["chunk_length"]) == (llm.reader.identity, 16)
    assert about["documents"]["text"]["tokens"] == 87
    assert torch.equal(load_file(whole)["ids"].flatten(), tokens(87)[:80].int())
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_context_of_the_version_before_loads(llm, tmp_path):
    context = llm.read(tokens(16 * 40 + 7))
    tensors = {f"{i:06d}.{n}": t.contiguous() for i, b in enumerate(context.blocks) for n, t in vars(b).items()}
    save_file({"ids": context.ids, **tensors}, tmp_path / "slots.safetensors")
    about = {"format": "sharedllm-context", "version": 2, "model": llm.fingerprint, "tokens": context.tokens}
    about |= {"blocks": len(context.blocks), **context.shape}
    (tmp_path / "context.json").write_text(json.dumps(about))
    loaded = Context.load(tmp_path, llm)
    assert_same_chunks(loaded, context)
    assert torch.equal(loaded.ids, context.ids)
    loaded.save(tmp_path)
    assert_same_chunks(Context.load(tmp_path, llm), context)
    assert not (tmp_path / "slots.safetensors").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "context.json").write_text(json.dumps({**about, "tokens": 3}))
    save_file({"ids": context.ids, **tensors}, tmp_path / "old" / "slots.safetensors")
    with pytest.raises(WorkError, match="holds 647 tokens, not 3"):
        Context.load(tmp_path / "old", llm)


def test_a_store_from_before_layers_could_be_skipped_loads(llm, tmp_path):
    context = llm.read(tokens(16 * 5 + 7))
    context.save(tmp_path / "c")
    manifest = tmp_path / "c" / "context.json"
    about = json.loads(manifest.read_text())
    assert (about.pop("skipped_layers"), about.pop("compared_layer"), about.pop("compact")) == (0, -1, 0)
    manifest.write_text(json.dumps({**about, "version": 4}))
    assert_same_chunks(Context.load(tmp_path / "c", llm), context)


def test_a_chunk_of_other_layers_has_another_name(llm, make):
    shapes = [make(dataclasses.replace(CONFIG, **c)).reader for c in ({"injected_layers": 2}, {"skipped_layers": 1})]
    kinds = {chunk_kind(reader.layout(16), "m", reader.new_context().shape) for reader in [llm.reader, *shapes]}
    assert len(kinds) == 3


def test_a_chunk_stored_at_other_bits_has_another_name(make, tmp_path):
    readers = [make(dataclasses.replace(CONFIG, stored_bits=bits)).reader for bits in (16, 8, 4)]
    assert len({chunk_kind(r.layout(16), "m", r.new_context().shape) for r in readers}) == 3
    ids, nbytes = tokens(16 * 5), []
    for reader in readers[1::-1]:
        context = reader.new_context()
        context.append(ids)
        context.save(tmp_path / "c")
        nbytes.append(Context.load(tmp_path / "c").nbytes)
    assert nbytes[0] < nbytes[1], "the finer numbers were not written"


def test_models_that_differ_in_upper_layers_alone_are_told_apart(llm, make, tmp_path):
    other, ids = make(), tokens(16 * 5 + 7)
    with torch.no_grad():
        other.model.model.layers[3].mlp.up_proj.weight.neg_()
    assert other.fingerprint == llm.fingerprint, "they differ in what is looked at anyway; the test is empty"
    context, theirs = llm.read(ids), other.read(ids)
    context.save(tmp_path / "c")
    for use in (
        lambda: Context.load(tmp_path / "c", other),
        lambda: other.ask(context, "a?", max_new_tokens=2),
        lambda: Library(tmp_path / "c", other),
        lambda: Context.compose([context, theirs]),
    ):
        with pytest.raises(UsageError, match=r"another model|different models") as error:
            use()
        assert_one_sentence(error)
    theirs.save(tmp_path / "c")
    assert_same_chunks(Context.load(tmp_path / "c", other), theirs)
    manifest = tmp_path / "c" / "context.json"
    about = json.loads(manifest.read_text())
    known, _, more = about["model"].partition("+")
    assert known == llm.fingerprint and len(more) == 8
    manifest.write_text(json.dumps({**about, "model": known}))  # as it was before there was more to know a model by
    assert_same_chunks(Context.load(tmp_path / "c", llm), theirs)


def test_a_save_over_another_models_context_that_stops_leaves_that_one(llm, make, tmp_path, monkeypatch):
    other, ids, written = make(), tokens(16 * 5 + 7), []
    with torch.no_grad():
        other.model.model.layers[2].self_attn.k_proj.weight.neg_()
    context, theirs = llm.read(ids), other.read(ids)
    assert other.fingerprint == llm.fingerprint and not torch.equal(context.blocks[0].keys, theirs.blocks[0].keys)
    context.save(tmp_path / "c")
    real = sharedllm.store_write.save_file

    def second_fails(tensors, path):
        written.append(path)
        if len(written) == 2:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    with monkeypatch.context() as full:
        full.setattr(sharedllm.store_write, "save_file", second_fails)
        with pytest.raises(WorkError, match="No space left on device"):
            theirs.save(tmp_path / "c")
    assert_same_chunks(Context.load(tmp_path / "c", llm), context)
    theirs.save(tmp_path / "c")
    assert_same_chunks(Context.load(tmp_path / "c", other), theirs)


def test_an_identity_is_the_same_in_every_dtype():
    found = set()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        llm = SharedLLM.from_pretrained(tiny_model().to(dtype), adapter="none", config=CONFIG)
        found.add(llm.reader.identity.partition("+")[2])
    assert len(found) == 1 and len(found.pop()) == 8


def test_saving_again_writes_only_what_is_new(llm, tmp_path):
    context = llm.read(tokens(16 * 40 + 7))
    context.save(tmp_path / "c")
    before = {f: f.stat().st_mtime_ns for f in segments(tmp_path / "c")}
    loaded = Context.load(tmp_path / "c", llm)
    loaded.append(tokens(20, 2))
    loaded.save(tmp_path / "c")
    kept = [f for f in segments(tmp_path / "c") if before.get(f) == f.stat().st_mtime_ns]
    full = -(-40 // MERGED_CHUNKS)
    assert len(kept) == full and len(segments(tmp_path / "c")) == full + 2, "all but the ragged end stays"
    assert_same_chunks(Context.load(tmp_path / "c", llm), llm.read(torch.cat([tokens(647), tokens(20, 2)])))


def test_parts_of_a_context_can_be_saved(llm, tmp_path):
    context = llm.read(tokens(16 * 40 + 7))
    context.first(33).save(tmp_path / "c")
    assert_same_chunks(Context.load(tmp_path / "c", llm), context.first(33))


def test_a_context_that_keeps_every_token_can_be_saved(llm, tmp_path):
    context = encoded(llm, tokens(16 + 5), every_token=True)
    context.save(tmp_path / "c")
    assert_same_chunks(Context.load(tmp_path / "c", llm), context)


def test_saving_over_a_context_replaces_it(llm, tmp_path):
    llm.read(tokens(400)).save(tmp_path / "c")
    llm.read(tokens(70, 2)).save(tmp_path / "c")
    loaded = Context.load(tmp_path / "c", llm)
    assert torch.equal(loaded.ids, tokens(70, 2).int()) and loaded.chunks == 5
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_saving_into_an_empty_or_a_new_deep_folder_works(llm, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "c", str(tmp_path / "d")):
        llm.read(tokens(70)).save(folder)
        assert Context.load(folder, llm).tokens == 70


FOREIGN = {
    "notes": {"notes.txt": "mine"},
    "notes beside a context": {"context.json": '{"format": "sharedllm-context"}', "notes.txt": "mine"},
    "another program's context.json": {"context.json": '{"build": "docker"}'},
    "a folder": {"src/main.py": "mine"},
    "a film in segments": {"segment-001.ts": "mine"},
    "another program's segments": {"context.json": '{"format": "sharedllm-context"}', "segment-1.safetensors": "mine"},
    "another program's slots": {"slots.safetensors": "mine"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_saving_into_a_folder_with_foreign_files_is_refused(llm, tmp_path, name):
    folder = tmp_path / "c"
    for file, text in FOREIGN[name].items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(text)
    before = files(tmp_path)
    with pytest.raises(UsageError, match="choose another folder") as error:
        llm.read(tokens(70)).save(folder)
    assert_one_sentence(error)
    assert files(tmp_path) == before


def test_what_is_not_ours_is_never_swept(llm, tmp_path):
    llm.read(tokens(70)).save(tmp_path / "c")
    with writing(tmp_path / "c") as store:
        left = f"segment-{'0' * 32}.safetensors"
        for name in ("segment-001.ts", "notes.txt", left, left + ".unfinished", "context.json.unfinished"):
            (tmp_path / "c" / name).write_text("mine")
        before = {segment.name for segment in segments(tmp_path / "c")} - {left}
        store.sweep()
    assert set(files(tmp_path / "c")) == {".lock", "context.json", "segment-001.ts", "notes.txt", *before}


def test_a_context_of_a_later_release_is_not_replaced(llm, tmp_path):
    llm.read(tokens(87)).save(tmp_path / "c")
    about = json.loads((tmp_path / "c" / "context.json").read_text())
    (tmp_path / "c" / "context.json").write_text(json.dumps({**about, "version": VERSION + 1}))
    before = files(tmp_path)
    with pytest.raises(UsageError, match=f"format version {VERSION + 1}.*choose another folder") as error:
        llm.read(tokens(70)).save(tmp_path / "c")
    assert_one_sentence(error)
    assert files(tmp_path) == before


def test_saving_onto_a_file_is_refused(llm, tmp_path):
    (tmp_path / "c").write_text("mine")
    with pytest.raises(UsageError, match="choose another"):
        llm.read(tokens(70)).save(tmp_path / "c")
    assert files(tmp_path) == {"c": b"mine"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_full_disk_leaves_the_old_context_and_no_temporary(llm, tmp_path, monkeypatch, exists):
    if exists:
        llm.read(tokens(70)).save(tmp_path / "c")
    before = files(tmp_path)

    def full(tensors, path):
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharedllm.store_write, "save_file", full)
    with pytest.raises(WorkError, match="No space left on device") as error:
        llm.read(tokens(90, 2)).save(tmp_path / "c")
    assert_one_sentence(error)
    assert files(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["c"] if exists else [])


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()], ids=["disk", "interrupt"])
def test_a_failure_while_taking_the_place_leaves_the_old_context(llm, tmp_path, monkeypatch, error):
    llm.read(tokens(70)).save(tmp_path / "c")
    before = files(tmp_path)
    real = type(tmp_path).replace

    def fail(path, target):
        if target.name == "context.json":
            raise error
        return real(path, target)

    monkeypatch.setattr(type(tmp_path), "replace", fail)
    with pytest.raises((WorkError, KeyboardInterrupt)):
        llm.read(tokens(90, 2)).save(tmp_path / "c")
    assert files(tmp_path) == before


def test_a_folder_that_cannot_be_written_is_named(llm):
    with pytest.raises(WorkError, match="cannot write to /proc/here/c") as error:
        llm.read(tokens(90, 2)).save("/proc/here/c")
    assert_one_sentence(error)
