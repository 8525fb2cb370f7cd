"""What of a text is quoted before a question: the nearest passages, in their order, no more than there is room for."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sharedllm.prompts import Prompt
from sharedllm.quote import GAP, joined, quotes, with_quotes, within
from sharedllm.recall import nearest
from sharedllm.resolution import Resolution
from tests.conftest import CONFIG
from tests.test_resolution import QUESTION, TEXT

QUOTING = dataclasses.replace(CONFIG, fine_chunks=1, read_chunks=3, search_prior=5.0, quoted_tokens=24)


@pytest.fixture
def llm(make):
    return make(QUOTING)


def nearest_to(llm, context, prompt):
    return nearest(llm, context, torch.tensor([prompt.alone()]), prompt.question_mask())


def test_spans_are_cut_to_what_there_is_room_for_and_joined_in_text_order():
    spans = [(40, 48), (8, 16), (32, 40), (0, 8)]
    assert within(spans, 20) == [(40, 48), (8, 16), (32, 36)]
    assert within(spans, 0) == [] and within(spans, 99) == spans
    assert joined(spans) == [(0, 16), (32, 48)]


def test_the_nearest_spans_are_all_of_the_text_once_and_the_quoted_ones_among_the_finely_read(llm):
    context, prompt = llm.read(TEXT), Prompt(llm.tokenizer, QUESTION)
    llm.reader.encode(context)
    spans = nearest_to(llm, context, prompt)
    assert joined(spans) == [(0, context.tokens)] and sum(end - start for start, end in spans) == context.tokens
    C, whole = llm.config.chunk_length, max(llm.explain(context, QUESTION), key=lambda p: p.slots / (p.end - p.start))
    assert spans[0][0] // C == whole.start // C, "the nearest span lies in another chunk than the one read in whole"


def test_quotes_hold_the_words_of_the_question(make):
    llm = make(dataclasses.replace(QUOTING, chunk_length=32))
    filler = "Rain fell on the hills for days and days. " * 3
    text = f"{filler}The blue box is in the cellar.{filler}"
    context, prompt = llm.read(text), Prompt(llm.tokenizer, "blue box is in the cellar")
    llm.reader.encode(context)
    spans = nearest_to(llm, context, prompt)
    found = quotes(context, spans, 32, llm.tokenizer)
    assert "cellar" in llm.tokenizer.decode(found)
    assert len(quotes(context, spans, context.tokens, llm.tokenizer)) == context.tokens


def test_a_window_shows_the_quotes_before_the_question_and_leaves_room_for_the_answer(llm):
    context, prompt = llm.read(TEXT), Prompt(llm.tokenizer, QUESTION)
    around = sum(map(len, prompt.around_text()))
    llm.reader.encode(context)
    spans = nearest_to(llm, context, prompt)
    memory = llm.recall(context, torch.tensor([prompt.alone()]), question_mask=prompt.question_mask())
    assert memory.nearest == [spans], "an answer is searched for once, for its slots and its quotes"
    ids = with_quotes(llm, context, prompt, 4, spans)
    assert len(ids) >= around + 24 and ids[-5:] == prompt.alone()[-5:]
    assert with_quotes(llm, context, prompt, 4, spans, Resolution(quoted_tokens=0)) == prompt.alone()
    room = llm.window - around
    assert with_quotes(llm, context, prompt, room, spans) == prompt.alone()
    assert around < len(with_quotes(llm, context, prompt, room - 8, spans, Resolution(quoted_tokens=99))) <= llm.window


def test_an_answer_is_written_behind_the_quotes_with_the_rest_injected(llm, monkeypatch):
    seen, generate = [], llm.model.generate
    monkeypatch.setattr(llm.model, "generate", lambda ids, **kw: seen.append(ids.shape[1]) or generate(ids, **kw))
    context = llm.read(TEXT)
    quoted, alone = llm.answer(context, QUESTION, 2), llm.answer(context, QUESTION, 2, quoted_tokens=0)
    assert quoted.slots == alone.slots > 0 and seen[0] >= seen[1] + 24


def test_where_room_is_short_the_nearest_passage_stays(llm):
    context = llm.read(TEXT)
    spans = [(20, 28), (0, 8), (40, 48)]
    gap = llm.tokenizer(GAP, add_special_tokens=False)["input_ids"]
    for room, kept in ((8, [(20, 28)]), (8 + len(gap) + 3, [(0, 3), (20, 28)]), (5, [(20, 25)]), (0, []), (-4, [])):
        expected = [i for start, end in kept for i in [*gap, *context.ids[start:end].tolist()]][len(gap) :]
        assert quotes(context, spans, 24, llm.tokenizer, room).tolist() == expected


def test_room_bounds_the_quotes_however_many_are_asked_for(llm, monkeypatch):
    context, tries = llm.read(TEXT), []
    monkeypatch.setattr("sharedllm.quote.within", lambda *given: tries.append(given) or within(*given))
    spans = [(i, i + 1) for i in range(0, context.tokens, 2)]
    found = quotes(context, spans, 10**9, llm.tokenizer, room=12)
    assert 0 < len(found) <= 12 and len(tries) <= 12
