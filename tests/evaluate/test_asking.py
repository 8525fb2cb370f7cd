"""Asking: a text is read once, every question is scored and timed, and the ceiling sees what is around the answer."""

from __future__ import annotations

import pytest
import torch

from sharedllm import UsageError
from sharedllm.adapter import weights_digest
from sharedllm.evaluate.asking import (
    ANSWER_CHARACTERS,
    Examination,
    Question,
    Text,
    around,
    ask_all,
    ask_methods,
    row,
)
from sharedllm.evaluate.results import Results
from sharedllm.methods import create
from sharedllm.methods.full import Full
from sharedllm.prompts import Prompt
from tests.conftest import byte_tokenizer, tokens


def question(words: str, start: int | None = None, tokens: int = 0, new: int = 4, score=len) -> Question:
    return Question(Prompt(byte_tokenizer(), words), score, new, ("x",), start, tokens)


@pytest.mark.parametrize(
    ("start", "tokens", "first"),
    [(0, 10, 0), (150, 20, 110), (150, 0, 100), (299, 1, 200), (30, 10, 0)],
)
def test_a_passage_has_the_answer_in_its_middle_where_the_text_allows(start, tokens, first):
    ids = torch.arange(300)
    cut = around(Text("a", ids, []), question("?", start, tokens), 100)
    (inside,) = cut.questions
    assert torch.equal(cut.ids, ids[first : first + 100])
    assert (inside.start, inside.tokens) == (start - first, tokens)


def test_a_short_text_is_its_own_passage():
    text = Text("a", tokens(60), [question("?", 50, 5)])
    cut = around(text, text.questions[0], 1024)
    assert torch.equal(cut.ids, text.ids) and list(cut.questions) == text.questions


def test_a_question_without_a_place_has_no_passage():
    with pytest.raises(ValueError, match="where its answer stands"):
        around(Text("a", tokens(9), []), question("?"), 4)


def test_texts_are_read_once_and_answers_scored_in_order(make, monkeypatch):
    llm = make(max_position_embeddings=512)
    method, read, given = create("full", llm, 16), [], []

    def ask(past, prompt, new):
        given.append((len(past), prompt.question, new))
        return torch.tensor(llm.tokenizer(f" {prompt.question * new} ")["input_ids"])

    monkeypatch.setattr(method, "prepare_to_ask", lambda ids, prompt: (read.append(len(ids)), ids)[1])
    monkeypatch.setattr(method, "ask", ask)
    texts = [
        Text("a", tokens(30), [question("p"), question("q", new=7)]),
        Text("b", tokens(40), [question("r", new=2)]),
    ]
    lines: list[str] = []
    asked = ask_all(method, texts, lines.append, "full here", lambda scores: f"{sum(scores)} letters")
    assert read == [30, 40] and given == [(30, "p", 4), (30, "q", 7), (40, "r", 2)]
    assert asked.answers == ["pppp", "qqqqqqq", "rr"] and asked.scores == [6, 9, 4]  # scored with its spaces
    assert lines[1] == "full here: question 2 of 3, 15 letters" and lines[-1].endswith("3 of 3, 19 letters")
    assert (len(asked.encode_seconds), len(asked.ask_seconds)) == (2, 3)
    frame = len("\n\nq\n\nAnswer:")
    assert asked.window == max(30 + frame + 7, 40 + frame + 2)


def test_a_row_says_what_was_asked_and_what_it_cost(make):
    llm = make(max_position_embeddings=64)
    long = Question(Prompt(llm.tokenizer, "r"), lambda answer: 100 / 3, 6)
    texts = [Text("a", tokens(30), [question("p"), question("q")]), Text("b", tokens(90), [long])]
    asked = ask_all(create("full", llm, 16), texts, lambda line: None, "")
    asked.answers[0] = "y" * 999
    said = row(llm, Examination("quiz", "letters", 90, texts), "full", asked, 3)
    assert (said["task"], said["metric"], said["method"], said["length"], said["seed"]) == (
        "quiz",
        "letters",
        "full",
        90,
        3,
    )
    assert said["value"] == pytest.approx(sum(asked.scores) / 3) and said["samples"] == 3
    assert said["scores"][2] == 33.3333 and len(said["answers"][0]) == ANSWER_CHARACTERS
    assert said["sources"] == ["a", "b"] and said["max_new_tokens"] == 6
    assert said["window"] == 90 + len("\n\nr\n\nAnswer:") + 6 and said["beyond_window"]
    assert said["adapter_weights"] == weights_digest(llm.injection)
    assert said["seconds"] == pytest.approx(sum(asked.encode_seconds) + sum(asked.ask_seconds), abs=1e-3)
    assert said["ask_seconds"] == pytest.approx(sum(asked.ask_seconds) / 3, abs=1e-3)


def test_every_method_and_the_ceiling_get_a_row(make):
    llm = make(max_position_embeddings=2048)
    text = Text("a", tokens(1500), [question("p", 1200, 20)])
    lines: list[str] = []
    quiz = Examination("quiz", "letters", 1500, [text], lambda asked: {"own": asked.answers})
    methods = [create("truncate", llm, 200), create("shared", llm, 16)]
    truncate, shared, passage = ask_methods(llm, methods, quiz, 0, lines.append, Results(), ceiling=True)
    assert (truncate["window"], truncate["method"]) == (200, "truncate")
    assert (truncate["given_window"], shared["given_window"]) == (200, 16) and shared["window"] != 16
    assert "given_window" not in passage
    assert shared["chunk_length"] == llm.config.chunk_length and "chunk_length" not in passage
    new = create("full", llm, 1).ask(text.ids[476:], text.questions[0].prompt, 4)  # the passage ends with the text
    assert passage["method"] == "passage" and passage["window"] == 1024 + len("\n\np\n\nAnswer:") + 4
    assert passage["own"] == [llm.tokenizer.decode(new, skip_special_tokens=True).strip()]
    assert [line.split(":")[0] for line in lines] == [f"{n} at 1,500" for n in ("truncate", "shared", "passage")]


def test_a_row_is_known_again_only_for_the_same_texts_and_questions_and_rules(make, monkeypatch):
    llm, results = make(max_position_embeddings=512), Results()

    def go(text: Text) -> list[str]:
        lines: list[str] = []
        list(
            ask_methods(llm, [create("full", llm, 16)], Examination("quiz", "x", 30, [text]), 0, lines.append, results)
        )
        return lines

    assert len(go(Text("a", tokens(30), [question("p")]))) == 1
    assert go(Text("a", tokens(30), [question("p")])) == []
    for other in (
        Text("a", tokens(30, seed=1), [question("p")]),
        Text("a", tokens(30), [question("q")]),
        Text("a", tokens(30), [question("p", new=5)]),
    ):
        assert len(go(other)) == 1
    monkeypatch.setattr(Full, "rules", lambda self, scored, before=0: {} if scored else {"read_otherwise": True})
    assert len(go(Text("a", tokens(30), [question("p")]))) == 1


def test_rows_say_what_was_read_and_asked_whatever_each_method_sees_of_it(make):
    llm = make(max_position_embeddings=2048)

    def said(text: Text, ceiling: bool = True) -> set[str]:
        methods = [create(name, llm, 200) for name in ("truncate", "full")]
        quiz = Examination("quiz", "letters", 1500, [text])
        return {row["texts"] for row in ask_methods(llm, methods, quiz, 0, lambda line: None, Results(), ceiling)}

    first, again, other = (said(Text("a", tokens(1500, seed), [question("p", 1200, 20)])) for seed in (0, 0, 1))
    assert len(first) == 1 and first == again and first != other


def test_memory_that_runs_out_gives_a_row_that_says_so_and_the_others_are_asked(make, monkeypatch):
    llm, results = make(max_position_embeddings=512), Results()
    methods = [create("full", llm, 16), create("truncate", llm, 200)]
    quiz = Examination("quiz", "letters", 60, [Text("a", tokens(60), [question("p")])])

    def fails(error: Exception) -> list[dict]:
        monkeypatch.setattr(methods[0], "ask", lambda *given: (_ for _ in ()).throw(error))
        return list(ask_methods(llm, methods, quiz, 0, lambda line: None, results))

    for error in (MemoryError(), RuntimeError("CUDA error: out of memory")):
        full, truncate = fails(error)
        assert (full["value"], full["reason"], full["read_once"]) == (None, "memory ran out", True)
        assert truncate["value"] is not None
    with pytest.raises(RuntimeError, match="something else"):
        fails(RuntimeError("something else"))


def test_a_penalty_of_the_models_own_falls_on_no_answer_and_rows_say_so(make, monkeypatch):
    llm, results, given = make(max_position_embeddings=2048), Results(), []
    own, generate = llm.model.generation_config, llm.model.generate
    quiz = Examination("quiz", "letters", 1500, [Text("a", tokens(1500), [question("p", 1200, 20)])])

    def go() -> list[dict]:
        methods = [create(name, llm, 200) for name in ("truncate", "shared")]
        return list(ask_methods(llm, methods, quiz, 0, lambda line: None, results, ceiling=True))

    def noted(*args, **kwargs):
        given.append((own.repetition_penalty, own.no_repeat_ngram_size))
        return generate(*args, **kwargs)

    first = go()
    unit = {"method": "truncate", "window": 200, "length": 1500, "metric": "letters", "texts": first[0]["texts"]}
    assert results.find(unit) == first[0], "as rows have been known before"
    own.repetition_penalty, own.no_repeat_ngram_size = 1.3, 2
    monkeypatch.setattr(llm.model, "generate", noted)
    second = go()
    assert given == [(1.0, 0)] * 3 and (own.repetition_penalty, own.no_repeat_ngram_size) == (1.3, 2)
    for before, after in zip(first, second, strict=True):
        assert "repetition_penalty" not in before and after["repetition_penalty"] == 1.0
        assert after["no_repeat_ngram_size"] == 0 and before["answers"] == after["answers"]
        assert before["run"] != after["run"]


def test_a_row_says_the_rules_that_its_answers_came_from(make):
    llm = make(max_position_embeddings=512)
    quiz = Examination("quiz", "letters", 60, [Text("a", tokens(60), [question("p")])])
    methods = [create("streaming", llm, 40), create("full", llm, 40)]
    streaming, full = ask_methods(llm, methods, quiz, 0, lambda line: None, Results())
    assert streaming["read_in_prompt"] is True and "read_in_prompt" not in full


def test_a_method_that_cannot_hold_a_question_has_a_reason_and_the_others_are_asked(make):
    llm = make(max_position_embeddings=512)
    quiz = Examination("quiz", "letters", 300, [Text("a", tokens(300), [question("p"), question("p" * 40)])])
    frame = len("\n\n" + "p" * 40 + "\n\nAnswer:")

    def go(*methods):
        return list(ask_methods(llm, methods, quiz, 0, lambda line: None, Results()))

    small, enough = (create("truncate", llm, frame + new) for new in (3, 4))
    truncate, full = go(small, create("full", llm, 16))
    assert truncate["reason"] == (
        f"a window of {frame + 3} tokens cannot hold the question ({frame}) and an answer of 4; "
        "raise --window or lower --max-new-tokens"
    )
    assert truncate["value"] is None and "adapter_weights" not in truncate and full["value"] is not None
    assert go(enough)[0]["value"] is not None
    with pytest.raises(UsageError, match=r"cannot hold the question .* raise --window"):
        go(small)


def test_a_method_without_memory_or_without_meaning_is_not_asked(make, tmp_path):
    llm, file = make(max_position_embeddings=2048), tmp_path / "rows.jsonl"
    quiz = Examination("quiz", "letters", 1500, [Text("a", tokens(1500), [question("p", 1200, 20)])])
    methods = [create(name, llm, 200) for name in ("full", "encoder-decoder", "truncate")]
    free = 1.25 * methods[0].peak_bytes(1400)

    def go(free: float) -> list[dict]:
        return list(ask_methods(llm, methods, quiz, 0, lambda line: None, Results(file), ceiling=True, free=free))

    full, untrained, *asked = go(free)
    assert "GB of memory" in full["reason"] and "untrained" in untrained["reason"]
    for empty, name in ((full, "full"), (untrained, "encoder-decoder")):
        assert (empty["task"], empty["method"], empty["length"], empty["metric"]) == ("quiz", name, 1500, "letters")
        assert empty["value"] is None and empty["samples"] == 0
    assert [r["method"] for r in asked if r["value"] is not None] == ["truncate", "passage"]
    assert go(free * 2)[0]["value"] is not None, "the memory is there now"
    assert go(0)[0]["value"] is not None, "the row was known"


def test_a_method_is_not_asked_beyond_its_longest_text(make):
    llm = make(max_position_embeddings=2048)
    method = create("truncate", llm, 200)
    rows = []
    for method.longest in (299, 300):
        quiz = Examination("quiz", "letters", 300, [Text("a", tokens(300), [question("p")])])
        rows += ask_methods(llm, [method], quiz, 0, lambda line: None, Results())
    assert "299 tokens" in rows[0]["reason"] and rows[0]["value"] is None and rows[1]["value"] is not None
