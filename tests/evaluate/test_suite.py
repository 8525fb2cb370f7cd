"""Data sets put to methods: what each method is given, what was cut, and what the rows and averages say."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from sharedllm import UsageError
from sharedllm.adapter import weights_digest
from sharedllm.evaluate.examples import Dataset, Example, Task, read_tasks
from sharedllm.evaluate.forecast import Pace, expected
from sharedllm.evaluate.middle import answer_lost, cut_middle, cut_whole
from sharedllm.evaluate.results import Results
from sharedllm.evaluate.statistics import wilson
from sharedllm.evaluate.suite import jobs, run
from sharedllm.methods import create
from sharedllm.prompts import Prompt

BEFORE, AFTER = "Read this.\n\n", "\n\nWho came?\nAnswer: "
LONG = "a" * 100 + "Tamsin" + "b" * 94


def example(context=LONG, name="1", **changes):
    def score(answer):
        return float(len(answer) > 0)

    settings = dict(after=AFTER, asks="Who came?", score=score, expected=("Tamsin",), traces=("Tamsin",)) | changes
    return Example(name, BEFORE, context, **settings)


def dataset(*examples, name="hotpotqa", **settings):
    task = Task(name, "{context}", max_new_tokens=4, metric="f1", chat=False, **settings)
    return Dataset(task, list(examples))


def rows_of(llm, methods, datasets, averages=None, windows=None, **options):
    made = [create(name, llm, (windows or {}).get(name, 64)) for name in methods]
    return list(run(llm, made, "longbench", datasets, averages or {}, 0, lambda line: None, Results(), **options))


@pytest.mark.parametrize(
    ("before", "after", "room", "kept"),
    [
        (2, 3, 25, [*range(11), *range(91, 100)]),  # one more from the start where it is odd
        (2, 3, 105, list(range(100))),
        (2, 3, 104, [*range(50), *range(51, 100)]),
        (2, 3, 24, [*range(10), *range(91, 100)]),
        (0, 20, 30, list(range(10))),  # what follows the text takes more than half
        (20, 0, 30, list(range(90, 100))),
        (3, 2, 5, []),
    ],
)
def test_the_middle_is_cut(before, after, room, kept):
    ids = torch.arange(100)
    assert cut_middle(ids, before, after, room).tolist() == kept


def test_instructions_are_never_cut():
    with pytest.raises(ValueError, match="6 tokens of instructions do not fit 5"):
        cut_middle(torch.arange(9), 3, 3, 5)


def test_an_answer_is_lost_if_it_was_there():
    assert answer_lost(["Tamsin"], "Tamsin came", "came")
    assert not answer_lost(["Tamsin", "Rowe"], "Tamsin Rowe came", "Rowe came")
    assert not answer_lost(["Tamsin"], "nobody came", "came") and not answer_lost([], "a", "")


def test_each_method_gets_the_text_it_can_read(make, monkeypatch):
    llm = make(max_position_embeddings=512)
    given = {}
    for name in ("shared", "truncate", "full"):
        kind = type(create(name, llm, 64))

        def ask(method, past, prompt, new):
            given[method.name] = llm.tokenizer.decode(method.shown(past, prompt, new)), method.llm.tokenizer, past
            return torch.tensor([65])

        monkeypatch.setattr(kind, "ask", ask)
    rows = {row["method"]: row for row in rows_of(llm, ["shared", "truncate", "full"], [dataset(example())])}
    assert given["shared"][0] == "Read this.\n\nWho came?\nAnswer: " and given["shared"][2].tokens == len(LONG)
    assert given["full"][0] == BEFORE + LONG + AFTER
    # 60 of 64 tokens are the prompt's, half of them from its end
    assert given["truncate"][0] == (BEFORE + LONG)[:30] + (LONG + AFTER)[-30:]
    assert {name: (row["cut"], row["cut_to"], row["answer_lost"]) for name, row in rows.items()} == {
        "shared": (0, None, 0), "truncate": (1, 60, 1), "full": (0, None, 0),
    }  # fmt: skip


def test_a_context_is_read_once_for_all_its_questions(make, monkeypatch):
    llm = make(max_position_embeddings=512)
    shared, read = type(create("shared", llm, 64)), []
    prepare = shared.prepare
    monkeypatch.setattr(shared, "prepare", lambda method, ids: (read.append(len(ids)), prepare(method, ids))[1])
    (row,) = rows_of(llm, ["shared"], [dataset(example(name="1"), example("other", "2"), example(name="3"))])
    assert read == [200, 5]
    assert row["ids"] == ["1", "3", "2"] and row["tokens"] == [200, 200, 5] and row["length"] == 135


def test_rows_and_averages(make):
    llm = make(max_position_embeddings=512)
    scores = {"a": [1, 0, 0], "b": [1], "c": [0.5, 0.5]}
    sets = [
        dataset(
            *(
                example(name=f"{name}{i}", score=lambda answer, s=s: s, groups=("short",) if i else ("long",))
                for i, s in enumerate(of)
            ),
            name=name,
        )
        for name, of in scores.items()
    ]
    averages = {"average": {"qa": ["a", "b"], "code": ["c"]}, "average-zh": {"code": ["c"]}}
    *rows, average = rows_of(llm, ["truncate"], sets, averages, said={"variant": "e"}, max_new_tokens=2)
    assert [(row["dataset"], row["samples"], row["variant"]) for row in rows] == [
        ("a", 3, "e"),
        ("b", 1, "e"),
        ("c", 2, "e"),
    ]
    assert rows[0]["value"] == pytest.approx(100 / 3) and rows[0]["scores"] == [100, 0, 0]
    assert rows[0]["groups"] == {"long": {"value": 100, "samples": 1}, "short": {"value": 0, "samples": 2}}
    assert rows[0]["max_new_tokens"] == 2 and rows[0]["expected"] == [["Tamsin"]] * 3 and len(rows[0]["answers"]) == 3
    assert (average["dataset"], average["metric"], average["samples"]) == ("average", "mean of categories", 6)
    assert average["adapter_weights"] == rows[0]["adapter_weights"] == weights_digest(llm.injection)
    assert average["categories"] == {"qa": pytest.approx(200 / 3), "code": 50}
    assert average["value"] == pytest.approx((200 / 3 + 50) / 2)
    assert average["low"] < average["value"] < average["high"]
    assert average["groups"]["long"] == {"value": 75, "samples": 3}  # (mean of 100 and 100, and 50) / 2
    assert average["groups"]["short"] == {"value": 25, "samples": 3}


def test_what_does_not_fit_has_a_reason_and_so_has_its_average(make):
    llm = make(max_position_embeddings=512)
    sets = [dataset(example(context="c" * 20), name="a"), dataset(example(), name="b")]
    free = 1.25 * create("full", llm, 64).peak_bytes(150)
    averages = {"average": {"qa": ["a", "b"]}}
    a, b, average = rows_of(llm, ["full"], sets, averages, said={"variant": "e"}, free=free)
    assert a["value"] is not None and b["value"] is None and "GB of memory" in b["reason"]
    assert (b["dataset"], b["variant"], b["length"], b["samples"]) == ("b", "e", 200, 0)
    assert (average["dataset"], average["value"]) == ("average", None) and average["reason"].startswith("b: it would")


def test_the_longest_text_of_a_data_set_is_what_a_method_is_measured_up_to(make):
    llm, method = make(max_position_embeddings=512), create("full", make(max_position_embeddings=512), 64)
    sets = [
        dataset(example(context="c" * 20), example(name="2"), name="a"),
        dataset(example(context="c" * 150), name="b"),
    ]
    method.longest = 150
    rows = list(run(llm, [method], "longbench", sets, {}, 0, lambda line: None, Results()))
    assert [row["length"] for row in rows] == [110, 150] and "up to 150 tokens" in rows[0]["reason"]
    said = expected([method], jobs(llm, sets), Pace(1.0, 0.01, 2.0), math.inf)
    assert [one.reason for one in said] == [row.get("reason") for row in rows] and rows[1]["value"] is not None


def test_a_data_set_is_of_the_same_texts_for_methods_that_see_less_of_them(make):
    rows = rows_of(make(max_position_embeddings=512), ["truncate", "full"], [dataset(example())])
    assert rows[0]["cut"] and rows[0]["texts"] == rows[1]["texts"]


def test_a_long_question_is_cut_with_its_text(make, monkeypatch):
    """As LongBench does: half of what fits from the prompt's start, half from its end, whatever stands there."""
    llm, given = make(max_position_embeddings=512), []

    def ask(method, past, prompt, new):
        given.append(llm.tokenizer.decode(method.shown(past, prompt, new)))
        return torch.tensor([65])

    monkeypatch.setattr(type(create("truncate", llm, 64)), "ask", ask)
    long = "\n\n" + "Who came, and when? " * 5 + "Who came?\nAnswer: "
    sets = [dataset(example(), example(after=long, name="2"), example("Tamsin", "3", after=long))]
    (row,) = rows_of(llm, ["truncate"], sets)
    wholes = [BEFORE + LONG + AFTER, BEFORE + LONG + long, BEFORE + "Tamsin" + long]
    assert given == [whole[:30] + whole[-30:] for whole in wholes]
    # of the third the name is left, beside the instructions
    assert (row["value"], row["samples"], row["cut"], row["cut_to"], row["answer_lost"]) == (100, 3, 3, 60, 2)
    assert row["tokens"] == [200, 200, 6] and row["window"] == 64 and not row["beyond_window"]


@pytest.mark.parametrize(
    ("context", "after", "room", "left"),
    [
        ("abcdef", 30, 20, ("ab", "")),  # of the start 8 are instructions
        ("abcdef", 30, 36, ("abcdef", "")),
        ("abcdef", 4, 10, ("", "f")),
        ("", 30, 20, ("", "")),
    ],
)
def test_what_is_left_of_a_text_where_its_instructions_are_too_long(make, context, after, room, left):
    llm = make()
    prompt = Prompt(llm.tokenizer, "q" * after, before="b" * 8, between="", chat=False, answer_prefix="")
    ids = torch.tensor([ord(c) for c in context], dtype=torch.long)
    cut, text = cut_whole(prompt, ids, room)
    whole = [*prompt.around_text()[0], *ids.tolist(), *prompt.around_text()[1]]
    half = room // 2
    assert cut.alone() == cut.with_text(ids[:0]) == [*whole[: room - half], *whole[-half:]]
    assert "".join(map(chr, text.tolist())) == "".join(left)


def test_a_window_too_small_for_an_answer_gives_a_row_that_says_so_and_the_others_are_asked(make):
    llm = make(max_position_embeddings=512)
    long = Dataset(Task("b", "{context}", max_new_tokens=35, metric="f1", chat=False), [example()])
    averages = {"average": {"qa": ["a", "b"]}}
    sets = [dataset(example(), name="a"), long]
    *rows, first, second = rows_of(llm, ["shared", "truncate"], sets, averages, windows={"truncate": 36})
    valued = {(row["method"], row["dataset"]): row["value"] is not None for row in rows}
    assert valued == {("shared", "a"): True, ("truncate", "a"): True, ("shared", "b"): True, ("truncate", "b"): False}
    said = "a window of 36 tokens has no room for a question of b beside an answer of 35; raise --window"
    assert rows[-1]["reason"].startswith(said) and rows[-1]["length"] == 200
    assert first["value"] is not None and second["reason"].startswith(f"b: {said}")


def test_a_window_too_small_for_everything_is_refused(make):
    sets = [dataset(example(), name="a"), dataset(example(after=f"{AFTER}!"), name="b")]
    with pytest.raises(
        UsageError, match=r"a window of 5 tokens has no room for a question of a beside .*lower --max-new-tokens"
    ):
        rows_of(make(max_position_embeddings=512), ["truncate"], sets, windows={"truncate": 5})


def test_missing_packages_of_scores_are_said_before_anything_is_asked(make, monkeypatch):
    llm = make()
    sets = [dataset(example(), name="a"), *(dataset(example(), name=n, needs=("rouge", "jieba")) for n in "bc")]
    for package in ("rouge", "jieba"):
        monkeypatch.setitem(sys.modules, package, None)
    said = r"the scores of b, c need rouge, jieba; run pip install 'sharedllm\[eval\]' \(.*\), or name other --tasks"
    for started in (lambda: jobs(llm, sets), lambda: rows_of(llm, ["truncate"], sets)):
        with pytest.raises(UsageError, match=said):
            started()
    assert rows_of(llm, ["truncate"], sets[:1])


def test_every_score_that_needs_a_package_says_so():
    tasks = [
        *read_tasks("sharedllm.evaluate.longbench").values(),
        *read_tasks("sharedllm.evaluate.infinitebench").values(),
    ]
    needs = {"rouge_l": ("rouge",), "rouge_l_zh": ("rouge", "jieba"), "rouge_lsum": ("rouge_score",)}
    for task in tasks:  # LongBench counts Chinese words, InfiniteBench characters
        words = ("jieba",) if (task.metric, task.category) == ("f1_zh", "single-document QA") else ()
        assert task.needs == needs.get(task.metric, words), task.name


def test_a_summary_of_a_dialogue_ends_with_its_line(make, monkeypatch):
    tasks = read_tasks("sharedllm.evaluate.longbench")
    assert {name: task.stop for name, task in tasks.items() if task.stop} == {"samsum": "\n"}
    llm, ends = make(max_position_embeddings=512), []

    def ask(method, past, prompt, new):
        ends.append(method.llm.model.generation_config.eos_token_id)
        return torch.tensor([65])

    monkeypatch.setattr(type(create("truncate", llm, 64)), "ask", ask)
    rows = rows_of(llm, ["truncate"], [dataset(example(), stop="\n"), dataset(example())])
    assert ends == [[257, llm.tokenizer("\n")["input_ids"][-1]], 257] and rows[0]["run"] != rows[1]["run"]


def test_samples_are_spread_over_the_file():
    many = dataset(*(example(name=str(i)) for i in range(10)))
    assert [e.id for e in many.spread(3).examples] == ["1", "5", "8"]
    assert many.spread(99).examples == many.examples
    assert many.spread(3).of == many.spread(4).spread(2).of == 10


def test_rows_say_of_how_many_examples_and_data_sets_they_are(make):
    llm, averages = make(max_position_embeddings=512), {"average": {"qa": ["a", "b"]}}
    sets = [dataset(example(), example(name="2"), name="a").spread(1), dataset(example(), name="b")]
    whole = {"average": {"qa": ["a", "b", "c"], "code": ["d"]}}
    a, b, some = rows_of(llm, ["truncate"], sets, averages, whole=whole)
    assert [(row["samples"], row["samples_of"]) for row in (a, b)] == [(1, 2), (1, 1)]
    assert (some["datasets"], some["datasets_of"]) == (["a", "b"], 4)
    *_, every = rows_of(llm, ["truncate"], sets, averages)
    assert every["datasets_of"] == 2 and every["run"] == some["run"], "nothing that was known is measured again"


def test_an_average_of_few_right_answers_is_not_certain_and_weighs_data_sets_not_samples(make):
    def of(name, *scores):
        return dataset(*(example(name=str(i), score=lambda _, s=s: s) for i, s in enumerate(scores)), name=name)

    sets, averages = [of("a", 1, 1, 1), of("b", 1)], {"average": {"a": ["a"], "b": ["b"]}}
    *_, average = rows_of(make(max_position_embeddings=512), ["truncate"], sets, averages)
    below = [100 - 100 * wilson(n, n)[0] for n in (3, 1)]
    assert (average["value"], average["high"]) == (100, pytest.approx(100))
    assert average["low"] == pytest.approx(100 - (below[0] ** 2 + below[1] ** 2) ** 0.5 / 2)


def test_what_is_to_be_done_is_known_before(make):
    """A job a context; its tokens with those beside it are what the longest question on it has in the row."""
    llm = make()
    sets = [dataset(example(), example("c" * 50, "2"), example(name="3")), dataset(example("d" * 9), name="b")]
    first, second, other = jobs(llm, sets, 3)
    assert [(job.dataset, job.length, job.asked, job.new_tokens) for job in (first, second, other)] == [
        ("hotpotqa", 200, 2, 3), ("hotpotqa", 50, 1, 3), ("b", 9, 1, 3)
    ]  # fmt: skip
    (row, _) = rows_of(llm, ["full"], sets, max_new_tokens=3)
    assert row["window"] == first.given(create("full", llm, 8))


def test_what_is_said_before_agrees_with_what_is_asked(make):
    """A question that is longer than the window is cut; an answer that leaves no room for both ends of a prompt is not."""
    llm = make(max_position_embeddings=512)
    long = dataset(example(after="\n\n" + "Who came, and when? " * 5 + "Who came?\nAnswer: "), name="a")
    answers = [
        Dataset(Task(n, "{context}", max_new_tokens=new, metric="f1", chat=False), [example()])
        for n, new in (("b", 62), ("c", 63))
    ]
    sets = [long, *answers]
    said = list(expected([create("truncate", llm, 64)], jobs(llm, sets), Pace(1.0, 0.01, 2.0), math.inf))
    rows = rows_of(llm, ["truncate"], sets)
    assert [one.reason for one in said] == [row.get("reason") for row in rows]
    assert [row["value"] is None for row in rows] == [False, False, True]


def test_an_average_has_the_peak_of_its_rows_and_not_that_of_the_last_call(make):
    peaks = [5, 9, 7]
    results = Results(besides=lambda: {"peak_memory_bytes": peaks.pop(0)})
    methods = [create("truncate", make(max_position_embeddings=512), 64)]
    sets, averages = [dataset(example(), name=name) for name in "abc"], {"average": {"qa": list("abc")}}
    *_, average = run(methods[0].llm, methods, "longbench", sets, averages, 0, lambda line: None, results)
    assert average["dataset"] == "average" and average["peak_memory_bytes"] == 9
