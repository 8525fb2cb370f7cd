"""Long prompts: read once, kept once however they grow, and not read anew where a try was given up."""

from __future__ import annotations

import time

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tests.contexts import assert_same_chunks, encoded
from tests.serve.conftest import LONG, tiny_llm
from tests.serve.test_wrong import CHAT, assert_refused
from tests.test_generate import counted as calls_of

pytest.importorskip("fastapi", reason="the server is not installed: pip install sharedllm[serve]")

from sharedllm.context import Context
from sharedllm.serve import asking
from sharedllm.serve.budget import Budget
from sharedllm.serve.entry import Entry
from sharedllm.serve.failures import ApiError
from sharedllm.serve.schemas import ChatRequest, CompletionRequest
from sharedllm.serve.service import Service
from sharedllm.serve.settings import Settings
from sharedllm.store_write import Writer

C = 16  # tokens of a chunk
TURNS = [LONG, f"{LONG}\n\nWhere?\n\nIn a box.", f"{LONG}\n\nWhere?\n\nIn a box.\n\n{LONG[::-1]}"]


@pytest.fixture
def service(tmp_path):
    """A server whose engine does nothing by itself."""
    return opened(tmp_path)


def opened(folder, **settings):
    service = Service(tiny_llm(), Settings(folder, **settings))
    service.shelf.open()
    return service


def begun(service, text):
    return service.shelf.prompts.context(service.llm.reader.token_ids(text))


def settle(service) -> None:
    """Do all that there is to do on the disk."""
    service.shelf.kept.later(lambda: None).result()


def read(service, text, slices: int = 10**9):
    """The context of a prompt and what of it was known; None where it is given up after so many slices."""
    work = begun(service, text)
    try:
        for _ in range(slices):
            next(work)
    except StopIteration as end:
        return end.value
    finally:
        settle(service)
    work.close()
    settle(service)
    return None


def counted(service, monkeypatch) -> list[int]:
    """How many chunks are encoded, each time some are."""
    rows, chunks = service.llm.reader.encode_rows, []
    monkeypatch.setattr(
        service.llm.reader, "encode_rows", lambda ids, *a, **k: (chunks.append(len(ids)), rows(ids, *a, **k))[1]
    )
    return chunks


def folders(service) -> list[str]:
    return [place.name for place in (service.settings.folder / "prompts").iterdir()]


def test_the_next_try_goes_on_where_one_was_given_up(service, monkeypatch):
    chunks = counted(service, monkeypatch)
    assert read(service, LONG, slices=4) is None and len(chunks) == 4
    assert read(service, LONG, slices=3) is None and len(chunks) == 7
    assert len(service.shelf.kept.prompts) == len(folders(service)) == 1, "the second try holds the first"
    context, known = read(service, LONG)
    assert known == 7 * C and len(chunks) == -(-len(LONG) // C)
    assert_same_chunks(context, encoded(service.llm, context.ids))
    assert len(service.shelf.kept.prompts) == len(folders(service)) == 1
    assert read(service, LONG) == (context, len(LONG))


def test_tries_that_are_given_up_in_turn_all_come_to_their_ends(service):
    texts, left = [f"{i} {LONG}" for i in range(3)], set(range(3))
    for _ in range(-(-len(texts[0]) // C)):
        works = {i: begun(service, texts[i]) for i in sorted(left)}
        for _slice in range(2):
            for i, work in list(works.items()):
                try:
                    next(work)
                except StopIteration:
                    left.discard(i)
                    del works[i]
        for work in works.values():
            work.close()
    assert not left


def test_of_tries_at_once_the_longest_is_kept(service):
    one, other = begun(service, f"{LONG} a"), begun(service, f"{LONG} b")
    for work, slices in ((one, 6), (other, 3)):
        for _ in range(slices):
            next(work)
    one.close()
    other.close()
    settle(service)
    (kept,) = service.shelf.kept.prompts.values()
    assert len(kept.ids) == 6 * C and len(folders(service)) == 1


def test_who_waits_for_the_same_prompt_goes_on_where_its_reader_is_given_up(service):
    reader, waiting = begun(service, LONG), begun(service, LONG)
    for _ in range(3):
        next(reader)
        next(waiting)
    reader.close()
    with pytest.raises(StopIteration) as end:
        while True:
            next(waiting)
    context, known = end.value.value
    assert known == 3 * C and context.tokens == len(LONG)


def test_what_was_read_stays_where_reading_fails(service, monkeypatch):
    rows, calls = service.llm.reader.encode_rows, []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) > 3:
            raise MemoryError
        return rows(*arguments, **options)

    with monkeypatch.context() as broken:
        broken.setattr(service.llm.reader, "encode_rows", failing)
        with pytest.raises(MemoryError):
            read(service, LONG)
    assert not any(entry.reserved for entry in service.shelf.kept.entries())
    assert read(service, LONG)[1] == 3 * C


def test_what_a_server_had_read_when_it_ended_is_known_to_the_next(tmp_path):
    first = opened(tmp_path)
    work = begun(first, LONG)
    for _ in range(5):
        next(work)
    work.close()
    first.shelf.close()
    second = opened(tmp_path)
    assert read(second, LONG)[1] == 5 * C
    second.shelf.close()
    assert read(opened(tmp_path), LONG)[1] == len(LONG)


def test_a_conversation_that_goes_on_is_kept_once(service, monkeypatch):
    put, written = Writer.put, []

    def noted(store, chunks, ids, kept):
        written.append(len(chunks))
        put(store, chunks, ids, kept)

    monkeypatch.setattr(Writer, "put", noted)
    for text in TURNS:
        context, _ = read(service, text)
        (entry,) = service.shelf.kept.prompts.values()
        assert entry.context is context and entry.saved and len(folders(service)) == 1
    assert sum(written) <= -(-len(TURNS[-1]) // C) + len(TURNS) - 1, "but for ragged last chunks each is written once"
    memory = service.metrics.registry.get_sample_value("sharedllm_contexts_memory_bytes")
    assert memory == context.nbytes
    service.shelf.close()
    again, known = read(opened(service.settings.folder), TURNS[-1])
    assert known == len(TURNS[-1])
    assert_same_chunks(again, encoded(service.llm, context.ids))


def test_the_seconds_of_a_conversation_are_those_of_all_its_turns(service):
    read(service, TURNS[0])
    (entry,) = service.shelf.kept.prompts.values()
    entry.seconds = 1000.0
    _, known = read(service, TURNS[1])
    share = 1000.0 * known / len(TURNS[0])
    saved = lambda: service.metrics.registry.get_sample_value("sharedllm_saved_seconds_total")  # noqa: E731
    before = saved()
    read(service, TURNS[1])
    assert share <= saved() - before < share + 100


def test_prompts_that_differ_are_kept_beside_each_other(service):
    for text in (f"{LONG} {LONG}", f"{LONG} {LONG[::-1]}", LONG):
        read(service, text)
    assert len(service.shelf.kept.prompts) == len(folders(service)) == 3


def test_an_answer_that_attends_to_an_earlier_turn_goes_on_as_the_conversation_does(tmp_path):
    service = opened(tmp_path)
    read(service, TURNS[0])
    (entry,) = service.shelf.kept.prompts.values()
    object.__setattr__(service.settings, "memory_bytes", 0)
    service.shelf.kept.later(service.shelf.kept.fit).result()
    assert not entry.loaded, "it lies on the disk alone"
    attended = entry.context
    object.__setattr__(service.settings, "memory_bytes", 2**30)
    read(service, TURNS[1])
    assert entry.deleted and entry not in service.shelf.kept.prompts.values()
    assert_same_chunks(attended, encoded(service.llm, service.llm.reader.token_ids(TURNS[0])))


def test_a_turn_that_cannot_be_written_is_not_taken_for_the_one_before(tmp_path, monkeypatch):
    first = opened(tmp_path)
    read(first, TURNS[0])

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(Context, "save", full)
        context, _ = read(first, TURNS[1])
        assert read(first, TURNS[1]) == (context, len(TURNS[1])), "it is answered from memory"
        first.shelf.close()
    known = read(opened(tmp_path), TURNS[1])[1]
    assert 0 < known <= len(TURNS[0])


def test_a_turn_that_was_not_written_leaves_nothing_where_it_is_forgotten(service, monkeypatch):
    read(service, TURNS[0])
    monkeypatch.setattr(Context, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    read(service, TURNS[1])
    object.__setattr__(service.settings, "memory_bytes", 0)
    service.shelf.kept.later(service.shelf.kept.fit).result()
    assert not service.shelf.kept.prompts and not folders(service)


def test_an_answer_that_is_late_while_its_prompt_is_read_says_so_and_comes_in_the_end(http, served, monkeypatch):
    rows = served.llm.reader.encode_rows
    monkeypatch.setattr(served.llm.reader, "encode_rows", lambda *a, **k: (time.sleep(0.05), rows(*a, **k))[1])
    monkeypatch.setitem(vars(served.service.settings), "seconds", 0.6)
    body = {"messages": [{"role": "user", "content": f"{LONG}\n\nWhere?"}], "max_tokens": 1}
    assert_refused(http.post(CHAT, json=body), 504, "upload the text as a context")
    assert_refused(http.post("/v1/map", json={"messages": body["messages"]}), 504, "upload the text as a context")
    for _ in range(20):
        answer = http.post(CHAT, json=body)
        if answer.status_code == 200:
            break
    told = answer.json()
    assert answer.status_code == 200 and told["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert told["sharedllm"]["read_tokens"] < len(LONG) - 2 * C


def test_the_second_turn_of_a_chat_goes_on_from_the_document_of_the_first(http, served):
    document = f"Items\n\n\n\n{LONG[:200]}\n\n\n{LONG}\n \n\n{LONG[::-1]}"
    said = [{"role": "user", "content": f"{document}\n\n\nWhere is item 3?"}]
    first = http.post(CHAT, json={"messages": said, "max_tokens": 2}).json()
    assert first["sharedllm"]["read_tokens"] == len(document)
    hits = lambda: served.service.metrics.registry.get_sample_value("sharedllm_prompt_hits_total")  # noqa: E731
    before = hits()
    more = [{"role": "assistant", "content": "In a box."}, {"role": "user", "content": "And where is item 4?"}]
    second = http.post(CHAT, json={"messages": [*said, *more], "max_tokens": 2}).json()
    assert hits() == before + 1
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == len(document) // C * C
    rest = len("\n\n\nWhere is item 3?\n\nIn a box.")
    assert second["sharedllm"]["read_tokens"] == len(document) % C + rest


def test_a_prompt_is_named_by_all_of_its_tokens():
    from sharedllm.serve.long_prompts import key_of

    ids = torch.arange(40, dtype=torch.int32)
    assert key_of(ids) == key_of(ids.clone()) == key_of(torch.arange(80, dtype=torch.int32)[:40])
    assert len({key_of(ids), key_of(ids[:-1]), key_of(ids.flip(0))}) == 3


@pytest.mark.parametrize(
    "ask",
    [
        ChatRequest(messages=[{"role": "user", "content": "word " * 8000}]),
        ChatRequest(messages=[{"role": "user", "content": "word " * 8000}, {"role": "user", "content": "Why?"}]),
        CompletionRequest(prompt="word " * 8000),
    ],
    ids=["chat", "older", "completion"],
)
def test_a_prompt_that_is_far_too_long_is_refused_before_all_of_it_is_tokenised(tmp_path, monkeypatch, ask):
    service = opened(tmp_path, memory_bytes=Budget(tiny_llm(), Settings(tmp_path)).bytes_of(1000, encoded=True))
    for module in ("chat", "split"):
        monkeypatch.setattr(f"sharedllm.serve.{module}.PIECE", 1000)
    calls = calls_of(monkeypatch, PreTrainedTokenizerFast, "__call__")
    with pytest.raises(
        ApiError, match=r"a text of more than 1,2\d\d tokens takes .* \(--memory-gb\); split it"
    ) as refused:
        asking._split(service, ask, [])
    assert (refused.value.status, refused.value.code) == (413, "context_too_large")
    assert sum(len(text) for _, text in calls) < 20_000
    service.shelf.kept.prompts["known"] = Entry("known", tmp_path, ids=torch.zeros(40_000, dtype=torch.int32))
    service.shelf.prompts.check_text("word " * 8000)  # it may be the one that is known
