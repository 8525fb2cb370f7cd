"""`eval needle` as a user meets it: its rows, what it prints, one sentence for every mistake."""

from __future__ import annotations

import json

import pytest

from sharedllm import SharedLLM
from sharedllm.methods.encoder_decoder import CrossConfig, EncoderDecoder

ROW_FIELDS = {
    "task", "method", "length", "metric", "value", "samples", "seconds", "peak_memory_bytes",
    "model", "adapter", "device", "dtype", "seed",
}  # fmt: skip
OWN_FIELDS = {
    "low", "high", "depths", "found", "kinds", "answers", "values", "encode_seconds", "ask_seconds",
    "window", "beyond_window", "haystacks", "sources", "max_new_tokens",
}  # fmt: skip


TEXT = ("--text", "long.txt")
SMALL = ("--samples", "3", "--needles-per-text", "2", "--max-new-tokens", "4", "--window", "200")


def test_the_command_writes_rows(command, home):
    (home / "rows.jsonl").unlink(missing_ok=True)
    code, out, err = command(
        "needle", *TEXT, "--methods", "shared,truncate,full", "--lengths", "300,600", "--ceiling", *SMALL
    )
    assert code == 0, err
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    assert [(r["method"], r["length"]) for r in rows] == [
        (method, length) for length in (300, 600) for method in ("shared", "truncate", "full", "passage")
    ]
    for row in rows:
        assert row.keys() >= ROW_FIELDS | OWN_FIELDS
        assert (row["task"], row["metric"], row["samples"], row["haystacks"]) == ("needle", "found", 3, 2)
        assert row["value"] == sum(row["found"]) / 3 and len(row["answers"]) == 3
        assert row["sources"] == ["long.txt"] * 2
    assert out.count("0-20 %") == 8 and "80-100 %" in out and "shared at 300: question 3 of 3" in err
    assert {row["needles_per_text"] for row in rows} == {2} and sum(_expected(err, "passage")) == 2


def _expected(err: str, name: str) -> list[bool]:
    """Which lines of progress say what something is expected to take."""
    return [line.startswith(f"  {name} ") and " GB " in line for line in err.splitlines()]


def test_texts_that_are_too_short_are_named_once(command, home):
    (home / "rows.jsonl").unlink(missing_ok=True)
    (home / "short.txt").write_text("A short note. " * 25)
    options = ("--methods", "truncate", "--lengths", "300,600", *SMALL, "--write-samples", "samples.jsonl")
    code, _, err = command("needle", *TEXT, "--text", "short.txt", *options)
    assert sum(_expected(err, "--write-samples")) == 2 and not any(_expected(err, "passage"))
    assert code == 0 and err.splitlines().count("short.txt has 350 tokens and is left out at 600") == 1
    assert "long.txt has" not in err
    scored = ("--lengths", "300,600", "--samples", "2", "--targets", "8", "--window", "16", "--methods", "truncate")
    for more in (scored, (*scored[:2], *scored[4:], "--stride", "700")):
        code, _, err = command("perplexity", *TEXT, "--text", "short.txt", *more, "--fresh")
        assert code == 0 and err.splitlines().count("short.txt has 350 tokens and is left out at 600") == 1
    assert "3 passages of 600 tokens, one every 700: 24 of 2,559 tokens are scored" in err


def test_trained_cross_attention_is_asked(command, home):
    model = SharedLLM.from_pretrained(home / "model", adapter="none")
    EncoderDecoder(model, 16, config=CrossConfig(64)).save(home / "cross")
    options = ("--methods", "encoder-decoder", "--lengths", "300", "--fresh", "--json", *SMALL)
    last = [json.loads(command("needle", *TEXT, *options, *more)[1])["last"] for more in ((), ("--cross", "cross"))]
    assert "untrained" in last[0]["reason"] and last[1]["value"] is not None and last[1]["chunk_length"] == 64


def test_a_text_must_be_named(command):
    code, _, err = command("needle")
    assert code == 2 and "--text" in err


def test_a_window_that_holds_no_question_is_said_in_its_row_and_the_run_goes_on(command, home):
    (home / "rows.jsonl").unlink(missing_ok=True)
    window = ("--samples", "1", "--max-new-tokens", "4", "--window", "truncate=16,full=200")
    code, out, err = command("needle", *TEXT, "--methods", "truncate,full", "--lengths", "300,600", *window)
    assert code == 0, err
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    assert [(r["method"], r["length"], r["value"] is None) for r in rows] == [
        (method, length, method == "truncate") for length in (300, 600) for method in ("truncate", "full")
    ]
    assert out.count("not measured: a window of 16 tokens cannot hold the question") == 2


def test_json_ends_with_one_object(command):
    code, out, _ = command("needle", *TEXT, "--methods", "truncate", "--lengths", "300", "--json", *SMALL)
    figures = json.loads(out)
    assert code == 0 and figures["results"] == "rows.jsonl" and figures["last"]["metric"] == "found"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--lengths", "99999"), "99,999"),
        (("--methods", "shard"), "Did you mean shared?"),
        (("--methods", "passage"), "shared, shared-compact, truncate, retrieval, full"),
        (("--needles-per-text", "0"), "--needles-per-text is 0"),
        (("--max-new-tokens", "0"), "--max-new-tokens is 0"),
        (("--lengths", "100"), "take 111 tokens; raise --lengths"),
        (("--lengths", "200", "--samples", "8"), "lower --needles-per-text"),
        (("--lengths", "300", "--samples", "1", "--methods", "truncate", "--window", "16"), "raise --window"),
    ],
)
def test_mistakes_are_one_sentence(command, home, arguments, word):
    (home / "rows.jsonl").unlink(missing_ok=True)
    code, out, err = command("needle", *TEXT, *arguments)
    assert code == 2 and word in err and "Traceback" not in err and out == ""
    assert not (home / "rows.jsonl").exists(), "something was written"


def test_what_was_computed_is_not_computed_again(command, home):
    (home / "rows.jsonl").unlink(missing_ok=True)
    wanted = ("needle", *TEXT, "--methods", "shared,truncate", *SMALL, "--lengths")
    assert command(*wanted, "300")[0] == 0
    before = (home / "rows.jsonl").read_text()
    code, out, err = command(*wanted, "300,600", "--ceiling")
    assert code == 0 and out.count("0-20 %") == 6, "known rows are shown with the others"
    assert err.count("found in rows.jsonl, not computed again") == 2
    assert "shared at 600: question 3 of 3" in err and "shared at 300: question" not in err
    after = (home / "rows.jsonl").read_text()
    assert after.startswith(before) and after.count("\n") == 6
    for change in (("--seed", "1"), ("--dtype", "bfloat16"), ("--window", "210"), ("--fresh",)):
        _, _, err = command(*wanted, "300", *change)
        kept = err.count("not computed again")
        assert kept == 0, change
