"""A session: nothing said is lost, and every answer is what a fresh model gives for the same window and context."""

from __future__ import annotations

import dataclasses
import io
import json
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from sharedllm import Context, SharedConfig, SharedLLM, UsageError, WorkError
from sharedllm.prompts import Prompt
from sharedllm.session import Session
from tests.cli.test_cli import MODEL, home, run  # noqa: F401
from tests.conftest import CONFIG, byte_tokenizer, tiny_model, tokens
from tests.contexts import assert_one_sentence, assert_same_chunks, encoded
from tests.test_generate import Kept

ENDLESS = {"suppress_tokens": [257]}  # the tiny model would end its answer anywhere
SETTINGS: list[dict[str, Any]] = [
    {},
    dict(
        null_growth=True,
        moving_query=True,
        search_prior=5.0,
        search_words=0.1,
        stored_bits=4,
        fine_chunks=1,
        read_chunks=3,
    ),
]


@pytest.fixture
def llm(make):
    return make()


def transcript(session) -> list[int]:
    return [*session.said.ids.tolist(), *session.ids]


@pytest.mark.parametrize("changes", SETTINGS, ids=["plain", "all"])
def test_an_answer_is_what_a_fresh_model_gives_for_the_same_split(make, changes):
    config, text = dataclasses.replace(CONFIG, **changes), tokens(16 * 6 + 3, 1)
    llm, fresh = make(config), make(config)
    session = Session(llm, llm.read(text))
    folded = 0
    for turn, question in enumerate(["a?", "bc?", "d?", "ef?", "g?"]):
        prompt = Prompt(llm.tokenizer, question)
        before = transcript(session)
        asked, mask = prompt.following() if turn else (prompt.alone(), prompt.question_mask())
        answer = session.ask(question, 7, **ENDLESS)
        assert answer.generated_tokens == 7 and answer.slots > 0
        whole = [*before, *asked]
        assert transcript(session)[:-7] == whole, "nothing that was said is lost"
        folded = session.said.tokens
        parts = [encoded(fresh, text)] + ([encoded(fresh, torch.tensor(whole[:folded]))] if folded else [])
        window = torch.tensor([whole[folded:]])
        asking = torch.cat([torch.zeros(1, window.shape[1] - len(asked), dtype=torch.bool), mask], dim=1)
        arguments = dict(context=Context.compose(parts), question_mask=asking, max_new_tokens=7, pad_token_id=258)
        out = fresh.generate(window, do_sample=False, **arguments, **ENDLESS)
        assert out[0, window.shape[1] :].tolist() == transcript(session)[-7:]
    assert folded > 0 and folded % 16 == 0
    assert_same_chunks(session.said, encoded(fresh, torch.tensor(transcript(session)[:folded])))


def test_what_is_nearest_to_a_question_is_quoted_for_its_answer_alone(make):
    quoting = make(dataclasses.replace(CONFIG, quoted_tokens=16))
    text, shown, generate = tokens(16 * 6 + 3, 1), [], quoting.model.generate
    quoting.model.generate = lambda ids, **kwargs: shown.append(ids[0].tolist()) or generate(ids, **kwargs)
    session = Session(quoting, quoting.read(text))
    session.ask("a?", 7, **ENDLESS)
    (ids,), alone = shown, Prompt(quoting.tokenizer, "a?").alone()
    added = len(ids) - len(alone)
    assert 16 < added and transcript(session)[:-7] == alone, "a quote stays in the conversation"
    at = next(i for i, (a, b) in enumerate(zip(ids, alone, strict=False)) if a != b)
    assert ids[at + added :] == alone[at:]
    assert any(ids[at : at + 4] == text[i : i + 4].tolist() for i in range(len(text)))


@pytest.mark.parametrize("changes", SETTINGS, ids=["plain", "all"])
def test_an_answer_may_be_longer_than_the_window(make, changes):
    llm, fresh = (make(dataclasses.replace(CONFIG, **changes)) for _ in range(2))
    session = Session(llm)
    answer = session.ask("a?", 150, **ENDLESS)
    assert answer.generated_tokens == 150
    said = transcript(session)
    assert len(said) == len(Prompt(llm.tokenizer, "a?").alone()) + 150
    assert len(session.ids) <= session.window == 64
    # Folded at 64, 96, 128 and 160 tokens, each time down to 32: every stretch follows from its own split.
    for start, end in ((64, 96), (96, 128), (128, 160), (160, len(said))):
        context = encoded(fresh, torch.tensor(said[: start - 32]))
        window = torch.tensor([said[start - 32 : start]])
        settings = dict(max_new_tokens=end - start, do_sample=False, pad_token_id=258, **ENDLESS)
        settings["attention_mask"] = torch.ones_like(window)  # a padding token that was written is text
        out = fresh.generate(window, context=context, search="continue", **settings)  # the question has left
        assert out[0].tolist() == said[start - 32 : end]


@pytest.mark.parametrize("search", ["query", "continue"])
@pytest.mark.parametrize("changes", SETTINGS, ids=["plain", "all"])
def test_generate_goes_past_the_window_by_folding(make, changes, search):
    config = dataclasses.replace(CONFIG, **changes)
    llm, fresh, prompt, about = make(config), make(config), tokens(50, 1), tokens(16 * 4 + 3, 2)
    settings = dict(do_sample=False, pad_token_id=258, suppress_tokens=[257, 258])
    out = llm.generate(prompt[None], context=llm.read(about), search=search, max_new_tokens=90, **settings)
    whole = out[0].tolist()
    assert len(whole) == 140 and whole[:50] == prompt.tolist()
    # Folded at 64, 96 and 128 tokens, each time down to 32, behind the text that was given.
    for start, end in ((50, 64), (64, 96), (96, 128), (128, 140)):
        folded = 0 if start == 50 else start - 32
        parts = [encoded(fresh, about)] + ([encoded(fresh, torch.tensor(whole[:folded]))] if folded else [])
        window = torch.tensor([whole[folded:start]])
        by = search if start == 50 else "continue"  # what was written goes on, and asks nothing
        part = fresh.generate(window, Context.compose(parts), search=by, max_new_tokens=end - start, **settings)
        assert part[0].tolist() == whole[folded:end]


def test_a_prompt_longer_than_the_window_is_folded_before_anything_is_written(llm, make):
    fresh, prompt = make(), tokens(100, 1)
    padded = torch.cat([torch.full((6,), 258), prompt])[None]
    settings = dict(do_sample=False, pad_token_id=258, max_length=106 + 9, suppress_tokens=[257, 258])
    out = llm.generate(padded, attention_mask=(padded != 258).long(), **settings)
    assert out[0, :106].tolist() == padded[0].tolist() and out.shape[1] == 115
    folded = 80  # whole chunks of 16, until half of the window is free
    expected = fresh.generate(
        prompt[None, folded:], context=encoded(fresh, prompt[:folded]), **{**settings, "max_length": 20 + 9}
    )
    assert out[0, 106:].tolist() == expected[0, 20:].tolist()


def test_a_context_of_another_model_is_refused_before_it_is_read(llm, make):
    context = make(hidden_size=16).read(tokens(20, 2))
    with pytest.raises(UsageError, match="another model"):
        llm.generate(tokens(60, 1)[None], context=context, max_new_tokens=30)
    assert context.blocks == []


def test_generate_past_the_window_quotes_no_more_than_within_it(make):
    quoting = make(dataclasses.replace(CONFIG, quoted_tokens=16))
    prompt, shown, generate = tokens(60, 1), [], quoting.model.generate
    quoting.model.generate = lambda ids, **kwargs: shown.append(ids[0].tolist()) or generate(ids, **kwargs)
    asking = torch.arange(60)[None] >= 50
    settings = dict(do_sample=False, pad_token_id=258, suppress_tokens=[257, 258], question_mask=asking)
    out = quoting.generate(prompt[None], context=quoting.read(tokens(16 * 6, 2)), max_new_tokens=9, **settings)
    assert shown == [prompt.tolist(), out[0, 32:64].tolist()]


def test_a_question_folded_before_anything_is_written_is_not_searched_for_by_other_tokens(llm, monkeypatch):
    asking, by, recall = torch.arange(100)[None] < 9, [], llm.recall
    monkeypatch.setattr(llm, "recall", lambda *a, search, **k: by.append(search) or recall(*a, search=search, **k))
    settings = dict(max_new_tokens=3, do_sample=False, pad_token_id=258, suppress_tokens=[257, 258])
    llm.generate(tokens(100, 1)[None], question_mask=asking, **settings)
    llm.generate(tokens(100, 1)[None], question_mask=~asking, **settings)
    assert by == ["continue", "query"]


@pytest.mark.parametrize("most", [9, 40])
def test_every_question_has_its_quotes_also_before_the_window_is_folded(make, most):
    llm = make(dataclasses.replace(CONFIG, quoted_tokens=4))
    session, quoted, folded = Session(llm, llm.read(tokens(16 * 18, 1))), [], set()
    generate = session._generate

    def noted(shown, memory, most, kwargs):
        assert len(shown) + most <= session.window
        if session._asked:
            quoted.append(len(shown) - len(session.ids))
        return generate(shown, memory, most, kwargs)

    session._generate = noted
    for number in range(8):
        session.ask("a?", most, **ENDLESS)
        folded.add(session.said.tokens)
        assert len(quoted) > number
    assert len(folded) > 2 and set(quoted) == {4 + len("\n\n")}


def test_generate_past_the_window_ends_where_the_model_ends(llm, monkeypatch):
    monkeypatch.setattr(llm.model, "generate", lambda ids, **_: torch.cat([ids, torch.tensor([[65, 66, 257]])], dim=1))
    assert llm.generate(tokens(70, 1)[None], max_new_tokens=30)[0, 70:].tolist() == [65, 66, 257]


def test_a_length_past_the_window_is_found_where_generate_finds_it(llm):
    one, settings = tokens(70, 1)[None], dict(do_sample=False, pad_token_id=258, suppress_tokens=[257, 258])
    assert llm.generate(one, **settings).shape[1] == 70 + 20, "as many as Hugging Face's generate writes by default"
    both = GenerationConfig(max_new_tokens=5, do_sample=False, pad_token_id=258, suppress_tokens=[257, 258])
    assert llm.generate(one, generation_config=both, max_length=99).shape[1] == 75
    assert llm.generate(one, max_length=73, **settings).shape[1] == 73
    with pytest.raises(UsageError, match="max_length leaves none for an answer") as error:
        llm.generate(one, max_length=70, **settings)
    assert_one_sentence(error)


def test_a_conversation_without_memory_says_so_and_goes_on_later(llm, monkeypatch):
    session = Session(llm)
    for question in ("a?", "bc?"):
        session.ask(question, 14, **ENDLESS)
    before = transcript(session)
    with monkeypatch.context() as full:
        full.setattr("sharedllm.reader.room_bytes", lambda *_: 0)
        with pytest.raises(WorkError, match="memory for more of this conversation") as error:
            session.ask("d?", 40, **ENDLESS)
    assert_one_sentence(error)
    assert session.said.tokens == 0 and transcript(session)[: len(before)] == before
    assert session.ask("e?", 3, **ENDLESS).generated_tokens == 3 and session.said.tokens > 0


@pytest.mark.parametrize("length", [0, 9, 100])
def test_a_question_that_fails_before_anything_is_written_was_not_asked(llm, length):
    session, plain = (Session(llm, llm.read(tokens(length, 1))) for _ in range(2))
    for question in ("a?", "bc?", "d?", "ef?"):
        with pytest.raises(ValueError, match="temperature"):
            session.ask("who?", 12, do_sample=True, temperature=-1.0)
        assert session.ask(question, 12, **ENDLESS).text == plain.ask(question, 12, **ENDLESS).text
        assert (session.ids, session._keep) == (plain.ids, plain._keep)
        assert_same_chunks(session.said, plain.said)
    assert session.said.tokens > 0, "nothing was folded; half of the test is empty"


def test_what_fails_to_go_on_before_anything_is_written_is_not_there(llm):
    session, prompt = Session(llm), tokens(100, 1).tolist()
    with pytest.raises(ValueError, match="temperature"):
        session.go_on(prompt, 3, do_sample=True, temperature=-1.0)
    assert transcript(session) == [] and session.said.blocks == []
    assert session.go_on(prompt, 3, do_sample=False) == transcript(session)[100:]


@pytest.mark.parametrize("error", [KeyboardInterrupt, torch.OutOfMemoryError])
def test_what_could_not_be_folded_is_folded_once(llm, monkeypatch, error):
    session, plain = Session(llm), Session(llm)
    for question in ("a?", "bc?"):
        session.ask(question, 14, **ENDLESS)
        plain.ask(question, 14, **ENDLESS)
    encode = llm.reader.encode_rows

    def fails(*_arguments, **_named):
        raise error

    before = transcript(session)
    monkeypatch.setattr(llm.reader, "encode_rows", fails)
    with pytest.raises(error):
        session.ask("d?", 40, **ENDLESS)
    assert session.said.tokens == 0 and transcript(session)[: len(before)] == before
    monkeypatch.setattr(llm.reader, "encode_rows", encode)
    written = len(transcript(session))
    session.ask("e?", 3, **ENDLESS)
    assert session.said.tokens > 0 and transcript(session)[: len(before)] == before
    assert len(transcript(session)) == written + len(Prompt(llm.tokenizer, "e?").following()[0]) + 3


def test_an_answer_ends_by_the_token_of_its_configuration(llm, monkeypatch):
    monkeypatch.setattr(llm.model, "generate", lambda ids, **_: torch.cat([ids, torch.tensor([[65, 66, 70]])], dim=1))
    for given in (70, [69, 70], (70,)):
        session = Session(llm)
        config = GenerationConfig(eos_token_id=list(given) if isinstance(given, tuple) else given)
        assert session.ask("a?", 9, generation_config=config).text == llm.tokenizer.decode([65, 66])
        assert Session(llm).ask("a?", 9, eos_token_id=given).text == llm.tokenizer.decode([65, 66])


def test_a_streamer_hears_of_an_answer_past_the_window_as_of_any_other(llm):
    streamer, ends, session = Kept(), [], Session(llm)
    streamer.end = lambda: ends.append(len(streamer.tokens))
    session.ask("a?", 80, streamer=streamer, **ENDLESS)
    assert session.said.tokens > 0 and streamer.tokens == transcript(session)
    assert ends == [len(streamer.tokens)]


def test_a_small_window_has_smaller_chunks_so_that_it_can_be_folded():
    llm = SharedLLM.from_pretrained(tiny_model(), adapter="none", tokenizer=byte_tokenizer())
    assert llm.config.chunk_length == 16 and Session(llm).ask("a?", 80, **ENDLESS).generated_tokens == 80
    lengths = {window: SharedConfig.fitting(30, window).chunk_length for window in (8, 2048, 4096, 131072)}
    assert lengths == {8: 16, 2048: 512, 4096: 1024, 131072: 1024}


def test_what_cannot_go_past_the_window_is_one_sentence(llm):
    one = tokens(60, 1)[None]
    for use in (
        lambda: llm.generate(one.repeat(2, 1), max_new_tokens=30),
        lambda: llm.generate(one, max_new_tokens=30, num_beams=2),
        lambda: llm.generate(
            one, max_new_tokens=30, generation_config=GenerationConfig(num_return_sequences=2, num_beams=2)
        ),
        lambda: llm.generate(one, max_new_tokens=30, generation_config=GenerationConfig(no_repeat_ngram_size=2)),
        lambda: llm.generate(one, max_new_tokens=30, generation_config=GenerationConfig(return_dict_in_generate=True)),
        lambda: llm.generate(one, max_new_tokens=30, search="later"),
    ):
        with pytest.raises(UsageError, match="window 64; past it") as error:
            use()
        assert_one_sentence(error)
    assert llm.generate(one.repeat(2, 1), max_new_tokens=4, num_beams=2, pad_token_id=258).shape == (2, 64)


def test_arguments_that_ask_for_nothing_go_past_the_window(llm):
    one, plain = tokens(60, 1)[None], dict(max_new_tokens=30, do_sample=False, pad_token_id=258, suppress_tokens=[257])
    idle = dict(num_beams=1, num_return_sequences=1, return_dict_in_generate=False, output_scores=False)
    assert torch.equal(llm.generate(one, **plain, **idle), llm.generate(one, **plain))
    config = GenerationConfig(bos_token_id=256, length_penalty=1.0, no_repeat_ngram_size=0, **plain)
    assert torch.equal(llm.generate(one, generation_config=config), llm.generate(one, **plain))


@pytest.mark.parametrize(
    ("said", "sampled"), [({"repetition_penalty": 1.1}, True), ({"do_sample": False}, False), ({}, True)], ids=str
)
def test_past_the_window_generate_samples_where_it_samples_within_it(llm, monkeypatch, said, sampled):
    llm.model.generation_config.do_sample, told = True, []

    def noted(ids, **kwargs):
        told.append(kwargs["do_sample"])
        return torch.cat([ids, torch.tensor([[65, 257]])], dim=1)

    monkeypatch.setattr(llm.model, "generate", noted)
    llm.generate(tokens(60, 1)[None], max_new_tokens=30, generation_config=GenerationConfig(**said))
    assert told == [sampled]


def test_past_the_window_the_tokens_that_ask_are_those_of_the_mask(llm, monkeypatch):
    prompt, asked, recall = tokens(60, 1), [], llm.recall
    asking = torch.zeros(1, 60, dtype=torch.bool)
    asking[0, [3, 40, 55]] = True

    def noted(*args, question_mask=None, **named):
        asked.append(question_mask.nonzero()[:, 1].tolist())
        return recall(*args, question_mask=question_mask, **named)

    monkeypatch.setattr(llm, "recall", noted)
    settings = dict(max_new_tokens=9, do_sample=False, pad_token_id=258, suppress_tokens=[257, 258])
    llm.generate(prompt[None], context=llm.read(tokens(16 * 6, 2)), question_mask=asking, **settings)
    assert asked == [[3, 40, 55], [8, 23]], "32 tokens were folded between"


def test_a_text_that_fits_is_read_in_the_window(llm):
    text = llm.read("The sky.")
    session = Session(llm, text)
    answer = session.ask("a?", 5)
    assert not answer.compressed
    assert answer.text == llm.ask(text, "a?", max_new_tokens=5)
    assert session.ids[:8] == text.ids.tolist()


def test_an_answer_ends_where_the_model_ends_it(llm, monkeypatch):
    session = Session(llm)
    monkeypatch.setattr(llm.model, "generate", lambda ids, **_: torch.cat([ids, torch.tensor([[65, 66, 257]])], dim=1))
    assert session.ask("a?", 9).text == llm.tokenizer.decode([65, 66])
    assert session.ids[-2:] == [65, 66]


def test_mistakes_are_one_sentence(llm):
    session = Session(llm)
    for use in (
        lambda: session.ask(" "),
        lambda: session.ask("why" * 20),
        lambda: session.ask("a?", 0),
        lambda: Session(llm, window=63),
        lambda: Session(llm, window=65),
    ):
        with pytest.raises(UsageError) as error:
            use()
        assert_one_sentence(error)
    assert transcript(session) == []


def test_chat_answers_line_by_line(run, monkeypatch):  # noqa: F811
    monkeypatch.setattr("sys.stdin", io.StringIO("a?\n\n bc?\nd?\n"))
    code, out, err = run("chat", "long.txt", *MODEL, "--max-new-tokens", "30", "--json")
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(answers) == 3, err
    assert all(answer["slots"] > 0 for answer in answers) and answers[-1]["folded_tokens"] > 0
    code, out, err = run("chat", "-", *MODEL)
    assert code == 2 and "'-' cannot be a source" in err


def test_what_is_kept_of_a_short_text_stays_whole_when_it_is_folded(llm):
    context = llm.read(tokens(8, 1), keep=[(2, 7)])
    session = Session(llm, context, window=64)
    at = len(Prompt(llm.tokenizer, "a?").around_text()[0])
    for question in ("a?", "b?", "c?", "d?", "e?"):
        session.ask(question, 12, **ENDLESS)
    assert session.said.keep == [(at + 2, at + 7)]
    assert session.said.ids[at + 2 : at + 7].tolist() == context.ids[2:7].tolist()


def test_a_session_shows_no_more_than_its_window(make):
    llm = make(dataclasses.replace(CONFIG, fine_chunks=1, read_chunks=3, search_prior=5.0, quoted_tokens=24))
    session, seen = Session(llm, llm.read(tokens(300, 1)), window=64), []
    generate = session._generate

    def noted(shown, memory, most, kwargs):
        seen.append(len(shown) + most)
        return generate(shown, memory, most, kwargs)

    session._generate = noted
    for question in ("a?", "bc?", "d?"):
        session.ask(question, 9, **ENDLESS)
    assert seen and max(seen) <= 64


def test_a_compact_context_is_not_read_again_for_a_question_that_was_asked(make, monkeypatch):
    llm = make(dataclasses.replace(CONFIG, fine_chunks=16))  # which takes in whole all that there is
    context, whole, rows = llm.read(tokens(16 * 6, 1), compact=True), [], llm.reader.encode_rows

    def noted(ids, told=None, stored=None):
        whole.append(stored.whole)
        return rows(ids, told, stored)

    monkeypatch.setattr(llm.reader, "encode_rows", noted)
    session = Session(llm, context)
    for _ in range(2):
        session.ask("a?", 7, **ENDLESS)
        assert whole == [True] * 6 and session.said.tokens == 0
    while session.said.tokens < 32:
        session.ask("a?", 7, **ENDLESS)
    assert sum(whole) == 6, "what is composed anew forgot what was read"
    context.again.clear()
    for _ in range(2):
        session.ask("a?", 7, **ENDLESS)
    assert sum(whole) == 12, "what was read for one composition is forgotten by the next"


def test_a_long_context_is_counted_without_a_list_of_its_tokens(llm, monkeypatch):
    context, real = llm.read(tokens(300, 1)), Prompt.with_text

    def short(prompt, ids):
        assert len(ids) < 100, "all tokens, to count them"
        return real(prompt, ids)

    monkeypatch.setattr(Prompt, "with_text", short)
    assert llm.answer(context, "a?", 2).compressed and llm.explain(context, "a?", max_new_tokens=2)
    assert Session(llm, context).ask("a?", 2).compressed
