"""Memory that runs out: said before reading where it can be known, and in one sentence where it cannot."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import typer

from sharedllm import Library, WorkError, hardware
from sharedllm.cli import main
from tests.conftest import CONFIG, tokens
from tests.contexts import assert_one_sentence

WHOLE = dataclasses.replace(CONFIG, chunk_length=32, fine_chunks=1, read_chunks=3)
TEXT = tokens(32 * 5 + 11, 4)


@pytest.mark.parametrize("compact", [False, True])
def test_a_text_that_memory_cannot_keep_is_refused_before_it_is_read(make, monkeypatch, compact):
    llm = make(WHOLE)
    whole = llm.read(TEXT, compact=compact)
    needed, read = sum(block.nbytes for block in whole.blocks), []
    monkeypatch.setattr("sharedllm.reader.room_bytes", lambda place, wanted: needed - 1)
    with pytest.raises(WorkError, match="MB are free; read it with `sharedllm encode`") as error:
        llm.read(TEXT, progress=lambda done, total: read.append(done), compact=compact)
    assert_one_sentence(error)
    assert read == [] and ("--compact" in str(error.value)) != compact
    monkeypatch.setattr("sharedllm.reader.room_bytes", lambda place, wanted: needed)
    assert llm.read(TEXT, compact=compact).nbytes == whole.nbytes


def test_only_what_is_still_to_be_read_counts(make, monkeypatch):
    llm = make(WHOLE)
    context, wanted = llm.read(TEXT[: 32 * 4]), []
    before = sum(block.nbytes for block in context.blocks)
    monkeypatch.setattr("sharedllm.reader.room_bytes", lambda place, needed: wanted.append(needed) or needed)
    context.append(TEXT[32 * 4 :])
    assert wanted == [sum(block.nbytes for block in context.blocks) - before] and before > 0


@pytest.mark.parametrize("every_token", [False, True])
def test_what_is_read_is_counted_at_the_bits_it_is_kept_at(make, monkeypatch, every_token):
    llm, wanted = make(dataclasses.replace(WHOLE, stored_bits=4)), []
    monkeypatch.setattr("sharedllm.reader.room_bytes", lambda place, needed: wanted.append(needed) or needed)
    context = llm.reader.new_context()
    context.ids = TEXT.to(torch.int32)
    llm.reader.encode(context, every_token=every_token)
    assert wanted == [sum(block.nbytes for block in context.blocks)]


def test_what_goes_to_the_disk_needs_no_room(make, tmp_path, monkeypatch):
    monkeypatch.setattr("sharedllm.reader.room_bytes", lambda place, wanted: 0)
    library = Library(tmp_path / "c", make(WHOLE))
    library.add("text", TEXT)
    assert library.documents == {"text": len(TEXT)}


def test_memory_that_was_freed_and_kept_counts_as_free(monkeypatch):
    free, cpu = [10, 50], torch.device("cpu")
    monkeypatch.setattr(hardware, "free_memory_bytes", lambda device: free[0])
    monkeypatch.setattr(hardware, "trim", lambda: free.pop(0))
    assert hardware.room_bytes(cpu, 10) == 10 and len(free) == 2
    assert hardware.room_bytes(cpu, 11) == 50


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        None,
    ],
)
def test_the_command_line_says_it_in_one_sentence(error, capsys):
    app = typer.Typer()

    @app.command()
    def run() -> None:
        if error is None:
            torch.empty(2**60)
        raise error

    with pytest.raises(SystemExit) as ended:
        main([], app)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and said.startswith("sharedllm: there is not enough memory") and said.count("\n") == 1


def test_other_errors_of_torch_are_not_taken_for_it():
    app = typer.Typer()

    @app.command()
    def run() -> None:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes"):
        main([], app)
