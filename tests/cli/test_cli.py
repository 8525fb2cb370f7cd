"""The command line as a user meets it: what it prints, its exit codes, one sentence for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import torch

from sharedllm import SharedLLM
from sharedllm.cli import main
from sharedllm.encoder import LowerModel
from tests.conftest import CONFIG, byte_tokenizer, randomize, tiny_model

TEXT = " ".join(f"The colour of item {i} is blue." for i in range(40))
ASK_FIELDS = {
    "answer", "context_tokens", "slots", "encode_seconds", "search_seconds", "generate_seconds",
    "generated_tokens", "peak_memory_bytes", "model", "adapter", "device", "dtype",
}  # fmt: skip
ROW_FIELDS = {
    "task", "method", "length", "metric", "value", "samples", "seconds", "peak_memory_bytes",
    "model", "adapter", "device", "dtype", "seed",
}  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny model, an adapter for it, and a text longer than its window."""
    folder = tmp_path_factory.mktemp("home")
    model, tokenizer = tiny_model(), byte_tokenizer()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    llm = randomize(SharedLLM.from_pretrained(model, adapter="none", config=CONFIG, tokenizer=tokenizer))
    llm.save_adapter(folder / "adapter")
    (folder / "long.txt").write_text(TEXT)
    (folder / "short.txt").write_text("Blue.")
    return folder


@pytest.fixture
def run(home, monkeypatch, capsys):
    """Run a command in `home`; gives exit code, stdout and stderr."""
    monkeypatch.chdir(home)
    threads = torch.get_num_threads()

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out = capsys.readouterr()
        return int(ended.value.code or 0), out.out, out.err

    yield call
    torch.set_num_threads(threads)


MODEL = ("--model", "model", "--adapter", "adapter", "--dtype", "float32")


def test_ask_prints_the_answer_and_json_has_the_fields(run):
    code, out, err = run("ask", "long.txt", "-q", "What colour?", *MODEL, "--max-new-tokens", "4")
    assert code == 0 and "slots" in err
    code, again, _ = run("ask", "long.txt", "-q", "What colour?", *MODEL, "--max-new-tokens", "4", "--json")
    figures = json.loads(again.splitlines()[-1])
    assert code == 0 and figures.keys() >= ASK_FIELDS
    assert figures["answer"] == out.strip()
    assert figures["context_tokens"] == len(TEXT) and figures["slots"] > 0
    assert figures["generated_tokens"] <= 4 and figures["dtype"] == "float32"


def test_a_short_text_is_not_compressed(run):
    _, out, _ = run("ask", "short.txt", "-q", "What?", *MODEL, "--max-new-tokens", "4", "--json")
    figures = json.loads(out)
    assert (figures["slots"], figures["compressed"], figures["context_tokens"]) == (0, False, 5)


def test_encode_then_ask_gives_the_same_answer(run, home):
    question = ("-q", "What colour?", *MODEL, "--max-new-tokens", "4", "--json")
    code, _, _ = run("encode", "long.txt", "-o", "kept", *MODEL)
    assert code == 0
    _, direct, _ = run("ask", "long.txt", *question)
    _, kept, _ = run("ask", "kept", *question)
    assert json.loads(kept)["answer"] == json.loads(direct)["answer"]


def test_notes_beside_a_kept_context_are_read_in_the_time_that_is_told(run, monkeypatch):
    run("encode", "long.txt", "-o", "kept", *MODEL)
    encode = LowerModel.encode
    monkeypatch.setattr(LowerModel, "encode", lambda *args: (time.sleep(0.5), encode(*args))[1])
    _, out, _ = run("ask", "kept", "short.txt", "-q", "What colour?", *MODEL, "--max-new-tokens", "2", "--json")
    figures = json.loads(out.splitlines()[-1])
    assert figures["encode_seconds"] >= 0.5 > figures["search_seconds"]


def test_a_text_that_fits_without_its_question_is_read_in_the_time_that_is_told(run, home, monkeypatch):
    (home / "between.txt").write_text("b" * 60)
    encode = LowerModel.encode
    monkeypatch.setattr(LowerModel, "encode", lambda *args: (time.sleep(0.5), encode(*args))[1])
    _, out, err = run("ask", "between.txt", "-q", "What colour?", *MODEL, "--max-new-tokens", "2", "--json")
    assert json.loads(out)["encode_seconds"] >= 0.5 and "reading: 60 of 60 tokens" in err


def test_ask_explains_and_reads_as_finely_as_told(run):
    ask = ("ask", "long.txt", "-q", "What colour is item 7?", *MODEL, "--max-new-tokens", "2")
    code, out, _ = run(*ask, "--explain")
    assert code == 0 and "\nchunk " in out and "read, score " in out
    _, out, _ = run(*ask, "--explain", "--json")
    figures = json.loads(out)
    assert 1 <= len(figures["passages"]) <= 5
    assert all(TEXT[p["start"] : p["end"]] == p["text"] and p["slots"] > 0 for p in figures["passages"])
    _, out, _ = run(*ask, "--read-chunks", "2", "--slots-per-leaf", "1", "--json")
    assert 0 < json.loads(out)["slots"] < figures["slots"] and "passages" not in json.loads(out)
    _, out, _ = run(*ask, "--fine-chunks", "1", "--json")  # more than is stored: a chunk is read again
    assert json.loads(out)["slots"] > figures["slots"]
    code, out, err = run(*ask, "--slots-per-leaf", "0")
    assert code == 2 and "slots_per_leaf is 0" in err and out == ""


def test_kept_spans_are_read_from_tags(run, home):
    (home / "tagged.txt").write_text(TEXT.replace("item 7", "<keep>item 7</keep>"))
    ask = ("-q", "What?", *MODEL, "--max-new-tokens", "2", "--json")
    _, out, _ = run("ask", "tagged.txt", "--keep-tags", *ask)
    direct = json.loads(out)
    assert direct["context_tokens"] == len(TEXT)
    run("encode", "tagged.txt", "-o", "tagged", "--keep-tags", *MODEL)
    _, out, _ = run("ask", "tagged", *ask)
    assert (json.loads(out)["answer"], json.loads(out)["slots"]) == (direct["answer"], direct["slots"])
    (home / "tagged.txt").write_text(TEXT + "<keep>")
    code, _, err = run("ask", "tagged.txt", "--keep-tags", *ask)
    assert code == 2 and "</keep>" in err


def test_tags_do_not_pair_across_files(run, home, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT + "<keep>")
    (tmp_path / "b.txt").write_text("</keep>" + TEXT)
    for command in (
        ("ask", str(tmp_path), "-q", "What?", "--max-new-tokens", "2"),
        ("encode", str(tmp_path), "-o", "paired"),
    ):
        code, out, err = run(*command, "--keep-tags", *MODEL)
        assert code == 2 and f"{tmp_path}/a.txt: the last <keep> has no </keep>" in err and out == ""


def test_eval_writes_rows(run, home):
    (home / "rows.jsonl").unlink(missing_ok=True)
    code, out, _ = run(
        "eval", "perplexity", "--text", "long.txt", "--methods", "shared,truncate,full", "--lengths", "64,128",
        "--targets", "8", "--window", "16", "--samples", "2", *MODEL, "-o", "rows.jsonl",
    )  # fmt: skip
    rows = [json.loads(line) for line in (home / "rows.jsonl").read_text().splitlines()]
    assert code == 0 and "truncate" in out
    assert all(row.keys() >= ROW_FIELDS for row in rows)
    nll = {(r["method"], r["length"]): r["value"] for r in rows if r["metric"] == "nll"}
    assert nll.keys() == {(m, n) for m in ("shared", "truncate", "full") for n in (64, 128)}
    assert len({nll[method, 64] for method in ("shared", "truncate", "full")}) == 3


SCORED = ("eval", "perplexity", "--lengths", "64", "--samples", "2", "--methods", "truncate,full", *MODEL)


def test_the_window_that_is_told_is_that_of_the_rows(run, home, tmp_path):
    for options, windows in (
        (("--targets", "16", "--window", "16"), "truncate 17, full 17"),
        (("--targets", "16", "--window", "truncate=32"), "truncate 32, full 64"),
        ((), "truncate 64, full 64"),
    ):
        rows = tmp_path / "rows.jsonl"
        code, out, err = run(*SCORED, "--text", "long.txt", "-o", str(rows), *options, "--fresh")
        assert code == 0 and out.splitlines()[0].endswith(f"windows: {windows}"), err
        told = [json.loads(line) for line in rows.read_text().splitlines()][-3:]
        assert windows == ", ".join(f"{row['method']} {row['window']}" for row in told if row["metric"] == "nll")


@pytest.mark.parametrize("window", ["15", "full=15"])
def test_a_window_without_room_for_what_is_scored_is_refused(run, monkeypatch, window):
    monkeypatch.setattr("sharedllm.cli.common.load", lambda *_, **__: pytest.fail("loaded"))
    code, out, err = run(*SCORED, "--text", "long.txt", "-o", "r.jsonl", "--targets", "16", "--window", window)
    assert code == 2 and "--window is 15 for " in err and "give --targets 15 or less" in err and out == ""


def test_results_are_no_text_that_is_measured_on(run, home, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT)
    rows = tmp_path / "rows.jsonl"
    for _ in range(2):
        code, _, err = run(*SCORED, "--text", str(tmp_path), "-o", str(rows), "--targets", "8", "--fresh")
        assert code == 0, err
    assert {name for line in rows.read_text().splitlines() for name in json.loads(line)["sources"]} == {"a.txt"}


def test_doctor(run):
    code, out, _ = run("doctor", "--json")
    figures = json.loads(out)
    assert code == 0 and figures["device"] and figures["dtype_reason"] and figures["versions"]["torch"]


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("ask", "nothere.txt", "-q", "x"), 2, "nothere.txt"),
        (("ask", "empty.txt", "-q", "x"), 2, "empty"),
        (("ask", "binary.bin", "-q", "x"), 2, "binary"),
        (("ask", "long.txt", "-q", "  "), 2, "question"),
        (("ask", "long.txt"), 2, "question"),
        (("ask", "-q", "x"), 2, "SOURCE"),
        (("ask", "long.txt", "-q", "x", "--max-new-tokens", "-3"), 2, "-3"),
        (("ask", "long.txt", "-q", "x", "--dtype", "float17"), 2, "float17"),
        (("ask", "long.txt", "-q", "x", "--device", "cuda:77"), 2, "cuda:77"),
        (("ask", "long.txt", "-q", "x", "--adapter", "nowhere"), 2, "nowhere"),
        (("ask", "long.txt", "-q", "x", "--adapter", "foreign"), 2, "hidden_size"),
        (("ask", "long.txt", "-q", "x", "--adapter", "broken"), 1, "adapter_model.safetensors"),
        (("ask", "cut", "-q", "x"), 1, "broken"),
        (("ask", "other", "-q", "x"), 2, "another model"),
        (("ask", "long.txt", "-q", "x", "--model", "gpt2"), 2, "rotary"),
        (("ask", "long.txt", "-q", "x", "--model", "nowhere/atall"), 2, "nowhere/atall"),
        (("encode", "long.txt", "-o", "foreign"), 2, "not a saved context"),
        (("eval", "perplexity", "--text", "long.txt", "-o", "r.jsonl", "--lengths", "-5"), 2, "-5"),
        (("eval", "perplexity", "--text", "long.txt", "-o", "r.jsonl", "--lengths", "many"), 2, "many"),
        (("eval", "perplexity", "--text", "long.txt", "-o", "r.jsonl", "--lengths", "99999"), 2, "99,999"),
        (("eval", "perplexity", "--text", "long.txt", "-o", "r.jsonl", "--methods", "shred"), 2, "shared"),
        (("eval", "perplexty", "--text", "long.txt", "-o", "r.jsonl"), 2, "perplexity"),
        (("train", "nowhere"), 2, "nowhere"),
        (("data", "build", "nowhere"), 2, "nowhere"),
        (("demo", "--tokens", "-1"), 2, "-1"),
    ],
)  # fmt: skip
def test_mistakes(run, home, mistakes, arguments, code, word):
    if arguments[0] in ("ask", "encode", "eval"):
        given = "--model" in arguments, "--adapter" in arguments, "--dtype" in arguments
        for has, extra in zip(given, (MODEL[:2], MODEL[2:4], MODEL[4:]), strict=True):
            arguments += () if has else extra
    if arguments[0] == "ask" and "--max-new-tokens" not in arguments:
        arguments += ("--max-new-tokens", "2")  # the window is too small for the default
    before = {p: p.stat().st_mtime_ns for p in home.rglob("*")}
    ended, out, err = run(*arguments)
    assert ended == code, err
    assert word in err and "Traceback" not in err and out == ""
    assert {p: p.stat().st_mtime_ns for p in home.rglob("*")} == before, "something was written"


@pytest.fixture(scope="module")
def mistakes(home):
    """Broken and foreign things to name on the command line."""
    from transformers import GPT2Config, GPT2LMHeadModel

    (home / "empty.txt").write_text("")
    (home / "binary.bin").write_bytes(bytes(range(256)) * 10)
    other = SharedLLM.from_pretrained(
        tiny_model(hidden_size=16), adapter="none", config=CONFIG, tokenizer=byte_tokenizer()
    )
    other.save_adapter(home / "foreign")
    other.read(TEXT).save(home / "other")
    own = SharedLLM.from_pretrained(tiny_model(), adapter="none", config=CONFIG, tokenizer=byte_tokenizer())
    own.save_adapter(home / "broken")
    own.read(TEXT).save(home / "cut")
    for file in (home / "broken/adapter_model.safetensors", next((home / "cut").glob("segment-*"))):
        file.write_bytes(file.read_bytes()[:-200])
    GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=300)).save_pretrained(home / "gpt2")
    byte_tokenizer().save_pretrained(home / "gpt2")


def test_help_is_quick_for_it_imports_nothing_large():
    large = {"accelerate", "fastapi", "filelock", "fsspec", "gguf", "huggingface_hub", "lxml", "matplotlib", "numpy", "pypdf",
             "ray", "rich", "safetensors", "torch", "trafilatura", "transformers", "yaml"}  # fmt: skip
    code = f"import sys; from sharedllm.cli import main\ntry: main(['--help'])\nexcept SystemExit: sys.exit(str({large} & sys.modules.keys() or ''))"
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert time.perf_counter() - started < 5  # what a machine with much else to do may take
    assert result.stderr.strip() == "" and "ask" in result.stdout


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("serve", ("GB of memory that contexts may take", "GB of disk for long prompts", "Largest request, in MB.")),
        ("chat", ("Print one JSON object a turn.",)),
        ("ask", ("Chunks of which every token is kept (default: the adapter's setting).", "as the last line")),
        ("eval", ("ruler, longbench, infinitebench: questions of each task.",)),
    ],
)
def test_help_says_of_what_a_number_is(run, command, said):
    code, out, _ = run(command, "--help")
    text = " ".join(out.split())
    assert code == 0 and all(words in text for words in said), text


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("long.txt", "-q", "caf\udce9?"), "no text that can be encoded, from character 3 on"),
        (("long.txt", "-q", "x", "--documents", "2"), "--documents is for collections"),
        (("before", "-q", "x", "--keep-tags"), "--keep-tags is for texts"),
    ],
)
def test_what_ask_cannot_use_is_refused_before_anything_is_loaded(run, home, monkeypatch, arguments, word):
    monkeypatch.setattr("sharedllm.cli.common.load", lambda *_: pytest.fail("loaded"))
    (home / "before").mkdir(exist_ok=True)
    (home / "before" / "context.json").write_text('{"format": "sharedllm-context"}')
    code, out, err = run("ask", *arguments, *MODEL)
    assert code == 2 and word in err and err.count("\n") == 1 and out == ""


def test_a_folder_with_another_programs_file_of_that_name_is_a_folder_of_texts(run, home):
    (home / "project").mkdir()
    (home / "project" / "context.json").write_text('{"theme": "dark"}')
    (home / "project" / "a.txt").write_text("The sky is blue.")
    code, _, err = run("ask", "project", "-q", "What colour?", *MODEL, "--max-new-tokens", "2", "--json")
    assert code == 0, err
    (home / "project" / "context.json").write_text("{")  # what is left of one of ours
    code, _, err = run("ask", "project", "-q", "What colour?", *MODEL, "--max-new-tokens", "2")
    assert code != 0 and "context" in err and err.count("\n") == 1


def test_chat_goes_on_after_bytes_that_are_no_text(run, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9?\nBlue?\n"), encoding="utf-8"))
    code, out, err = run("chat", *MODEL, "--max-new-tokens", "2", "--json")
    assert code == 0 and len(out.splitlines()) == 2, err


def test_chat_over_a_collection_names_ask(run, home, monkeypatch):
    monkeypatch.setattr("sharedllm.cli.common.load", lambda *_: pytest.fail("loaded"))
    (home / "many" / "stores").mkdir(parents=True)
    (home / "many" / "documents.jsonl").write_text("")
    code, out, err = run("chat", "many", *MODEL)
    assert code == 2 and "many is a collection" in err and "sharedllm ask" in err and out == ""
