"""OpenAI's own client against the server."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
import torch

from sharedllm.prompts import Prompt
from tests.conftest import byte_tokenizer
from tests.serve.conftest import LONG, beginning, upload

ASK = [{"role": "user", "content": "Where is item 3?"}]
BYTES = byte_tokenizer()
GREEDY = {"temperature": 0, "max_tokens": 12}


def ask(client, messages=ASK, **arguments):
    return client.chat.completions.create(model="default", messages=messages, **{**GREEDY, **arguments})


def text(answer) -> str:
    return answer.choices[0].message.content


def streamed(chunks) -> str:
    return "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)


def generated(llm, ids, **arguments) -> str:
    """What Hugging Face's `generate` answers, greedily."""
    settings = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 258, "eos_token_id": 299}
    out = llm.generate(torch.tensor([ids]), **settings, **arguments)
    return llm.tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True)


def test_models(client):
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id


def test_an_answer_whole_and_in_pieces(client, served):
    whole = ask(client)
    prompt = len(served.llm.tokenizer("Where is item 3?\n\nAnswer:")["input_ids"])
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (prompt, 12)
    assert whole.choices[0].finish_reason == "length"
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert streamed(chunks) == text(whole)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert all("usage" in c.model_fields_set and c.usage is None for c in chunks[:-1])
    assert all("usage" not in c.model_fields_set for c in ask(client, stream=True))


def test_a_short_prompt_is_answered_by_the_plain_model(client, served):
    ids = served.llm.tokenizer("Where is item 3?\n\nAnswer:")["input_ids"]
    assert text(ask(client)) == generated(served.llm, ids)


def test_choices_seeds_stops_and_logprobs(client):
    many = [ask(client, n=3, temperature=1.5, seed=7) for _ in range(2)]
    said = [[c.message.content for c in answer.choices] for answer in many]
    assert said[0] == said[1] and len(set(said[0])) == 3
    assert many[0].usage.completion_tokens == 36
    whole = text(ask(client, max_tokens=30))
    stop = whole[len(whole) // 2 :][:2]
    ended = ask(client, max_tokens=30, stop=stop)
    assert text(ended) == whole[: whole.index(stop)] and ended.choices[0].finish_reason == "stop"
    told = ask(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(told) == 12
    assert all(len(t.top_logprobs) == 2 and t.logprob == t.top_logprobs[0].logprob <= 0 for t in told)


def test_completions(client):
    answer = client.completions.create(model="default", prompt="Item 1", logprobs=1, **GREEDY)
    assert answer.usage.prompt_tokens == 6 and len(answer.choices[0].logprobs.tokens) == 12
    pieces = client.completions.create(model="default", prompt="Item 1", stream=True, **GREEDY)
    assert "".join(c.choices[0].text for c in pieces) == answer.choices[0].text


def test_a_prompt_may_be_a_list_of_one(client):
    whole, ids = client.completions.create(model="default", prompt="Item 1", **GREEDY), BYTES("Item 1")["input_ids"]
    for prompt in (["Item 1"], [ids], ids):
        answer = client.completions.create(model="default", prompt=prompt, **GREEDY)
        assert answer.choices[0].text == whole.choices[0].text and answer.usage == whole.usage


def test_logprobs_tell_where_a_token_begins_and_its_bytes(client, monkeypatch):
    said = BYTES("a äö😀!")["input_ids"]
    monkeypatch.setattr("sharedllm.serve.sampling.Sampler.choose", saying(said))
    about = {**GREEDY, "max_tokens": len(said)}
    answer = client.completions.create(model="default", prompt="Item 1", logprobs=0, **about).choices[0]
    told = answer.logprobs
    assert answer.text == "a äö😀!" and told.text_offset == [0, 1, 2, 2, 3, 3, 4, 4, 4, 4, 5]
    pieces = client.completions.create(model="default", prompt="Item 1", logprobs=0, stream=True, **about)
    streamed = [at for piece in pieces if (p := piece.choices[0].logprobs) for at in p.text_offset]
    assert streamed == told.text_offset and len(told.tokens) == len(streamed)
    chat = ask(client, max_tokens=len(said), logprobs=True).choices[0].logprobs.content
    assert bytes(byte for token in chat for byte in token.bytes) == "a äö😀!".encode()


def test_parts_of_characters_have_names_of_their_own(client, monkeypatch):
    from sharedllm.serve.sampling import Chosen

    a, part, other = (BYTES.convert_tokens_to_ids(letter) for letter in ("a", "Ã", "ð"))
    likeliest = ((part, -0.1), (other, -0.2), (a, -0.3))
    monkeypatch.setattr("sharedllm.serve.sampling.Sampler.choose", lambda self, _logits: Chosen(part, -0.1, likeliest))
    answer = client.completions.create(model="default", prompt="Item 1", logprobs=3, temperature=0, max_tokens=2)
    told = answer.choices[0].logprobs
    assert told.tokens == [r"bytes:\xc3"] * 2
    assert told.top_logprobs == [{r"bytes:\xc3": -0.1, r"bytes:\xf0": -0.2, "a": -0.3}] * 2


def test_a_text_begins_as_the_tokenizer_begins_it(client, served, monkeypatch):
    asked, ask_engine = [], served.service.engine.ask
    monkeypatch.setattr(served.service.engine, "ask", lambda task: (asked.append(task.ids), ask_engine(task)))
    monkeypatch.setattr(served.llm, "tokenizer", beginning())
    ids = BYTES("ab")["input_ids"]
    for prompt in ("ab", "<s>ab", ids):
        client.completions.create(model="default", prompt=prompt, **GREEDY)
    assert asked == [[256, *ids], [256, *ids], ids]
    ask(client)
    assert asked[-1] == Prompt(beginning(), "Where is item 3?").alone() and asked[-1][0] == 256


def saying(said):
    from sharedllm.serve.sampling import Chosen

    places = {}

    def choose(self, _logits):
        places[self] = places.get(self, -1) + 1
        return Chosen(said[places[self]], -0.5)

    return choose


def spaced():
    """A tokenizer of SentencePiece: its decoder takes a space from the beginning of a text."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = ["▁the", "the", "▁", "▁▁", "<0xC3>", "<0xA4>", "!"]
    raw = Tokenizer(models.WordLevel(vocab={piece: i for i, piece in enumerate(pieces)}, unk_token="!"))
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence(parts)
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def test_bytes_of_tokens_of_other_vocabularies():
    from sharedllm.serve.token_bytes import token_bytes

    told = [token_bytes(spaced(), token) for token in range(7)]
    assert told == [b" the", b"the", b" ", b"  ", b"\xc3", b"\xa4", b"!"]
    pieces = {3: ("<odd>", "\ufffd"), 4: ("\ufffd", "\ufffd")}
    tokenizer = SimpleNamespace(
        decode=lambda ids: "".join(pieces[i][1] for i in ids), convert_ids_to_tokens=lambda token: pieces[token][0]
    )
    assert [token_bytes(tokenizer, token) for token in (3, 4)] == [None, None]


@pytest.mark.parametrize("said", [[0, 0, 1, 4, 5, 2, 6], [4, 5, 0, 1], [2, 0, 6], [3, 1]])
def test_spaces_that_a_decoder_takes_away_keep_their_places(said):
    from sharedllm.serve.answers import Shape
    from sharedllm.serve.sampling import Chosen
    from sharedllm.serve.task import Piece

    tokenizer = spaced()
    text = tokenizer.decode(said)
    tokens = tuple(Chosen(token, -0.5, ((0, -0.1), (1, -0.2))) for token in said)
    told = Shape(tokenizer, "m", False).piece(Piece(0, text, tokens))["choices"][0]["logprobs"]
    assert told["text_offset"] == [len(tokenizer.decode(said[:i]).rstrip("\ufffd")) for i in range(len(said))]
    assert told["top_logprobs"] == [{" the": -0.1, "the": -0.2}] * len(said)
    names = Shape(tokenizer, "m", True).piece(Piece(0, text, tokens))["choices"][0]["logprobs"]["content"]
    assert bytes(byte for name in names for byte in name["bytes"]).decode().removeprefix(" ") == text


def test_an_uploaded_context_is_asked_as_in_python(client, http, served):
    key = upload(http)
    answer = ask(client, extra_body={"context": key})
    context = served.service.shelf.get(key).context
    assert context.chunks > 0
    prompt = Prompt(served.llm.tokenizer, "Where is item 3?")
    assert text(answer) == generated(served.llm, prompt.alone(), context=context, question_mask=prompt.question_mask())
    assert answer.usage.prompt_tokens == context.tokens + len("Where is item 3?\n\nAnswer:")
    assert answer.model_extra["sharedllm"]["slots"] > 0
    assert text(answer) != text(ask(client))
    two = ask(client, extra_body={"context": [key, upload(http, LONG[::-1])]})
    assert two.usage.prompt_tokens == 2 * context.tokens + len("Where is item 3?\n\nAnswer:")


def test_a_long_prompt_is_read_once(client, served):
    long = [{"role": "user", "content": f"{LONG}\n\nWhere is item 3?"}]
    first = ask(client, long)
    assert first.usage.prompt_tokens >= len(LONG) and first.model_extra["sharedllm"]["read_tokens"] == len(LONG)
    again = ask(client, [{"role": "user", "content": f"{LONG}\n\nWhere is item 4?"}])
    assert again.model_extra["sharedllm"]["read_tokens"] == 0
    assert again.usage.prompt_tokens_details.cached_tokens == len(LONG)
    assert text(ask(client, long)) == text(first)
    grown = ask(client, [{"role": "user", "content": f"{LONG} {LONG}\n\nWhere is item 3?"}])
    assert 0 < grown.model_extra["sharedllm"]["read_tokens"] <= len(LONG) + 17, "the whole chunks are known"
    hits = served.service.metrics.registry.get_sample_value("sharedllm_prompt_hits_total")
    assert hits == 3


def test_requests_together_are_answered_as_alone(client, http, served):
    key = upload(http)
    asks = [dict(messages=[{"role": "user", "content": f"{'why ' * i}?"}]) for i in range(4)]
    asks += [dict(extra_body={"context": key}), dict(messages=[{"role": "user", "content": f"{LONG}!\n\nOr?"}])]
    alone = [text(ask(client, max_tokens=30, **a)) for a in asks]
    got: dict[int, str] = {}

    def one(i):
        got[i] = text(ask(client, max_tokens=30, **asks[i]))

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(asks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(len(asks))] == alone
