"""`eval needle` as a user meets it: its rows, what it prints, one sentence for every mistake."""

from __future__ import annotations

import json

import pytest
import torch

from sharedllm import SharedLLM
from sharedllm.cli import main
from tests.conftest import CONFIG, byte_tokenizer, randomize, tiny_model

ROW_FIELDS = {
    "task", "method", "length", "metric", "value", "samples", "seconds", "peak_memory_bytes",
    "model", "adapter", "device", "dtype", "seed",
}  # fmt: skip
OWN_FIELDS = {
    "low", "high", "depths", "found", "kinds", "answers", "values", "encode_seconds", "ask_seconds",
    "window", "beyond_window", "haystacks", "sources", "max_new_tokens",
}  # fmt: skip
TEXT = " ".join(f"Item {i} is kept in a box of its own." for i in range(60))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny model, an adapter for it, and a text."""
    folder = tmp_path_factory.mktemp("home")
    model, tokenizer = tiny_model(max_position_embeddings=512), byte_tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    randomize(SharedLLM.from_pretrained(model, adapter="none", config=CONFIG, tokenizer=tokenizer)).save_adapter(
        folder / "adapter"
    )
    (folder / "long.txt").write_text(TEXT)
    return folder


@pytest.fixture
def command(home, monkeypatch, capsys):
    """Run `eval needle` in `home`; gives exit code, stdout and stderr."""
    monkeypatch.chdir(home)
    threads = torch.get_num_threads()

    def call(*arguments: str) -> tuple[int, str, str]:
        model = ("--model", "model", "--adapter", "adapter", "--dtype", "float32")
        with pytest.raises(SystemExit) as ended:
            main(["eval", "needle", "--text", "long.txt", "-o", "rows.jsonl", *model, *arguments])
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    yield call
    torch.set_num_threads(threads)


SMALL = ("--samples", "3", "--needles-per-text", "2", "--max-new-tokens", "4", "--window", "200")


def test_the_command_writes_rows(command, home):
    (home / "rows.jsonl").unlink(missing_ok=True)
    code, out, err = command("--methods", "shared,truncate,full", "--lengths", "300,600", "--ceiling", *SMALL)
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


def test_json_ends_with_one_object(command):
    code, out, _ = command("--methods", "truncate", "--lengths", "300", "--json", *SMALL)
    figures = json.loads(out)
    assert code == 0 and figures["results"] == "rows.jsonl" and figures["last"]["metric"] == "found"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--lengths", "99999"), "99,999"),
        (("--methods", "shard"), "Did you mean shared?"),
        (("--methods", "passage"), "shared, truncate, full"),
        (("--needles-per-text", "0"), "--needles-per-text is 0"),
        (("--max-new-tokens", "0"), "--max-new-tokens is 0"),
        (("--lengths", "100", "--samples", "8"), "lower --needles-per-text"),
        (("--lengths", "300", "--samples", "1", "--methods", "truncate", "--window", "16"), "raise --window"),
    ],
)
def test_mistakes_are_one_sentence(command, home, arguments, word):
    (home / "rows.jsonl").unlink(missing_ok=True)
    code, out, err = command(*arguments)
    assert code == 2 and word in err and "Traceback" not in err and out == ""
    assert not (home / "rows.jsonl").exists(), "something was written"
