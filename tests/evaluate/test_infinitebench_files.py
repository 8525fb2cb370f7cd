"""InfiniteBench's files: prompts to the letter, answers in every form they come in, one sentence for what is wrong."""

from __future__ import annotations

import hashlib
import json

import pytest

from sharedllm import UsageError
from sharedllm.evaluate.examples import read_tasks
from sharedllm.evaluate.infinitebench import averages, datasets
from tests.evaluate.benchmark_files import STORY, infinitebench, write

TASKS = read_tasks("sharedllm.evaluate.infinitebench")
OPTIONS = ["Jory", "Tamsin", "Nobody", "The wind"]
CALL = "Please give me the exact number of the return value of func_12(-3)."
LIST = "You should answer with only one number, no other words. The second largest number of the list is: "


def one(folder, name, **changes):
    write(folder / f"{name}.jsonl", infinitebench(**changes))
    (dataset,) = datasets(folder, [name])
    return dataset.examples[0]


def test_the_wording_is_that_of_the_benchmark():
    wording = {name: task.prompt for name, task in TASKS.items()}
    digest = hashlib.sha256(json.dumps(wording, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    assert digest == "ede60cb9c1c20f1de5de4cd90ee9c5ac7bcd111fc70ac9c7954ac93e9b790bf5"


def test_settings():
    assert {name: task.max_new_tokens for name, task in TASKS.items()} == {
        "passkey": 6, "number_string": 12, "kv_retrieval": 50, "longbook_sum_eng": 1200, "longbook_choice_eng": 40,
        "longbook_qa_eng": 40, "longbook_qa_chn": 40, "longdialogue_qa_eng": 40, "math_find": 3, "math_calc": 30000,
        "code_run": 5, "code_debug": 5,
    }  # fmt: skip
    assert not any(task.chat for task in TASKS.values())
    assert averages([TASKS["passkey"], TASKS["math_find"]]) == {
        "average": {"passkey": ["passkey"], "math_find": ["math_find"]}
    }


def test_a_row_becomes_an_example(tmp_path):
    example = one(tmp_path, "passkey")
    assert example.before.startswith("There is an important info hidden inside")
    assert example.after == "\n\nWhat is the pass key?\n\nThe pass key is"
    assert (example.id, example.asks, example.traces) == ("0", "What is the pass key?", ("71432",))
    assert example.score(" 71432.") == 1


def test_prompts_that_take_something_out_of_the_input(tmp_path):
    example = one(tmp_path, "code_run", input=CALL, answer=[7], context="def func_12(x): ...")
    assert example.before == "There is a function called func_12 in the following Python code.\n\n"
    assert example.after == "\n\nPlease compute the exact value of func_12(-3). The value of func_12(-3) is"
    assert example.asks == example.after and example.traces == () and example.score("is 7") == 1
    example = one(tmp_path, "math_find", input=LIST, answer=98, context="[98, 99]")
    assert example.before == "What is the second largest number in the following list?\n\n"
    assert example.after == f"\n\n{LIST}" and example.score("98") == 1


@pytest.mark.parametrize("answer", ["Tamsin", ["Tamsin"], ["Tamsin", "B"]])
def test_a_choice_may_come_with_its_letter_or_without(tmp_path, answer):
    example = one(tmp_path, "longbook_choice_eng", answer=answer, options=OPTIONS, input="Who?")
    assert example.after.endswith(
        "Question: Who?\nA. Jory\nB. Tamsin\nC. Nobody\nD. The wind\n\nThe letter of the correct answer is"
    )
    assert (example.expected, example.traces) == (("Tamsin", "B"), ("Tamsin",))
    assert example.score("B") == example.score("Tamsin") == 1 and example.score("A") == 0
    assert one(tmp_path, "code_debug", answer=answer, options=OPTIONS).score("B. Tamsin") == 1


def test_answers_in_lists_of_their_own_and_alone(tmp_path):
    for answer in ([1, 4, 8], [[1, 4, 8]]):
        example = one(tmp_path, "math_calc", answer=answer)
        assert example.score("1 4 9") == pytest.approx(2 / 3) and example.expected == ("1, 4, 8",)
    for answer in ("Tamsin", ["Jory", "Tamsin"]):
        assert one(tmp_path, "longbook_qa_eng", answer=answer).score("tamsin") == 1
    assert one(tmp_path, "kv_retrieval", answer="ab-1").score("it is ab-1.") == 1
    assert one(tmp_path, "math_find", input=LIST, answer=[2.5]).score("2.5") == 1


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("passkey", {"answer": ...}, "line 1: the field 'answer' is missing; it must be text of digits"),
        ("passkey", {"answer": [71432]}, r"'answer' is \[71432\]; it must be text of digits, or a list"),
        ("passkey", {"answer": []}, r"'answer' is \[\]; it must be text of digits"),
        ("math_find", {"input": LIST, "answer": ["98"]}, r"'answer' is \[\"98\"\]; it must be a number"),
        ("math_find", {"answer": [98]}, "'input' is .* it must be text such as 'The largest number of"),
        ("code_run", {"input": CALL, "answer": "7"}, "it must be a whole number"),
        ("code_run", {"input": CALL, "answer": True}, "'answer' is true; it must be a whole number"),
        ("code_run", {"answer": [7]}, "'input' is .* it must be text with a call such as"),
        ("math_calc", {"answer": ["1"]}, "it must be a list of whole numbers"),
        ("longbook_choice_eng", {"answer": ["Tamsin"]}, r"'options' is \[\]; it must be a list of four texts"),
        ("longbook_choice_eng", {"answer": ["Tamsin"], "options": ...}, "the field 'options' is missing"),
        ("code_debug", {"answer": ["Morwenna"], "options": OPTIONS}, "it must be one of the options"),
        ("longbook_qa_eng", {"answer": {"a": 1}}, "it must be text or a list of text"),
        ("longbook_sum_eng", {"context": ...}, "the field 'context' is missing"),
        ("longbook_qa_eng", {"input": " "}, r"'input' is \" \"; it must be text, not empty"),
    ],
)
def test_a_wrong_row_is_named_with_file_line_and_field(tmp_path, name, changes, said):
    with pytest.raises(UsageError, match=said) as error:
        one(tmp_path, name, **changes)
    assert f"{name}.jsonl, line 1" in str(error.value)


def test_what_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"has none of the benchmark's files, such as passkey.jsonl"):
        datasets(tmp_path)
    with pytest.raises(UsageError, match=r"'passkeys'.* Did you mean passkey"):
        datasets(tmp_path, ["passkeys"])
    write(tmp_path / "passkey.jsonl", infinitebench())
    write(tmp_path / "notes.jsonl", {"a": STORY})
    assert [dataset.task.name for dataset in datasets(tmp_path)] == ["passkey"]
