"""Reading one text by several real processes: the folder is that of `sharedllm encode`, and what goes wrong is said."""

from __future__ import annotations

import json

import pytest
import torch

from sharedllm import Library, SharedLLM, UsageError, WorkError
from sharedllm.parallel import LeadingReader, ParallelReader
from sharedllm.processes import Processes
from sharedllm.reading import read
from sharedllm.train.distributed import dealt_rows
from tests.contexts import assert_one_sentence, assert_same_chunks, files
from tests.launches import launched, write_model

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def processes():
    """A launch of one process."""
    return Processes(cpu=True)


def test_two_processes_write_the_folder_that_one_writes(tmp_path):
    model = write_model(tmp_path)
    texts = {"long.txt": "".join(f"Box {i} holds item {i * i}. " for i in range(60)), "short.txt": "Nothing else."}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    options = ("--model", str(model), "--adapter", str(tmp_path / "adapter"), "--dtype", "float32", "--device", "cpu")
    paths = [str(tmp_path / name) for name in texts]
    said = launched(2, "sharedllm.reading", *paths, "-o", str(tmp_path / "two"), *options, "--json")
    figures = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert figures["processes"] == 2 and figures["context_tokens"] == sum(map(len, texts.values()))
    assert figures["received_bytes"] > 0 and "each of 2 processes received 0." in said
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    llm = SharedLLM.from_pretrained(str(model), str(tmp_path / "adapter"), device="cpu", dtype="float32")
    Library(tmp_path / "one", llm).update(dict(zip(paths, texts.values(), strict=True)))
    torch.set_num_threads(threads)
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_one_process_alone_reads_as_ever(make, processes):
    llm = make()
    ids = torch.arange(16 * 5 + 3) % 256
    alone = llm.read(ids)
    llm.reader = ParallelReader(llm.reader, processes)
    assert_same_chunks(llm.read(ids), alone)
    assert processes.received == 0


def test_each_process_is_given_a_chunk_of_its_own_and_none_is_asked_for_its_memory(make, processes, monkeypatch):
    monkeypatch.setattr(processes, "count", 3)
    monkeypatch.setattr(processes, "gather", lambda _: pytest.fail("the others wait for a text"))
    following, leading = (kind(make().reader, processes) for kind in (ParallelReader, LeadingReader))
    assert [reader.at_once(16, most) for reader in (following, leading) for most in (1, 2, 8)] == [3, 2, 8] * 2
    monkeypatch.setattr("sharedllm.reader.chunk_batch", lambda *_: 20)
    assert [leading.at_once(16, most) for most in (1, 8)] == [20, 16]


@pytest.mark.parametrize(("broken", "told"), [("exchange", False), ("source", True)])
def test_after_an_error_the_others_are_told_to_end_only_where_they_wait_for_that(
    tmp_path, processes, monkeypatch, broken, told
):
    model, file = write_model(tmp_path), tmp_path / "long.txt"
    file.write_text("It is in box 7. " * 30 if broken == "exchange" else "")
    sent, broadcast = [], processes.broadcast

    def failing(*_arguments):
        raise WorkError("there is no room.")

    monkeypatch.setattr("sharedllm.processes.Processes", lambda cpu: processes)
    monkeypatch.setattr("sharedllm.parallel.gathered", failing)
    monkeypatch.setattr(processes, "broadcast", lambda tensor: sent.append(tensor) or broadcast(tensor))
    threads = torch.get_num_threads()
    with pytest.raises((UsageError, WorkError), match="no room" if broken == "exchange" else "long.txt"):
        read([str(file)], tmp_path / "kept", model=str(model), adapter=str(tmp_path / "adapter"), dtype="float32", device="cpu")  # fmt: skip
    torch.set_num_threads(threads)
    assert [not tensor.any() for tensor in sent] == ([True] if told else [False, False])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("n", [1, 3, 4, 7, 8])
def test_rows_are_dealt_once_and_all_processes_get_equally_many(n, count):
    dealt = [dealt_rows(n, index, count) for index in range(count)]
    assert sorted(row for rows, counted in dealt for row in rows[:counted]) == list(range(n))
    assert {len(rows) for rows, _ in dealt} == {-(-n // count)}


def test_megatron_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_MEGATRON_LM", "true")
    with pytest.raises(UsageError, match="Megatron-LM is not used") as error:
        Processes(cpu=True)
    assert_one_sentence(error)


@pytest.mark.parametrize("stage, file", [("1", None), ("3", None), ("2", 3), ("3", {}), ("0", 2)])
def test_of_deepspeed_the_stage_of_zero_counts(stage, file, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", stage)
    expected = int(stage)
    if file is not None:  # goes before what accelerate's own configuration says
        expected = file or 0
        (tmp_path / "zero.json").write_text(json.dumps({"zero_optimization": {"stage": file}} if file else {}))
        monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "zero.json"))
    processes = Processes(cpu=True)
    assert (processes.zero_stage, processes.sharded) == (expected, expected == 3)
    assert f"ZeRO stage counts ({expected}" in caplog.text


@pytest.mark.parametrize("text", ["{", "[]", '{"zero_optimization": {"stage": "auto"}}', '{"zero_optimization": {"stage": 4}}', None])  # fmt: skip
def test_settings_of_deepspeed_that_cannot_be_read_are_refused(text, tmp_path, monkeypatch):
    if text is not None:
        (tmp_path / "zero.json").write_text(text)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(tmp_path / "zero.json"))
    with pytest.raises(UsageError, match=r"cannot be read|no ZeRO stage 4") as error:
        Processes(cpu=True)
    assert_one_sentence(error)


def test_the_first_version_of_fsdp_is_refused(processes, monkeypatch):
    assert not processes.sharded
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UsageError, match="fsdp_version: 2") as error:
        _ = processes.sharded
    assert_one_sentence(error)


def test_processes_with_different_models_are_refused(processes, monkeypatch):
    monkeypatch.setattr(processes, "listed", lambda rows: [*rows, "another"])
    with pytest.raises(UsageError, match="the model is this in process 0 and another in process 1") as error:
        processes.agree("model", "this")
    assert_one_sentence(error)
