"""What is chosen from what the machine has."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from sharedllm import SharedLLM, UsageError, hardware
from sharedllm.hardware import choose_device, choose_dtype, choose_threads, chunk_batch
from tests.conftest import CONFIG, hooks, tiny_model


@pytest.mark.parametrize(
    ("flags", "dtype", "because"),
    [
        ({"avx2", "avx512f", "amx_bf16", "avx512_bf16"}, "bfloat16", "AMX"),
        ({"avx2", "avx512f", "avx512_bf16"}, "bfloat16", "AVX512-BF16"),
        ({"asimd", "bf16"}, "bfloat16", "ARM"),
        ({"avx2", "fma"}, "float32", "no bfloat16"),
        ({"avx2", "avx512f"}, "float32", "no bfloat16"),
        (set(), "float32", "no bfloat16"),
    ],
)
def test_the_dtype_on_a_cpu_follows_its_instructions(monkeypatch, flags, dtype, because):
    monkeypatch.setattr(hardware, "cpu_flags", lambda: flags)
    for wanted in (None, "auto"):
        choice = choose_dtype("cpu", wanted)
        assert choice.value == dtype and because in choice.reason


@pytest.mark.parametrize(("supported", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_the_dtype_on_a_gpu_follows_the_gpu(monkeypatch, supported, dtype):
    monkeypatch.setattr(hardware, "cpu_flags", set)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or supported
    )
    assert choose_dtype("cuda:0").value == dtype


def test_what_is_asked_for_is_taken(monkeypatch):
    monkeypatch.setattr(hardware, "cpu_flags", lambda: {"amx_bf16"})
    assert choose_dtype("cpu", "float32").value == "float32"
    monkeypatch.setattr(hardware, "cpu_flags", set)
    assert choose_dtype("cpu", "bfloat16").value == "bfloat16"
    assert choose_device("cpu").value == "cpu"


@pytest.mark.parametrize("dtype", ["float64", "int8", "half", ""])
def test_an_unknown_dtype_is_refused_with_the_known_ones(dtype):
    with pytest.raises(UsageError, match=r"auto, float32, bfloat16, float16") as error:
        choose_dtype("cpu", dtype)
    assert repr(dtype) in str(error.value)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x", "", "meta"])
def test_a_device_that_is_not_here_is_refused(device):
    with pytest.raises(UsageError, match="not available") as error:
        choose_device(device)
    assert repr(device) in str(error.value)


@pytest.mark.parametrize(("gpu", "device"), [(True, "cuda"), (False, "cpu")])
def test_a_gpu_is_chosen_where_there_is_one(monkeypatch, gpu, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for wanted in (None, "auto"):
        assert choose_device(wanted).value == device


def test_a_model_already_loaded_takes_device_and_dtype(monkeypatch):
    def attach(**wanted):
        return SharedLLM.from_pretrained(tiny_model(), adapter="none", config=CONFIG, **wanted)

    for dtype in ("bfloat16", torch.bfloat16):
        llm = attach(dtype=dtype)
        assert llm.dtype == torch.bfloat16 and llm.injection.branches[0].query.weight.dtype == torch.bfloat16
    assert attach().dtype == attach(device="cpu").dtype == torch.float32


@pytest.mark.parametrize(
    "wanted", [{"device": "gpu"}, {"device": "cuda:99"}, {"dtype": "float64"}, {"dtype": torch.int8}]
)
def test_a_wrong_device_or_dtype_for_a_loaded_model_is_refused(wanted):
    model = tiny_model()
    with pytest.raises(UsageError):
        SharedLLM.from_pretrained(model, adapter="none", config=CONFIG, **wanted)
    assert hooks(model) == [] and model.dtype == torch.float32


def test_auto_works_for_a_loaded_model(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    llm = SharedLLM.from_pretrained(tiny_model(), adapter="none", config=CONFIG, device="auto")
    assert llm.device.type == choose_device().value


def test_flags_are_read_from_what_the_system_says(monkeypatch):
    text = "processor : 0\nvendor_id : X\nflags\t\t: fpu avx2 amx_bf16\nprocessor : 1\nflags : other\n"
    monkeypatch.setattr(hardware.Path, "read_text", lambda *_, **__: text)
    assert hardware.cpu_flags() == {"fpu", "avx2", "amx_bf16"}
    monkeypatch.setattr(hardware.Path, "read_text", lambda *_, **__: "Features\t: asimd bf16\n")
    assert hardware.cpu_flags() == {"asimd", "bf16"}

    def missing(*_, **__):
        raise FileNotFoundError

    monkeypatch.setattr(hardware.Path, "read_text", missing)
    assert hardware.cpu_flags() == set()


def test_threads_are_the_processors_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    for nothing in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nothing)
        assert choose_threads().value == "3"
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert choose_threads().value == "3"


@pytest.mark.parametrize(("said", "threads"), [("2", "2"), ("5,1", "5")])
def test_threads_are_those_that_a_launcher_leaves(monkeypatch, said, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    choice = choose_threads()
    assert choice.value == threads and "OMP_NUM_THREADS" in choice.reason


def test_chunks_are_read_one_by_one_on_a_cpu_and_as_memory_allows_on_a_gpu(monkeypatch):
    assert chunk_batch(torch.device("cpu"), 1) == 1
    for free, expected in ((0, 1), (400, 1), (4000, 10), (10**9, 64)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10**9))
        assert chunk_batch(torch.device("cuda"), 100) == expected


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux")
def test_peak_memory_is_in_bytes():
    with open("/proc/self/status") as file:
        high = next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024
    assert hardware.peak_memory_bytes(torch.device("cpu")) == pytest.approx(high, rel=0.05)


def test_free_memory_is_what_the_machine_and_its_control_group_leave(monkeypatch):
    figures = {"/proc/meminfo": {"MemAvailable:": 3000}, "/sys/fs/cgroup/memory.stat": {"anon": 1_500_000}}
    monkeypatch.setattr(hardware, "_numbers_in", lambda file: figures.get(file, {}))
    monkeypatch.setattr(hardware, "memory_bytes", lambda: 4_000_000)
    assert hardware.free_memory_bytes(torch.device("cpu")) == 2_500_000
    figures["/sys/fs/cgroup/memory.stat"] = {}
    assert hardware.free_memory_bytes(torch.device("cpu")) == 3000 * 1024
    figures.clear()
    assert hardware.free_memory_bytes(torch.device("cpu")) == 4_000_000 // 1024 * 1024


RETURNED = """
import sys, threading
from pathlib import Path
from sharedllm import hardware

def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024

hardware.keep_freed_memory()
if sys.argv[1] == "shared":
    hardware.share_memory_between_threads()
before, gate = held(), threading.Barrier(8)

def work():
    gate.wait()
    pieces = [b"x" * (90_000 + i) for i in range(150)]
    gate.wait()  # so that all have theirs at once
    del pieces
    gate.wait()

threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads], [thread.join() for thread in threads]
hardware.trim()
print(held() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what is told is glibc")
def test_memory_of_many_threads_can_be_returned():
    left = {
        how: int(
            subprocess.run([sys.executable, "-c", RETURNED, how], capture_output=True, text=True, check=True).stdout
        )
        for how in ("apart", "shared")
    }
    assert left["shared"] < 20 < 50 < left["apart"], left  # megabytes, of 108
