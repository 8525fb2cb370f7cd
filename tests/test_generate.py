"""`generate` is the Hugging Face one with a context; `ask` and `answer` on top of it."""

from __future__ import annotations

import dataclasses
import time

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import sharedllm.recall as recall_file
from sharedllm import SharedLLM, UsageError
from sharedllm.session import Session
from tests.conftest import CONFIG, tiny_model, tokens
from tests.contexts import assert_one_sentence
from tests.test_batch import padded

GREEDY = {"do_sample": False, "pad_token_id": 258}
FIXED = {"max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 258}  # no early end, so lengths agree


@pytest.fixture
def llm(make):
    return make()


@pytest.fixture
def context(llm):
    return llm.read(tokens(110, 3))


class Kept(BaseStreamer):
    """A streamer that keeps what it is given."""

    def __init__(self):
        self.tokens, self.ended = [], False

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.ended = True


def test_greedy_with_cache_equals_without(llm, context):
    ids = tokens(6, 1)[None]
    cached, uncached = (
        llm.generate(ids, context=context, use_cache=c, do_sample=False, **FIXED) for c in (True, False)
    )
    assert torch.equal(cached, uncached)
    assert cached.shape == (1, 14) and torch.equal(cached[:, :6], ids)
    assert not torch.equal(cached, llm.generate(ids, do_sample=False, **FIXED)), "the context does not matter here"


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_place_in_the_window_is_right_with_a_cache(make, num_beams):
    llm = make(dataclasses.replace(CONFIG, null_growth=True, moving_query=True))
    still = make()
    still.injection.load_state_dict(llm.injection.state_dict(), strict=False)
    ids, settings = tokens(12, 1)[None], {"num_beams": num_beams, "do_sample": False, **FIXED}
    context = llm.read(tokens(110, 3))
    cached, uncached = (llm.generate(ids, context=context, use_cache=c, **settings) for c in (True, False))
    assert torch.equal(cached, uncached)
    moved, unmoved = (m(cached[:1], context=m.read(tokens(110, 3))).logits for m in (llm, still))
    assert not torch.allclose(moved[:, -1], unmoved[:, -1]), "the place does not matter here"


def test_greedy_is_the_argmax_of_repeated_forward_passes(llm, context):
    ids = start = tokens(6, 1)[None]
    memory = llm.recall(context, start)  # searched with the question, held until the answer ends
    for _ in range(8):
        with torch.no_grad(), llm.injection.reading(memory):
            logits = llm.model(ids).logits[:, -1]
        logits[:, 257] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(llm.generate(start, context=context, do_sample=False, **FIXED), ids)


def test_greedy_without_a_query_is_the_argmax_of_llm_calls(llm, context):
    ids = start = tokens(6, 1)[None]
    for _ in range(8):  # `later` chooses the same leaves whatever the window ends with
        logits = llm(ids, context=context, search="later").logits[:, -1].detach()
        logits[:, 257] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(llm.generate(start, context=context, search="later", do_sample=False, **FIXED), ids)


@pytest.mark.parametrize("early", [True, False])
def test_beams_with_cache_equal_beams_without(llm, context, early):
    ids = tokens(6, 1)[None]
    settings = {**FIXED, "num_beams": 3, "num_return_sequences": 3, "do_sample": False, "early_stopping": early}
    cached, uncached = (llm.generate(ids, context=context, use_cache=c, **settings) for c in (True, False))
    assert cached.shape == (3, 14) and torch.equal(cached, uncached)
    assert len({tuple(row) for row in cached.tolist()}) == 3


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_beams": 1}], ids=["beams", "greedy"])
def test_a_left_padded_batch_generates_what_each_row_does(llm, settings):
    windows = [tokens(n, 10 + n) for n in (7, 2, 9)]
    contexts = [llm.read(tokens(37, 1)), llm.read(tokens(110, 2)), None]
    ids, mask, _ = padded(windows, "left")
    batch = llm.generate(ids, context=contexts, attention_mask=mask, do_sample=False, **FIXED, **settings)
    for b, (window, context) in enumerate(zip(windows, contexts, strict=True)):
        alone = llm.generate(window[None], context=context, do_sample=False, **FIXED, **settings)
        assert batch[b, ids.shape[1] :].tolist() == alone[0, len(window) :].tolist(), f"row {b}"


def test_one_context_serves_all_rows(llm, context):
    ids = torch.stack([tokens(6, s) for s in (1, 2, 3)])
    batch = llm.generate(ids, context=context, do_sample=False, **FIXED)
    alone = torch.cat([llm.generate(row[None], context=context, do_sample=False, **FIXED) for row in ids])
    assert torch.equal(batch, alone)


def test_sampling_repeats_with_the_same_seed(llm, context):
    ids = torch.stack([tokens(6, 1), tokens(6, 2)])

    def sample(seed):
        torch.manual_seed(seed)
        settings = {"do_sample": True, "temperature": 2.0, "top_k": 50, "num_return_sequences": 2}
        return llm.generate(ids, context=[context, None], **settings, **FIXED)

    assert sample(5).shape == (4, 14)
    assert torch.equal(sample(5), sample(5))
    assert not torch.equal(sample(5), sample(6))


def test_returned_sequences_keep_their_rows_context(llm, context):
    ids = torch.stack([tokens(6, 1), tokens(6, 1)])  # the same window, other contexts
    settings = {"do_sample": False, "num_beams": 2, "num_return_sequences": 2, **FIXED}
    both = llm.generate(ids, context=[context, None], **settings)
    assert torch.equal(both[:2], llm.generate(ids[:1], context=context, **settings))
    assert torch.equal(both[2:], llm.generate(ids[1:], **settings))
    assert not torch.equal(both[:2], both[2:])


def test_a_streamer_receives_the_tokens(llm, context):
    ids, streamer = tokens(6, 1)[None], Kept()
    out = llm.generate(ids, context=context, streamer=streamer, do_sample=False, **FIXED)
    assert streamer.tokens == out[0].tolist() and streamer.ended


def test_stopping_criteria_stop(llm, context):
    class AtNine(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= 9)

    ids = tokens(6, 1)[None]
    out = llm.generate(
        ids, context=context, stopping_criteria=StoppingCriteriaList([AtNine()]), do_sample=False, **FIXED
    )
    whole = llm.generate(ids, context=context, do_sample=False, **FIXED)
    assert torch.equal(out, whole[:, :9])


def test_other_ways_to_decode_agree_with_greedy(llm, context):
    ids = tokens(12, 1)[None]
    greedy = llm.generate(ids, context=context, do_sample=False, **FIXED)
    for settings in ({"prompt_lookup_num_tokens": 3}, {"cache_implementation": "static"}):
        assert torch.equal(llm.generate(ids, context=context, do_sample=False, **settings, **FIXED), greedy), settings
    told = llm.generate(
        ids, context=context, do_sample=False, return_dict_in_generate=True, output_scores=True, **FIXED
    )
    assert torch.equal(told.sequences, greedy) and len(told.scores) == 8


def counted(monkeypatch, place, name):
    """Count the calls of a function while it does its work."""
    calls, real = [], getattr(place, name)

    def count(*args, **kwargs):
        calls.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(place, name, count)
    return calls


@pytest.mark.parametrize("num_beams", [1, 3])
def test_the_context_is_searched_once_and_never_encoded_again(llm, context, monkeypatch, num_beams):
    searches, queries = counted(monkeypatch, recall_file, "select_slots"), counted(monkeypatch, llm, "query")
    encoded = counted(monkeypatch, llm.lower, "encode")
    llm.generate(tokens(6, 1)[None], context=context, num_beams=num_beams, do_sample=False, **FIXED)
    assert (len(searches), len(queries), len(encoded)) == (1, 1, 0)
    llm.generate(tokens(6, 2)[None], context=context, do_sample=False, **FIXED)
    assert (len(searches), len(queries), len(encoded)) == (2, 2, 0)


def test_ask_searches_once_and_never_encodes_again(llm, context, monkeypatch):
    searches, encoded = counted(monkeypatch, recall_file, "select_slots"), counted(monkeypatch, llm.lower, "encode")
    first, second = (llm.answer(context, q, max_new_tokens=4) for q in ("one?", "two?"))
    assert (len(searches), len(encoded)) == (2, 0)
    assert first.compressed and second.compressed


def test_a_text_that_is_read_for_a_question_is_not_time_of_its_search(llm, monkeypatch):
    between, encode = llm.read(tokens(60, 3)), llm.lower.encode
    monkeypatch.setattr(llm.lower, "encode", lambda *args: (time.sleep(0.5), encode(*args))[1])
    answer = llm.answer(between, "who?", max_new_tokens=4)
    assert answer.compressed and between.chunks == 4 and answer.search_seconds < 0.5


def test_another_question_chooses_other_slots(llm, context):
    a, b = (llm.recall(context, tokens(6, s)[None]) for s in (1, 2))
    assert a.mask.shape == b.mask.shape
    assert not torch.equal(a.keys[0], b.keys[0])


def test_a_text_that_fits_is_read_by_the_plain_model(llm, monkeypatch):
    encoded = counted(monkeypatch, llm.lower, "encode")
    context = llm.read(text := "the cat sat")
    answer = llm.answer(context, "who?", max_new_tokens=8)
    prompt = llm.tokenizer(f"{text}\n\nwho?\n\nAnswer:", return_tensors="pt").input_ids
    out = tiny_model().generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, **GREEDY)
    new = out[0, prompt.shape[1] :]
    assert answer.text == llm.tokenizer.decode(new, skip_special_tokens=True).strip()
    assert answer.generated_tokens == len(new)
    assert (answer.compressed, answer.slots) == (False, 0)
    assert (context.chunks, context.slots, len(encoded)) == (0, 0, 0)
    assert llm.ask(context, "who?", max_new_tokens=8) == answer.text


def test_a_text_that_just_fits_is_plain_and_one_token_more_is_compressed(llm):
    question, new = "who?", 8
    room = llm.window - new - len(llm.tokenizer(f"\n\n{question}\n\nAnswer:").input_ids)
    fits, over = llm.read(tokens(room)), llm.read(tokens(room + 1))
    assert not llm.answer(fits, question, max_new_tokens=new).compressed
    answer = llm.answer(over, question, max_new_tokens=new)
    assert answer.compressed and answer.slots > 0
    assert (fits.chunks, over.encoded_tokens) == (0, room + 1)


def test_a_compressed_answer_is_generate_with_the_context(llm, context):
    prompt = llm.tokenizer("who?\n\nAnswer:", return_tensors="pt").input_ids
    out = llm.generate(prompt, context=context, max_new_tokens=8, **GREEDY)
    answer = llm.answer(context, "who?", max_new_tokens=8)
    assert answer.text == llm.tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True).strip()
    assert answer.slots == llm.recall(context, prompt).mask.shape[1] - 1


def test_ask_uses_the_models_chat_template(make):
    llm = make()
    llm.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<me>{% endif %}"
    prompt = llm.tokenizer("<user>the cat\n\nwho?</><me>", return_tensors="pt").input_ids
    out = llm.model.generate(prompt, max_new_tokens=8, **GREEDY)
    expected = llm.tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True).strip()
    assert llm.ask(llm.read("the cat"), "who?", max_new_tokens=8) == expected


def test_ask_takes_the_arguments_of_generate(llm, context):
    streamer, prompt = Kept(), llm.tokenizer("who?\n\nAnswer:", return_tensors="pt").input_ids
    told = llm.answer(context, "who?", max_new_tokens=6, streamer=streamer)
    assert llm.tokenizer.decode(streamer.tokens[prompt.shape[1] :], skip_special_tokens=True).strip() == told.text
    out = llm.generate(prompt, context=context, max_new_tokens=6, num_beams=3, **GREEDY)
    beams = llm.tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True).strip()
    assert llm.ask(context, "who?", max_new_tokens=6, num_beams=3) == beams


def test_ask_samples_where_it_is_told_to(llm, context):
    torch.manual_seed(0)
    hot = {"do_sample": True, "temperature": 9.0, "top_k": 0}
    for told in ({"generation_config": GenerationConfig(**hot)}, hot):
        assert len({llm.ask(context, "who?", 6, **told) for _ in range(4)}) > 1


def test_ask_is_greedy_on_a_model_that_samples_unless_the_call_says_otherwise(llm, context):
    greedy = llm.ask(context, "who?", 6, repetition_penalty=1.1)
    llm.model.generation_config.update(do_sample=True, temperature=9.0, top_k=0)
    torch.manual_seed(0)
    config = GenerationConfig(repetition_penalty=1.1)
    assert {llm.ask(context, "who?", 6, generation_config=config) for _ in range(4)} == {greedy}
    config.do_sample = True
    assert len({llm.ask(context, "who?", 6, generation_config=config) for _ in range(4)}) > 1


def test_an_answer_is_as_long_as_its_configuration_says(llm, context):
    settings = {"generation_config": GenerationConfig(max_new_tokens=5), "suppress_tokens": [257]}
    assert llm.answer(context, "who?", **settings).generated_tokens == 5
    assert llm.answer(context, "who?", 3, **settings).generated_tokens == 3
    with pytest.raises(UsageError, match="the answer may take 128"):
        llm.answer(context, "who?")


@pytest.mark.parametrize(
    "told",
    [{"attention_mask": tokens(3)[None]}, {"past_key_values": ()}, {"num_return_sequences": 2}, None],
    ids=["mask", "past", "rows", "rows of a configuration"],
)
def test_what_a_question_has_no_use_for_is_refused(llm, context, told):
    told = told or {"generation_config": GenerationConfig(num_return_sequences=2, do_sample=True)}
    for use in (lambda: llm.ask(context, "who?", 4, **told), lambda: Session(llm).ask("who?", 4, **told)):
        with pytest.raises(UsageError, match=r"^(attention_mask|past_key_values|num_return_sequences) is ") as error:
            use()
        assert_one_sentence(error)
    assert llm.ask(context, "who?", 4, num_return_sequences=1) == llm.ask(context, "who?", 4)


@pytest.mark.parametrize("way", ["max_length", "generation_config"])
def test_a_length_that_counts_the_question_is_refused_where_it_would_say_nothing(llm, context, way):
    told = {way: 500 if way == "max_length" else GenerationConfig(max_length=500)}
    for use in (lambda: llm.ask(context, "who?", **told), lambda: Session(llm).ask("who?", **told)):
        with pytest.raises(UsageError, match=r"^max_length counts .* say max_new_tokens") as error:
            use()
        assert_one_sentence(error)
    both = GenerationConfig(max_length=500, max_new_tokens=4, suppress_tokens=[257])
    assert llm.answer(context, "who?", generation_config=both).generated_tokens == 4, "the newer name goes first"


@pytest.mark.parametrize("question", ["", "  \n\t"])
def test_an_empty_question_is_refused(llm, context, question):
    with pytest.raises(UsageError, match="question is empty"):
        llm.ask(context, question)


@pytest.mark.parametrize("count", [0, -3])
def test_a_length_below_one_is_refused(llm, context, count):
    with pytest.raises(UsageError, match=f"max_new_tokens is {count}"):
        llm.ask(context, "who?", max_new_tokens=count)


def test_asking_without_a_tokenizer_is_refused():
    llm = SharedLLM.from_pretrained(tiny_model(), adapter="none", config=CONFIG)
    context = llm.read(tokens(110))  # token ids need none
    for use in (lambda: llm.ask(context, "who?"), lambda: llm.read("text"), lambda: context.append("text")):
        with pytest.raises(UsageError, match="no tokenizer"):
            use()


def test_asking_after_detach_is_refused(llm, context):
    llm.detach()
    for use in (lambda: llm.ask(context, "who?"), lambda: llm.generate(tokens(3)[None], context=context)):
        with pytest.raises(UsageError, match="detached"):
            use()


def test_a_question_may_hold_any_characters(llm):
    from sharedllm.prompts import PLACE

    assert isinstance(llm.ask(llm.read("the cat"), f"{PLACE}?", max_new_tokens=2), str)


def test_a_question_longer_than_the_window_is_refused(llm, context):
    with pytest.raises(UsageError, match="window"):
        llm.ask(context, "x" * 500, max_new_tokens=2)
