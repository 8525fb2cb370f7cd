"""Samples spread over the workers of a real Ray cluster give the rows that one process gives."""

from __future__ import annotations

import json

import pytest
import torch

from sharedllm.cli import main
from tests.cli.conftest import home  # noqa: F401
from tests.ray_cluster import cluster  # noqa: F401

pytestmark = pytest.mark.processes

VARY = {"seconds", "encode_seconds", "ask_seconds", "peak_memory_bytes"}


@pytest.fixture
def rows(home, monkeypatch, capsys):  # noqa: F811
    """`rows(engine, task, *options)`: what the command writes."""
    monkeypatch.chdir(home)

    def run(engine, task, *options):
        file = home / f"{engine}-{task}.jsonl"
        threads = torch.get_num_threads()
        monkeypatch.setattr("sharedllm.hardware.choose_threads", lambda: type("One", (), {"value": "1"}))
        over = ("--workers", "2") if engine == "ray" else ()  # with a thread each
        model = ("--model", "model", "--adapter", "adapter", "--dtype", "float32", "--text", "long.txt")
        with pytest.raises(SystemExit) as ended:
            main(["eval", task, *model, *options, "--engine", engine, *over, "-o", str(file)])
        torch.set_num_threads(threads)
        said = capsys.readouterr().err
        assert not ended.value.code, said
        return [json.loads(line) for line in file.read_text().splitlines()], said

    return run


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("perplexity", ("--lengths", "300,600", "--samples", "3", "--targets", "50", "--window", "100")),
        ("needle", ("--lengths", "300", "--samples", "4", "--needles-per-text", "2", "--max-new-tokens", "4", "--window", "200", "--ceiling")),
    ],
)  # fmt: skip
def test_rows_are_those_of_one_process(cluster, rows, task, options):  # noqa: F811
    methods = ("--methods", "shared,truncate", *options)
    here, _ = rows("local", task, *methods)
    spread, said = rows("ray", task, *methods)
    assert len(spread) == len(here) >= 3
    for a, b in zip(spread, here, strict=True):
        assert {k: v for k, v in a.items() if k not in VARY} == {k: v for k, v in b.items() if k not in VARY}
        assert a.keys() == b.keys() and a["peak_memory_bytes"] > 0
    assert "question 4 of 4" in said or "passage 3 of 3" in said


def test_a_workers_mistake_is_the_commands(cluster, home, capsys, monkeypatch):  # noqa: F811
    monkeypatch.chdir(home)
    options = ("--text", "long.txt", "--lengths", "300", "--samples", "2", "--needles-per-text", "1", "--window", "20")
    monkeypatch.setattr("sharedllm.evaluate.asking.lacks_room", lambda *_: None)  # else this process says it
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit) as ended:
        main(["eval", "needle", "--model", "model", "--adapter", "adapter", "--dtype", "float32", "--methods", "truncate", *options, "--engine", "ray", "-o", "x.jsonl"])  # fmt: skip
    torch.set_num_threads(threads)
    err = capsys.readouterr().err
    assert ended.value.code == 2 and "cannot hold the question" in err and "Traceback" not in err
