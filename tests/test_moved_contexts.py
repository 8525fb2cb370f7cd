"""Contexts that are asked by another adapter, or in another dtype, than they were made with."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sharedllm import Context, SharedLLM
from sharedllm.errors import UsageError, WorkError
from tests.conftest import CONFIG, byte_tokenizer, tiny_model, tokens
from tests.contexts import assert_one_sentence, assert_same_chunks
from tests.test_compact import TEXT, WHOLE, assert_same_memory
from tests.test_generate import counted

WINDOW = tokens(6, 3)[None]


def of_dtype(dtype: str, config=WHOLE) -> SharedLLM:
    return SharedLLM.from_pretrained(
        tiny_model(), adapter="none", config=config, tokenizer=byte_tokenizer(), dtype=dtype
    )


@pytest.mark.parametrize(("written", "asked"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_chunk_is_read_again_in_another_dtype(written, asked, tmp_path):
    of_dtype(written).read(TEXT, compact=True).save(tmp_path / "a")
    llm = of_dtype(asked)
    memory = llm.recall(Context.load(tmp_path / "a", llm), WINDOW)
    assert memory.mask.shape[1] > 1 and all(x.isfinite().all() for x in memory.keys)


def test_chunks_that_are_read_again_have_the_layers_of_the_adapter_that_asks(make):
    rich, lean = make(WHOLE), make(dataclasses.replace(WHOLE, injected_layers=2))
    context = rich.read(TEXT, compact=True)
    before = rich.recall(context, WINDOW)
    assert context.again, "a chunk was read again, and remembered"
    moved = lean.recall(context, WINDOW)
    fresh = lean.recall(lean.read(TEXT, compact=True), WINDOW)
    assert len(moved.keys) < len(before.keys)
    assert_same_memory(moved, fresh)


@pytest.mark.parametrize("length", [60, 70])
@pytest.mark.parametrize("changes", [{"injected_layers": 2}, {"skipped_layers": 1}, {"fine_chunks": 0}], ids=str)
def test_an_adapter_that_needs_less_leaves_the_context_of_another_alone(make, monkeypatch, changes, length):
    settings = dataclasses.replace(CONFIG, fine_chunks=1)
    rich, lean = make(settings), make(dataclasses.replace(settings, **changes))
    text, more = tokens(length, 1), tokens(40, 2)
    context = rich.read(text)
    before = rich.recall(rich.read(text), WINDOW)
    for _ in range(2):
        assert_same_memory(lean.recall(context, WINDOW), lean.recall(lean.read(text), WINDOW))
        assert lean.ask(context, "who?", 4) == lean.ask(lean.read(text), "who?", 4)
        assert_same_memory(rich.recall(context, WINDOW), before)
    encoded = counted(monkeypatch, lean.lower, "encode")
    lean.recall(context, WINDOW)
    assert encoded == [], "it was read already"
    context.append(more)
    whole = torch.cat([text, more])
    assert_same_memory(rich.recall(context, WINDOW), rich.recall(rich.read(whole), WINDOW))
    assert_same_memory(lean.recall(context, WINDOW), lean.recall(lean.read(whole), WINDOW))


@pytest.mark.parametrize("changes", [{"injected_layers": 2}, {"skipped_layers": 1}, {"fine_chunks": 0}], ids=str)
def test_what_an_adapter_does_not_need_stays_in_a_context_that_was_loaded_without_a_model(make, tmp_path, changes):
    settings = dataclasses.replace(CONFIG, fine_chunks=1)
    rich, lean = make(settings), make(dataclasses.replace(settings, **changes))
    context = rich.read(tokens(70, 1))
    context.save(tmp_path / "c")
    loaded = Context.load(tmp_path / "c")
    assert_same_memory(lean.recall(loaded, WINDOW), lean.recall(lean.read(tokens(70, 1)), WINDOW))
    loaded.save(tmp_path / "c")
    for kept in (loaded, Context.load(tmp_path / "c", rich)):
        assert_same_memory(rich.recall(kept, WINDOW), rich.recall(context, WINDOW))
        assert_same_chunks(kept, context)


def test_a_reader_of_fewer_layers_does_not_append_to_a_context_of_more(make):
    rich, lean = make(), make(dataclasses.replace(CONFIG, injected_layers=2))
    context, more = rich.read(tokens(70, 1)), tokens(40, 2)
    with pytest.raises(UsageError, match="append with the model it was read with") as error:
        lean.reader.append(context, more)
    assert_one_sentence(error)
    assert_same_chunks(context, rich.read(tokens(70, 1)))
    rich.reader.append(context, more)
    assert_same_chunks(context, rich.read(torch.cat([tokens(70, 1), more])))


@pytest.mark.parametrize("changes", [{"injected_layers": 2}, {"skipped_layers": 1}])
def test_a_compact_context_goes_on_with_an_adapter_that_reads_no_chunk_whole(make, tmp_path, changes):
    make(WHOLE).read(TEXT, compact=True).save(tmp_path / "a")
    llm = make(dataclasses.replace(WHOLE, fine_chunks=0, **changes))
    context = Context.load(tmp_path / "a", llm)
    context.append(tokens(40, 1))
    context.save(tmp_path / "b")
    again = Context.load(tmp_path / "b", llm)
    assert again.tokens == len(TEXT) + 40
    assert_same_memory(llm.recall(again, WINDOW), llm.recall(context, WINDOW))


def test_where_there_is_no_room_for_more_the_context_stays_as_it_was(make, monkeypatch):
    llm = make(CONFIG)
    context = llm.read(TEXT)
    before = llm.recall(context, WINDOW)
    with monkeypatch.context() as full:
        full.setattr("sharedllm.reader.room_bytes", lambda place, wanted: 0)
        with pytest.raises(WorkError, match="are free"):
            context.append(tokens(40, 1), keep=[(0, 8)])
    assert torch.equal(context.ids, TEXT.int()) and context.encoded_tokens == len(TEXT) and not context.keep
    assert_same_memory(llm.recall(context, WINDOW), before)
    context.append(tokens(40, 1))
    assert context.tokens == context.encoded_tokens == len(TEXT) + 40


def test_a_context_that_is_read_is_not_read_again(make, monkeypatch):
    llm = make(CONFIG)
    context = llm.read(TEXT)
    monkeypatch.setattr(llm.reader, "encode_rows", lambda *_: pytest.fail("it was read already"))
    llm.reader.encode(context)
