"""Two servers on one folder, step by step: what one wrote or deleted last stays so, however slow the other is."""

from __future__ import annotations

import errno
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.serve.conftest import LONG, tiny_llm

pytest.importorskip("fastapi", reason="the server is not installed: pip install sharedllm[serve]")

from sharedllm.context import Context
from sharedllm.serve.budget import Budget
from sharedllm.serve.entry import ABOUT, BROKEN, SLOTS, Entry, state_of
from sharedllm.serve.failures import ApiError
from sharedllm.serve.service import Service
from sharedllm.serve.settings import Settings


@pytest.fixture
def pair(tmp_path):
    """Two servers whose engines do nothing by themselves."""
    llm = tiny_llm()
    services = [Service(llm, Settings(tmp_path, shared=True, prompt_disk_bytes=0)) for _ in range(2)]
    for service in services:
        service.shelf.open()
    return services


def settle(service) -> None:
    """Do all that there is to do, on the disk too."""
    while service.engine._work:
        service.engine._advance()
    for _ in range(2):
        service.shelf.kept.later(lambda: None).result()


def begin(a, b):
    """A context that one server was given, and another reads as well, half of it so far; its id and its folder."""
    key = a.shelf.add("items.txt", a.llm.reader.token_ids(LONG)).id
    assert b.shelf.get(key).status == "reading"
    for _ in range(3):
        b.engine._advance()
    return key, a.shelf.get(key).folder


def test_what_was_deleted_while_another_server_reads_it_stays_deleted(pair):
    a, b = pair
    key, folder = begin(a, b)
    a.shelf.delete(key)
    settle(a)
    left = len(LONG) // 16
    while b.engine._work and left:
        b.engine._advance()
        left -= 1
    assert left > len(LONG) // 32, "it is not read to its end"
    settle(b)
    assert not folder.exists() and not b.shelf.contexts and not b.shelf.all()
    with pytest.raises(ApiError, match="there is no context"):
        b.shelf.get(key)


def test_what_was_deleted_while_another_server_writes_it_stays_deleted(pair, monkeypatch):
    a, b = pair
    key, folder = begin(a, b)
    save = Context.save

    def slow(context, where):
        save(context, where)
        if key in a.shelf.contexts:
            a.shelf.delete(key)
            settle(a)
            save(context, where)  # its last files come late

    monkeypatch.setattr(Context, "save", slow)
    while b.engine._work:
        b.engine._advance()
    settle(b)
    assert not a.shelf.contexts and not folder.exists()


def test_what_was_appended_while_another_server_reads_is_not_overwritten(pair):
    a, b = pair
    key, folder = begin(a, b)
    settle(a)
    a.shelf.append(key, "more.txt", a.llm.reader.token_ids(" One more."))
    before = state_of(folder)
    settle(b)
    assert state_of(folder) == before and key not in b.shelf.contexts
    settle(a)
    for service in (a, b):
        entry = service.shelf.get(key)
        assert entry.documents == ["items.txt", "more.txt"] and entry.status == "ready"
        assert len(entry.ids) == len(LONG) + len(" One more.")


def test_of_two_servers_that_append_at_once_one_is_told(pair, monkeypatch):
    a, b = pair
    key, _ = begin(a, b)
    settle(a)
    stale, more = b.shelf.get(key), a.llm.reader.token_ids(" One more.")
    a.shelf.append(key, "more.txt", more)
    settle(a)
    monkeypatch.setattr(b.shelf, "get", lambda _key: stale)  # it looked before the other wrote
    with pytest.raises(ApiError, match="another server has changed this context") as refused:
        b.shelf.append(key, "late.txt", more)
    assert refused.value.status == 409 and stale.documents == ["items.txt"]
    monkeypatch.undo()
    assert b.shelf.get(key).documents == ["items.txt", "more.txt"]


def test_a_context_that_is_let_go_twice_at_once_is_not_found(pair, monkeypatch):
    a, b = pair
    key, _ = begin(a, b)
    settle(a)
    a.shelf.delete(key)
    settle(a)
    looked = []

    def nested(folder):
        if not looked:
            looked.append(True)
            with pytest.raises(ApiError, match="there is no context"):
                b.shelf.get(key)
        return state_of(folder)

    monkeypatch.setattr("sharedllm.serve.shelf.state_of", nested)
    with pytest.raises(ApiError, match="there is no context"):
        b.shelf.get(key)


@pytest.mark.parametrize("shared", [False, True])
def test_a_context_that_is_deleted_while_it_is_appended_to_stays_deleted(tmp_path, monkeypatch, shared):
    service = Service(tiny_llm(), Settings(tmp_path, shared=shared))
    shelf = service.shelf
    shelf.open()
    key = shelf.add("items.txt", service.llm.reader.token_ids(LONG)).id
    settle(service)
    folder = shelf.get(key).folder
    monkeypatch.setattr(shelf.kept.budget, "check_disk", lambda *_: shelf.delete(key))
    with pytest.raises(ApiError, match="there is no context") as refused:
        shelf.append(key, "more.txt", service.llm.reader.token_ids(" One more."))
    assert refused.value.status == 404
    settle(service)
    assert not folder.exists() and not shelf.contexts


def test_a_context_that_one_server_says_is_ready_is_so_on_all(pair, monkeypatch):
    a, b = pair
    key, _ = begin(a, b)
    disk, about, seen = threading.Event(), Entry.save_about, []

    def watched(entry):
        about(entry)
        seen.append(b.shelf.get(key).status)  # before the writing server has removed the text

    monkeypatch.setattr(Entry, "save_about", watched)
    a.shelf.kept.later(disk.wait)
    while a.engine._work:
        a.engine._advance()
    assert a.shelf.get(key).status == "reading" and a.shelf.get(key).describe()["read_tokens"] == len(LONG)
    disk.set()
    settle(a)
    assert seen == ["ready"]
    assert a.shelf.get(key).status == b.shelf.get(key).status == "ready"
    assert b.shelf.ready(key).tokens == len(LONG)


def test_a_context_that_cannot_be_written_is_ready_where_it_was_read(pair, monkeypatch):
    a, _ = pair
    key = a.shelf.add("items.txt", a.llm.reader.token_ids(LONG)).id

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Context, "save", full)
    settle(a)
    assert a.shelf.get(key).status == "ready" and not a.shelf.get(key).saved


def context_of(llm, folder, last: float):
    """A kept entry in memory and on the disk."""
    entry = Entry(folder.name, folder, ["a.txt"], ids=llm.reader.token_ids(LONG), used=last)
    context = llm.reader.new_context()
    context.append(entry.ids)
    entry.finish(context)
    entry.save(context)
    assert entry.saved and entry.loaded
    return entry


def test_a_context_that_another_server_deleted_does_not_keep_others_in_memory(tmp_path):
    llm = tiny_llm()
    gone, kept = context_of(llm, tmp_path / "gone", 1), context_of(llm, tmp_path / "kept", 2)
    gone.remove()
    Budget(llm, Settings(tmp_path, memory_bytes=0)).fit([gone, kept], {})
    assert (gone.loaded, kept.loaded) == (True, False)


def test_what_was_appended_while_a_context_leaves_memory_is_not_lost(tmp_path, monkeypatch):
    llm = tiny_llm()
    entry, longer = context_of(llm, tmp_path / "one", 1), SimpleNamespace(nbytes=9)
    load = Context.load

    def slow(*arguments):
        entry.finish(longer)  # the reading of what was appended ends
        return load(*arguments)

    monkeypatch.setattr("sharedllm.serve.budget.Context.load", slow)
    Budget(llm, Settings(tmp_path, memory_bytes=0)).fit([entry], {})
    assert entry.context is longer and entry.loaded and not entry.saved


@pytest.mark.parametrize("look", [lambda shelf, key: shelf.get(key), lambda shelf, key: shelf.all()])
def test_what_a_restart_finds_half_read_is_read_on_once_it_is_named(pair, look):
    a, _ = pair
    key = a.shelf.add("items.txt", a.llm.reader.token_ids(LONG)).id
    for _ in range(3):
        a.engine._advance()
    a.shelf.close()
    again = Service(a.llm, a.settings)
    again.shelf.open()
    assert not again.engine._work, "another server may be at it"
    look(again.shelf, key)
    assert again.shelf.contexts[key].partial.tokens > 0, "what was read is not read again"
    settle(again)
    assert again.shelf.get(key).status == "ready"


def test_a_server_that_shuts_down_does_not_stop_what_others_read(pair):
    a, b = pair
    key, folder = begin(a, b)
    ours, before = a.shelf.get(key), state_of(folder)
    for _ in range(5):
        a.engine._advance()
    b.shelf.close()
    assert Context.load(folder / SLOTS, a.llm).tokens == 3 * 16 and state_of(folder) == before
    assert a.shelf.get(key) is ours and ours.partial.tokens == 5 * 16
    settle(a)
    assert a.shelf.get(key) is ours and ours.status == "ready"
    assert Context.load(folder / SLOTS, a.llm).tokens == len(LONG)


def test_of_the_parts_that_servers_had_read_the_longest_stays(pair):
    a, b = pair
    key, folder = begin(a, b)
    for _ in range(9):
        a.engine._advance()
    a.shelf.close()
    b.shelf.close()
    assert Context.load(folder / SLOTS, a.llm).tokens == 9 * 16
    assert Service(a.llm, a.settings).shelf.get(key).partial.tokens == 9 * 16


def looked_at(shelf) -> None:
    shelf.all()


def fitted(shelf) -> None:
    shelf.kept.later(shelf.kept.fit).result()


def added_to(shelf) -> None:
    shelf.add("other.txt", shelf.llm.reader.token_ids("Another."))


@pytest.mark.parametrize("do", [looked_at, fitted, added_to])
def test_what_another_server_deleted_is_listed_counted_and_held_no_more(pair, do):
    a, b = pair
    key, _ = begin(a, b)
    settle(a)
    assert b.shelf.get(key).status == "ready"
    a.shelf.delete(key)
    settle(a)
    assert key in b.shelf.contexts, "nobody has looked"
    do(b.shelf)
    assert key not in b.shelf.contexts


def test_what_another_server_keeps_takes_of_the_disk_and_is_not_read_for_that(tmp_path):
    llm = tiny_llm()
    room = Budget(llm, Settings(tmp_path)).bytes_of(len(LONG))
    settings = Settings(tmp_path, shared=True, prompt_disk_bytes=0, context_disk_bytes=room)
    a, b = (Service(llm, settings) for _ in range(2))
    for service in (a, b):
        service.shelf.open()
    a.shelf.add("items.txt", llm.reader.token_ids(LONG))
    with pytest.raises(ApiError, match="delete some") as refused:
        b.shelf.add("items.txt", llm.reader.token_ids(LONG))
    assert refused.value.status == 507 and not b.engine._work
    assert len(list((tmp_path / "contexts").iterdir())) == 1


def test_what_was_deleted_is_gone_before_the_disk_has_forgotten_it(pair):
    a, b = pair
    key, folder = begin(a, b)
    settle(a)
    disk = threading.Event()
    a.shelf.kept.later(disk.wait)
    try:
        a.shelf.delete(key)
        assert folder.exists() and not a.shelf.all()
        with pytest.raises(ApiError, match="there is no context"):
            a.shelf.get(key)
    finally:
        disk.set()
    settle(a)
    assert not folder.exists() and not a.shelf.all()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO])
def test_a_folder_that_cannot_be_looked_at_is_not_taken_for_deleted(pair, monkeypatch, code):
    a, b = pair
    key, folder = begin(a, b)
    read = Path.read_bytes

    def failing(file):
        if file.name == ABOUT:
            raise OSError(code, "it failed")
        return read(file)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", failing)
        with pytest.raises(ApiError, match="cannot be read now") as refused:
            a.shelf.get(key)
        assert refused.value.status == 503 and [entry.id for entry in a.shelf.all()] == [key]
        settle(a)
    assert folder.exists() and not a.shelf.get(key).saved
    a.shelf.kept.later(a.shelf.kept._write_left).result()
    assert a.shelf.get(key).saved and a.shelf.get(key).status == "ready"


@pytest.mark.parametrize("about", [b"{", b"[]", b"\xff"])
def test_a_folder_that_says_nothing_is_not_taken_for_deleted(tmp_path, about):
    (tmp_path / ABOUT).write_bytes(about)
    assert state_of(tmp_path) == BROKEN and state_of(tmp_path / "nowhere") is None
    assert state_of(tmp_path / ABOUT) is None


def test_two_servers_write_one_folder_under_names_of_their_own(tmp_path, monkeypatch):
    llm, written, write = tiny_llm(), [], Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda file, data: written.append(file.name) or write(file, data))
    for _ in range(2):
        Entry("one", tmp_path / "one", ["a.txt"], ids=llm.reader.token_ids(LONG)).save_text()
    assert len(set(written)) == len(written) == 4
    assert {file.name for file in (tmp_path / "one").iterdir()} == {"about.json", "text.safetensors"}
