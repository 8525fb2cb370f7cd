"""What is refused is refused before a long text is read; and how a command ends that somebody ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from typing import Any

import pytest

from tests.cli.test_cli import MODEL, ROW_FIELDS, home, run  # noqa: F401
from tests.cli.test_encode import OTHER, texts  # noqa: F401

COMMAND = [sys.executable, "-c", "from sharedllm.cli import main; main()"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--max-new-tokens", "100000"), "ask for at most"),
        (("--slots-per-leaf", "0"), "slots_per_leaf is 0"),
        (("--fine-chunks", "-1"), "fine_chunks is -1"),
        (("-q", "Why? " * 100), "ask a shorter one"),
    ],
)
@pytest.mark.parametrize("text", ["long.txt", "short.txt"])
def test_what_cannot_be_asked_is_refused_before_anything_is_read(run, monkeypatch, text, options, word):  # noqa: F811
    monkeypatch.setattr("sharedllm.cli.given.read", lambda *_: pytest.fail("read"))
    code, out, err = run("ask", text, "-q", "What?", *MODEL, *options)
    assert code == 2 and word in err and out == ""


@pytest.mark.parametrize(
    "command",
    [
        ("ask", "gone.txt", "-q", "What?"),
        ("chat", "gone.txt"),
        ("encode", "long.txt", "gone.txt", "-o", "none"),
        ("encode", "long.txt", "gone.txt", "-o", "none", "--separate"),
    ],
    ids=lambda command: f"{command[0]} {command[-1]}",
)
def test_a_source_that_is_missing_is_told_before_the_model_is_loaded(run, monkeypatch, command):  # noqa: F811
    monkeypatch.setattr("sharedllm.cli.common.load", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\n"))
    code, out, err = run(*command, *MODEL)
    assert (code, out, err) == (2, "", "sharedllm: 'gone.txt' does not exist: check the path.\n")


def test_a_context_of_another_model_is_refused_by_name_before_texts_are_read(run, texts, monkeypatch):  # noqa: F811
    run("encode", "long.txt", "-o", str(texts), *MODEL)
    about = json.loads((texts / "context.json").read_text())
    (texts / "context.json").write_text(json.dumps({**about, "model": "another"}))
    monkeypatch.setattr("sharedllm.cli.given.text_of", lambda *_: pytest.fail("read"))
    code, _, err = run("ask", "long.txt", str(texts), "-q", "What?", *MODEL, "--max-new-tokens", "2")
    assert code == 2 and f"{texts}: the context was made with another model" in err


def test_a_slot_count_beyond_all_bounds_is_that_of_a_leaf(run):  # noqa: F811
    ask = ("ask", "long.txt", "-q", "What?", *MODEL, "--max-new-tokens", "2", "--json", "--slots-per-leaf")
    most = [json.loads(run(*ask, n)[1])["slots"] for n in ("16", str(10**20))]
    assert most[0] == most[1] > 0


@pytest.mark.parametrize("seed", ["-1", str(2**64)])
def test_a_seed_is_a_seed(run, seed):  # noqa: F811
    code, out, err = run("ask", "short.txt", "-q", "What?", *MODEL, "--seed", seed)
    assert code == 2 and "--seed" in err and out == "" and "Traceback" not in err


@pytest.mark.parametrize("cut", [0, 40, 20_000])
def test_a_damaged_model_is_one_sentence(run, home, tmp_path, cut):  # noqa: F811
    (tmp_path / "model").mkdir()
    for file in (home / "model").iterdir():
        (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:cut])
    code, out, err = run("ask", "short.txt", "-q", "What?", "--model", str(tmp_path / "model"), "--adapter", "none")
    assert code == 1 and "cannot be loaded" in err and "Traceback" not in err and out == ""


def test_files_of_a_folder_that_are_no_texts_are_named(run, tmp_path):  # noqa: F811
    (tmp_path / "a.txt").write_text(OTHER)
    for i in range(7):
        (tmp_path / f"{i}.docx").write_bytes(b"PK\0\1")
    code, _, err = run("ask", str(tmp_path), "-q", "What?", *MODEL, "--max-new-tokens", "2")
    assert (
        code == 0
        and f"passed over, binary, empty or a linked folder: {tmp_path}/0.docx, " in err
        and "4.docx and 2 more" in err
    )


def test_a_text_that_goes_is_named(run, texts, home):  # noqa: F811
    encode = ("encode", "-o", str(texts), *MODEL, "--json")
    run(*encode, "long.txt", "other.txt")
    (home / "other.txt").write_text(OTHER[::-1])
    code, out, err = run(*encode, "./other.txt", "--append")
    assert code == 0 and "replaced by a new text: other.txt" in err
    assert list(json.loads(out)["documents"]) == ["long.txt", "other.txt"], "one path is one document"
    code, _, err = run(*encode, "other.txt")
    assert code == 0 and "no longer kept: long.txt" in err
    code, out, err = run("encode", "--remove", "./other.txt", "-o", str(texts), "--json")
    assert code == 0 and json.loads(out)["documents"] == {}


def test_a_second_text_from_standard_input_takes_no_place(run, texts, monkeypatch):  # noqa: F811
    import io

    encode = ("encode", "-", "--append", "-o", str(texts), *MODEL)
    monkeypatch.setattr("sys.stdin", io.StringIO(OTHER))
    assert run(*encode)[0] == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(OTHER[::-1]))
    code, out, err = run(*encode)
    assert code == 2 and "write it to a file and name that" in err and out == ""


def test_chat_says_once_that_no_adapter_is_in_use(run, monkeypatch):  # noqa: F811
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("What?\nWhy?\n"))
    model = ("--model", "model", "--adapter", "none", "--dtype", "float32")
    code, out, err = run("chat", "long.txt", *model, "--max-new-tokens", "2", "--json")
    assert code == 0 and json.loads(out.splitlines()[0])["slots"] > 0
    assert err.count("no trained adapter is in use") == 1


@pytest.mark.parametrize(
    ("option", "value"),
    [("--memory-gb", "-1"), ("--disk-gb", "inf"), ("--body-mb", "nan"), ("--rate", "-1"), ("--rows", "0")],
)
def test_a_server_is_given_numbers_that_are_some(run, option, value):  # noqa: F811
    code, _, err = run("serve", option, value, *MODEL)
    assert code == 2 and f"{option} is {value}; " in err and "Traceback" not in err


def test_the_demonstration_is_refused_a_folder_before_it_reads(run, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("sharedllm.cli.common.load", lambda *_: pytest.fail("loaded"))
    code, _, err = run("demo", "-o", str(tmp_path))
    assert code == 2 and "is a folder" in err


def test_a_reader_that_has_enough_is_no_failure(home):  # noqa: F811
    ask = [*COMMAND, "ask", "long.txt", "-q", "What?", *MODEL, "--max-new-tokens", "2", "--explain"]
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(ask, cwd=home, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(write)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def broken(program: str, *closed: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program whose `closed` of stdout and stderr nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    pipes: dict[str, Any] = {**dict.fromkeys(("stdout", "stderr"), subprocess.PIPE), **dict.fromkeys(closed, write)}
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    try:
        return subprocess.run([sys.executable, "-c", program], **pipes, env=buffered, text=True, check=False)
    finally:
        os.close(write)


PROGRAM = """
import typer
from sharedllm.cli import common, main
from sharedllm.cli.ending import Command
app = typer.Typer()
@app.command(cls=Command)
def run() -> None:
    {0}
main([], app)
"""


def test_work_goes_on_where_nobody_follows_its_progress():
    reading = "with common.reading_bar() as progress: progress(1, 1)"
    done = broken(
        PROGRAM.format(f"common.say('going on'); common.say('still')\n    {reading}\n    common.tell('done')"), "stderr"
    )
    assert (done.returncode, done.stdout) == (0, "done\n")


@pytest.mark.parametrize(
    ("told", "code"),
    [
        ("common.tell('one of many'); common.say('work')", 141),
        ("common.print_json({}, more=True); common.say('work')", 141),
        ("common.print_json({})", 0),
        ("common.finished(); common.tell('all')", 0),
        ("print('all')", 0),
    ],
)
def test_a_closed_output_is_a_success_only_of_work_that_was_done(told, code):
    done = broken(PROGRAM.format(told), "stdout")
    assert (done.returncode, done.stderr) == (code, "")
    assert broken(PROGRAM.format(told), "stdout", "stderr").returncode == code


def test_a_mistake_has_its_exit_code_where_nobody_reads_what_it_was():
    mistake = "from sharedllm import UsageError; raise UsageError('wrong')"
    assert broken(PROGRAM.format(mistake), "stderr").returncode == 2


def test_an_interrupt_says_that_what_was_read_is_kept(home, tmp_path):  # noqa: F811
    book = tmp_path / "book.txt"
    book.write_text(" ".join(str(i) for i in range(30_000)))
    encode = [*COMMAND, "encode", str(book), "-o", str(tmp_path / "kept"), *MODEL]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heeded = partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # which what runs in the background inherits as ignored
    with subprocess.Popen(encode, cwd=home, preexec_fn=heeded, **pipes) as process:
        until = time.monotonic() + 120
        while not list(tmp_path.glob("kept/segment-*.safetensors")) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and err.endswith("sharedllm: interrupted.\n"), err
    assert "the same command goes on" in err and "Traceback" not in err


def test_the_default_model_goes_by_its_own_name():
    from sharedllm.loading import DEFAULT_NAME, _locate

    assert _locate(DEFAULT_NAME) == _locate(None)


@pytest.mark.parametrize("command", [("eval", "perplexity"), ("bench",)], ids=" ".join)
@pytest.mark.parametrize("named", ["a.txt", "."])
def test_rows_are_added_to_no_text(run, tmp_path, monkeypatch, command, named):  # noqa: F811
    monkeypatch.setattr("sharedllm.cli.common.load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "a.txt").write_text(OTHER)
    code, out, err = run(*command, "--text", str(tmp_path / named), "-o", str(tmp_path / "a.txt"), "--fresh", *MODEL)
    assert code == 2 and "a.txt, which is read with --text; name another file" in err and out == ""
    assert (tmp_path / "a.txt").read_text() == OTHER


def test_standard_input_named_twice_is_refused_before_anything_is_loaded(run, home, monkeypatch):  # noqa: F811
    monkeypatch.setattr("sharedllm.cli.common.load", lambda *_: pytest.fail("loaded"))
    (home / "between").mkdir(exist_ok=True)
    (home / "between" / "context.json").write_text('{"format": "sharedllm-context"}')
    code, out, err = run("ask", "-", "between", "-", "-q", "What?", *MODEL)
    assert code == 2 and "can be given only once" in err and out == ""
