"""A saved context that is broken, cut short or of another kind is refused with one sentence."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load, save_file

import sharedllm.store
from sharedllm import Context, Library, UsageError, WorkError
from tests.conftest import tokens
from tests.contexts import assert_one_sentence, assert_same_chunks, files, segments


@pytest.fixture
def llm(make):
    return make()


def edit(**changes):
    def change(folder):
        about = json.loads((folder / "context.json").read_text())
        about.update(changes)
        (folder / "context.json").write_text(json.dumps({k: v for k, v in about.items() if v is not None}))

    return change


def edit_part(part, **changes):
    """Change what `context.json` says of its first document or segment."""

    def change(folder):
        about = json.loads((folder / "context.json").read_text())
        next(iter(about[part].values())).update(changes)
        (folder / "context.json").write_text(json.dumps(about))

    return change


def cut(share):
    def change(folder):
        file = folder / "context.json"
        file.write_bytes(file.read_bytes()[: int(len(file.read_bytes()) * share)])

    return change


def replaced(write, listed=True):
    """Write the largest segment anew, and its size into `context.json`."""

    def change(folder):
        file = segments(folder)[0]
        whole = file.read_bytes()
        file.unlink()
        write(file, whole)
        if listed:
            about = json.loads((folder / "context.json").read_text())
            about["segments"][file.name]["bytes"] = file.stat().st_size
            (folder / "context.json").write_text(json.dumps(about))

    return change


def led_outside(folder):
    """Move the largest segment into the folder above, and say so."""
    file = segments(folder)[0]
    file.rename(folder.parent / file.name)
    about = json.loads((folder / "context.json").read_text())
    about["segments"][f"../{file.name}"] = about["segments"].pop(file.name)
    (folder / "context.json").write_text(json.dumps(about))


def tensors(**changes):
    """Change tensors of the largest segment; None takes one out."""

    def write(file, whole):
        stored = load(whole)
        for name, change in changes.items():
            tensor = stored.pop(name)
            if change is not None:
                stored[name] = change(tensor).contiguous()
        save_file(stored, file)

    return replaced(write)


def first_half(file, whole):
    file.write_bytes(whole[: len(whole) // 2])


BROKEN = {
    "no context.json": (UsageError, lambda f: (f / "context.json").unlink()),
    "context.json is half": (WorkError, cut(0.5)),
    "context.json is empty": (WorkError, cut(0)),
    "context.json is binary": (WorkError, lambda f: (f / "context.json").write_bytes(b"\xff\xfe\x00\x01")),
    "context.json is a list": (UsageError, lambda f: (f / "context.json").write_text("[1]")),
    "another format": (UsageError, edit(format="other")),
    "an older version": (UsageError, edit(version=1)),
    "a newer version": (UsageError, edit(version=7)),
    "no version": (UsageError, edit(version=None)),
    "no model": (WorkError, edit(model=None)),
    "no chunk_length": (WorkError, edit(chunk_length=None)),
    "chunk_length is a word": (WorkError, edit(chunk_length="long")),
    "no documents": (UsageError, edit(documents={})),
    "documents are a list": (WorkError, edit(documents=["text"])),
    "tokens do not agree": (WorkError, edit_part("documents", tokens=88)),
    "a chunk that is nowhere": (WorkError, edit_part("documents", chunks=["ab"])),
    "fewer chunks listed": (WorkError, edit_part("segments", chunks=["ab"])),
    "a segment outside the folder": (WorkError, led_outside),
    "no segment": (WorkError, lambda f: segments(f)[0].unlink()),
    "a segment is half": (WorkError, replaced(first_half, listed=False)),
    "a segment is half, and listed so": (WorkError, replaced(first_half)),
    "a segment lacks its end": (WorkError, replaced(lambda f, whole: f.write_bytes(whole[:-1]), listed=False)),
    "a segment is empty": (WorkError, replaced(lambda f, _: f.write_bytes(b""))),
    "a segment is text": (WorkError, replaced(lambda f, _: f.write_text("hello " * 99))),
    "a tensor is missing": (WorkError, tensors(values=None)),
    "ids are missing": (WorkError, tensors(ids=None)),
    "ids of fewer chunks": (WorkError, tensors(ids=lambda t: t[1:])),
    "ids that are no whole numbers": (WorkError, tensors(ids=lambda t: t.float())),
    "ids in one row": (WorkError, tensors(ids=lambda t: t.flatten())),
    "ids beyond the vocabulary": (WorkError, tensors(ids=lambda t: t + 300)),
    "ids below the vocabulary": (WorkError, tensors(ids=lambda t: t - 300)),
    "lengths of longer chunks": (WorkError, tensors(lengths=lambda t: t + 1)),
    "lengths that are no whole numbers": (WorkError, tensors(lengths=lambda t: t.float())),
    "tokens out of order": (WorkError, tensors(tokens=lambda t: t.flip(1))),
    "tokens before the first": (WorkError, tensors(tokens=lambda t: t - 16)),
    "tokens that are no whole numbers": (WorkError, tensors(tokens=lambda t: t.float())),
    "keys of fewer chunks": (WorkError, tensors(keys=lambda t: t[:, 1:])),
    "keys of fewer tokens": (WorkError, tensors(keys=lambda t: t[:, :, :, 1:])),
    "tokens of fewer chunks": (WorkError, tensors(tokens=lambda t: t[1:])),
    "representations of another size": (WorkError, tensors(reps=lambda t: t[..., 1:])),
    "scales of nothing packed": (WorkError, tensors(key_low=lambda t: t.new_zeros(3, 6, 2))),
    "keys and values of fewer layers": (WorkError, tensors(keys=lambda t: t[1:], values=lambda t: t[1:])),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_context_is_refused_with_one_sentence(llm, tmp_path, name):
    kind, change = BROKEN[name]
    folder = tmp_path / "kept-context"
    llm.read(tokens(87)).save(folder)
    change(folder)
    before = files(folder)
    with pytest.raises(kind) as error:
        Context.load(folder, llm)
    assert type(error.value) is kind
    assert_one_sentence(error)
    assert "kept-context" in str(error.value)
    assert files(folder) == before


def test_what_is_no_folder_is_refused(llm, tmp_path):
    (tmp_path / "file").write_text("hello")
    for path in (tmp_path / "missing", tmp_path / "file", tmp_path):
        with pytest.raises(UsageError, match="not a saved context") as error:
            Context.load(path, llm)
        assert_one_sentence(error)


@pytest.mark.parametrize("name", ["context.json is half", "context.json is empty", "context.json is binary"])
def test_what_lost_its_manifest_is_replaced_and_not_added_to(llm, tmp_path, name):
    folder, text = tmp_path / "c", tokens(87)
    llm.read(tokens(40 * 16, 2)).save(folder)
    BROKEN[name][1](folder)
    library, before = Library(folder, llm), files(folder)
    with pytest.raises(WorkError, match="encode the text again") as error:
        library.add("more", text)
    assert_one_sentence(error)
    assert files(folder) == before and not library.whole
    library.update({"text": text}, only=True)
    assert library.whole and library.documents == {"text": 87} and len(segments(folder)) == 2
    BROKEN[name][1](folder)
    llm.read(text).save(folder)
    assert_same_chunks(Context.load(folder, llm), llm.read(text))


def test_what_is_no_context_of_ours_stays_though_it_is_no_json(llm, tmp_path):
    (tmp_path / "context.json").write_text("{")
    before = files(tmp_path)
    with pytest.raises(UsageError, match="another program's"):
        llm.read(tokens(87)).save(tmp_path)
    assert files(tmp_path) == before


def test_a_store_whose_last_text_was_removed_says_so(llm, tmp_path):
    library = Library(tmp_path / "c", llm)
    library.add("a", tokens(87))
    library.remove("a")
    with pytest.raises(UsageError, match="c holds no text; read one with") as error:
        library.context()
    assert_one_sentence(error)


def test_a_state_that_came_back_while_it_was_read_is_read_again(llm, tmp_path, monkeypatch):
    llm.read(tokens(87)).save(tmp_path / "c")
    real, tried = sharedllm.store._open_segment, []

    def first_is_gone(file, listed):
        tried.append(file)
        if len(tried) == 1:
            raise FileNotFoundError(file)
        return real(file, listed)

    monkeypatch.setattr(sharedllm.store, "_open_segment", first_is_gone)
    assert_same_chunks(Context.load(tmp_path / "c", llm), llm.read(tokens(87)))
