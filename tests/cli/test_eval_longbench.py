"""`eval longbench` and `eval infinitebench` as a user meets them: from the files to the rows; sentences for mistakes."""

from __future__ import annotations

import json

import pytest

from tests.evaluate.benchmark_files import STORY, infinitebench, longbench, longbench_2, write

ROW_FIELDS = {
    "task", "method", "length", "metric", "value", "samples", "seconds", "peak_memory_bytes", "model", "adapter",
    "device", "dtype", "seed", "dataset", "low", "high", "cut", "answer_lost", "groups",
}  # fmt: skip
LIMITS = ("--window", "700", "--max-new-tokens", "3")


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "hotpotqa.jsonl", *(longbench(_id=f"h{i}", context=STORY * 3) for i in range(3)))
    write(tmp_path / "lcc.jsonl", longbench(answers=["    return x"]))
    write(tmp_path / "hotpotqa_e.jsonl", longbench(), longbench(length=9000))
    (tmp_path / "data.json").write_text(json.dumps([longbench_2(), longbench_2(difficulty="hard")]))
    write(tmp_path / "passkey.jsonl", infinitebench(context="The grass is green. " * 60 + infinitebench()["context"]))
    write(tmp_path / "math_find.jsonl", infinitebench(input="The smallest number of the list is: ", answer=[3]))
    return str(tmp_path)


def rows(tmp_path):
    return [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]


def run(command, tmp_path, *arguments):
    code, out, err = command(*arguments, *LIMITS, "-o", str(tmp_path / "rows.jsonl"))
    assert code == 0, err
    return out, err


def test_longbench(command, data, tmp_path):
    out, err = run(command, tmp_path, "longbench", "--data", data, "--methods", "shared,truncate", "--samples", "2")
    made = rows(tmp_path)
    assert [(row["dataset"], row["method"], row["samples"]) for row in made] == [
        ("hotpotqa", "shared", 2), ("hotpotqa", "truncate", 2), ("lcc", "shared", 1), ("lcc", "truncate", 1),
        ("average-en", "shared", 3), ("average-en", "truncate", 3),
    ]  # fmt: skip
    assert all(set(row) >= ROW_FIELDS and row["variant"] == "v1" for row in made)
    assert made[1]["cut"] == 2 and made[1]["cut_to"] == 697 and made[0]["cut"] == 0
    assert "hotpotqa, f1" in out and "cut in the middle: 2 of 2" in out
    assert out.count(" over 2 of 16 data sets") == 2
    assert err.count("hotpotqa: 2 of 3 examples\n") == 1 and [row.get("samples_of") for row in made[:3]] == [3, 3, 1]
    assert [line.split()[:4] for line in err.splitlines() if line.startswith("  ") and " mean " in line] == [
        [method, name, "mean", f"{next(row['length'] for row in made if row['dataset'] == name):,}"]
        for method in ("shared", "truncate") for name in ("hotpotqa", "lcc")
    ]  # fmt: skip
    _, err = run(command, tmp_path, "longbench", "--data", data, "--methods", "shared,truncate", "--samples", "2")
    assert rows(tmp_path) == made and err.count("not computed again") == 6


def test_the_other_variants(command, data, tmp_path):
    run(command, tmp_path, "longbench", "--data", data, "--variant", "e", "--methods", "shared", "--tasks", "hotpotqa")
    run(command, tmp_path, "longbench", "--data", data, "--variant", "v2", "--methods", "shared")
    by_length, version_2 = rows(tmp_path)
    assert {name: group["samples"] for name, group in by_length["groups"].items()} == {"0-4k": 1, "8k+": 1}
    assert {name: group["samples"] for name, group in version_2["groups"].items()} == {"easy": 1, "hard": 1, "short": 2}


def test_infinitebench(command, data, tmp_path):
    out, _ = run(command, tmp_path, "infinitebench", "--data", data, "--methods", "truncate")
    passkey, math_find, average = rows(tmp_path)
    assert (passkey["dataset"], passkey["max_new_tokens"], passkey["cut"], passkey["answer_lost"]) == (
        "passkey",
        3,
        1,
        0,
    )
    assert (math_find["metric"], average["dataset"], average["samples"]) == ("first_number", "average", 2)
    assert " over 2 of 12 data sets" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["longbench"], "name the folder that has them with --data"),
        (["longbench", "--data", "nowhere"], "--data is nowhere, which is no folder"),
        (["longbench", "--data", "."], "has none of the benchmark's files, such as narrativeqa.jsonl"),
        (["longbench", "--data", ".", "--tasks", "hotpotq"], "Did you mean hotpotqa?"),
        (["longbench", "--data", ".", "--variant", "v3"], "the variant is 'v3'"),
        (["infinitebench", "--data", ".", "--tasks", "passkeys"], "Did you mean passkey?"),
        (["infinitebench", "--data", ".", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
    ],
)
def test_mistakes_are_one_sentence(command, arguments, said):
    code, _, err = command(*arguments)
    assert code == 2 and said in err and "Traceback" not in err
