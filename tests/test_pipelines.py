"""The pipeline for questions about long texts: called in the ways of transformers, answering as `ask` does."""

from __future__ import annotations

import pytest
import transformers
from transformers import GenerationConfig
from transformers.pipelines import PIPELINE_REGISTRY

import sharedllm
from sharedllm import SharedLLM, UsageError
from sharedllm.pipelines import TASK
from tests.conftest import CONFIG, byte_tokenizer, tiny_model
from tests.contexts import assert_one_sentence
from tests.test_generate import counted

TEXT = (
    "The red box is in the attic. The blue box is in the cellar. The green one is lost, and nobody knows where it is."
)
OTHER = "Monday is for washing. " * 6


@pytest.fixture
def asked(make):
    return sharedllm.pipeline(TASK, make())


def test_a_question_is_answered_as_ask_does_with_what_was_read(asked):
    found = asked(question="Where?", context=TEXT, max_new_tokens=4, passages=2)
    context = asked.llm.read(TEXT)
    assert found["answer"] == asked.llm.ask(context, "Where?", 4)
    assert (found["tokens"], found["compressed"]) == (len(TEXT), True) and found["slots"] > 0 and found["seconds"] > 0
    assert [p["text"] for p in found["passages"]] == [p.text for p in asked.llm.explain(context, "Where?", 2, 4)]
    assert asked({"question": "Where?", "context": TEXT}, max_new_tokens=4, passages=0)["passages"] == []
    assert asked(question="Where?", context=TEXT, max_new_tokens=2, read_chunks=1)["slots"] < found["slots"]


def test_an_answer_is_as_long_as_a_configuration_says(asked):
    wanted = {"question": "Where?", "context": TEXT}
    found = asked(wanted, generation_config=GenerationConfig(max_new_tokens=4), passages=2)
    expected = asked(wanted, max_new_tokens=4, passages=2)
    assert (found["answer"], found["passages"]) == (expected["answer"], expected["passages"])


def test_lists_give_lists_and_one_text_serves_all_questions(asked):
    single = [asked(question=q, context=TEXT, max_new_tokens=3)["answer"] for q in ("Where?", "Who?")]
    both = asked(question=["Where?", "Who?"], context=TEXT, max_new_tokens=3)
    assert [found["answer"] for found in both] == single
    rows = asked([{"question": "Where?", "context": TEXT}, {"question": "When?", "context": OTHER}], max_new_tokens=3)
    assert [found["tokens"] for found in rows] == [len(TEXT), len(OTHER)] and rows[0]["answer"] == single[0]
    assert (
        asked(question=["Where?", "When?"], context=[TEXT, OTHER], max_new_tokens=3)[1]["answer"] == rows[1]["answer"]
    )
    assert asked([]) == []


def test_a_text_is_read_once(asked, monkeypatch):
    reads = counted(monkeypatch, asked.llm.reader, "read")
    for text in (TEXT, OTHER, "".join(list(TEXT)), OTHER):
        asked(question="Where?", context=text, max_new_tokens=1, passages=0)
    assert len(reads) == 2
    asked._kept_contexts = 1
    for text in (OTHER, TEXT, OTHER):
        asked(question="Where?", context=text, max_new_tokens=1, passages=0)
    assert len(reads) == 4 and len(asked._contexts) == 1


def test_transformers_knows_the_task_once_it_is_told(make, monkeypatch):
    monkeypatch.setattr(PIPELINE_REGISTRY, "supported_tasks", dict(PIPELINE_REGISTRY.supported_tasks))
    with pytest.raises(KeyError):
        transformers.pipeline(TASK, model=tiny_model(), tokenizer=byte_tokenizer())
    sharedllm.register_pipeline()
    theirs = transformers.pipeline(TASK, model=tiny_model(), tokenizer=byte_tokenizer(), adapter="none", device="cpu")
    found = theirs(question="Where?", context="In the attic.", max_new_tokens=3)
    assert (found["tokens"], found["compressed"]) == (13, False)
    assert theirs.llm.adapter == "none"


def test_a_pipeline_takes_what_its_class_takes_with_a_model_and_with_its_name(make, monkeypatch):
    loaded = make()
    monkeypatch.setattr(SharedLLM, "from_pretrained", lambda name, adapter, **loading: loaded)
    for model in (loaded, "a-name"):
        ask = sharedllm.pipeline(TASK, model, kept_contexts=1, max_new_tokens=2, passages=0)
        found = ask(question="Where?", context=TEXT)
        assert found["answer"] == loaded.ask(loaded.read(TEXT), "Where?", 2) and found["passages"] == []
        ask(question="Where?", context=OTHER)
        assert len(ask._contexts) == 1


@pytest.mark.parametrize(
    "argument",
    [{"adapter": "none"}, {"device": "cpu"}, {"dtype": "float32"}, {"config": CONFIG}, {"tokenizer": byte_tokenizer()}],
    ids=lambda argument: next(iter(argument)),
)
def test_what_a_loaded_model_cannot_take_any_more_is_refused(make, argument):
    with pytest.raises(UsageError, match=f"{next(iter(argument))} is said where a model is loaded") as error:
        sharedllm.pipeline(TASK, make(), **argument)
    assert_one_sentence(error)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"question": "Where?"}, "needs a text"),
        ({"context": TEXT}, "needs a text"),
        ({"question": ["a", "b"], "context": [TEXT]}, "2 questions and 1 texts"),
        ({"question": " ", "context": TEXT}, "question is empty"),
        ({"question": "a", "context": TEXT, "max_new_tokens": 0}, "max_new_tokens"),
    ],
    ids=str,
)
def test_mistakes(asked, arguments, says):
    with pytest.raises(UsageError, match=says) as error:
        asked(**arguments)
    assert_one_sentence(error)


@pytest.mark.parametrize("inputs", ["Where?", ["Where?", "Who?"], 3, [None]], ids=str)
def test_a_question_that_is_not_named_is_refused_before_anything_is_read(asked, monkeypatch, inputs):
    monkeypatch.setattr(asked.llm, "read", lambda *_: pytest.fail("read"))
    with pytest.raises(UsageError, match="questions are given by name") as error:
        asked(inputs, context=TEXT)
    assert_one_sentence(error)


def test_another_task_is_refused():
    with pytest.raises(UsageError, match="Did you mean long-context-question-answering"):
        sharedllm.pipeline("long-context-question-answer")
