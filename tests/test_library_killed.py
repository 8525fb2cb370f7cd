"""A library whose writer is killed, and one that is read while another process writes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import sharedllm.saved
from sharedllm import Context, Library, UsageError
from tests.conftest import tokens
from tests.contexts import assert_same_chunks, encoded, files, segments
from tests.test_generate import counted

OLD, TEXT = tokens(16 * 5 + 3, 1), tokens(16 * 40 + 7, 2)
SLOW_WRITER = """
import sys, time
import sharedllm.saved
from sharedllm import Library, SharedLLM
from tests.conftest import CONFIG, byte_tokenizer, tiny_model
from tests.test_library_killed import TEXT

llm = SharedLLM.from_pretrained(tiny_model(), adapter="none", config=CONFIG, tokenizer=byte_tokenizer())
sharedllm.saved.SEGMENT_BYTES = 3 * llm.reader.layout(16).nbytes
real = llm.lower.encode

def slow(*args):
    print("reading", flush=True)
    time.sleep(0.05)
    return real(*args)

llm.lower.encode = slow
Library(sys.argv[1], llm).add("text", TEXT)
"""


def segments_listed(folder: Path) -> int:
    return len(json.loads((folder / "context.json").read_text())["segments"])


def chunks_on_disk(folder: Path) -> int:
    """Of `TEXT`, in segments that are listed or in parts of the next."""
    listed = json.loads((folder / "context.json").read_text())["segments"]
    files = [*(folder / name for name in listed), *folder.glob("part-*.safetensors")]
    there = {tuple(row) for file in files for row in load_file(file)["ids"].tolist()}
    return len(there & {tuple(row.tolist()) for row in TEXT.int().split(16)})


def stopped_at(tokens: int):
    """A progress callback that ends the reading by Ctrl-C once so many tokens are done."""

    def progress(done: int, _total: int) -> None:
        if done == tokens:
            raise KeyboardInterrupt

    return progress


def test_a_killed_reading_goes_on_and_ends_byte_for_byte_the_same(make, tmp_path, monkeypatch):
    llm = make()
    monkeypatch.setattr(sharedllm.saved, "SEGMENT_BYTES", 3 * llm.reader.layout(16).nbytes)
    killed, whole = Library(tmp_path / "killed", llm), Library(tmp_path / "whole", llm)
    for library in (killed, whole):
        library.add("old", OLD)
    before = segments_listed(killed.folder)
    whole.add("text", TEXT)
    writer = subprocess.Popen(
        [sys.executable, "-c", SLOW_WRITER, str(killed.folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        while segments_listed(killed.folder) < before + 3:
            assert writer.poll() is None
            time.sleep(0.01)
        with pytest.raises(UsageError, match="another process is writing"):
            killed.remove("old")
        assert killed.context().tokens == len(OLD), "the state before, while the next one is being written"
    finally:
        writer.kill()
        begun = writer.communicate()[0].count("reading")
    assert killed.documents == {"old": len(OLD)}
    calls, there = counted(monkeypatch, llm.lower, "encode"), chunks_on_disk(killed.folder)
    assert 9 <= there < 41 and there >= begun - 1, "no more than the chunk that was being read is lost"
    told: list[tuple[int, int]] = []
    killed.add("text", TEXT, lambda *read: told.append(read))
    assert len(calls) == 41 - there, "what is on the disk is not read again"
    assert told[-1][0] == told[-1][1]
    assert files(killed.folder) == files(whole.folder)
    assert_same_chunks(killed.context(["text"]), encoded(llm, TEXT))


def test_a_folder_that_was_never_read_to_its_end_says_so(make, tmp_path, monkeypatch):
    llm = make()
    monkeypatch.setattr(sharedllm.saved, "SEGMENT_BYTES", 1)

    stopped = stopped_at(32)

    with pytest.raises(KeyboardInterrupt):
        Library(tmp_path / "c", llm).add("text", TEXT, stopped)
    with pytest.raises(UsageError, match="run `sharedllm encode` again to go on"):
        Context.load(tmp_path / "c", llm)


def test_what_was_read_of_a_first_segment_is_kept_in_a_new_folder(make, tmp_path, monkeypatch):
    llm = make()  # a segment holds eight chunks: none is whole when the reading is stopped

    stopped = stopped_at(16 * 5)

    library = Library(tmp_path / "c", llm)
    with pytest.raises(KeyboardInterrupt):
        library.add("text", TEXT, stopped)
    assert len(list(library.folder.glob("part-*"))) == 4 and not segments(library.folder)
    with pytest.raises(UsageError, match="run `sharedllm encode` again to go on"):
        Context.load(library.folder, llm)
    calls = counted(monkeypatch, llm.lower, "encode")
    library.add("text", TEXT)
    assert len(calls) == 41 - 4, "the four chunks that were read before are not read again"
    assert_same_chunks(library.context(), encoded(llm, TEXT))
    assert not list(library.folder.glob("part-*"))
    with pytest.raises(KeyboardInterrupt):
        Library(tmp_path / "none", llm).add("text", TEXT, lambda *_: stopped(80, 0))
    assert not (tmp_path / "none").exists(), "not one chunk was read"


def test_parts_of_chunks_that_were_read_in_other_portions_do_not_stay(make, tmp_path, monkeypatch):
    llm = make()
    library = Library(tmp_path / "c", llm)
    library.add("old", OLD)

    stopped = stopped_at(16 * 5)

    with pytest.raises(KeyboardInterrupt):
        library.add("text", TEXT, stopped)
    parts = sorted(library.folder.glob("part-*"))
    assert len(parts) == 4
    parts[0].write_bytes(parts[0].read_bytes()[:99])
    library.add("more", TEXT[16 * 30 :])
    assert sorted(library.folder.glob("part-*")) == parts[1:], "what is whole may be gone on from"
    monkeypatch.setattr(llm.reader, "step", lambda _: 64)  # a GPU reads so many at once
    library.add("text", TEXT)
    assert not list(library.folder.glob("part-*"))
    assert_same_chunks(library.context(["text"]), encoded(llm, TEXT))


def test_what_a_stopped_call_read_outlives_other_calls_until_the_folder_is_made_anew(make, tmp_path, monkeypatch):
    llm = make()
    monkeypatch.setattr(sharedllm.saved, "SEGMENT_BYTES", 1)
    library = Library(tmp_path / "c", llm)
    library.add("old", OLD)

    stopped = stopped_at(16 * 20)

    with pytest.raises(KeyboardInterrupt):
        library.add("text", TEXT, stopped)
    library.add("other", tokens(16 * 3, 3))
    library.remove("old")
    calls = counted(monkeypatch, llm.lower, "encode")
    library.add("text", TEXT)
    assert len(calls) == 41 - 19, "the nineteen chunks that were written before are not read again"
    library.remove("text")
    with pytest.raises(KeyboardInterrupt):
        library.add("text", TEXT, stopped)
    library.update({"other": tokens(16 * 3, 3)}, only=True)
    assert segments_listed(library.folder) == len(segments(library.folder)) == 3


def test_who_asks_while_another_writes_sees_whole_states(make, tmp_path):
    reading, writing = make(), make()
    library = Library(tmp_path / "c", writing)
    library.add("old", OLD)
    states = {len(OLD): OLD, len(OLD) + len(TEXT): torch.cat([OLD, TEXT])}
    ended = threading.Event()

    def write():
        for _ in range(6):
            library.add("text", TEXT)
            library.remove("text")  # its segments go, while the other may be about to open them
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = 0
    while not ended.is_set() or seen < 5:
        context = Context.load(tmp_path / "c", reading)
        assert torch.equal(context.ids, states[context.tokens].int())
        assert context.encoded_tokens == context.tokens
        assert reading(tokens(6, 1)[None], context=context).logits.isfinite().all()
        seen += 1
    writer.join()
